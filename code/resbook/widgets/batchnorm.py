"""The batch normalisation explorer: a few values on their way through the layer, its axes, and its gradient."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from resbook.device import default_device
from resbook.drawings import GREEN, INK, Canvas
from resbook.pictures import OKABE_ITO
from resbook.tables import Table
from resbook.widgets.base import Choice, Explorer, Range

# One channel of eight images: mean 5 and, as an estimate for other images, variance 3. The last can be moved.
VALUES = (8.1, 2.5, 5.0, 4.5, 4.8, 3.4, 5.2, 6.5)
EPSILON = 1e-5
CHANNELS, SIDE = 6, 3  # of the maps in the view of the axes
STAGES, GRADIENTS = ("x", "x − mean", "x̂", "y"), ("g", "g − mean(g)", "gradient of x")
LAYERS = {"batch": "batch norm", "layer": "layer norm", "instance": "instance norm", "group": "group norm"}
PATTERNS = {
    "equal": "all equal",
    "one": "the movable value only",
    "xhat": "proportional to x̂",
    "alternating": "alternating signs",
}
SKY, ORANGE = OKABE_ITO["sky"][0], OKABE_ITO["orange"][0]


class BatchNormExplorer(Explorer):
    """Explore batch normalisation: its steps on up to eight values, the axes it averages over, its gradient.

    In evaluation the running statistics are used; they have seen ``steps`` times the same batch of all eight values.

    Args:
        preset: "steps" (default), "outlier", "batch-of-one", "too-early", "axes", "taken-out" or
            "gradient".
        **settings: view ("values", "axes", "gradient"), mode ("training", "evaluation"), batch (1 to 8), outlier (the
            last value, -10 to 10), gamma and beta (-3 to 3), momentum (0 to 1), steps (0 to 60), layer ("batch",
            "layer", "instance", "group"), groups (1, 2, 3, 6), channel (1 to 6), image (1 to 8; beyond the batch it
            means the last), pattern of the gradient that arrives ("equal", "one", "xhat", "alternating").

    Raises:
        TypeError: a setting is unknown or of the wrong type.
        ValueError: a setting is out of its range, or the preset is unknown.
    """

    name, title = "batchnorm", "Batch normalisation explorer"
    controls = (
        Choice("view", "View", {"values": "values, step by step", "axes": "axes averaged", "gradient": "gradient"}),
        Choice("mode", "Mode", {"training": "training", "evaluation": "evaluation"}),
        Choice("layer", "Layer", LAYERS),
        Choice("groups", "Groups of channels", {1: "1", 2: "2", 3: "3", 6: "6"}),
        Choice("pattern", "Gradient g that arrives", PATTERNS),
        Range("batch", "Batch size N", 1, 8),
        Range("outlier", "Movable value", -10, 10, 0.1),
        Range("gamma", "Scale γ", -3, 3, 0.1),
        Range("beta", "Shift β", -3, 3, 0.1),
        Range("momentum", "Momentum: weight of the new batch", 0, 1, 0.01),
        Range("steps", "Training steps taken", 0, 60),
        Range("channel", "Channel", 1, CHANNELS),
        Range("image", "Image", 1, 8),
    )
    defaults = {
        "view": "values", "mode": "training", "layer": "batch", "groups": 2, "pattern": "equal", "batch": 8,
        "outlier": VALUES[-1], "gamma": 1, "beta": 0, "momentum": 0.1, "steps": 1, "channel": 3, "image": 2,
    }  # fmt: skip
    presets = {
        "steps": ("Step by step", {"gamma": 2, "beta": -1}),
        "outlier": ("An outlier", {"outlier": -10}),
        "batch-of-one": ("A batch of one", {"batch": 1, "beta": 2}),
        "too-early": ("Evaluated too early", {"mode": "evaluation"}),
        "axes": ("Which axes?", {"view": "axes", "batch": 4}),
        "taken-out": ("What is taken out", {"view": "gradient", "pattern": "one", "outlier": 8}),
        "gradient": ("No gradient left", {"view": "gradient"}),
    }

    def data(self):
        numbers = {"values": VALUES, "epsilon": EPSILON, "channels": CHANNELS, "side": SIDE}
        return {**numbers, "layers": list(LAYERS.items()), "patterns": PATTERNS, "refusal": _refusal()}

    def summary(self):
        s = self.settings
        if s["view"] == "axes":
            counts = [f"{LAYERS[name]} {values} values for each of {means} means" for name, values, means in _counts(s)]
            return f"A batch of {s['batch']}×{CHANNELS}×{SIDE}×{SIDE}: {'; '.join(counts)}."
        mean, var, (_, _, x_hat, y), (_, _, dx) = _by_formula(s)
        kind = f"Evaluation after training steps: {s['steps']}" if s["mode"] == "evaluation" else "Training"
        used = f"{kind}. Values: {s['batch']}, normalised with mean {_text(mean)} and variance {_text(var)}."
        refused = f" PyTorch refuses: {_refusal()}." if _is_refused(s) else ""
        if s["view"] == "values":
            spread = f"mean {_text(y.mean())}, standard deviation {_text(y.std(correction=0))}"
            return f"{used} Output: {spread}.{refused}"
        sums = f"its sum: {_text(dx.sum())}, its product with x̂: {_text((dx * x_hat).sum())}"
        return f"{used} Gradient g: {PATTERNS[s['pattern']]}. Gradient of x: {sums}.{refused}"

    def picture(self):
        draw = {"values": _draw_values, "axes": _draw_axes, "gradient": _draw_gradient}
        return draw[self.settings["view"]](self.settings, self.summary())

    def table(self):
        return _Numbers(self.settings)

    def recompute(self, settings):
        if settings["view"] == "axes":
            yield _recompute_axes(settings)
        elif _is_refused(settings):
            yield {"status": f"PyTorch agrees, on {default_device()}, and refuses. ValueError: {_refusal()}"}
        else:
            yield _recompute_values(settings)


def _by_formula(settings):
    """Return mean and variance used; x at its four stages; and g, g without its mean, and the gradient of x."""
    batch, a = settings["batch"], settings["momentum"]
    x = torch.tensor([*VALUES[: batch - 1], settings["outlier"]], dtype=torch.float64, device="cpu")
    mean, var, training = x.mean(), x.var(correction=0), settings["mode"] == "training"
    if not training:
        seen, mean, var = torch.tensor(VALUES, dtype=torch.float64, device="cpu"), x.new_zeros(()), x.new_ones(())
        for _ in range(settings["steps"]):
            mean, var = (1 - a) * mean + a * seen.mean(), (1 - a) * var + a * seen.var()
    s = torch.sqrt(var + EPSILON)
    x_hat = (x - mean) / s
    stages = torch.stack([x, x - mean, x_hat, settings["gamma"] * x_hat + settings["beta"]])
    i = torch.arange(batch, device="cpu").double()
    g = {"equal": i**0, "one": 0.0 ** (batch - 1 - i), "xhat": x_hat, "alternating": (-1.0) ** i}[settings["pattern"]]
    centred = g - g.mean()
    dx = settings["gamma"] / s * (centred - x_hat * (g * x_hat).mean() if training else g)
    return mean, var, stages, torch.stack([g, centred, dx])


def _counts(settings):
    """Return for each of the four layers its name, how many values share a mean, and how many means there are."""
    batch, groups = settings["batch"], settings["groups"]
    means = {"batch": CHANNELS, "layer": batch, "instance": batch * CHANNELS, "group": batch * groups}
    return [(name, batch * CHANNELS * SIDE**2 // count, count) for name, count in means.items()]


@torch.enable_grad()  # also where a chapter has switched it off
def _recompute_values(settings):
    device = default_device()
    exact = {"dtype": torch.float32 if device.type == "mps" else torch.float64, "device": device}
    bn = nn.BatchNorm1d(1, eps=EPSILON, momentum=settings["momentum"], **exact)
    if settings["mode"] == "evaluation":
        for _ in range(settings["steps"]):
            bn(torch.tensor(VALUES, **exact)[:, None])
        bn.eval()
    nn.init.constant_(bn.weight, settings["gamma"])
    nn.init.constant_(bn.bias, settings["beta"])
    _, _, stages, (g, _, dx) = _by_formula(settings)
    x = stages[0].to(**exact)[:, None].requires_grad_()
    y = bn(x)
    y.backward(g.to(**exact)[:, None])
    results = {"y": y.detach().cpu().flatten(), "gradient": x.grad.cpu().flatten()}
    away = [(results[key] - formula).abs().max().item() for key, formula in (("y", stages[3]), ("gradient", dx))]
    near = 1e-9 if exact["dtype"] == torch.float64 else 1e-3 * (1 + dx.abs().max().item())
    verdict = "PyTorch agrees" if max(away) < near else "PyTorch DIFFERS"
    status = (
        f"{verdict}, on {device}: y differs from the formula by at most {away[0]:.1g}, the gradient by {away[1]:.1g}."
    )
    return {"status": status}


@torch.enable_grad()  # also where a chapter has switched it off
def _recompute_axes(settings):
    """Count by autograd on how many inputs one output depends: on those that share its mean."""
    x = torch.randn(settings["batch"], CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0), device="cpu")
    device = default_device()
    x = x.to(device).requires_grad_()
    outputs = {
        "batch": F.batch_norm(x, None, None, training=True),
        "layer": F.layer_norm(x, x.shape[1:]),
        "instance": F.instance_norm(x),
        "group": F.group_norm(x, settings["groups"]),
    }
    at = (*_marked(settings), 1, 1)
    used = {name: torch.autograd.grad(y[at], x)[0].count_nonzero().item() for name, y in outputs.items()}
    verdict = "agrees" if used == {name: values for name, values, _ in _counts(settings)} else "DIFFERS"
    counts = ", ".join(f"{count} ({LAYERS[name]})" for name, count in used.items())
    return {
        "status": f"PyTorch {verdict}, on {device}: by autograd, the marked output depends on {counts} inputs.",
    }


def _marked(settings):
    return min(settings["image"], settings["batch"]) - 1, settings["channel"] - 1


def _is_refused(settings):
    return settings["view"] != "axes" and settings["mode"] == "training" and settings["batch"] == 1


@cache
def _refusal():
    try:
        nn.BatchNorm1d(1)(torch.zeros(1, 1))
    except ValueError as error:
        return str(error)


def _text(number):
    number = float(number) * (1 + 1e-12)  # halves are rounded up, as in JavaScript
    return "0" if abs(number) < 1e-12 else f"{number:.1e}" if abs(number) < 0.005 else f"{number:.2f}"


class _Numbers(Table):
    def __init__(self, settings):
        self.settings = settings

    def caption(self):
        return "The numbers of the picture."

    def header(self):
        heads = {"values": STAGES, "gradient": ("x̂", *GRADIENTS), "axes": ("values for each mean", "means")}
        return ["layer" if self.settings["view"] == "axes" else "value", *heads[self.settings["view"]]]

    def cells(self):
        if self.settings["view"] == "axes":
            return [[LAYERS[name], str(values), str(means)] for name, values, means in _counts(self.settings)]
        _, _, stages, gradients = _by_formula(self.settings)
        columns = stages if self.settings["view"] == "values" else [stages[2], *gradients]
        return [[f"x{i}", *map(_text, row)] for i, row in enumerate(zip(*columns, strict=True), start=1)]


def _mark(canvas, x, y, movable, colour=ORANGE):
    if movable:
        canvas.path([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y), (x, y - 6)], colour)
    else:
        canvas.square(x - 3.5, y - 3.5, 7, SKY, fill=True)


def _draw_values(settings, alt):
    canvas, (_, _, stages, _) = Canvas(), _by_formula(settings)
    low, high = min(-10, stages.min().item()), max(10, stages.max().item())
    places = (110 + 500 * (stages - low) / (high - low)).tolist()
    for i, title in enumerate(STAGES):
        canvas.text(90, 34 + 60 * i, title, anchor="end", weight="bold")
        canvas.path([(110, 30 + 60 * i), (610, 30 + 60 * i)], INK)
    for k, strand in enumerate(zip(*places, strict=True)):
        movable = k == settings["batch"] - 1
        canvas.path([(x, 30 + 60 * i) for i, x in enumerate(strand)], ORANGE if movable else SKY)
        for i, x in enumerate(strand):
            _mark(canvas, x, 30 + 60 * i, movable)
    for value in (low, 0, high):
        canvas.text(110 + 500 * (value - low) / (high - low), 236, f"{value:.3g}", size=11)
    return canvas.picture(f"Four number lines, from the input to the output; the movable value is a diamond. {alt}")


def _draw_axes(settings, alt):
    canvas, step, (image, channel), size = Canvas(), 20, _marked(settings), CHANNELS // settings["groups"]
    for k, (name, values, means) in enumerate(_counts(settings)):
        left = k * 165
        canvas.text(left, 14, LAYERS[name], anchor="start", weight="bold")
        canvas.text(left, 30, f"{means} means of {values} values", anchor="start", size=11)
        for i in range(settings["batch"]):
            for j in range(CHANNELS):
                near = {"batch": j == channel, "layer": i == image, "instance": (i, j) == (image, channel)}
                near["group"] = (i, j // size) == (image, channel // size)
                canvas.square(left + j * step, 40 + i * step, step - 4, GREEN if near[name] else INK, fill=near[name])
        _mark(canvas, left + channel * step + 8, 48 + image * step, True, INK)
    return canvas.picture(f"Four grids, images by channels; filled is what shares its mean with the diamond. {alt}")


def _draw_gradient(settings, alt):
    canvas, gradients = Canvas(), _by_formula(settings)[3]
    most = max(gradients.abs().max().item(), 1e-9)
    for i, (title, bars) in enumerate(zip(GRADIENTS, gradients.tolist(), strict=True)):
        y = 60 + 120 * i
        canvas.text(90, y + 4, title, anchor="end", weight="bold")
        canvas.path([(110, y), (610, y)], INK)
        for j, value in enumerate(bars):
            height, down = 40 * abs(value) / most, value < -1e-12
            canvas.bar(115 + j * 62, y if down else y - height, 40, height, ORANGE if j == len(bars) - 1 else SKY)
            canvas.text(135 + j * 62, y + height + 14 if down else y - height - 5, _text(value), size=11)
    return canvas.picture(f"Bars for each value: the gradient that arrives, without its mean, and of x. {alt}")
