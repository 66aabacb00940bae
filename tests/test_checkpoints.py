"""Checkpoints: trainings that are killed go on bit for bit, and what does not belong to a training is refused."""

import copy
import functools
import io
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_states_equal, small_data
from resbook.checkpoints import Checkpoint
from resbook.networks import cifar_resnet
from resbook.recipes import crop_and_flip, one_cycle
from resbook.training import train
from torch import nn

EPOCHS, STEPS = 6, 4  # steps in an epoch


def small_model():
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers)


def start(checkpoint, model=None, data=None, **options):
    """Train by a recipe in which everything is random that can be, and return the network and its history."""
    model, data = model or small_model(), data or small_data()
    settings = {"epochs": EPOCHS, "lr": 0.1, "batch_size": 5, "schedule": one_cycle, "augment": crop_and_flip}
    return model, train(model, data, checkpoint=checkpoint, **{**settings, "seed": 2, **options})


class Stopped(Exception):
    pass


def raise_at(step):
    def watch(now, model):
        if now == step:
            raise Stopped

    return watch


def stopped(checkpoint, step, **options):
    """Leave the checkpoint of a training that an exception ended, and nothing else."""
    with pytest.raises(Stopped):
        start(checkpoint, watch=raise_at(step), **options)


def killed(checkpoint, step, options):
    """Begin a training and die in the middle of it; runs in a process of its own."""

    def watch(now, model):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    start(checkpoint, watch=watch, **options)


def in_a_process(function, *arguments):
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("options", [{}, {"patience": 4, "lr": 0.02, "epochs": 9}], ids=["all epochs", "patience"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, options):
    """Dropout draws from the global generator, augmentation and order from another; SGD has momentum, BN statistics."""
    expected, history = start(None, **options)
    random = torch.get_rng_state()
    path = tmp_path / "training.pt"
    assert in_a_process(killed, path, 3 * STEPS + 2, options) == -signal.SIGKILL
    rows = torch.load(path, weights_only=True)["rows"]
    assert len(rows) == 3
    if "patience" in options:  # the best weights come out of the checkpoint, or not, as it happens without a stop
        assert 0 < history.best_epoch() <= 3 and len(history.rows) < 9
    stopped(path, 4 * STEPS + 1, **options)  # and once more, in this process
    torch.manual_seed(99)
    other = small_model()
    with torch.no_grad():
        other[0].weight.add_(1)
    torch.manual_seed(100)
    model, resumed = start(path, model=other, **options)
    assert resumed.rows == history.rows and [list(row) for row in history.rows[:3]] == rows
    assert_states_equal(model.state_dict(), expected.state_dict())
    assert torch.equal(torch.get_rng_state(), random)
    assert os.listdir(tmp_path) == ["training.pt"]


@pytest.mark.parametrize("options", [{}, {"patience": 2, "lr": 0.02, "epochs": 40}], ids=["all epochs", "patience"])
def test_a_finished_training_is_not_repeated(tmp_path, options):
    model, history = start(tmp_path / "training.pt", **options)
    before = (tmp_path / "training.pt").read_bytes()
    again, same = start(tmp_path / "training.pt", **options, watch=raise_at(len(history.rows) * STEPS))
    assert same.rows == history.rows and same.diverged is None
    assert_states_equal(again.state_dict(), model.state_dict())
    assert not any(module.training for module in again.modules())
    assert (tmp_path / "training.pt").read_bytes() == before
    assert options == {} or len(history.rows) < 40


def test_a_training_that_diverged_diverges_again(tmp_path):
    options = {"lr": 1e15, "schedule": lambda progress: 1e-16 if progress < 0.5 else 1.0}
    model, history = start(tmp_path / "training.pt", **options)
    again, same = start(tmp_path / "training.pt", **options)
    assert same.diverged == history.diverged >= 3 * STEPS and same.rows == history.rows and len(same.rows) >= 3


def test_a_checkpoint_changes_no_number(tmp_path):
    kept, free = start(tmp_path / "training.pt"), start(None)
    assert kept[1].rows == free[1].rows
    assert_states_equal(kept[0].state_dict(), free[0].state_dict())


def numpy_cosine(progress):
    return np.cos(progress * np.pi / 2)


def test_numbers_of_numpys_are_kept_as_numbers(tmp_path):
    """A checkpoint is read without running what is in it, so it may hold plain numbers alone."""
    options = {"lr": np.float64(0.1), "epochs": np.int64(3), "momentum": np.float64(0.5), "seed": np.int64(2)}
    options |= {"weight_decay": np.float64(1e-3), "clip": np.float32(1), "schedule": numpy_cosine}
    options |= {"class_weights": np.array([1.0, 2.0, 3.0]), "patience": np.int64(5)}
    stopped(tmp_path / "training.pt", 5, **options)
    assert start(tmp_path / "training.pt", **options)[1].rows == start(None, **options)[1].rows


def pad(by):
    def augment(images, generator, pad):
        return crop_and_flip(images, generator, pad)

    return functools.partial(augment, pad=by)


def test_a_function_with_arguments_filled_in_is_the_same_in_another_process(tmp_path):
    """There, it has another address: here, another function of the same name has."""
    first, same, other = pad(1), pad(1), pad(2)
    stopped(tmp_path / "training.pt", 5, augment=first)
    with pytest.raises(ValueError, match="belongs to a training with augment=.*pad=1.*this one has .*pad=2"):
        start(tmp_path / "training.pt", augment=other)
    assert len(start(tmp_path / "training.pt", augment=same)[1].rows) == EPOCHS


def changed(part, index, value):
    data = small_data()
    getattr(data, part)[index] = value
    return data


def freeze(model):
    model[0].requires_grad_(False)
    return model


def scaled():
    data = small_data()
    return data._replace(train_images=2 * data.train_images)


def other_model(*layers):
    model = small_model()
    for position, layer in layers:
        model[position] = layer
    return model


REFUSED = {
    "shape": ({"model": other_model((0, nn.Conv2d(3, 4, 3, bias=False)))}, "0.bias it has torch.float32 of shape (4,)"),
    "type": ({"model": small_model().double()}, "0.weight it has torch.float32 of shape (4, 3, 3, 3), and the model h"),
    "layer": (
        {"model": other_model((2, nn.Tanh()))},
        "another network: it has (2): ReLU() where the model has (2): Tanh",
    ),
    "option": (
        {"model": other_model((3, nn.Dropout(0.4)))},
        "it has (3): Dropout(p=0.3, inplace=False) where the model",
    ),
    "lr": ({"lr": 0.2}, "belongs to a training with lr=0.1, and this one has 0.2"),
    "epochs": ({"epochs": 7}, "belongs to a training with epochs=6, and this one has 7"),
    "seed": ({"seed": 3}, "belongs to a training with seed=2, and this one has 3"),
    "augment": ({"augment": None}, "belongs to a training with augment='crop_and_flip', and this one has None"),
    "schedule": ({"schedule": numpy_cosine}, "schedule='one_cycle', and this one has 'numpy_cosine'"),
    "weights": ({"class_weights": torch.ones(3)}, "class_weights=None, and this one has [1.0, 1.0, 1.0]"),
    "frozen": ({"model": freeze(small_model())}, "frozen=[], and this one has ['0.weight', '0.bias']"),
    "decay": ({"decay_all": False}, "belongs to a training with decay_all=True, and this one has False"),
    "pixel": ({"data": changed("train_images", (7, 1, 2, 3), 9.0)}, "belongs to a training with data=["),
    "scale": ({"data": scaled()}, "belongs to a training with data=["),
    "label": ({"data": changed("train_labels", 0, 1)}, "belongs to a training with data=["),
    "test pixel": ({"data": changed("test_images", (0, 0, 0, 0), 9.0)}, "belongs to a training with data=["),
    "test label": ({"data": changed("test_labels", 0, 2)}, "belongs to a training with data=["),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "training.pt"
    stopped(path, STEPS + 1)
    return path


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_the_checkpoint_of_another_training_is_refused_and_nothing_changes(checkpoint, options, message):
    model = options.get("model") or small_model()
    state, content = copy.deepcopy(model.state_dict()), checkpoint.read_bytes()
    torch.manual_seed(7)
    random = torch.get_rng_state()
    with pytest.raises(ValueError) as raised:
        start(checkpoint, **{**options, "model": model})
    assert message in str(raised.value) and str(checkpoint) in str(raised.value)
    assert_states_equal(model.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), random)
    assert checkpoint.read_bytes() == content


def test_a_plain_network_does_not_go_on_as_a_residual_one(tmp_path):
    """With shortcuts that learn nothing, both have the same weights."""
    data = small_data()
    data = data._replace(train_images=torch.randn(20, 3, 8, 8), test_images=torch.randn(9, 3, 8, 8))
    models = [cifar_resnet(8, num_classes=3, residual=residual) for residual in (False, True)]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    start(tmp_path / "training.pt", model=models[0], data=data, epochs=1)
    with pytest.raises(ValueError, match="another network: it has .* where the model has .*Shortcut"):
        start(tmp_path / "training.pt", model=models[1], data=data, epochs=1)


def test_another_order_of_the_same_layers_is_another_network(tmp_path):
    models = [cifar_resnet(8, num_classes=3, order=name) for name in ("original", "relu-only-preactivation")]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    data = small_data()
    data = data._replace(train_images=torch.randn(20, 3, 8, 8), test_images=torch.randn(9, 3, 8, 8))
    start(tmp_path / "training.pt", model=models[0], data=data, epochs=1)
    with pytest.raises(ValueError, match="another network: it has .* order='relu-only-preactivation'"):
        start(tmp_path / "training.pt", model=models[1], data=data, epochs=1)


def test_the_same_pictures_normalised_with_other_rounding_are_the_same_data(tmp_path):
    pixels = torch.randint(256, (20, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    for rounding in (torch.float64, torch.float32):
        images = ((pixels.to(rounding) / 255 - 0.4713) / 0.2471).float()
        data = small_data()._replace(train_images=images, test_images=images[:9])
        _, history = start(tmp_path / "training.pt", data=data, epochs=2, watch=raise_at(2 * STEPS))
    assert len(history.rows) == 2 and not torch.equal(images, ((pixels.double() / 255 - 0.4713) / 0.2471).float())


def test_data_that_are_no_numbers_are_still_the_same_data(tmp_path):
    data = small_data()
    data.test_images[0] = torch.nan
    stopped(tmp_path / "training.pt", STEPS + 1, data=data)
    assert len(start(tmp_path / "training.pt", data=data)[1].rows) == EPOCHS


def parts():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "generator": torch.Generator().manual_seed(4)}


def states(of):
    return of["model"].state_dict(), of["optimizer"].state_dict(), of["generator"].get_state(), torch.get_rng_state()


def test_every_part_is_kept_and_none_changes_where_one_is_missing(tmp_path):
    path, data, saved = tmp_path / "training.pt", small_data(), parts()
    Checkpoint(path, {"a": 1}, data, {name: saved[name] for name in ("model", "optimizer")}).save()
    now = parts()
    with torch.no_grad():
        now["model"][0].weight.zero_()
    before = copy.deepcopy(states(now))
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        Checkpoint(path, {"a": 1}, data, now).load()
    torch.testing.assert_close(states(now), before, rtol=0, atol=0)
    Checkpoint(path, {"a": 1}, data, saved).save(rows=[[1, 0.5]])
    expected = copy.deepcopy(states(saved))
    torch.manual_seed(8)
    now["generator"].manual_seed(9)
    assert Checkpoint(path, {"a": 1}, data, now).load()["rows"] == [[1, 0.5]]
    torch.testing.assert_close(states(now), expected, rtol=0, atol=0)


class Evil:
    """When it is unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def flipped(content, name):
    """Return a checkpoint with one bit changed inside a weight: PyTorch reads it without complaint."""
    weight = torch.load(io.BytesIO(content), weights_only=True)["model"][name]
    changed = bytearray(content)
    changed[content.index(weight.numpy().tobytes()) + 2] ^= 64
    after = torch.load(io.BytesIO(bytes(changed)), weights_only=True)["model"][name]
    assert (after != weight).sum() == 1
    return bytes(changed)


DAMAGED = {
    "empty": lambda content, trap: b"",
    "half": lambda content, trap: content[: len(content) // 2],
    "without its end": lambda content, trap: content[:-1],
    "a bit": lambda content, trap: flipped(content, "5.weight"),
    "garbage": lambda content, trap: bytes(range(256)) * 20,
    "a picture": lambda content, trap: b"\x89PNG\r\n\x1a\n" + content,
    "another pickle": lambda content, trap: pickle.dumps({"model": 1}, protocol=2),
    "a program": lambda content, trap: pickle.dumps(trap, protocol=2),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_and_nothing_changes(tmp_path, checkpoint, damage):
    path, trap, model = tmp_path / "training.pt", Evil(tmp_path / "sprung"), small_model()
    path.write_bytes(damage(checkpoint.read_bytes(), trap))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match="damaged, or no checkpoint: name another file, or delete this") as raised:
        start(path, model=model)
    assert str(path) in str(raised.value)
    assert_states_equal(model.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), random)
    assert not trap.path.exists()


@pytest.mark.parametrize("stored", [torch.ones(3), {"model": {}}, [1, 2], {"settings": {"epochs": 6}}, None], ids=str)
def test_another_file_of_pytorchs_is_no_checkpoint(tmp_path, stored):
    torch.save(stored, tmp_path / "training.pt")
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        start(tmp_path / "training.pt")


def test_a_program_in_a_checkpoint_is_not_run(tmp_path, checkpoint):
    path, trap = tmp_path / "training.pt", Evil(tmp_path / "sprung")
    torch.save({**torch.load(checkpoint, weights_only=True), "best": trap}, path)
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        start(path)
    assert not trap.path.exists()
    torch.load(path, weights_only=False)
    assert trap.path.exists()  # the trap does work


@pytest.mark.parametrize("name", ["missing/training.pt", "file/training.pt"])
def test_a_missing_folder_is_told_before_anything_is_trained(tmp_path, name):
    (tmp_path / "file").write_text("")
    model = small_model()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(FileNotFoundError, match="checkpoint must be in a folder that exists.*training.pt"):
        start(tmp_path / name, model=model)
    assert_states_equal(model.state_dict(), state)


def test_a_folder_is_no_damaged_checkpoint_to_be_deleted(tmp_path):
    with pytest.raises(OSError) as raised:
        start(tmp_path)
    assert str(tmp_path) in str(raised.value) and "delete" not in str(raised.value)


def filled(path, messages):
    """Train, and from the third epoch on allow files of a hundred bytes; runs in a process of its own."""
    import resource

    def watch(step, model):
        if step == 2 * STEPS:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    torch.set_num_threads(1)
    try:
        start(path, watch=watch)
    except OSError as error:
        messages.put(str(error))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    pytest.importorskip("resource")
    path, messages = tmp_path / "training.pt", multiprocessing.get_context("spawn").SimpleQueue()
    assert in_a_process(filled, path, messages) == 0
    message = messages.get()
    assert f"{path} could not be written, what it held before is still there: File too large" in message
    assert os.listdir(tmp_path) == ["training.pt"] and len(torch.load(path, weights_only=True)["rows"]) == 2
    model, history = start(path)
    expected, rows = start(None)
    assert history.rows == rows.rows
    assert_states_equal(model.state_dict(), expected.state_dict())


def test_an_interrupt_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path, calls, fsync = tmp_path / "training.pt", [], os.fsync

    def interrupt(file):
        calls.append(file)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fsync(file)

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(path)
    assert os.listdir(tmp_path) == ["training.pt"] and len(torch.load(path, weights_only=True)["rows"]) == 2
    assert start(path)[1].rows == start(None)[1].rows
