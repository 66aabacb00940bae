"""The drawn pictures: repeatable, in turn, hard for a linear model; and what a crack adds to one."""

import pytest
import torch
from resbook.cracks import CRACK_CLASSES, draw_cracks
from sklearn.linear_model import RidgeClassifier


def test_six_classes_in_turn():
    images, labels = draw_cracks(13, 20)
    assert images.shape == (13, 3, 20, 20) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1
    assert labels.tolist() == [*range(6), *range(6), 0] and labels.dtype == torch.int64
    assert [name.split(", ")[1] for name in CRACK_CLASSES] == ["intact", "cracked"] * 3


def test_a_picture_depends_on_its_seed_and_number_alone():
    torch.manual_seed(1)
    images = draw_cracks(9, 20, seed=3)[0]
    torch.manual_seed(2)
    assert torch.equal(draw_cracks(4, 20, seed=3)[0], images[:4])
    flat = torch.cat([images, draw_cracks(9, 20, seed=4)[0]]).flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 0.5


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_cracks(6, 16)
    assert torch.equal(before, torch.get_rng_state())


def test_a_healed_picture_lacks_its_crack_and_nothing_else():
    (images, labels), (healed, kept) = draw_cracks(24, 48), draw_cracks(24, 48, healed=True)
    assert torch.equal(labels, kept)
    assert torch.equal(images[::2], healed[::2])
    changed = (images != healed).any(1).float().mean((1, 2))[1::2]
    assert (changed > 0.01).all() and (changed < 0.5).all()
    assert (images <= healed + 1e-6).all()


def test_a_crack_darkens_a_thin_part_of_the_picture():
    (images, labels), (healed, _) = draw_cracks(24, 48), draw_cracks(24, 48, healed=True)
    darker = (healed - images).mean(1) > 0.1
    share = darker.float().mean((1, 2))
    assert (share[labels % 2 == 0] == 0).all()
    assert (share[labels % 2 == 1] > 0.005).all() and share.max() < 0.2
    assert not torch.equal(images, healed)


def test_pixels_alone_do_not_tell_the_classes():
    (images, labels), (others, theirs) = draw_cracks(240, 24), draw_cracks(120, 24, seed=1)
    model = RidgeClassifier(alpha=100).fit(images.flatten(1).numpy(), labels.numpy())
    assert model.score(others.flatten(1).numpy(), theirs.numpy()) < 0.45


def test_bad_arguments():
    with pytest.raises(ValueError, match="size must be at least 16, got 15"):
        draw_cracks(6, 15)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw_cracks(0)
    with pytest.raises(TypeError, match="seed must be an integer"):
        draw_cracks(6, seed=0.5)
