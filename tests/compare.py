"""Run notebooks from top to bottom and compare every output with the stored one: python tests/compare.py NOTEBOOK...

Each notebook is run by nbval in a process and a kernel of its own, two at a time, and every cell is compared to the
character. Where the arithmetic is not that with which the notebooks were made (another processor, another PyTorch), the
last digits of a measurement differ: there the geometry of pictures is left out, and cells tagged ``measured``, whose
numbers come out of a training, have to agree in words and roughly in numbers.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parent
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # as in the Makefile
OPTIONS = "-p no:cacheprovider -p compare --nbval --nbval-current-env --nbval-cell-timeout 600"
GEOMETRY = re.compile(r"<(svg|g|path|use|text|tspan|image|rect|line|circle|polyline|polygon|clipPath)\b[^>]*>")
NUMBER = re.compile(r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
ARITHMETIC = "import json; from resbook.fingerprint import arithmetic; print(json.dumps(arithmetic()))"


def compare(notebook, **environment):
    """Run nbval on a notebook with this Python; return its exit status and what it printed."""
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", os.environ.get("PYTHONPATH")), str(TESTS)]))
    command = [sys.executable, "-m", "pytest", *OPTIONS.split(), "--nbval-sanitize-with", TESTS / "nbval.cfg", notebook]
    environment = {**os.environ, **THREADS, **environment, "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr * (run.returncode != 0)


def main(notebooks):
    if not notebooks:
        sys.exit("name the notebooks to compare, as in: python tests/compare.py notebooks/*.ipynb")
    if missing := [name for name in ("nbval", "resbook") if not find_spec(name)]:
        sys.exit(f"{' and '.join(missing)} cannot be imported: python -m pip install . -r tests/package.txt")
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for notebook, (status, printed) in zip(notebooks, pool.map(compare, notebooks), strict=True):
            failed += status != 0
            print(f"{notebook}: {printed.strip() if status else printed.strip().splitlines()[-1]}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(notebooks)} notebooks differ. If that is how it should be now: make notebooks")


# What follows is a plug-in of pytest, in the processes that compare starts.


def pytest_configure(config):
    from nbval.plugin import IPyNbCell

    exactly = IPyNbCell.compare_outputs

    def compare_outputs(cell, here, stored, skip_compare=None):
        if exactly(cell, here, stored, skip_compare):
            return True
        if cell.parent.nb.metadata.resbook == arithmetic_here():
            return False
        if exactly(cell, without_geometry(here), without_geometry(stored), skip_compare):
            return True
        measured = "measured" in cell.cell.metadata.get("tags", [])
        return measured and roughly_equal(text_of(here), text_of(stored))

    IPyNbCell.compare_outputs = compare_outputs


@cache
def arithmetic_here():
    run = subprocess.run(
        [sys.executable, "-c", ARITHMETIC], env={**os.environ, **THREADS}, capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"the arithmetic of this machine could not be determined:\n{run.stderr}")
    return json.loads(run.stdout)


def without_geometry(outputs):
    """Return outputs whose drawings have elements and labels, and no places, sizes and colours."""
    outputs = [output.copy() for output in outputs]
    for output in outputs:
        if "data" in output:
            output["data"] = {kind: without_attributes(value) for kind, value in output["data"].items()}
    return outputs


def without_attributes(value):
    return GEOMETRY.sub(r"<\1>", value) if isinstance(value, str) else value  # a widget's view is no text


def text_of(outputs):
    """Return what outputs say in words. What a picture of a measurement shows, and says, is its own everywhere."""
    bundles = [output.get("data", {}) for output in outputs]
    texts = [output.get("text") or data.get("text/plain", "") for output, data in zip(outputs, bundles, strict=True)]
    return "\n".join(text for text, data in zip(texts, bundles, strict=True) if "image/svg+xml" not in data)


def roughly_equal(here, stored):
    """Say whether two texts have the same words, and numbers that :func:`near` each other."""
    numbers = [NUMBER.findall(text) for text in (here, stored)]
    words = [NUMBER.sub("0", text).split() for text in (here, stored)]
    return words[0] == words[1] and all(near(a, b) for a, b in zip(*numbers, strict=True))


def near(a, b):
    """Say whether two numbers are at most 0.2 apart, if both are shares; else, at most a factor of 4."""
    x, y = (float(number.replace(",", "")) for number in (a, b))
    if max(abs(x), abs(y)) <= 1 and "e" not in a + b:
        return abs(x - y) <= 0.2
    return x == y or x * y > 0 and 1 / 4 <= x / y <= 4


if __name__ == "__main__":
    main(sys.argv[1:])
