"""Repeat a recorded experiment: ``python -m resbook.experiments NAME``."""

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from resbook.experiments import EXPERIMENTS
from resbook.experiments.base import perform
from resbook.records import save_record


def main(arguments=None):
    """Read the command line, do the experiment, write its record."""
    parser = argparse.ArgumentParser(prog="python -m resbook.experiments", description=__doc__)
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS, help="without one, the experiments are listed")
    parser.add_argument("--root", type=Path, help="where the data are, for experiments on data of your own")
    parser.add_argument("--to", type=Path, help="the record to write, a .json file; default NAME.json here")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its own threads; default 1")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.what} {len(experiment.runs)} runs.")
        return
    to = chosen.to or Path(f"{chosen.name}.json")
    if to.suffix != ".json" or not to.parent.is_dir():  # said now, and not after hours
        parser.error(f"argument --to: must be a .json file in a folder that exists, got {to}")
    try:
        record = perform(EXPERIMENTS[chosen.name], to.with_suffix(".runs"), root=chosen.root, jobs=chosen.jobs)
        save_record(to, record)
    except (ValueError, OSError, BrokenProcessPool) as error:
        sys.exit(f"{chosen.name}: {error}")
    print(f"{to}: {len(record['runs'])} runs, {record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
