"""Run notebooks from top to bottom and compare every output with the stored one: python tests/compare.py NOTEBOOK...

Each notebook is run by nbval in a process and a kernel of its own, two at a time, and every cell is compared. Digits
that come out of a training depend on how a processor rounds. Their cells are tagged ``measured``: where the notebook's
``arithmetic`` is that of this machine they have to agree exactly, elsewhere in words and roughly in numbers.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # as in the Makefile
OPTIONS = "-p no:cacheprovider -p compare --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with"
NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


def compare(notebook, **environment):
    """Run nbval on a notebook with this Python; return its exit status and what it printed."""
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", os.environ.get("PYTHONPATH")), str(TESTS)]))
    command = [sys.executable, "-m", "pytest", *OPTIONS.split(), TESTS / "nbval.cfg", notebook]
    environment = {**os.environ, **THREADS, **environment, "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr * (run.returncode != 0)


def main(notebooks):
    if not notebooks:
        sys.exit("name the notebooks to compare, as in: python tests/compare.py notebooks/*.ipynb")
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for notebook, (status, printed) in zip(notebooks, pool.map(compare, notebooks), strict=True):
            failed += status != 0
            print(f"{notebook}: {printed.strip() if status else printed.strip().splitlines()[-1]}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(notebooks)} notebooks differ. If that is how it should be now: make notebooks")


# What follows is a plug-in of pytest, in the processes that main starts.


def pytest_configure(config):
    from nbval.plugin import IPyNbCell

    exactly = IPyNbCell.compare_outputs

    def compare_outputs(cell, here, stored, skip_compare=None):
        if exactly(cell, here, stored, skip_compare):
            return True
        if "measured" not in cell.cell.metadata.get("tags", []) or same_arithmetic(cell.parent.nb):
            return False
        return roughly_equal(text_of(here), text_of(stored))

    IPyNbCell.compare_outputs = compare_outputs


def same_arithmetic(notebook):
    return notebook.metadata.resbook.arithmetic == arithmetic_here()


@cache
def arithmetic_here():
    program = "from resbook.training import arithmetic_fingerprint; print(arithmetic_fingerprint())"
    command, environment = [sys.executable, "-c", program], {**os.environ, **THREADS}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def text_of(outputs):
    """Return what outputs say in words. What a picture of a measurement shows, and says, is its own everywhere."""
    bundles = [output.get("data", {}) for output in outputs]
    texts = [output.get("text") or data.get("text/plain", "") for output, data in zip(outputs, bundles, strict=True)]
    return "\n".join(text for text, data in zip(texts, bundles, strict=True) if "image/svg+xml" not in data)


def roughly_equal(here, stored):
    """Say whether two texts have the same words, and numbers at most 0.25 or, above 1, a factor of 4 apart."""
    if [NUMBER.sub("0", text).split() for text in (here, stored)] != [NUMBER.sub("0", stored).split()] * 2:
        return False
    pairs = zip(*([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (here, stored)), strict=True)
    return all(abs(a - b) <= 0.25 or max(abs(a), abs(b)) > 1 and b and 1 / 4 <= a / b <= 4 for a, b in pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
