"""The training loop against PyTorch's optimiser run by hand, and the schedules and augmentation against the paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from resbook.data import Data
from resbook.training import constant, crop_and_flip, evaluate, one_cycle, paper_schedule, train
from torch import nn


def small_data(count=20):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % 3
    return Data(images, labels, images[:7], labels[:7], ("a", "b", "c"))


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_equals_sgd_written_out():
    data, model = small_data(), small_model()
    expected, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    history = train(model, data, epochs=3, lr=0.05, batch_size=8, seed=5, schedule=paper_schedule)
    buffers, rates, seen = {}, [0.05, 0.05, 0.05, 0.005, 0.005, 0.0005], []
    for _ in range(3):
        order = torch.randperm(20, generator=generator)
        for chosen in (order[:8], order[8:16]):
            logits = expected(data.train_images[chosen])
            loss = F.cross_entropy(logits, data.train_labels[chosen])
            seen.append((loss.item(), (logits.argmax(1) == data.train_labels[chosen]).float().mean().item()))
            gradients = torch.autograd.grad(loss, list(expected.parameters()))
            rate = rates[len(seen) - 1]
            with torch.no_grad():
                for name, (parameter, g) in enumerate(zip(expected.parameters(), gradients, strict=True)):
                    g = g + 1e-4 * parameter
                    buffers[name] = 0.9 * buffers[name] + g if name in buffers else g
                    parameter -= rate * buffers[name]
    for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    for row, i in zip(history.rows, (0, 2, 4), strict=True):
        assert row.train_loss == pytest.approx((seen[i][0] + seen[i + 1][0]) / 2, rel=1e-5)
        assert row.train_accuracy == pytest.approx((seen[i][1] + seen[i + 1][1]) / 2)
    assert history.column("lr") == pytest.approx([0.05, 0.005, 0.0005])
    with torch.no_grad():
        logits = expected.eval()(data.test_images)
    assert history.rows[-1].test_loss == pytest.approx(F.cross_entropy(logits, data.test_labels).item(), abs=1e-5)


def test_same_seed_same_result_other_seed_another():
    results = [
        train(small_model(), small_data(), epochs=2, lr=0.01, batch_size=5, seed=s, augment=crop_and_flip).rows
        for s in (0, 0, 1)
    ]
    assert results[0] == results[1] != results[2]


def test_leaves_the_model_in_evaluation_mode_and_the_global_generator_alone():
    model, before = small_model(), torch.get_rng_state()
    train(model, small_data(), epochs=1, batch_size=20)
    assert not any(module.training for module in model.modules())
    assert torch.equal(before, torch.get_rng_state())


def test_watch_sees_every_step_with_gradients_and_the_weights_before_it():
    seen, model = [], small_model()
    start = model[0].weight.detach().clone()

    def watch(step, watched):
        seen.append(step)
        assert watched[0].weight.grad.norm() > 0
        assert step > 0 or torch.equal(watched[0].weight, start)

    train(model, small_data(), epochs=2, batch_size=8, watch=watch)
    assert seen == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_stops_the_training_and_is_told():
    history = train(small_model(), small_data(), epochs=50, lr=1e20, batch_size=10)
    assert history.diverged is not None and 0 < history.diverged < 10 and len(history.rows) < 5
    assert f"not finite at step {history.diverged}" in str(history)


def test_history_as_text():
    history = train(small_model(), small_data(), epochs=2, lr=0.01, batch_size=10)
    assert history.diverged is None and str(history).splitlines()[-1] == "2 epochs"
    assert str(history).splitlines()[2].split()[:2] == ["1", "0.01"]
    assert history.column("epoch") == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 1, "batch_size": 21}, "batch_size must be at most 20, the number of training images, got 21"),
        ({"epochs": 1, "lr": 0}, "lr must be a positive number, got 0"),
        ({"epochs": 1, "lr": float("nan")}, "lr must be a positive number, got nan"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        train(small_model(), small_data(), **{"batch_size": 20, **options})
    with pytest.raises(TypeError, match="epochs must be an integer of at least 1, got 1.5"):
        train(small_model(), small_data(), epochs=1.5)


def test_evaluate_does_not_depend_on_the_batch_size():
    model, data = small_model(), small_data()
    whole = evaluate(model, data.train_images, data.train_labels)
    assert evaluate(model, data.train_images, data.train_labels, batch_size=3) == pytest.approx(whole, rel=1e-6)
    logits = model(data.train_images)
    assert whole[1] == (logits.argmax(1) == data.train_labels).float().mean().item()


def test_the_papers_schedule_drops_at_32_and_48_of_64_thousand_steps():
    rates = [0.1 * paper_schedule(step / 64_000) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_one_cycle_rises_to_one_and_falls_to_nothing():
    values = torch.tensor([one_cycle(i / 1000) for i in range(1000)])
    assert values[0] == 0 and values[300] == 1 and values[-1] < 0.002
    assert (values[:301].diff() > 0).all() and (values[300:].diff() < 0).all()
    assert constant(0.7) == 1


def test_crop_and_flip_does_what_the_paper_says_to_each_image():
    images = torch.arange(1, 1 + 300 * 2 * 5 * 5, dtype=torch.float32).reshape(300, 2, 5, 5)
    changed = crop_and_flip(images, torch.Generator().manual_seed(0), pad=1)
    found = set()
    for image, result in zip(images, changed, strict=True):
        padded = F.pad(image, (1, 1, 1, 1))
        crops = {(i, j): padded[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)}
        every = {
            (*at, mirrored): crop.flip(2) if mirrored else crop for at, crop in crops.items() for mirrored in (0, 1)
        }
        (move,) = [move for move, candidate in every.items() if torch.equal(result, candidate)]
        found.add(move)
    assert len(found) == 18
