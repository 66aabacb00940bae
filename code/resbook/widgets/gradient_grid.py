"""The grid of gradients and activations: 180 CIFAR networks at initialisation, one measured anew or all as recorded.

The record, ``gradient_grid.json`` beside this file, holds for every configuration and block the median, the least and
the greatest of five seeds. Its ``data`` is one base64 string of unsigned 16-bit integers, least significant byte first:
for each configuration (``axes``, the last one varies fastest), each of ``quantities`` and each of ``statistics``, one
code per block, from the input to the output; a network of depth d has (d - 2) / 2 blocks. A code is
``round(1000 * (log10(value) + 50))``; 0 stands for exactly zero, 65535 for infinity or NaN.
"""

import base64
import itertools
import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch
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


def measure(settings, seed, images, labels, *, width=1, device="cpu"):
    """Trace one network of the grid, in training mode, at its initialisation from a seed.

    The random numbers are those of ``torch.manual_seed(seed)``, then ``cifar_resnet``, then ``initialize``, all on
    the CPU; PyTorch's generator is left where that leaves it.

    Args:
        settings: a :class:`Settings`, or its five values in that order.
        seed: for ``torch.manual_seed``.
        images: float32 ``(N, 3, H, W)``.
        labels: int64 ``(N,)``, 0 to 9.
        width: how many times as wide as (16, 32, 64). Default 1, as in the record.
        device: where the network is traced. Default "cpu", as in the record.

    Returns:
        A :class:`~resbook.gradients.GradientTrace` with one row per block.

    Raises:
        ValueError: a setting is unknown, or images and labels do not fit, see ``trace_gradients``.
    """
    depth, norm, init, order, kind = settings
    for name, value, known in (("norm", norm, NORMS), ("kind", kind, KINDS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    torch.default_generator.manual_seed(seed)  # and not the generators of GPUs, which are somebody else's
    widths = tuple(width * channels for channels in (16, 32, 64))
    with torch.device("cpu"):
        model = initialize(cifar_resnet(depth, norm=NORMS[norm], order=order, widths=widths, **KINDS[kind]), init)
    return trace_gradients(model.to(device), images, labels)


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
