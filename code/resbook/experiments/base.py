"""What all experiments share: their runs, one after the other or side by side, each kept as soon as it is done."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from resbook.arithmetic import check_integer
from resbook.files import write_whole
from resbook.records import digits_of, provenance
from resbook.training import train

BEGINNING = 5  # steps: what a test repeats of a run


class Experiment(NamedTuple):
    """A list of runs, which are settings by name, and how to do one.

    ``measure(settings, folder, root, only_beginning)`` returns the results as numbers, lists and dictionaries; it is a
    function of a module, and computes on :func:`resbook.default_device`. ``folder`` is where the run may keep a
    checkpoint, ``root`` where the reader keeps the data; an experiment that needs neither takes None.
    The results have ``"beginning"``, the norm of the whole gradient in each of the first five steps; with
    ``only_beginning`` the run stops there.
    ``data`` says what they are, or is a function of ``root`` that sees to them and says it.
    """

    name: str
    what: str
    data: str | Callable
    runs: list
    measure: Callable
    threads: int = 1


class _Enough(Exception):
    pass


def observed_training(model, data, observe=None, only_beginning=False, **options):
    """Train, and return the history and the norm of the gradient in each of the first five steps.

    Args:
        model: the classifier.
        data: :class:`resbook.data.Data`.
        observe: None, or called in every step as ``observe(step, model)``. Default None.
        only_beginning: stop after these steps; the history is None, then. Default False.
        **options: of :func:`resbook.training.train`.
    """
    beginning = []

    def watch(step, model):
        if step < BEGINNING:
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            beginning.append(torch.stack(norms).norm().item())
        if only_beginning and step + 1 >= BEGINNING:
            raise _Enough
        if observe is not None:
            observe(step, model)

    try:
        return train(model, data, watch=watch, **options), beginning
    except _Enough:
        return None, beginning


def perform(experiment, folder, *, root=None, jobs=1):
    """Do the runs of an experiment that are not done yet, and return its record.

    Where they were done on several machines, or with several versions, the record names all of them. Of a run that
    went on from a checkpoint, place and seconds are those of its last part. When a run fails, those beside it are
    still done and kept.

    Args:
        experiment: an :class:`Experiment`.
        folder: where every finished run is kept as a file, in a folder that exists; made if it is missing. Done again,
            only what is missing is run: an experiment whose recipe has changed, beyond the settings of its runs, needs
            another folder.
        root: where the data are, for experiments on data that the package does not have. Default None.
        jobs: runs at a time. Default 1.

    Raises:
        TypeError: ``jobs`` is not an integer, or a setting is nothing that JSON holds.
        ValueError: two runs have the same settings, or a file is of another run, or one on other data.
        OSError: a file could not be written.
        BrokenProcessPool: a run was killed, as by a system that is out of memory; those done before are kept.
    """
    check_integer("jobs", jobs)
    folder = Path(folder)
    data = experiment.data(root) if callable(experiment.data) else experiment.data
    files = {folder / f"{_name(settings)}.json": _identity(experiment, settings, data) for settings in experiment.runs}
    if len(files) < len(experiment.runs):
        raise ValueError(f"the experiment {experiment.name!r} has two runs with the same settings")
    folder.mkdir(exist_ok=True)
    done = {file: _read(file, run) for file, run in files.items() if file.exists()}
    work = [(experiment.measure, run, file, root) for file, run in files.items() if file not in done]
    for _ in tqdm(_perform_all(work, jobs), total=len(files), initial=len(done)):
        pass
    done = [_read(file, run) for file, run in files.items()]
    return {
        "name": experiment.name,
        "what": experiment.what,
        "data": data,
        "command": f"python -m resbook.experiments {experiment.name}{' --root FOLDER' if root else ''}",
        **_together([run["where"] for run in done]),
        "seconds": round(sum(run["seconds"] for run in done), 1),
        "runs": [{"settings": d["run"]["settings"], "seconds": d["seconds"], "results": d["results"]} for d in done],
    }


def _perform_all(work, jobs):
    """Do every run in a process, so many at a time, and yield None for each that is done."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting, running = iter(work), set()
        while running := running | {pool.submit(_perform_one, *one) for one in islice(waiting, jobs - len(running))}:
            done, running = wait(running, return_when=FIRST_COMPLETED)  # none waits in the pool: all that run are kept
            for run in done:
                yield run.result()


def _perform_one(measure, run, file, root):
    torch.set_num_threads(run["threads"])
    where, start = provenance(), time.perf_counter()
    try:
        results = digits_of(measure(run["settings"], folder=file.parent, root=root))
    except Exception:
        print(f"in the run {run['settings']}:", file=sys.stderr)  # the error itself goes on to the first process
        raise
    seconds = round(time.perf_counter() - start, 1)
    done = {"run": run, "seconds": seconds, "where": where, "results": results}
    write_whole(file, json.dumps(done, allow_nan=False).encode())


def _identity(experiment, settings, data):
    """Return what tells a run from all others, as its file will give it back."""
    run = {"experiment": experiment.name, "threads": experiment.threads, "data": data, "settings": settings}
    return json.loads(json.dumps(run))


def _read(file, run):
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
        found = done["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no finished run: delete it, or name another folder") from error
    if found != run:
        raise ValueError(f"{file} is the run {found}, not {run}: delete it, or name another folder")
    return done


def _together(places):
    """Return where and when all runs were done: the last date, and otherwise every value there is, in one text."""

    def every(values):
        return " and ".join(dict.fromkeys(values))

    versions = [place["versions"] for place in places]
    return {
        "device": every(place["device"] for place in places),
        "threads": places[0]["threads"],  # the same in all: it is part of a run's identity
        "versions": {name: every(version[name] for version in versions) for name in versions[0]},
        "arithmetic": every(place["arithmetic"] for place in places),
        "date": max(place["date"] for place in places),
    }


def _name(settings):
    return "-".join(f"{name}={value}" for name, value in settings.items()).replace("/", "_")
