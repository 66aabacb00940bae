"""What all experiments share: their runs, one after the other or side by side, each kept as soon as it is done."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from resbook.files import write_whole
from resbook.records import digits_of, provenance
from resbook.training import train

BEGINNING = 5  # steps: what a test repeats of a run


class Experiment(NamedTuple):
    """A list of runs, which are settings by name, and how to do one.

    ``measure(settings, folder, root, only_beginning)`` returns the results as numbers, lists and dictionaries.
    ``folder`` is where the run may keep a checkpoint, ``root`` where the reader keeps the data; either may be None.
    The results have ``"beginning"``, the norm of the whole gradient in each of the first five steps; with
    ``only_beginning`` the run stops there.
    """

    name: str
    what: str
    data: str
    runs: list
    measure: Callable
    threads: int = 1


class _Enough(Exception):
    pass


def observed_training(model, data, observe=None, only_beginning=False, **options):
    """Train, and return the history and the norm of the gradient in the first steps.

    Args:
        model: the classifier.
        data: :class:`resbook.data.Data`.
        observe: None, or called in every step as ``observe(step, model)``. Default None.
        only_beginning: stop after the first steps; the history is None, then. Default False.
        **options: of :func:`resbook.training.train`.
    """
    beginning = []

    def watch(step, model):
        if step < BEGINNING:
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            beginning.append(torch.stack(norms).norm().item())
        elif only_beginning:
            raise _Enough
        if observe is not None:
            observe(step, model)

    try:
        return train(model, data, watch=watch, **options), beginning
    except _Enough:
        return None, beginning


def perform(experiment, folder, *, root=None, jobs=1, chosen=None):
    """Do the runs of an experiment that are not done yet, and return its record.

    Args:
        experiment: an :class:`Experiment`.
        folder: where every finished run is kept as a file; made if it is missing. Done again, only what is missing is
            run.
        root: where the data are, for experiments on data that the package does not have. Default None.
        jobs: runs at a time. Default 1.
        chosen: None for all runs, or settings that the wanted ones have. Default None.

    Raises:
        ValueError: no run has the chosen settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [settings for settings in experiment.runs if (chosen or {}).items() <= settings.items()]
    if not runs:
        raise ValueError(f"the experiment {experiment.name!r} has no run with {chosen}")
    files = {folder / f"{_name(settings)}.json": settings for settings in runs}
    work = [(experiment, settings, file, root) for file, settings in files.items() if not file.exists()]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for _ in tqdm(pool.imap_unordered(_perform_one, work), total=len(files), initial=len(files) - len(work)):
            pass
    done = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {
        "name": experiment.name,
        "what": experiment.what,
        "data": experiment.data,
        "command": f"python -m resbook.experiments {experiment.name}{' --root FOLDER' if root else ''}",
        **done[-1]["where"],
        "seconds": round(sum(run["seconds"] for run in done), 1),
        "runs": [
            {"settings": s, "seconds": d["seconds"], "results": d["results"]} for s, d in zip(runs, done, strict=True)
        ],
    }


def _perform_one(work):
    experiment, settings, file, root = work
    torch.set_num_threads(experiment.threads)
    start = time.perf_counter()
    results = digits_of(experiment.measure(settings, folder=file.parent, root=root))
    seconds = round(time.perf_counter() - start, 1)
    done = {"seconds": seconds, "where": provenance(), "results": results}
    write_whole(file, json.dumps(done, allow_nan=False).encode())


def _name(settings):
    return "-".join(f"{name}={value}" for name, value in settings.items()).replace("/", "_")
