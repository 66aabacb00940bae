"""Records and the experiments behind them: what is written, read, refused, done again, and repeated bit for bit."""

import copy
import getpass
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import PLACES
from resbook import records
from resbook.data import digits
from resbook.experiments import EXPERIMENTS, __main__
from resbook.experiments.base import BEGINNING, Experiment, _identity, _name, observed_training, perform
from resbook.experiments.digits import Scale, build, measure
from resbook.records import digits_of, find_runs, load_record, provenance, recorded, save_record
from resbook.training import train

WHERE = {
    "device": "a processor",
    "threads": 1,
    "versions": {"torch": "2.13.0", "numpy": "2"},
    "arithmetic": "0123abcd",
    "date": "2026-01-31",
}


def record():
    runs = [
        {"settings": {"lr": lr, "seed": seed}, "seconds": 1.5, "results": {"loss": [lr, seed, None]}}
        for lr in (0.1, 1.0)
        for seed in (0, 1)
    ]
    return {"name": "a", "what": "b", "data": "c", "command": "d", **WHERE, "seconds": 6.0, "runs": runs}


def test_a_record_comes_back_as_it_was_with_one_run_a_line(tmp_path):
    path = tmp_path / "a.json"
    save_record(path, record())
    assert load_record(path) == load_record(str(path)) == record() == json.loads(path.read_text())
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"settings"')] == record()["runs"]
    assert os.listdir(tmp_path) == ["a.json"]


WRONG = {
    "missing": (lambda r: r.pop("device"), "device must be a str, got None"),
    "type": (lambda r: r.update(threads="1"), "threads must be a int, got '1'"),
    "runs": (lambda r: r.update(runs={}), "runs must be a list, got {}"),
    "seconds": (lambda r: r.update(seconds=None), "seconds must be a float, got None"),
    "part of a run": (
        lambda r: r["runs"][1].pop("results"),
        "a run has settings, seconds and results, got {'settings'",
    ),
    "more in a run": (
        lambda r: r["runs"][1].update(more=1),
        "a run has settings, seconds and results, got {'settings'",
    ),
    "settings": (
        lambda r: r["runs"][1].update(settings=[1]),
        "a run has settings, seconds and results, got {'settings'",
    ),
    "a run": (lambda r: r["runs"].append(3), "a run has settings, seconds and results, got 3"),
}
NO_JSON = {
    "nan": (lambda r: r["runs"][3]["results"].update(loss=math.nan), "cannot hold this record: .*not JSON compliant"),
    "infinite": (lambda r: r.update(seconds=math.inf), "cannot hold this record: .*not JSON compliant"),
    "tensor": (lambda r: r["runs"][0]["results"].update(loss=torch.ones(1)), "cannot hold this record: .*Tensor"),
}


@pytest.mark.parametrize(("change", "message"), [*WRONG.values(), *NO_JSON.values()], ids=[*WRONG, *NO_JSON])
def test_what_is_no_record_is_not_written(tmp_path, change, message):
    path, wrong = tmp_path / "a.json", record()
    save_record(path, record())
    change(wrong)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} .*{message}"):
        save_record(path, wrong)
    assert load_record(path) == record() and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_record_is_not_read(tmp_path, change, message):
    wrong = record()
    change(wrong)
    (tmp_path / "a.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=f"a.json is no record: .*{message}"):
        load_record(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b'{"name": ', b"\xff\xfe", b"[1]", b"3"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json (cannot be read as a record|is no record: it holds a)"):
        load_record(tmp_path / "a.json")


def test_names_are_those_of_the_package_and_an_unknown_one_lists_them(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    for name in ("beta", "alpha"):
        save_record(tmp_path / f"{name}.json", {**record(), "name": name})
    assert recorded() == ["alpha", "beta"] and load_record("beta")["name"] == "beta"
    with pytest.raises(ValueError, match="there is no record 'gamma'; there are alpha, beta"):
        load_record("gamma")
    with pytest.raises(ValueError, match="missing.json cannot be read as a record"):
        load_record(tmp_path / "missing.json")


def test_runs_are_found_by_their_settings_in_order():
    assert find_runs(record(), lr=0.1) == [{"loss": [0.1, 0, None]}, {"loss": [0.1, 1, None]}]
    assert find_runs(record(), seed=1, lr=1.0) == [{"loss": [1.0, 1, None]}]
    assert len(find_runs(record())) == 4
    for settings in ({"lr": 3}, {"depth": 20}):
        with pytest.raises(ValueError, match=f"the record 'a' has no run with {re.escape(str(settings))}"):
            find_runs(record(), **settings)


def test_digits_that_count_are_kept():
    value = {
        "a": [123456.7, 0.00012345678, -1.99996],
        "b": (math.nan, math.inf, -math.inf),
        "c": [7, "text", None, True],
    }
    kept = {"a": [123500.0, 0.0001235, -2.0], "b": [None] * 3, "c": [7, "text", None, True]}
    assert digits_of(value) == kept and isinstance(digits_of(value)["c"][0], int)
    assert digits_of(math.pi, 2) == 3.1 and digits_of(math.pi, 6) == 3.14159


def test_provenance_says_what_computed_and_nothing_of_whose_it_is():
    found = provenance()
    assert found["versions"]["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["versions"]["python"].count(".") == 2 and "scikit-learn" in found["versions"]
    assert re.fullmatch("[0-9a-f]{8}", found["arithmetic"])
    assert abs(time.time() - time.mktime(time.strptime(found["date"], "%Y-%m-%d"))) < 2 * 86400
    assert torch.cuda.is_available() or found["device"].endswith(f", {os.cpu_count()} cores")
    text = json.dumps(found)
    assert not re.search(PLACES, text) and str(Path.home()) not in text and os.uname().nodename not in text
    assert not re.search(rf"\b{getpass.getuser()}\b", text)


def tiny_measure(settings, folder=None, root=None, only_beginning=False):
    """Note that it was run, and take longer for earlier runs, so that later ones finish first."""
    i = settings["i"]
    with open(folder / "calls", "a") as calls:
        calls.write(f"{i} ")
    time.sleep(0.3 * (3 - i))
    if i == 1 and not (folder / "mended").exists():
        raise ZeroDivisionError(f"run {i} went wrong")
    return {"square": i * i, "third": i / 3, "nothing": math.nan, "root": str(root), "threads": torch.get_num_threads()}


def tiny(**changes):
    runs = [{"i": i, "path": "a/b"} for i in range(4)]
    parts = {"name": "tiny", "what": "Squares.", "data": "none", "runs": runs, "measure": tiny_measure}
    return Experiment(**{**parts, **changes})


def test_an_experiment_keeps_what_is_done_does_what_is_missing_and_keeps_the_order(tmp_path, capfd):
    """One run is done, one fails; mended, all but the first are run, side by side, and the later ones end first."""
    folder = tmp_path / "runs"
    with pytest.raises(ZeroDivisionError, match="run 1 went wrong"):
        perform(tiny(), folder, root="here")
    assert "in the run {'i': 1, 'path': 'a/b'}:" in capfd.readouterr().err
    assert (folder / "calls").read_text().split()[:2] == ["0", "1"] and len(list(folder.glob("*.json"))) < 4
    (folder / "mended").touch()
    (folder / "calls").unlink()
    whole = perform(tiny(), folder, jobs=2, root="here")
    calls = (folder / "calls").read_text()
    assert "0" not in calls and {"1"} <= set(calls.split()) <= {"1", "2", "3"}
    assert [run["settings"] for run in whole["runs"]] == tiny().runs
    assert [run["results"]["square"] for run in whole["runs"]] == [0, 1, 4, 9]
    assert whole["runs"][1]["results"] == {"square": 1, "third": 0.3333, "nothing": None, "root": "here", "threads": 1}
    assert whole["command"] == "python -m resbook.experiments tiny --root FOLDER"
    assert whole["seconds"] == pytest.approx(sum(run["seconds"] for run in whole["runs"]))
    assert whole["runs"][0]["seconds"] >= 0.9 > whole["runs"][3]["seconds"]
    assert perform(tiny(), folder, root="here") == whole and (folder / "calls").read_text() == calls
    save_record(tmp_path / "tiny.json", whole)
    assert load_record(tmp_path / "tiny.json") == whole
    expected = provenance()
    assert {name: whole[name] for name in expected} == expected


def killed_measure(settings, folder=None, root=None, only_beginning=False):
    if settings["i"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_run_that_is_killed_ends_the_experiment_with_an_error_and_what_was_done_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny(measure=killed_measure))
    with pytest.raises(SystemExit, match="^tiny: .*terminated abruptly"):
        __main__.main(["tiny"])
    assert os.listdir(tmp_path) == ["tiny.runs"] and len(os.listdir("tiny.runs")) == 1


def test_settings_that_a_record_cannot_hold_are_refused_before_anything_is_run(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        perform(tiny(runs=[{"i": 0}, {"i": torch.ones(1)}]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def keep(folder, experiment, settings, **changes):
    """Write a run's file as if it had been done, here or elsewhere."""
    folder.mkdir(exist_ok=True)
    run = _identity(experiment, settings, experiment.data)
    done = {"run": run, "seconds": 1.0, "where": WHERE, "results": {}, **changes}
    (folder / f"{_name(settings)}.json").write_text(json.dumps(done))


def test_a_record_names_all_places_where_its_runs_were_done(tmp_path):
    experiment = tiny()
    for settings in experiment.runs[:3]:
        keep(tmp_path, experiment, settings)
    other = {**WHERE, "device": "another", "arithmetic": "ffffffff", "date": "2025-12-01"}
    keep(tmp_path, experiment, experiment.runs[3], where={**other, "versions": {"torch": "2.4.0", "numpy": "2"}})
    found = perform(experiment, tmp_path)
    assert {name: found[name] for name in WHERE} == {
        "device": "a processor and another",
        "threads": 1,
        "versions": {"torch": "2.13.0 and 2.4.0", "numpy": "2"},
        "arithmetic": "0123abcd and ffffffff",
        "date": "2026-01-31",
    }
    assert found["seconds"] == 4.0


@pytest.mark.parametrize(
    "changes",
    [{"name": "other"}, {"threads": 2}, {"runs": [{"i": 0, "path": "a_b"}]}, {"data": lambda root: "others"}],
    ids=["name", "threads", "settings", "data"],
)
def test_a_file_of_another_run_is_refused_before_anything_is_run(tmp_path, changes):
    keep(tmp_path, tiny(), tiny().runs[0])
    with pytest.raises(ValueError, match="i=0-path=a_b.json is the run {.*}, not {.*}: delete it, or name another"):
        perform(tiny(**changes), tmp_path)
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"seconds": 1}'])
def test_a_file_that_is_no_run_is_named(tmp_path, content):
    (tmp_path / f"{_name(tiny().runs[0])}.json").write_text(content)
    with pytest.raises(ValueError, match="i=0-path=a_b.json is no finished run: delete it, or name another folder"):
        perform(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"jobs": 0}, {}, "jobs must be at least 1, got 0"),
        ({}, {"runs": [{"i": 1}, {"i": 2}, {"i": 1}]}, "the experiment 'tiny' has two runs with the same settings"),
    ],
)
def test_bad_arguments(tmp_path, options, changes, message):
    with pytest.raises(ValueError, match=message):
        perform(tiny(**changes), tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_run_on_record_has_a_file_of_its_own(experiment):
    assert len({_name(settings) for settings in experiment.runs}) == len(experiment.runs)
    assert all(_identity(experiment, settings, "")["settings"] == settings for settings in experiment.runs)


def test_the_command_lists_and_repeats_experiments(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny())
    monkeypatch.chdir(tmp_path)
    __main__.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(EXPERIMENTS) and lines[-1] == "tiny: Squares. 4 runs."
    for settings in tiny().runs:
        keep(tmp_path / "tiny.runs", tiny(), settings)
    __main__.main(["tiny"])
    assert capsys.readouterr().out == "tiny.json: 4 runs, 4 s in all\n"
    assert load_record(tmp_path / "tiny.json")["command"] == "python -m resbook.experiments tiny"
    keep(tmp_path / "tiny.runs", tiny(name="other"), tiny().runs[0])
    with pytest.raises(SystemExit, match="^tiny: .*is the run .*: delete it"):
        __main__.main(["tiny"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "argument name: invalid choice: 'unknown'"),
        (
            ["tiny", "--to", "missing/tiny.json"],
            "--to: must be a .json file in a folder that exists, got missing/tiny.json",
        ),
        (["tiny", "--to", "tiny"], "--to: must be a .json file in a folder that exists, got tiny"),
        (["tiny", "--to", "tiny.runs"], "--to: must be a .json file in a folder that exists, got tiny.runs"),
        (["tiny", "--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
    ],
)
def test_the_command_refuses_at_once_what_cannot_be_done(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        __main__.main(arguments)
    assert raised.value.code == 2 and message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_beginning_is_the_norm_of_the_gradient_in_the_first_steps():
    data, expected = digits(), []

    def watch(step, model):
        squares = [p.grad.double().square().sum().item() for p in model.parameters()]
        expected.append(math.sqrt(sum(squares)))

    options = {"epochs": 1, "lr": 0.1, "batch_size": 128}
    train(build(8, "residual", seed=0), data, watch=watch, **options)
    steps = []
    history, beginning = observed_training(
        build(8, "residual", seed=0), data, lambda step, model: steps.append(step), **options
    )
    assert len(history.rows) == 1 and beginning == pytest.approx(expected[:BEGINNING], rel=1e-5)
    assert steps == list(range(len(expected))) and len(expected) > BEGINNING == 5


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_run_on_the_digits_begins_as_its_beginning_and_gives_every_curve(kind):
    settings = {"depth": 8, "kind": kind, "lr": 0.05, "seed": 1, "epochs": 2, "anatomy": True}
    before = copy.deepcopy(settings)
    whole, beginning = measure(settings), measure(settings, only_beginning=True)
    assert beginning == {"beginning": whole["beginning"]} and len(whole["beginning"]) == 5
    assert settings == before
    assert measure({**settings, "seed": 2}, only_beginning=True) != beginning
    assert [len(whole[name]) for name in ("train_loss", "test_accuracy", "gradients", "responses")] == [2, 2, 3, 6]
    assert whole["lesions"][0] is not None and (whole["lesions"][1] is None) is (kind == "plain")
    history = train(build(8, kind, seed=1), digits(), epochs=2, lr=0.05, batch_size=64, seed=1)
    assert whole["train_loss"] == history.column("train_loss") and whole["diverged"] is None
    assert whole["test_accuracy"] == history.column("test_accuracy")


def test_a_run_that_diverges_says_so():
    settings = {"depth": 8, "kind": "plain", "lr": 1e6, "seed": 0, "epochs": 2, "norm": "none", "anatomy": True}
    found = digits_of(measure(settings))
    assert 0 < found["diverged"] < 10 and found["train_loss"] == [] and len(found["gradients"]) == 1
    json.dumps(found, allow_nan=False)


def test_skip_init_starts_as_the_shortcuts_and_its_factors_learn():
    data = digits()
    model, bare = (build(8, "residual", seed=0, norm="none", skip_init=skip) for skip in (True, False))
    for block in (bare.layer1[0], bare.layer2[0], bare.layer3[0]):
        block.branch = lambda x, block=block: torch.zeros_like(block.conv1(x))
    with torch.no_grad():
        assert torch.equal(model(data.test_images), bare(data.test_images))
    factors = [module.factor for module in model.modules() if isinstance(module, Scale)]
    assert len(factors) == 3 and all(factor.item() == 0 for factor in factors)
    train(model, data, epochs=2, lr=0.05, batch_size=64)
    assert all(abs(factor.item()) > 1e-3 for factor in factors), factors
