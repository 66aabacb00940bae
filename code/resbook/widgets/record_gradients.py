"""Record the gradients and activations of 180 CIFAR networks at initialisation: -m resbook.widgets.record_gradients.

The record, ``gradient_grid.json`` beside this file, holds for every configuration and block the median, the least and
the greatest of five seeds. Its ``data`` is one base64 string of unsigned 16-bit integers, least significant byte first:
for each configuration (``axes``, the last one varies fastest), each of ``quantities`` and each of ``statistics``, one
code per block, from the input to the output; a network of depth d has (d - 2) / 2 blocks. A code is
``round(1000 * (log10(value) + 50))``; 0 stands for exactly zero, 65535 for infinity or NaN.
"""

import argparse
import base64
import datetime
import hashlib
import itertools
import json
import math
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from resbook.gradients import trace_gradients
from resbook.initialization import SCHEMES, initialize
from resbook.networks import cifar_resnet

NORMS = {"none": nn.Identity, "batch": nn.BatchNorm2d}
KINDS = {"plain": {"residual": False}, "residual": {}, "zero-init": {"zero_init": True}}
AXES = {
    "depth": (20, 32, 44, 56, 110),
    "norm": tuple(NORMS),
    "init": tuple(SCHEMES),
    "order": ("original", "preactivation"),
    "kind": tuple(KINDS),
}
QUANTITIES = ("gradient", "activation")
STATISTICS = ("median", "least", "greatest")
SEEDS = range(5)
BATCH = 32
CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images, as commonly rounded
NOT_FINITE = 65535
GRID = Path(__file__).with_name("gradient_grid.json")


class Settings(NamedTuple):
    """One configuration: a value of each axis in ``AXES``; ``measure`` takes any depth that ``cifar_resnet`` takes."""

    depth: int
    norm: str
    init: str
    order: str
    kind: str


def configurations():
    """Return the :class:`Settings` of the grid in the record's order."""
    return [Settings(*values) for values in itertools.product(*AXES.values())]


def load_batch(folder, seed):
    """Read the 32 CIFAR-10 test images that belong to a seed: those whose file number is 32 seed to 32 seed + 31.

    Args:
        folder: holds ``test/<class>/<number>.jpg``; numbers are unique over the classes, and there are 10 classes.
        seed: an integer from 0 to 311.

    Returns:
        images, float32 ``(32, 3, 32, 32)``, scaled to [0, 1], less ``MEAN``, divided by ``STD``; and labels, int64
        ``(32,)``, the class's place in the alphabet.

    Raises:
        FileNotFoundError: the folder, or an image, is missing.
        ValueError: there are not 10 classes, a number occurs twice, or an image is not 32x32.
    """
    files, classes = _files(folder, seed)
    pixels = np.stack([_read(file) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std, torch.tensor([classes.index(file.parent.name) for file in files])


def _files(folder, seed):
    """Return the images' files in the order of their numbers, and the names of all classes."""
    test = Path(folder) / "test"
    if not test.is_dir():
        raise FileNotFoundError(f"folder must hold test/<class>/<number>.jpg; there is no folder {test}")
    classes = sorted(path.name for path in test.iterdir() if path.is_dir())
    if len(classes) != CLASSES:
        raise ValueError(f"{test} must hold {CLASSES} folders, one per class, got {len(classes)}")
    files = {}
    for file in sorted(test.glob("*/*.jpg")):
        if file.stem.isdecimal() and files.setdefault(int(file.stem), file) != file:
            raise ValueError(f"numbers must be unique over the classes, got {files[int(file.stem)]} and {file}")
    wanted = range(BATCH * seed, BATCH * (seed + 1))
    missing = [number for number in wanted if number not in files]
    if missing:
        raise FileNotFoundError(f"{test} must hold the images {wanted[0]} to {wanted[-1]}; {missing[0]} is missing")
    return [files[number] for number in wanted], classes


def _read(file):
    """Return an image as uint8 ``(32, 32, 3)``."""
    with Image.open(file) as image:
        if image.size != (32, 32):
            raise ValueError(f"images must be 32x32, got {image.width}x{image.height}: {file}")
        return np.array(image.convert("RGB"))


def measure(settings, seed, images, labels):
    """Trace one network of the grid, in training mode on the CPU, at its initialisation from a seed.

    The random numbers are those of ``torch.manual_seed(seed)``, then ``cifar_resnet``, then ``initialize``; PyTorch's
    generator is left where that leaves it.

    Args:
        settings: a :class:`Settings`, or its five values in that order.
        seed: for ``torch.manual_seed``.
        images: float32 ``(N, 3, H, W)``.
        labels: int64 ``(N,)``, 0 to 9.

    Returns:
        A :class:`~resbook.gradients.GradientTrace` with one row per block.

    Raises:
        ValueError: a setting is unknown, or images and labels do not fit, see ``trace_gradients``.
    """
    depth, norm, init, order, kind = settings
    for name, value, known in (("norm", norm, NORMS), ("kind", kind, KINDS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    torch.manual_seed(seed)
    model = cifar_resnet(depth, norm=NORMS[norm], order=order, **KINDS[kind])
    initialize(model, init)
    return trace_gradients(model, images, labels)


def encode(value):
    """Return a value's code, see the module; ValueError if it is negative, or too small or too large for a code."""
    if not math.isfinite(value):
        return NOT_FINITE
    if value == 0:
        return 0
    code = round(1000 * (math.log10(value) + 50)) if value > 0 else 0
    if not 0 < code < NOT_FINITE:
        raise ValueError(f"value must be 0, or from 1e-49.999 to 1e+15.534, got {value!r}")
    return code


def decode(code):
    """Return the value that a code stands for: within 0.12 % of what was encoded, NaN for infinity."""
    if code in (0, NOT_FINITE):
        return math.nan if code else 0.0
    return 10 ** (code / 1000 - 50)


def summarize(traces):
    """Return the codes of one configuration, from its traces over the seeds (an odd number), in the record's order."""
    codes = []
    for quantity in QUANTITIES:
        blocks = zip(*(trace.column(quantity) for trace in traces), strict=True)
        ranked = [sorted(values, key=lambda value: (math.isnan(value), value)) for values in blocks]
        codes += [encode(values[place]) for place in (len(traces) // 2, 0, -1) for values in ranked]
    return codes


def read_codes(record):
    """Return what ``record``, the parsed JSON, holds: ``codes[settings][quantity][statistic]``, a list over blocks."""
    data = base64.b64decode(record["data"])
    stream = iter(struct.unpack(f"<{len(data) // 2}H", data))
    codes = {}
    for settings in itertools.starmap(Settings, itertools.product(*record["axes"].values())):
        blocks = (settings.depth - 2) // 2
        codes[settings] = {
            quantity: {name: list(itertools.islice(stream, blocks)) for name in record["statistics"]}
            for quantity in record["quantities"]
        }
    return codes


def record_grid(batches):
    """Measure the whole grid, print each configuration's growths, and return all codes in the record's order.

    Args:
        batches: images and labels for each of ``SEEDS``, see ``load_batch``.
    """
    codes, grid = [], configurations()
    for number, settings in enumerate(grid, 1):
        traces = [measure(settings, seed, *batch) for seed, batch in zip(SEEDS, batches, strict=True)]
        codes += summarize(traces)
        growths = ", ".join(f"{trace.growth:.2g}" for trace in traces)
        print(f"{number}/{len(grid)}", *settings, "first / last |dL/dx|:", growths, flush=True)
    return codes


def describe(folder, codes):
    """Return what a record says about itself: how to repeat it, and what was measured on which images."""
    files = [file for seed in SEEDS for file in _files(folder, seed)[0]]
    return {
        "command": "python -m resbook.widgets.record_gradients IMAGE_FOLDER",
        "gradient": "Euclidean norm of the gradient, with respect to each block's output, of the batch's mean "
        "cross-entropy loss",
        "activation": "root mean square of each block's output",
        "networks": "cifar_resnet at initialisation, in training mode; shortcut option A; widths 16, 32, 64",
        "images": "CIFAR-10 test images (Krizhevsky 2009) with their true labels, in a JPEG copy of quality 75 and not "
        f"the official files; seed s has the {BATCH} with file numbers {BATCH} s to {BATCH} s + {BATCH - 1}",
        "images_sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        "normalised": f"scaled to [0, 1], less {MEAN}, divided by {STD}: CIFAR-10's usual channel mean and deviation",
        "seeds": list(SEEDS),
        "batch": BATCH,
        "torch": torch.__version__,
        "device": f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "zeros": codes.count(0),
        "not_finite": codes.count(NOT_FINITE),
    }


def main():
    """Check the images, record the grid on two threads of the CPU, and replace the old record in one step."""
    parser = argparse.ArgumentParser(description="Record the gradients of CIFAR networks at initialisation.")
    parser.add_argument("folder", metavar="IMAGE_FOLDER", help="holds CIFAR-10 as test/<class>/<number>.jpg")
    folder = parser.parse_args().folder
    torch.set_num_threads(2)
    try:
        batches = [load_batch(folder, seed) for seed in SEEDS]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    codes = record_grid(batches)
    data = base64.b64encode(struct.pack(f"<{len(codes)}H", *codes)).decode()
    about = describe(folder, codes)
    record = {"about": about, "axes": AXES, "quantities": QUANTITIES, "statistics": STATISTICS, "data": data}
    unfinished = GRID.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, GRID)
    print(f"{GRID.name}: {GRID.stat().st_size:,} bytes; {about['zeros']} zeros, {about['not_finite']} not finite")


if __name__ == "__main__":
    main()
