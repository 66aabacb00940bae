"""Pictures of six classes, drawn by chance: pavement, wall and bridge deck, each with and without a crack."""

import math

import torch
import torch.nn.functional as F

from resbook.arithmetic import check_integer

SURFACES = ("pavement", "wall", "bridge deck")
CRACK_CLASSES = tuple(f"{surface}, {state}" for surface in SURFACES for state in ("intact", "cracked"))


def draw_cracks(count, size=64, seed=0, *, healed=False):
    """Draw pictures of surfaces, half of them cracked, that no two of a seed have in common.

    Every surface has a texture of its own: pavement the grain of stones, a wall soft clouds of light, a bridge deck
    the grooves that are cut for tyres. Brightness, contrast and tint overlap. What could be taken for a crack comes
    with and without one: a straight joint, stains, the edge of a shadow. A crack is a random walk of a few strokes
    that may branch, from a faint hair to a broad gap.

    Args:
        count: how many pictures; they go through the six classes in turn.
        size: height and width in pixels, at least 16. Default 64.
        seed: of everything random, 0 to 2**32 - 1; picture ``i`` of a seed does not depend on ``count``. Default 0.
        healed: leave the cracks out, and nothing else: every picture is drawn with the same texture, joint, stains,
            shadow, tint and noise, and keeps its label. Default False.

    Returns:
        ``images``, float32 ``(count, 3, size, size)`` from 0 to 1, and ``labels``, int64 ``(count,)``, positions in
        :data:`CRACK_CLASSES`.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: ``count`` is below 1, ``size`` below 16, or ``seed`` out of range.
    """
    check_integer("count", count)
    check_integer("size", size, least=16)
    check_integer("seed", seed, least=0, most=2**32 - 1)
    labels = torch.arange(count) % len(CRACK_CLASSES)
    pictures = []
    for i, label in enumerate(labels.tolist()):
        chance = Chance(seed * 1_000_003 + i)
        pictures.append(_picture(SURFACES[label // 2], label % 2 == 1, size, chance, healed))
    return torch.stack(pictures), labels


class Chance:
    """Random numbers from one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low, high):
        """Return a number, every one from ``low`` to ``high`` being as likely."""
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def happens(self, probability):
        """Return True with a probability."""
        return self.between(0, 1) < probability

    def noise(self, *shape):
        """Return a tensor of this shape from the standard normal distribution."""
        return torch.randn(shape, generator=self.generator)


def _picture(surface, cracked, size, chance, healed):
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    positions = torch.stack([columns, rows], -1) / size  # from 0 to 1, x before y
    grey = chance.between(0.45, 0.65) + _texture(surface, positions, chance)
    if chance.happens(0.5):
        grey = grey - chance.between(0.1, 0.3) * _line(positions, chance, chance.between(0.01, 0.02))
    for _ in range(int(chance.between(0, 3))):
        grey = grey - chance.between(0.05, 0.2) * _stain(positions, chance)
    if chance.happens(0.4):
        grey = grey * (1 - chance.between(0.15, 0.4) * _shadow(positions, chance))
    if cracked:
        crack = chance.between(0.2, 0.45) * _crack(positions, chance)  # drawn also if healed, for the numbers after it
        grey = grey if healed else grey - crack
    tint = torch.tensor([chance.between(0.92, 1.08), 1.0, chance.between(0.92, 1.08)])[:, None, None]
    return (grey * tint + 0.02 * chance.noise(3, size, size)).clamp(0, 1)


def _texture(surface, positions, chance):
    size = len(positions)
    if surface == "pavement":
        stones = F.avg_pool2d(chance.noise(1, size + 2, size + 2), 3, 1)[0]
        return chance.between(0.25, 0.4) * stones
    clouds = _clouds(size, chance)
    if surface == "wall":
        return chance.between(0.08, 0.16) * clouds
    across = _across(positions, chance) * chance.between(8, 14)
    return chance.between(0.05, 0.1) * torch.sin(2 * math.pi * across) + 0.05 * clouds


def _clouds(size, chance):
    coarse = chance.noise(1, 1, 4, 4)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)[0, 0]


def _across(positions, chance):
    """Return how far every position lies from a line through the middle, in a random direction, with its sign."""
    angle = chance.between(0, math.pi)
    direction = torch.tensor([math.cos(angle), math.sin(angle)])
    return (positions - 0.5) @ direction


def _line(positions, chance, width):
    return torch.exp(-(((_across(positions, chance) - chance.between(-0.3, 0.3)) / width) ** 2))


def _stain(positions, chance):
    centre = torch.tensor([chance.between(0, 1), chance.between(0, 1)])
    return torch.exp(-(((positions - centre).norm(dim=-1) / chance.between(0.05, 0.2)) ** 2))


def _shadow(positions, chance):
    return torch.sigmoid((_across(positions, chance) - chance.between(-0.3, 0.3)) / chance.between(0.01, 0.05))


def _crack(positions, chance):
    """Return how much of every pixel is crack, from 0 to 1: it falls off with the distance to the nearest step."""
    size = len(positions)
    width = chance.between(0.008, 0.02)
    start = torch.tensor([chance.between(0.2, 0.8), chance.between(0.2, 0.8)])
    heading, paths = chance.between(0, 2 * math.pi), []
    for direction in (heading, heading + math.pi):  # a crack runs both ways from where it began
        paths.append(_walk(start, direction, size, chance))
    if chance.happens(0.5):
        begin = paths[0][len(paths[0]) // 3]
        paths.append(_walk(begin, heading + chance.between(0.5, 1.2), size, chance))
    distance = torch.cdist(positions.reshape(-1, 2), torch.cat(paths)).min(1).values
    return torch.exp(-((distance / width) ** 2)).reshape(size, size)


def _walk(start, heading, size, chance):
    """Return the steps of a walk, half a pixel long, that wanders about its heading and is rough in the small."""
    steps = int(size * chance.between(0.6, 1.4))
    bends = F.interpolate(0.7 * chance.noise(1, 1, 8), steps, mode="linear", align_corners=True)[0, 0]
    headings = heading + bends + 0.5 * chance.noise(steps)
    return start + torch.stack([headings.cos(), headings.sin()], 1).cumsum(0) * 0.5 / size
