"""The block workshop: one block from its parts, what it costs, and whether it can do nothing."""

import time
from functools import cache
from itertools import product

import torch
from torch import nn

from resbook.blocks import BasicBlock, Bottleneck, Shortcut
from resbook.device import default_device
from resbook.drawings import draw_block, layer_text, split_and_join
from resbook.shapes import shape_text, trace_shapes
from resbook.widgets.base import Choice, Explorer, Range

SIZE = 56  # of the input's map, as in a ResNet's first stage on images of 224
IN_CHANNELS = {"BasicBlock": 64, "Bottleneck": 256}
WIDTHS = {"same": 64, "doubled": 128}  # of the branch; with them the output has as many channels, or twice as many
SHORTCUTS = {
    "none": "none: a plain block",
    "A": "A: nothing learned",
    "B": "B: projection if the shape changes",
    "C": "C: projection always",
}
ORDERS = {  # with the letters of He et al. 2016b, Fig. 4
    "original": "(a) original",
    "norm-after-addition": "(b) BN after the addition",
    "relu-before-addition": "(c) ReLU before the addition",
    "relu-only-preactivation": "(d) ReLU-only pre-activation",
    "preactivation": "(e) full pre-activation",
}
THINNER = 8  # what is only tried out has an eighth of the channels
EXACTLY, NEARLY, NOTHING = "exactly", "up to BN's ε", "nothing"


def call(block, shortcut, stride, channels, order):
    """Return the one line that builds the block of these settings, without arguments that have their default."""
    arguments = [f"{IN_CHANNELS[block]}, {WIDTHS[channels]}"]
    if stride != 1:
        arguments.append(f"{stride}")
    if shortcut == "none":
        arguments.append("residual=False")
    elif shortcut != "B":
        arguments.append(f'shortcut="{shortcut}"')
    if order != "original":
        arguments.append(f'order="{order}"')
    return f"{block}({', '.join(arguments)})"


def build(block, shortcut, stride, channels, order, *, thinner=1):
    """Return the block that :func:`call` writes down, or one with as many times fewer channels as ``thinner`` says."""
    options = {"residual": False} if shortcut == "none" else {"shortcut": shortcut}
    kind = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[block]
    return kind(IN_CHANNELS[block] // thinner, WIDTHS[channels] // thinner, stride, order=order, **options)


class BlockWorkshop(Explorer):
    """Put a block together from its parts: graph, shapes, costs, and whether it can be an identity.

    Every combination can be built. Option A alone cannot remove channels, and here channels only stay or double.

    Args:
        preset: "basic" (default), "plain", "projection", "option-a", "preactivation", "trap" or
            "norm-after-addition".
        **settings: block ("BasicBlock", "Bottleneck"), shortcut ("none", "A", "B", "C"), stride (1, 2), channels
            ("same", "doubled"), order (one of ``resbook.blocks.ORDERS``).

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is not one of its values, or the preset is unknown.
    """

    name, title = "workshop", "Block workshop"
    controls = (
        Choice("block", "Block", {"BasicBlock": "basic: 3×3, 3×3", "Bottleneck": "bottleneck: 1×1, 3×3, 1×1"}),
        Choice("shortcut", "Shortcut", SHORTCUTS),
        Choice("stride", "Stride", {1: "1: the map keeps its size", 2: "2: the map is halved"}),
        Choice("channels", "Channels", {"same": "as many as before", "doubled": "twice as many"}),
        Choice("order", "Order of the layers", ORDERS),
    )
    defaults = {"block": "BasicBlock", "shortcut": "B", "stride": 1, "channels": "same", "order": "original"}
    live_controls = (Range("size", "Size of the map", 7, 112), Range("batch", "Batch", 1, 16))
    live_defaults = {"size": SIZE, "batch": 4}
    presets = {
        "basic": ("Basic block", {}),
        "plain": ("Without its shortcut", {"shortcut": "none"}),
        "projection": ("A new shape: projection", {"stride": 2, "channels": "doubled"}),
        "option-a": ("A new shape: nothing learned", {"stride": 2, "channels": "doubled", "shortcut": "A"}),
        "preactivation": ("Pre-activation", {"order": "preactivation"}),
        "trap": ("A trap: ReLU before the addition", {"order": "relu-before-addition"}),
        "norm-after-addition": ("BN after the addition", {"order": "norm-after-addition"}),
    }

    def data(self):
        return _every_block()

    def summary(self):
        trace, (identity, gradient) = self.table(), facts_of(**self.settings)
        shapes = f"{shape_text(trace.input_size)} to {shape_text(trace.output)}"
        costs = f"{trace.parameters:,} parameters and {trace.macs:,} multiply-accumulates for one image"
        answers = f"Identity reachable? {identity} Gradient undamped? {gradient}"
        return f"{call(**self.settings)}: {shapes}, {costs}. {answers}"

    def picture(self):
        with torch.device("meta"):
            return draw_block(build(**self.settings), _input_size(self.settings["block"]))

    def table(self):
        return _trace(**self.settings)[0]

    def recompute(self, settings):
        size, batch = settings["size"], settings["batch"]
        settings = {name: settings[name] for name in self.defaults}
        device = default_device()
        yield {"status": f"{call(**settings)}: forward and backward on {device} …"}
        with torch.random.fork_rng([]), torch.enable_grad():  # also where a chapter has switched it off
            block = build(**settings).to(device)
            x = torch.randn(batch, IN_CHANNELS[settings["block"]], size, size, device="cpu").to(device).requires_grad_()
            g = torch.randn(block(x).shape, device="cpu").to(device)
            block(x).backward(g)  # the first pass is slower than the others
            x.grad = None
            start = time.perf_counter()
            y = block(x)
            y.backward(g)
            ratio = (x.grad.norm() / g.norm()).item()  # waits for the device
            seconds = time.perf_counter() - start
        parameters = sum(parameter.numel() for parameter in block.parameters())
        yield {
            "status": f"Run on {device}: {shape_text(x.shape)} to {shape_text(y.shape)} and back in {seconds:.2g} s, "
            f"with {parameters:,} parameters. In training, with fresh weights, |dL/dx| is {ratio:.3g} times |dL/dy|.",
        }


def _input_size(block):
    return (IN_CHANNELS[block], SIZE, SIZE)


@cache
def _trace(**settings):
    with torch.device("meta"):
        block = build(**settings)
    trace = trace_shapes(block, _input_size(settings["block"]))
    split, _ = split_and_join(block, [row for row in trace if not row.name.startswith("downsample")])
    return trace, split


@cache
def _every_block():
    """Return all blocks, in the order of the controls' values; what several have in common is sent once."""
    axes = [[control.name, list(control.options)] for control in BlockWorkshop.controls]
    rows, texts, told, every = {}, {}, {}, []
    for values in product(*(values for _, values in axes)):
        settings = dict(zip([name for name, _ in axes], values, strict=True))
        trace, split = _trace(**settings)
        numbers = [rows.setdefault(_encode(row), len(rows)) for row in trace]
        if (parts := (*numbers, split)) not in told:  # two options may make the same block
            told[parts] = [texts.setdefault(text, len(texts)) for text in facts_of(**settings)]
        every.append([numbers, split, *told[parts], call(**settings)])
    inputs = {block: _input_size(block) for block in IN_CHANNELS}
    return {
        "axes": axes, "inputs": inputs, "orders": {order: text[4:] for order, text in ORDERS.items()},
        "rows": list(rows), "texts": list(texts), "blocks": every,
    }  # fmt: skip


def _encode(row):
    return (row.name or "add", layer_text(row), *row.output[:2], row.parameters, row.macs, row.activation_bytes)


@cache
def facts_of(**settings):
    """Find out by experiment whether a block can return its input, and what its shortcut does to the gradient.

    The branch is made to put out zeros; a block without a shortcut, and a projection, get kernels that copy. Then a
    small batch, with as many negative values as positive ones, goes through in evaluation (with fresh statistics) and
    in training. For the gradient, a projection stays as it is drawn. The block tried has an eighth of the channels.

    Returns:
        Two sentences: whether an identity can be reached, and whether dL/dx is dL/dy.
    """
    trace, _ = _trace(**settings)
    identity = f"No: the shapes differ, {shape_text(trace.input_size)} and {shape_text(trace.output)}."
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # and not the generators of GPUs
        x = torch.randn(2, trace.input_size[0] // THINNER, 4, 4).abs()
        x[1] *= -1
        if trace.input_size == trace.output:
            identity = _identity(build(**settings, thinner=THINNER), x)
        return identity, _gradient(build(**settings, thinner=THINNER), x)


def _identity(block, x):
    copying = [m for m in (block.downsample if block.residual else block).modules() if isinstance(m, nn.Conv2d)]
    for conv in copying:
        nn.init.dirac_(conv.weight)
    how = "kernels that copy each channel"
    if block.residual:
        nn.init.zeros_(block.last_conv.weight)
        how = "a branch of zeros" + " and a projection that copies" * len(copying)
    found, in_training = _reach(block.eval(), x), _reach(block.train(), x)
    if not found:
        middle, outer = THINNER * block.conv1.out_channels, THINNER * x.shape[1]
        return f"No: the middle has {middle} channels, fewer than the {outer} to be copied."
    inputs, closely = found
    block(x).square().sum().backward()
    stuck = block.residual and not block.last_conv.weight.grad.any()
    negative = inputs != "all inputs"
    only = "Only in evaluation, for" if in_training != found else "Only for" if negative else "Yes, for"
    return (
        f"{only} {inputs}: with {how} it returns them {closely}."
        + " Negative values are lost in a ReLU on the way." * negative
        + " In training, a BN on the way rescales every batch." * (in_training != found)
        + " But such a branch gets no gradient, and stays as it is." * stuck
    )


def _reach(block, x):
    """Return which of the inputs ``x`` the block returns and how closely, or None."""
    for inputs, some in (("all inputs", x), ("inputs that are not negative", x.abs())):
        if (closely := _compare(block(some), some)) in (EXACTLY, NEARLY):
            return inputs, closely
    return None


def _gradient(block, x):
    if not block.residual:
        return "There is no shortcut: the branch alone passes the gradient on."
    nn.init.zeros_(block.last_conv.weight)
    x, found = x.requires_grad_(), []
    y = block.eval()(x)
    g = torch.randn(y.shape)
    free = Shortcut(x.shape[1], y.shape[1], x.shape[2] // y.shape[2], "A")  # hands on all that the shapes allow
    (expected,) = torch.autograd.grad((free(x) * g).sum(), x)
    kept = expected != 0
    for training in (False, True):
        # Backward at once: a pass in training moves the stored statistics that a gradient in evaluation is made of.
        (got,) = torch.autograd.grad((block.train(training)(x) * g).sum(), x)
        found.append([_compare(got[kept & side], expected[kept & side]) for side in (x > 0, x < 0)])
    (positive, negative), same = found[0], found[0] == found[1]
    if not positive:
        return "No: it is multiplied by the weights of the projection."
    share = f"{100 * kept.float().mean():.0f} %"
    skipped = f" The stride keeps {share} of the values; the others get no gradient." * (not kept.all())
    if positive == negative == EXACTLY and same:
        where = "Yes" if kept.all() else "Yes, where it is kept"
        return f"{where}: dL/dx = dL/dy exactly, for inputs of both signs.{skipped}"
    return (
        f"Only {'' if same else 'in evaluation, '}where x is positive: there dL/dx = dL/dy {positive}. "
        f"Elsewhere a ReLU stops it.{'' if same else ' In training, a BN on the way changes it.'}{skipped}"
    )


def _compare(got, expected):
    """Return how closely two tensors agree; "" if they do not. Three BNs of fresh statistics are 1.5e-5 off."""
    if torch.equal(got, expected):
        return EXACTLY
    if not got.any():
        return NOTHING
    return NEARLY if torch.allclose(got, expected, rtol=1e-4, atol=0) else ""
