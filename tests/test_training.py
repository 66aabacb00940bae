"""The training loop against PyTorch's optimiser run by hand, and the schedules and augmentation against the paper."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_states_equal
from resbook.data import Data
from resbook.experiments.digits import Scale
from resbook.history import EpochRow, History
from resbook.networks import cifar_resnet
from resbook.recipes import constant, crop_and_flip, one_cycle, paper_schedule, parameter_groups
from resbook.training import evaluate, train
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


def by_hand(model, data, *, steps, decays=lambda name: True, weights=(1, 1, 1), clip=math.inf, wd=0.01):
    """Take steps of SGD on batches of 8, one epoch long, by formulas; return the losses and the gradients' norms."""
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))
    velocity, losses, norms = {}, [], []
    for chosen in order.split(8)[:steps]:
        labels = data.train_labels[chosen]
        log_p = model(data.train_images[chosen]).log_softmax(1)[range(8), labels]
        weight = torch.tensor(weights)[labels]
        loss = -(weight * log_p).sum() / weight.sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        with torch.no_grad():
            for (name, parameter), g in zip(model.named_parameters(), gradients, strict=True):
                g = g * min(1, clip / norm) + wd * decays(name) * parameter
                velocity[name] = 0.9 * velocity.get(name, 0) + g
                parameter -= 0.1 * velocity[name]
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms


OPTIONS = {  # what train is given, and by_hand
    "decay everywhere": ({}, {}),
    "decay of matrices": ({"decay_all": False}, {"decays": lambda name: name in ("0.weight", "4.weight")}),
    "no decay": ({"decay_all": False, "weight_decay": 0}, {"wd": 0}),
    "class weights": ({"class_weights": torch.tensor([0.5, 3.0, 0.0])}, {"weights": (0.5, 3.0, 0.0)}),
    "class weights in a list": ({"class_weights": [1, 2, 4]}, {"weights": (1.0, 2.0, 4.0)}),
    "clip": ({"clip": 0.7}, {"clip": 0.7}),
}


@pytest.mark.parametrize(("options", "formulas"), OPTIONS.values(), ids=OPTIONS)
def test_options_do_what_their_formulas_say(options, formulas):
    data, model, norms = small_data(), small_model(), []
    expected = copy.deepcopy(model)

    def watch(step, model):
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))

    history = train(model, data, epochs=1, batch_size=8, watch=watch, **{"weight_decay": 0.01, **options})
    losses, whole = by_hand(expected, data, steps=2, **formulas)
    for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    assert history.rows[0].train_loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    clip = formulas.get("clip", math.inf)
    assert norms == pytest.approx([min(norm, clip) for norm in whole], rel=1e-4)
    assert min(whole) > 0.7  # something was clipped


@pytest.mark.parametrize("weight_decay", [0.1, 0, 0.0])
@pytest.mark.parametrize("decay_all", [True, False])
def test_groups_hold_every_parameter_once_and_decay_what_they_should(decay_all, weight_decay):
    model = nn.Sequential(cifar_resnet(8, shortcut="B"), Scale(0.0))
    tied = model[0].layer1[0]
    tied.conv2.weight = tied.conv1.weight
    decays = {
        p: group["weight_decay"] for group in parameter_groups(model, weight_decay, decay_all) for p in group["params"]
    }
    listed = [p for group in parameter_groups(model, weight_decay, decay_all) for p in group["params"]]
    assert len(listed) == len(decays) and set(decays) == set(model.parameters())
    layers = {module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    for parameter, decay in decays.items():
        assert decay == (weight_decay if decay_all or parameter in layers else 0)
    assert [group["weight_decay"] for group in parameter_groups(nn.Linear(2, 2, bias=False), 0.1, False)] == [0.1]


def test_channels_last_changes_the_memory_and_not_the_numbers():
    models, histories = [small_model(), small_model()], []
    for model, channels_last in zip(models, (False, True), strict=True):
        images = []
        model[0].register_forward_pre_hook(lambda layer, inputs, images=images: images.append(inputs[0]))
        histories.append(train(model, small_data(), epochs=3, lr=0.05, batch_size=8, channels_last=channels_last))
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        batches = [batch for batch in images if len(batch) == 8]  # others are tests
        assert batches[0].is_contiguous(memory_format=torch.channels_last) is channels_last
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    for mine, other in zip(*(history.rows for history in histories), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"class_weights": [1, 1, 1], "clip": 10}], ids=str)
def test_bf16_computes_in_16_bits_while_training_and_comes_near(options):
    models, types = [small_model(), small_model()], []
    whole = train(models[0], small_data(), epochs=3, lr=0.01, batch_size=8)
    models[1][0].register_forward_hook(lambda layer, inputs, output: types.append((layer.training, output.dtype)))
    half = train(models[1], small_data(), epochs=3, lr=0.01, batch_size=8, bf16=True, **options)
    assert set(types) == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in models[1].parameters())
    losses = half.column("train_loss"), whole.column("train_loss")
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(mine, other, atol=0.01)


def test_without_bf16_nothing_asks_for_autocast(monkeypatch):
    """PyTorch 2.4 has none for Apple's MPS, not even one that is switched off."""
    monkeypatch.delattr(torch, "autocast")
    train(small_model(), small_data(), epochs=1, batch_size=20)
    with pytest.raises(AttributeError):
        train(small_model(), small_data(), epochs=1, batch_size=20, bf16=True)


def misleading(data):
    """Return data with three of seven test labels wrong: the test loss falls, then rises again."""
    labels = data.test_labels.clone()
    labels[:3] = (labels[:3] + 1) % 3
    return data._replace(test_labels=labels)


def test_patience_stops_and_hands_back_the_best_weights():
    data = misleading(small_data())
    model, best, rising = small_model(), small_model(), small_model()
    history = train(model, data, epochs=50, lr=0.02, batch_size=8, patience=3)
    losses = history.column("test_loss")
    epoch = 1 + losses.index(min(losses))
    assert 1 < epoch == history.best_epoch() and len(losses) == epoch + 3
    train(best, data, epochs=epoch, lr=0.02, batch_size=8)
    assert_states_equal(model.state_dict(), best.state_dict())
    assert not any(module.training for module in model.modules())
    train(rising, data, epochs=epoch + 3, lr=0.02, batch_size=8)
    assert not torch.equal(rising[0].weight, best[0].weight)


def test_patience_hands_back_the_best_weights_also_when_there_was_no_need_to_stop():
    data = misleading(small_data())
    epochs = train(small_model(), data, epochs=50, lr=0.02, batch_size=8, patience=1).best_epoch()
    model, best = small_model(), small_model()
    history = train(model, data, epochs=epochs + 1, lr=0.02, batch_size=8, patience=10)
    train(best, data, epochs=epochs, lr=0.02, batch_size=8)
    assert len(history.rows) == epochs + 1
    assert_states_equal(model.state_dict(), best.state_dict())


def test_patience_has_an_end_where_no_test_loss_is_a_number():
    data = small_data()
    data = data._replace(test_images=data.test_images * math.nan)
    history = train(small_model(), data, epochs=50, lr=0.02, batch_size=8, patience=2)
    assert len(history.rows) == 2 and history.best_epoch() == 0


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 1, 2], 2), ([2, 1, 1], 2), ([math.nan, 5, math.inf], 2), ([math.nan, math.inf], 0), ([], 0)],
    ids=str,
)
def test_best_epoch_is_the_first_of_the_least_loss_that_is_a_number(losses, epoch):
    assert History(EpochRow(i + 1, 0.1, 0, 0, loss, 0) for i, loss in enumerate(losses)).best_epoch() == epoch


def test_writer_is_given_every_number_of_every_epoch():
    class Writer:
        calls = []

        def add_scalar(self, *call):
            self.calls.append(call)

    history = train(small_model(), small_data(), epochs=2, lr=0.01, batch_size=8, writer=Writer())
    names = ["lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    expected = [(name, getattr(row, name), row.epoch) for row in history.rows for name in names]
    assert Writer.calls == expected and [call[2] for call in expected] == [1] * 5 + [2] * 5


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_in_a_terminal_where_it_is_wanted(monkeypatch, capsys, terminal, progress):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    train(small_model(), small_data(), epochs=2, lr=0.01, batch_size=8, progress=progress)
    assert ("epoch 2 of 2:   0%|" in stream.getvalue()) is (terminal and progress)
    assert bool(stream.getvalue()) is (terminal and progress)
    assert capsys.readouterr().out == ""


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
        ({"momentum": -0.1}, "momentum must be a number of at least 0 and below 1, got -0.1"),
        ({"momentum": 1}, "momentum must be a number of at least 0 and below 1, got 1"),
        ({"momentum": math.nan}, "momentum must be a number of at least 0 and below 1, got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be a number of at least 0, got -0.0001"),
        ({"weight_decay": math.nan}, "weight_decay must be a number of at least 0, got nan"),
        ({"clip": 0}, "clip must be None or a positive number, got 0"),
        ({"clip": -1.0}, "clip must be None or a positive number, got -1.0"),
        ({"clip": math.nan}, "clip must be None or a positive number, got nan"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"class_weights": torch.ones(2)}, "class_weights must be 3 numbers of at least 0, one per class and not "),
        ({"class_weights": torch.ones(1, 3)}, "class_weights must be 3 numbers of at least 0, one per class and not "),
        ({"class_weights": [1, 2, -1]}, "one per class and not all 0, got \\[1, 2, -1\\]"),
        ({"class_weights": [1, math.nan, 1]}, "one per class and not all 0, got \\[1, nan, 1\\]"),
        ({"class_weights": [0, 0, 0]}, "one per class and not all 0, got \\[0, 0, 0\\]"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    model = small_model()
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        train(model, small_data(), **{"epochs": 1, "batch_size": 20, **options})
    assert_states_equal(model.state_dict(), start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, got 1.5"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
        ({"lr": "0.1"}, "lr must be a positive number, got '0.1'"),
        ({"momentum": True}, "momentum must be a number of at least 0 and below 1, got True"),
        ({"weight_decay": None}, "weight_decay must be a number of at least 0, got None"),
        ({"clip": "1"}, "clip must be None or a positive number, got '1'"),
    ],
)
def test_arguments_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        train(small_model(), small_data(), **{"epochs": 1, "batch_size": 20, **options})


@pytest.mark.parametrize("part", ["train_labels", "test_labels"])
@pytest.mark.parametrize("label", [3, -100])
def test_labels_without_a_class_are_told(part, label):
    data = small_data()
    data = data._replace(**{part: torch.cat([getattr(data, part)[:-1], torch.tensor([label])])})
    with pytest.raises(ValueError, match=f"labels must be positions in classes, 0 to 2, got {label}"):
        train(small_model(), data, epochs=1, batch_size=20)


def test_without_test_images_the_test_has_no_numbers_and_the_training_goes_on():
    data = small_data()
    data = data._replace(test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    history = train(small_model(), data, epochs=2, lr=0.01, batch_size=20)
    assert len(history.rows) == 2 and history.diverged is None and math.isnan(history.rows[0].test_loss)


@pytest.mark.parametrize("last", [nn.Linear(64, 2), nn.Unflatten(1, (4, 4, 4))])
def test_a_model_with_too_few_outputs_is_told(last):
    model = nn.Sequential(*small_model()[:4], last)
    with pytest.raises(ValueError, match="a logit for each of the 3 classes, got outputs \\(1, [24]"):
        train(model, small_data(), epochs=1, batch_size=20)


def test_a_batch_of_images_that_weigh_nothing_has_no_loss_and_does_not_end_the_training():
    model = small_model()
    seen = []
    history = train(
        model,
        small_data(),
        epochs=1,
        batch_size=1,
        class_weights=[0, 0, 1],
        watch=lambda step, model: seen.append(model[4].weight.grad.norm().item()),
    )
    assert history.diverged is None and len(history.rows) == 1
    assert sum(norm > 0 for norm in seen) == 6 and seen.count(0.0) == 14  # labels 0, 1, 2, 0, ... of twenty images


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


def test_where_pytorch_has_no_autocast_16_bits_are_refused(monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    with pytest.raises(ValueError, match="bf16 must be False on cpu, for which this PyTorch has no autocast, got True"):
        train(small_model(), small_data(), epochs=1, batch_size=10, bf16=True)
    train(small_model(), small_data(), epochs=1, batch_size=10)
