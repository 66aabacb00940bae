"""The gradient explorer: what initialisation, normalisation and the shortcut do to gradients, plain beside residual."""

import json
import math
from functools import cache
from itertools import product
from statistics import median

import torch

from resbook.device import default_device, device_text
from resbook.gradients import trace_gradients
from resbook.networks import cifar_resnet
from resbook.pictures import line_style, new_figure, picture_of
from resbook.shapes import trace_shapes
from resbook.tables import Table
from resbook.widgets.base import Choice, Explorer, Range, Switch, check_work
from resbook.widgets.gradient_grid import AXES, GRID, Settings, decode, measure, read_codes

VARIANCE = {"default": 1 / 3, "xavier": 1, "he": 2}  # of a weight, times the number of inputs of its layer
AS_ABOVE, DEEPEST = 2, 302  # 2 is the one 6n + 2 that is no network


@cache
def recorded():
    """Return the record: the parsed JSON, and ``values[settings][quantity][statistic]``, a list over blocks."""
    record = json.loads(GRID.read_text(encoding="utf-8"))
    codes = read_codes(record)
    values = {
        settings: {q: {s: list(map(decode, blocks)) for s, blocks in found.items()} for q, found in quantities.items()}
        for settings, quantities in codes.items()
    }
    return record, values


def predicted_factor(norm, init, order, kind):
    """Return by how much one block multiplies |dL/dx| toward the input, by theory; None where no constant is known.

    Plain, without normalisation: a layer of weights of variance v / fan_in and a ReLU multiply by sqrt(v / 2), and a
    block has two. Plain, with batch normalisation: sqrt(pi / (pi - 1)) per layer. Residual, pre-activation, without
    normalisation: the branch is at right angles to the shortcut, sqrt(1 + (v / 2)^2). Where the branch starts at
    zero and nothing follows the addition: 1.
    """
    gain = VARIANCE[init] / 2
    if kind == "plain":
        return gain if norm == "none" else math.pi / (math.pi - 1)
    if order == "preactivation" and kind == "zero-init":
        return 1.0
    if order == "preactivation" and norm == "none":
        return math.sqrt(1 + gain**2)
    return None


class GradientExplorer(Explorer):
    """Explore |dL/dx| and the activations' size through plain and residual networks at initialisation.

    Without a kernel it shows the record ``gradient_grid.json``; with one it measures anew, on the GPU if there is one.

    Args:
        preset: "vanishing" (default), "exploding", "growing", "tame", "preactivation" or "zero-init".
        model: a network of the reader's own, drawn beside the others; any that :func:`trace_gradients` takes.
        images: float tensor ``(N, C, H, W)`` for ``model``. The other networks, recomputed, are given noise.
        labels: int64 tensor ``(N,)`` that belongs to ``images``.
        **settings: depth (20, 32, 44, 56, 110), norm ("none", "batch"), init ("default", "xavier", "he"), order
            ("original", "preactivation"), zero (False), block (1 to 150; beyond the last it means the last).

    Raises:
        TypeError: a setting is unknown or of the wrong type, or a model comes without images and labels.
        ValueError: a setting is out of its range, or the model does not fit the images.
    """

    name, title = "gradients", "Gradient explorer"
    controls = (
        Choice("depth", "Depth", {depth: str(depth) for depth in AXES["depth"]}),
        Choice("norm", "Normalisation", {"none": "none", "batch": "batch normalisation"}),
        Choice("init", "Initialisation", {"default": "PyTorch default", "xavier": "Xavier", "he": "He"}),
        Choice("order", "Order in the block", {"original": "post-activation", "preactivation": "pre-activation"}),
        Switch("zero", "Residual branches start at zero"),
        Range("block", "Read off at block", 1, (DEEPEST - AS_ABOVE) // 2),
    )
    readouts = ("block",)
    live_controls = (
        Range("another_depth", "Another depth (2: as above)", AS_ABOVE, DEEPEST, 6),
        Range("width", "Times as wide", 1, 8),
        Range("batch", "Images in the batch", 2, 512),
        Range("seeds", "Seeds", 1, 5),
    )
    defaults = {"depth": 56, "norm": "none", "init": "default", "order": "original", "zero": False, "block": 1}
    live_defaults = {"another_depth": AS_ABOVE, "width": 1, "batch": 32, "seeds": 3}
    presets = {
        "vanishing": ("Plain vanishes", {}),
        "exploding": ("A shortcut explodes", {"init": "he"}),
        "growing": ("Plain with batch norm grows", {"norm": "batch", "init": "he"}),
        "tame": ("Residual with batch norm stays tame", {"norm": "batch", "init": "he", "depth": 110}),
        "preactivation": ("Pre-activation, as predicted", {"init": "he", "order": "preactivation"}),
        "zero-init": ("Branches that start at zero", {"norm": "batch", "init": "he", "zero": True}),
    }

    def __init__(self, preset=None, *, model=None, images=None, labels=None, **settings):
        if len({value is None for value in (model, images, labels)}) > 1:
            raise TypeError("model, images and labels go together: give all three, or none")
        self.model, self.images, self.labels = model, images, labels
        super().__init__(preset, **settings)

    def data(self):
        record = recorded()[0]
        about = record["about"]
        kept = {key: record[key] for key in ("quantities", "statistics", "data")}
        kept["axes"] = list(record["axes"].values())  # a list keeps its order
        version = about["torch"].split("+")[0]
        images = f"CIFAR-10 test images (a JPEG copy), batches of {about['batch']}, {len(about['seeds'])} seeds"
        kept["source"] = f"Recorded {about['date']}: PyTorch {version}, CPU, {images}."
        kinds = product(*(AXES[name] for name in ("norm", "init", "order", "kind")))
        predicted = {",".join(key): predicted_factor(*key) for key in kinds}
        own = None
        if self.model is not None:
            own = {"label": type(self.model).__name__, "curve": _curve([self._trace_own()])}
        return {"record": kept, "predicted": predicted, "own": own}

    def curves(self):
        """Return the recorded curves of the present settings: {"plain": ..., "residual": ...}."""
        s = self.settings
        return {name: recorded()[1][_key(s, name)] for name in ("plain", "residual")}

    def summary(self):
        growths = {name: _growth(curve) for name, curve in self.curves().items()}
        s = self.settings
        options = f"norm {s['norm']}, init {s['init']}, {s['order']} order" + (", zero-init" if s["zero"] else "")
        return (
            f"Depth {s['depth']}, {options}. From the last block to the first, |dL/dx| is multiplied by: "
            f"plain {growths['plain']:.1e}, residual {growths['residual']:.1e} (medians of 5 seeds)."
        )

    def picture(self):
        figure, axes = new_figure(1, 2, figsize=(7.2, 3.2))
        titles = {"gradient": "|dL/dx|", "activation": "root mean square of x"}
        for ax, (quantity, title) in zip(axes, titles.items(), strict=True):
            for name, curve in self.curves().items():
                blocks = range(1, len(curve[quantity]["median"]) + 1)
                style = line_style(name)
                ax.plot(blocks, curve[quantity]["median"], label=name, **style)
                ax.fill_between(
                    blocks, *(curve[quantity][s] for s in ("least", "greatest")), color=style["color"], alpha=0.2
                )
            ax.set(title=title, xlabel="block (1 is next to the input)", yscale="log")
        axes[0].legend()
        return picture_of(figure, f"Two charts over the blocks, plain and residual. {self.summary()}")

    def table(self):
        return _GridTable(self.curves(), self.summary())

    def recompute(self, settings):
        depth, width, batch, count = (settings[key] for key in ("another_depth", "width", "batch", "seeds"))
        depth = settings["depth"] if depth == AS_ABOVE else depth
        settings = {**settings, "depth": depth}
        with torch.device("meta"):
            cost = trace_shapes(cifar_resnet(depth, widths=(16 * width, 32 * width, 64 * width)), (3, 32, 32))
        check_work(batch * cost.activation_bytes, 3 * batch * cost.macs, f"depth {depth}, width {width}, batch {batch}")
        own = _curve([self._trace_own()]) if self.model is not None else None
        options = f"{settings['norm']} norm, init {settings['init']}, {settings['order']} order"
        title = f"Depth {depth}, width × {width}, {options}{', zero-init' if settings['zero'] else ''}"
        traces = {"plain": [], "residual": []}
        for seed in range(count):
            with torch.random.fork_rng([]):
                torch.default_generator.manual_seed(seed)
                images = torch.randn(batch, 3, 32, 32, device="cpu")
                labels = torch.randint(0, 10, (batch,), device="cpu")
                for name, found in traces.items():
                    key = _key(settings, name)
                    found.append(measure(key, seed, images, labels, width=width, device=default_device()))
            curves = {name: _curve(found) for name, found in traces.items()}
            yield {
                "title": title,
                "settings": {"depth": depth, "width": width, "batch": batch},
                "source": f"Recomputed: {device_text()}, batch of {batch}, noise, {seed + 1} of {count} seeds.",
                "status": f"{device_text()}: {seed + 1} of {count} seeds.",
                "curves": {**curves, "own": own} if own else curves,
            }

    def _trace_own(self):
        return trace_gradients(self.model, self.images, self.labels)


def _key(settings, name):
    kind = "zero-init" if name == "residual" and settings["zero"] else name
    return Settings(settings["depth"], settings["norm"], settings["init"], settings["order"], kind)


def _growth(curve):
    first, last = curve["gradient"]["median"][0], curve["gradient"]["median"][-1]
    return first / last if last else math.nan


def _curve(traces):
    """Return median, least and greatest over the traces, block by block; None where one of them is not finite."""
    summaries = {"median": median, "least": min, "greatest": max}
    curve = {}
    for quantity in ("gradient", "activation"):
        blocks = list(zip(*(trace.column(quantity) for trace in traces), strict=True))
        for name, summary in summaries.items():
            values = [summary(block) if all(map(math.isfinite, block)) else None for block in blocks]
            curve.setdefault(quantity, {})[name] = values
    return curve


class _GridTable(Table):
    def __init__(self, curves, caption):
        self.curves, self.text = curves, caption

    def header(self):
        return ["block", *(f"{what} {name}" for what in ("|dL/dx|", "rms") for name in self.curves)]

    def cells(self):
        columns = [c[q]["median"] for q in ("gradient", "activation") for c in self.curves.values()]
        return [[str(i), *(f"{v:.1e}" for v in row)] for i, row in enumerate(zip(*columns, strict=True), 1)]

    def caption(self):
        return self.text
