"""The embedded data: what it holds, how it is split, and what normalising does."""

import pytest
import torch
from resbook.data import digits, normalise
from sklearn.datasets import load_digits


def test_digits_are_all_of_scikit_learns_split_by_class():
    data = digits()
    assert data.train_images.shape == (1437, 1, 8, 8) and data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    labels = torch.cat([data.train_labels, data.test_labels])
    assert torch.equal(labels.bincount(), torch.tensor(load_digits().target).bincount())
    share = data.test_labels.bincount() / labels.bincount()
    assert (share - 0.2).abs().max() < 0.005
    assert data.classes == tuple("0123456789")


def test_no_digit_is_in_both_parts_but_for_twins_of_the_source():
    data, source = digits(), torch.tensor(load_digits().images, dtype=torch.float32).flatten(1)
    images = torch.cat([data.train_images, data.test_images]).flatten(1)
    scaled = (images - images.min()) / (images.max() - images.min()) * 16
    assert torch.equal(scaled.round().unique(dim=0), source.unique(dim=0))


def test_the_seed_makes_the_split():
    assert torch.equal(digits(1).train_images, digits(1).train_images)
    assert not torch.equal(digits(1).train_labels, digits(2).train_labels)


def test_normalise_uses_the_training_images_alone():
    train, test = 3 + 2 * torch.randn(50, 2, 4, 4), torch.randn(10, 2, 4, 4)
    changed, other = normalise(train, test)
    assert torch.allclose(changed.mean((0, 2, 3)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(changed.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-6)
    mean, deviation = train[:, 1].mean(), train[:, 1].std(correction=0)
    assert torch.allclose(other[:, 1], (test[:, 1] - mean) / deviation, atol=1e-6)


def test_a_constant_channel_is_refused():
    train = torch.randn(5, 3, 2, 2)
    train[:, 2] = 0.5
    with pytest.raises(ValueError, match="channel 2 has the value 0.5"):
        normalise(train, train)


def test_to_moves_every_tensor():
    moved = digits().to("meta")
    assert all(tensor.is_meta for tensor in moved[:4]) and moved.classes == digits().classes
