"""Several processes that train one model, started by torchrun itself, against one process."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import torch
from conftest import assert_states_equal, small_data
from resbook.device import default_device
from resbook.distributed import broadcast, broadcast_object, mean_over_processes, process_group, rank_and_size
from resbook.recipes import crop_and_flip
from resbook.training import train
from torch import nn

HERE = Path(__file__).parent
# Every process writes what it has found; the trainings are those that the tests below repeat in one process.
SCRIPT = """
import sys
from pathlib import Path
import torch
from resbook import checkpoints
from resbook.distributed import broadcast_object, mean_over_processes, process_group, rank_and_size
from test_checkpoints import Stopped, raise_at
from test_distributed import DROPOUT, OPTIONS, small_model, spoilt, start

torch.set_num_threads(1)
folder, found, written = Path(sys.argv[1]), {}, []
assert rank_and_size() == (0, 1)
write = checkpoints.write_whole
checkpoints.write_whole = lambda path, content: (written.append(str(path)), write(path, content))
with process_group() as device:
    rank, processes = rank_and_size()
    found["rank and size"], found["device"] = (rank, processes), str(device)
    found["mean"] = mean_over_processes(torch.tensor([1.0 + rank])).item()
    found["object"] = broadcast_object({"rank": rank})
    for name, (kind, options) in OPTIONS.items():
        found[name] = start(kind, **options)
    found["bar"] = start("plain", progress=True)
    found["diverged"] = start("norm", data=spoilt())
    path = folder / f"{rank}.pt"
    try:
        start("norm", checkpoint=path, watch=raise_at(9), **OPTIONS["patience"][1])
    except Stopped:
        found["kept"] = sorted(file.name for file in folder.iterdir() if file.suffix == ".pt")
    found["resumed"] = start("norm", checkpoint=path, **OPTIONS["patience"][1])
    found["written"] = list(written)
    torch.manual_seed(rank)  # dropout differs from process to process
    found["dropout"] = start("dropout", **DROPOUT)
    torch.manual_seed(rank)
    path = folder / f"dropout-{rank}.pt"
    try:
        start("dropout", checkpoint=path, watch=raise_at(9), **DROPOUT)
    except Stopped:
        torch.manual_seed(99)
    found["dropout, resumed"] = start("dropout", checkpoint=path, **DROPOUT)
    found["checkpoint"] = path.read_bytes() if rank == 0 else None
    try:
        start("plain", batch_size=5)
    except ValueError as error:
        found["error"] = str(error)
torch.save(found, folder / f"found-{rank}")
assert rank_and_size() == (0, 1)
"""
INDIVISIBLE = """
from resbook.distributed import process_group
from test_distributed import start

with process_group():
    start("plain", batch_size=5)
"""
OPTIONS = {
    "plain": ("plain", {}),
    "augmented": ("plain", {"augment": crop_and_flip, "clip": 0.5}),
    "weighted": ("plain", {"class_weights": [0.5, 3.0, 0.0]}),
    "norm": ("norm", {}),
    "patience": ("norm", {"patience": 2, "epochs": 40}),
}
DROPOUT = {"epochs": 4}


def spoilt():
    """Return data with one image that has no loss, so it is in the share of one process."""
    data = small_data()
    data.train_images[3] = torch.nan
    return data


def small_model(kind):
    """Return a network of weights that are always the same, and leave the global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        second = {"norm": nn.BatchNorm2d(4), "dropout": nn.Dropout(0.3)}.get(kind, nn.Identity())
        return nn.Sequential(nn.Conv2d(3, 4, 3), second, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def start(kind, data=None, **options):
    """Train, and return the weights with the buffers, the history's rows, and the step at which it diverged."""
    model = small_model(kind)
    history = train(model, data or small_data(), **{"epochs": 3, "lr": 0.05, "batch_size": 4, "seed": 2, **options})
    return model.state_dict(), [tuple(row) for row in history.rows], history.diverged


def torchrun(script, folder):
    """Run a script in two processes, with a terminal for its errors; return the exit status and what that shows."""
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    code = os.pathsep.join([str(HERE.parent / "code"), str(HERE)])
    variables = {**os.environ, "PYTHONPATH": code, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", path, folder]
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))  # rows, columns
    process = subprocess.Popen(command, env=variables, stdout=end, stderr=end)
    os.close(end)
    shown = []

    def read():
        try:
            while part := os.read(terminal, 4096):
                shown.append(part)
        except OSError:  # the other end was closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        status = process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends the processes it has started
        process.wait()
        raise
    finally:
        reader.join(10)
        os.close(terminal)
    return status, b"".join(shown).decode()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes have found, and what they showed."""
    folder = tmp_path_factory.mktemp("distributed")
    status, shown = torchrun(SCRIPT, folder)
    assert status == 0, shown
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in (0, 1)], shown


def test_outside_torchrun_there_is_one_process_and_nothing_to_agree_on():
    with process_group() as device:
        assert device == default_device() and not torch.distributed.is_initialized()
        assert rank_and_size() == (0, 1)
    tensor, value = torch.ones(2), object()
    assert mean_over_processes(tensor) is tensor and broadcast_object(value) is value
    broadcast([tensor])
    assert torch.equal(tensor, torch.ones(2))


def test_processes_know_each_other_and_agree(found):
    assert [one["rank and size"] for one in found[0]] == [(0, 2), (1, 2)]
    for one in found[0]:
        assert (one["device"], one["mean"], one["object"]) == ("cpu", 1.5, {"rank": 0})


@pytest.mark.parametrize("name", [*OPTIONS, "bar", "diverged", "resumed"])
def test_all_processes_end_with_the_same_weights_buffers_and_history(found, name):
    (state, rows, diverged), (other, *others) = (one[name] for one in found[0])
    assert_states_equal(state, other)
    assert [rows, diverged] == others


@pytest.mark.parametrize("name", ["plain", "augmented", "weighted"])
def test_without_batch_normalisation_two_processes_train_as_one(found, name):
    kind, options = OPTIONS[name]
    state, rows, _ = start(kind, **options)
    theirs, their_rows, _ = found[0][0][name]
    for key, value in state.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-6)
    assert len(rows) == 3
    for row, other in zip(rows, their_rows, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_batch_normalisation_takes_the_statistics_of_each_share(found):
    (state, _, _), one = found[0][0]["norm"], start("norm")[0]
    assert state["1.num_batches_tracked"] == one["1.num_batches_tracked"] == 15
    assert not torch.allclose(state["1.running_var"], one["1.running_var"], rtol=1e-3)


def test_all_stop_where_the_loss_of_one_is_no_number(found):
    states, rows, diverged = found[0][0]["diverged"]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2)).tolist()
    assert rows == [] and diverged == order.index(3) // 4
    assert all(value.isfinite().all() for name, value in states.items() if "running" not in name)


def test_all_stop_when_patience_ends(found):
    for one in found[0]:
        _, rows, _ = one["patience"]
        losses = [row[4] for row in rows]
        assert len(rows) == losses.index(min(losses)) + 1 + 2 < 40


def test_the_first_writes_the_checkpoint_and_all_go_on_from_it(found):
    """The second process names a file that is not there, as on a machine of its own."""
    for one in found[0]:
        assert one["kept"] == ["0.pt"]
        assert_states_equal(one["resumed"][0], one["patience"][0])
        assert one["resumed"][1:] == one["patience"][1:]
    assert {Path(path).name for path in found[0][0]["written"]} == {"0.pt"} and found[0][1]["written"] == []


def test_every_process_goes_on_from_its_own_random_state(found):
    for one in found[0]:
        assert_states_equal(one["dropout, resumed"][0], one["dropout"][0])
        assert one["dropout, resumed"][1:] == one["dropout"][1:] and len(one["dropout"][1]) == 4


def test_a_checkpoint_of_two_processes_is_not_for_one(found, tmp_path):
    path = tmp_path / "training.pt"
    path.write_bytes(found[0][0]["checkpoint"])
    with pytest.raises(ValueError, match="belongs to a training with processes=2, and this one has 1"):
        start("dropout", checkpoint=path, **DROPOUT)


def test_only_the_first_shows_a_bar(found):
    assert found[1].count("epoch 2 of 3:   0%") == 1


def test_a_batch_that_cannot_be_shared_ends_all_processes_with_an_error(found, tmp_path):
    message = "batch_size must be a multiple of the 2 processes, got 5"
    assert [one["error"] for one in found[0]] == [message] * 2
    status, shown = torchrun(INDIVISIBLE, tmp_path)
    assert status == 1 and f"ValueError: {message}" in shown
