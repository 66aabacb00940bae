"""Recorded runs: numbers too long in the making for a page, with all it takes to make them again."""

import json
import os
import platform
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from resbook.device import default_device
from resbook.files import write_whole
from resbook.fingerprint import arithmetic_fingerprint

FOLDER = Path(__file__).parent / "recorded"
PARTS = {
    "name": str, "what": str, "data": str, "command": str, "device": str, "threads": int, "versions": dict,
    "arithmetic": str, "date": str, "seconds": float, "runs": list,
}  # fmt: skip
RUN = {"settings": dict, "seconds": float, "results": dict}


def load_record(name_or_path):
    """Return a record as a dictionary.

    ``name``, ``what`` was done and on which ``data``; the ``command`` that does it again; ``device``, ``threads`` of
    each run, ``versions``, and the ``arithmetic`` (:func:`resbook.fingerprint.arithmetic_fingerprint`) where it was
    done (of several, each is named); the ``date`` of the last run and the ``seconds`` that all took, added up; and
    ``runs``, a list of ``{"settings": ..., "seconds": ..., "results": ...}``.

    Args:
        name_or_path: name of a record of the package, or the path of a JSON file that
            ``python -m resbook.experiments`` has written.

    Raises:
        ValueError: there is no such record, or the file is none.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = FOLDER / f"{name_or_path}.json"
        if not path.exists():
            raise ValueError(f"there is no record {str(name_or_path)!r}; there are {', '.join(recorded())}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a record: {error}") from error
    _check(path, record)
    return record


def recorded():
    """Return the names of the package's records."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def find_runs(record, **settings):
    """Return the results of the runs with these settings, in the record's order, at least one.

    Raises:
        ValueError: no run has them.
    """
    found = [run["results"] for run in record["runs"] if settings.items() <= run["settings"].items()]
    if not found:
        raise ValueError(f"the record {record['name']!r} has no run with {settings}")
    return found


def save_record(path, record):
    """Write a record, one run a line, whole or not at all.

    Raises:
        ValueError: a part is missing or of another type, or JSON cannot hold it, as a number that is not finite.
        OSError: the file could not be written.
    """
    _check(path, record)
    try:
        head = json.dumps({name: value for name, value in record.items() if name != "runs"}, indent=1, allow_nan=False)
        runs = ",\n".join(json.dumps(run, separators=(",", ":"), allow_nan=False) for run in record["runs"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot hold this record: {error}") from error
    write_whole(path, f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n'.encode())


def provenance():
    """Return where and when something is recorded: device, threads, versions, arithmetic, date."""
    packages = ("resbook", "torch", "torchvision", "scikit-learn", "numpy")
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "arithmetic": _fingerprint(torch.get_num_threads()),
        "date": date.today().isoformat(),
    }


@cache
def _fingerprint(threads):
    return arithmetic_fingerprint()  # takes seconds


def device_name():
    """Return the name of what computes: an NVIDIA GPU's, or the processor's, with its cores and with Apple's GPU."""
    if default_device().type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{name}, by its GPU (MPS)" if default_device().type == "mps" else name


def digits_of(value, count=4):
    """Return numbers, in lists and dictionaries too, rounded to ``count`` significant digits; None if not finite."""
    if isinstance(value, dict):
        return {key: digits_of(item, count) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [digits_of(item, count) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{count}g}") if abs(value) < float("inf") else None
    return value


def _check(path, record):
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no record: it holds a {type(record).__name__}")
    for name, kind in PARTS.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{path} is no record: {name} must be a {kind.__name__}, got {record.get(name)!r}")
    for run in record["runs"]:
        if not isinstance(run, dict) or {name: type(value) for name, value in run.items()} != RUN:
            raise ValueError(f"{path} is no record: a run has settings, seconds and results, got {str(run):.80}")
