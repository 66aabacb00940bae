"""The experiments on record: that a record is of the experiment of its name, and that its runs begin as they did."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resbook.experiments import EXPERIMENTS, cifar
from resbook.experiments.augmentation import flip, move
from resbook.experiments.base import perform
from resbook.experiments.cracks import Contrast
from resbook.fingerprint import arithmetic
from resbook.gradients import trace_gradients
from resbook.networks import cifar_resnet
from resbook.recipes import turn
from resbook.records import digits_of, load_record, recorded

SHARED = Path(__file__).parents[2] / "shared" / "data"  # pictures that are not the book's to ship
REPEATED = {  # per record, the runs whose first steps are done again: those whose rounding errors grow least
    "degradation-digits": [{"depth": 20}, {"depth": 56, "kind": "residual", "lr": 0.01}],
    "learning-rates-digits": [{"lr": 0.03}],
    "augmentation-digits": [{"augment": "none"}, {"augment": "moves"}],
    "zero-gamma-digits": [{}],
    "no-normalisation-digits": [{"depth": 20, "init": "he"}, {"skip_init": True, "lr": 0.01}],
    "cracks-drawn": [{}],
    "cracks-deck": [{}],
    "degradation-cifar10": [{"depth": 20, "kind": "residual"}],
    "paper-cifar10": [],
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_every_record_is_of_an_experiment():
    assert recorded() and set(recorded()) <= set(EXPERIMENTS) == set(REPEATED)


@pytest.mark.parametrize("name", recorded())
def test_a_record_holds_all_runs_of_its_experiment_in_order(name):
    record, experiment = load_record(name), EXPERIMENTS[name]
    assert [run["settings"] for run in record["runs"]] == experiment.runs
    assert (record["what"], record["threads"]) == (experiment.what, experiment.threads)
    assert callable(experiment.data) or record["data"] == experiment.data
    assert record["command"].startswith(f"python -m resbook.experiments {name}")
    assert record["seconds"] == pytest.approx(sum(run["seconds"] for run in record["runs"]), abs=0.1)


@pytest.fixture
def root(name, tmp_path):
    """Where the pictures of a record are; None for records that need none."""
    needed = {"cracks-deck": "sdnet2018_decks", "degradation-cifar10": "unpack_cifar10.py"}.get(name)
    if needed is None:
        return None
    if not (SHARED / needed).exists():
        pytest.skip("the pictures of this record are not here")
    if name == "cracks-deck":
        return SHARED / needed
    subprocess.run([sys.executable, SHARED / needed, tmp_path], check=True)
    return tmp_path


@pytest.mark.parametrize("name", recorded())
def test_the_first_steps_come_out_as_recorded(name, threads, root):
    record, experiment = load_record(name), EXPERIMENTS[name]
    assert REPEATED[name] and (not callable(experiment.data) or record["data"] == experiment.data(root))
    threads(experiment.threads)
    same = {"arithmetic": record["arithmetic"], "torch": record["versions"]["torch"].split("+")[0]} == arithmetic()
    for wanted in REPEATED[name]:
        run = next(run for run in record["runs"] if wanted.items() <= run["settings"].items())
        again = experiment.measure(run["settings"], root=root, only_beginning=True)
        expected = run["results"]["beginning"]
        assert len(expected) == 5
        assert digits_of(again["beginning"]) == (expected if same else pytest.approx(expected, rel=0.05))


def test_a_contrast_asks_why_cracked_and_not_intact():
    logits = torch.tensor([[1.0, 4, 2, 2.5, -1, 0]])
    assert Contrast()(logits).tolist() == [[-3, 3, -0.5, 0.5, -1, 1]]


def test_a_move_is_one_of_nine_and_brings_in_the_background():
    image, generator = torch.randn(1, 2, 4, 5), torch.Generator().manual_seed(0)
    padded = torch.full((1, 2, 6, 7), image.min())
    padded[:, :, 1:5, 1:6] = image
    expected = {tuple(padded[:, :, d : d + 4, r : r + 5].flatten().tolist()) for d in range(3) for r in range(3)}
    assert {tuple(moved.flatten().tolist()) for moved in move(image.expand(200, -1, -1, -1), generator)} == expected


def test_a_flip_mirrors_half():
    image = torch.randn(1, 1, 4, 5)
    flipped = flip(image.expand(400, -1, -1, -1), torch.Generator().manual_seed(0))
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert 150 < mirrored.sum() < 250 and torch.equal(flipped[~mirrored][0], image[0])


def test_a_turn_is_one_of_the_eight_of_a_square():
    image, generator = torch.arange(9.0).reshape(1, 1, 3, 3), torch.Generator().manual_seed(0)
    square = [image.rot90(k, (2, 3)) for k in range(4)]
    all_eight = {tuple(x.flatten().tolist()) for turned in square for x in (turned, turned.flip(3))}
    assert {tuple(turn(image, generator).flatten().tolist()) for _ in range(100)} == all_eight


@pytest.fixture
def ten_classes(tmp_path):
    """Pictures of noise in the layout of the JPEG copy of CIFAR-10."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 26), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "cifar" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "cifar"


def test_cifar_run_goes_on_after_an_interruption_with_all_it_had_noted(ten_classes, tmp_path, monkeypatch):
    settings = {"depth": 8, "kind": "residual", "seed": 0, "epochs": 2, "bf16": False}
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    whole = cifar.measure(settings, folders[0], ten_classes)
    assert len(whole["gradients"]) == 3 and len(whole["train_loss"]) == 2 and len(whole["beginning"]) == 4
    assert len(whole["responses"]) == 6 and len(whole["lesions"]) == 3

    traces = []

    def unplugged(model, *probe):
        if len(traces) == 1:
            raise KeyboardInterrupt  # at the first step of the second epoch
        traces.append(model)
        return trace_gradients(model, *probe)

    monkeypatch.setattr(cifar, "trace_gradients", unplugged)
    with pytest.raises(KeyboardInterrupt):
        cifar.measure(settings, folders[1], ten_classes)
    monkeypatch.undo()
    assert cifar.measure(settings, folders[1], ten_classes) == whole


def test_cifar_measures_the_gradients_of_the_untrained_network_first(ten_classes, tmp_path):
    settings = {"depth": 8, "kind": "plain", "seed": 3, "epochs": 1, "bf16": False}
    found = cifar.measure(settings, tmp_path, ten_classes)["gradients"][0]
    data = cifar.load(ten_classes)
    torch.manual_seed(3)
    model = cifar_resnet(8, residual=False).to(memory_format=torch.channels_last)
    rows = trace_gradients(model, data.train_images[:128], data.train_labels[:128]).rows
    assert found == pytest.approx(
        [rows[0].gradient, rows[-1].gradient, rows[0].weight_gradient, rows[-1].weight_gradient]
    )


def test_what_is_not_all_of_cifar_10_is_not_recorded_as_that(ten_classes, tmp_path):
    experiment = EXPERIMENTS["degradation-cifar10"]
    with pytest.raises(ValueError, match="must have all of CIFAR-10 as JPEG files, {'train': 50000, .*has {'train': 0"):
        perform(experiment, tmp_path / "runs", root=ten_classes)
    assert not (tmp_path / "runs").exists()


def test_other_tiles_are_not_the_decks(tmp_path):
    for state, photograph in (("CD", "1"), ("UD", "2")):
        (tmp_path / state).mkdir()
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / state / f"{photograph}-1.jpg")
    experiment = EXPERIMENTS["cracks-deck"]
    with pytest.raises(ValueError, match="must have the deck's 400 tiles from 6 photographs; .* has 2 from 2"):
        experiment.measure(experiment.runs[0], root=tmp_path)


@pytest.mark.parametrize("name", ["degradation-cifar10", "cracks-deck"])
def test_data_of_ones_own_must_be_named(name):
    with pytest.raises(ValueError, match="root must be the folder of"):
        EXPERIMENTS[name].measure(EXPERIMENTS[name].runs[0])
