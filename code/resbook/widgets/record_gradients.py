"""Record the grid of gradients on CIFAR-10's images: python -m resbook.widgets.record_gradients IMAGE_FOLDER.

It replaces ``gradient_grid.json``, whose form :mod:`resbook.widgets.gradient_grid` describes.
"""

import argparse
import base64
import datetime
import hashlib
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resbook.widgets.gradient_grid import (
    AXES,
    GRID,
    NOT_FINITE,
    QUANTITIES,
    STATISTICS,
    configurations,
    encode,
    measure,
)

SEEDS = range(5)
BATCH = 32
CLASSES = 10
# Copies whose making is known, by the digest of the 160 images.
COPIES = {
    "0e0c336b062d089d59c88f6c8e7060577288597b49a67e0cd04d388f3d85e1d3": "a JPEG copy of quality 75 and not the "
    "official files",
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images, as commonly rounded


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


def summarize(traces):
    """Return the codes of one configuration, from its traces over the seeds (an odd number), in the record's order."""
    codes = []
    for quantity in QUANTITIES:
        blocks = zip(*(trace.column(quantity) for trace in traces), strict=True)
        ranked = [sorted(values, key=lambda value: (math.isnan(value), value)) for values in blocks]
        codes += [encode(values[place]) for place in (len(traces) // 2, 0, -1) for values in ranked]
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


def digest(folder):
    """Return the SHA-256 of the bytes of all images that the record needs, by which a copy of CIFAR-10 is known."""
    files = [file for seed in SEEDS for file in _files(folder, seed)[0]]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def describe(images, codes):
    """Return what a record says about itself: how to repeat it, and what was measured on which images."""
    return {
        "command": "python -m resbook.widgets.record_gradients IMAGE_FOLDER",
        "gradient": "Euclidean norm of the gradient, with respect to each block's output, of the batch's mean "
        "cross-entropy loss",
        "activation": "root mean square of each block's output",
        "networks": "cifar_resnet at initialisation, in training mode; shortcut option A; widths 16, 32, 64",
        "images": "CIFAR-10 test images (Krizhevsky 2009) with their true labels, in "
        + COPIES.get(images, "a copy of which no more is known")
        + f"; seed s has the {BATCH} with file numbers {BATCH} s to {BATCH} s + {BATCH - 1}",
        "images_sha256": images,
        "normalised": f"scaled to [0, 1], less {MEAN}, divided by {STD}: CIFAR-10's usual channel mean and deviation",
        "data": "base64 of 16-bit codes, low byte first: round(1000 (log10(value) + 50)), 0 for zero, 65535 for inf "
        "or NaN; by configuration (last axis fastest), quantity, statistic over the seeds, block from the input",
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
        batches, images = [load_batch(folder, seed) for seed in SEEDS], digest(folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    codes = record_grid(batches)
    data = base64.b64encode(struct.pack(f"<{len(codes)}H", *codes)).decode()
    about = describe(images, codes)
    record = {"about": about, "axes": AXES, "quantities": QUANTITIES, "statistics": STATISTICS, "data": data}
    unfinished = GRID.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, GRID)
    print(f"{GRID.name}: {GRID.stat().st_size:,} bytes; {about['zeros']} zeros, {about['not_finite']} not finite")


if __name__ == "__main__":
    main()
