"""The shape explorer: what every layer of a residual network puts out and costs, for any image size."""

import time
from functools import cache, lru_cache, partial
from itertools import groupby

import torch
from torch import nn

from resbook.blocks import Bottleneck
from resbook.device import default_device
from resbook.drawings import draw_tensors
from resbook.networks import ResNet, cifar_resnet, resnet18, resnet34, resnet50, resnet101, resnet152
from resbook.shapes import ShapeError, shape_text, trace_shapes
from resbook.widgets.base import Choice, Explorer, Range, check_work

SIZE = 224  # at which the structure of every network is read off


class BottleneckV1(Bottleneck):
    """The paper's bottleneck: the first 1x1 convolution has the stride."""

    stride_at = 1


NETWORKS = {
    **{f.__name__: (f"ResNet-{f.__name__[6:]}", f) for f in (resnet18, resnet34, resnet50, resnet101, resnet152)},
    **{f"cifar{d}": (f"CIFAR ResNet-{d}", partial(cifar_resnet, d)) for d in (20, 32, 44, 56, 110)},
}
LAYERS = {"resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3], "resnet152": [3, 8, 36, 3]}  # of bottlenecks
VARIANTS = {
    "residual": "residual",
    "v1": "residual, v1 (bottlenecks: stride in the first 1×1)",
    "plain": "plain: no shortcuts",
}
HEADS = {"global": "global average: any size", "fixed": "fixed window: built for one size"}


def build(network, variant, head, classes):
    """Return the network of these settings, with random weights; on the meta device inside ``torch.device("meta")``.

    The fixed window of the "fixed" head is 7x7 (8x8 in the networks for CIFAR), as in older code: it fits images
    whose last map is that large: of the size for which the network was made, or a little smaller.
    """
    if variant == "v1" and network in LAYERS:
        model = ResNet(BottleneckV1, LAYERS[network], classes)
    else:
        model = NETWORKS[network][1](num_classes=classes, residual=variant != "plain")
    if head == "fixed":
        model.avgpool = nn.AvgPool2d(_window(network), stride=1)
    return model


def _window(network):
    return 8 if network.startswith("cifar") else 7


class ShapeExplorer(Explorer):
    """Explore the layers of ResNet-18 to 152 and CIFAR ResNet-20 to 110: shapes, costs and receptive fields.

    Args:
        preset: "resnet18" (default), "odd-size", "plain", "bottleneck-v1", "fixed-window" or "cifar".
        **settings: network ("resnet18" ... "resnet152", "cifar20" ... "cifar110"), variant ("residual", "v1",
            "plain"), head ("global", "fixed"), size (16 to 512), batch (1 to 1024), classes (1 to 1000).

    Raises:
        TypeError: a setting is unknown or of the wrong type.
        ValueError: a setting is out of its range, or the preset is unknown.
    """

    name, title = "shapes", "Shape explorer"
    controls = (
        Choice("network", "Network", {key: label for key, (label, _) in NETWORKS.items()}),
        Choice("variant", "Blocks", VARIANTS),
        Choice("head", "Pooling before the classifier", HEADS),
        Range("size", "Image size", 16, 512),
        Range("batch", "Batch", 1, 1024),
        Range("classes", "Classes", 1, 1000),
    )
    defaults = {"network": "resnet18", "variant": "residual", "head": "global", "size": 224, "batch": 1}
    defaults["classes"] = 1000
    presets = {
        "resnet18": ("ResNet-18 at 224", {}),
        "odd-size": ("An odd size: 225", {"size": 225}),
        "plain": ("Plain-34", {"network": "resnet34", "variant": "plain"}),
        "bottleneck-v1": ("ResNet-50 as in the paper", {"network": "resnet50", "variant": "v1"}),
        "fixed-window": ("A size that does not fit", {"head": "fixed", "size": 160}),
        "cifar": ("ResNet-56 for CIFAR", {"network": "cifar56", "size": 32, "classes": 10}),
    }

    def data(self):
        return _structures()

    def trace(self):
        """Return the rows of the present settings, for one image, and why they end early (None if they do not)."""
        return _trace(self.settings)

    def summary(self):
        trace, error = self.trace()
        s = self.settings
        what = f"{NETWORKS[s['network']][0]} ({s['variant']}) on images of 3×{s['size']}×{s['size']}"
        costs = f"{trace.parameters:,} parameters, {trace.macs:,} multiply-accumulates for one image"
        last = [row for row in trace if row.name.startswith("layer")][-1]
        end = f" It stops there: {error}." if error else ""
        return f"{what}: {costs}; the last map is {shape_text(last.output)}.{end}"

    def picture(self):
        return draw_tensors(self.trace()[0], f"Every tensor from the side. {self.summary()}")

    def table(self):
        return self.trace()[0]

    def recompute(self, settings):
        device, batch = default_device(), settings["batch"]
        shape = (batch, 3, settings["size"], settings["size"])
        cost = _trace(settings)[0]
        check_work(3 * batch * max(row.activation_bytes for row in cost), batch * cost.macs, shape_text(shape))
        with torch.random.fork_rng([]), torch.inference_mode():
            model = build(*_options(settings)).to(device).eval()
            images = torch.zeros(shape, device=device)
            model(images[:1]).cpu()  # the first pass is slower than the others
            start = time.perf_counter()
            output = model(images).cpu()  # the copy waits for the device
            seconds = time.perf_counter() - start
        parameters = sum(parameter.numel() for parameter in model.parameters())
        yield {
            "status": f"Run on {device}: {shape_text(shape)} to {shape_text(output.shape)} in {seconds:.2g} s, with "
            f"{parameters:,} parameters."
        }


def _options(settings):
    return tuple(settings[key] for key in ("network", "variant", "head", "classes"))


def _trace(settings):
    return _trace_network(_options(settings), settings["size"])


@lru_cache(maxsize=8)  # an explorer's sentence, picture and table are made of one trace
def _trace_network(options, size):
    with torch.device("meta"):
        model = build(*options)
    try:
        return trace_shapes(model, (3, size, size)), None
    except ShapeError as error:
        return error.trace, str(error).split(": ", 1)[1]


@cache
def _structures():
    """Return every network as its stem and its stages of (kind of block, how many); each kind is sent once."""
    kinds, networks = [], {}
    for network, (label, _) in NETWORKS.items():
        variants = {variant: _structure(network, variant, kinds) for variant in ("residual", "plain")}
        variants["v1"] = _structure(network, "v1", kinds) if network in LAYERS else variants["residual"]
        call = f"cifar_resnet({network[5:]}, " if network.startswith("cifar") else f"{network}("
        networks[network] = {"label": label, "variants": variants, "call": call, "layers": LAYERS.get(network)}
    return {"networks": networks, "blocks": kinds, "table_open": True}


def _structure(network, variant, kinds):
    with torch.device("meta"):
        rows = trace_shapes(build(network, variant, "global", 1000), (3, SIZE, SIZE)).rows
    stem, blocks = [], []
    for block, group in groupby(rows, key=_block_of):
        encoded = [_encode(row, block) for row in group]
        if block:
            blocks.append((block, encoded))
        elif not blocks:
            stem = encoded
    stages = []
    for _, stage in groupby(blocks, key=lambda item: item[0].split(".")[0]):
        counts = []
        for encoded, group in groupby(rows for _, rows in stage):
            if encoded not in kinds:
                kinds.append(encoded)
            counts.append([kinds.index(encoded), len(list(group))])
        stages.append(counts)
    return {"stem": stem, "stages": stages, "pool": _window(network), "features": rows[-1].input[0]}


def _block_of(row):
    parts = row.name.split(".")
    return ".".join(parts[:2]) if parts[0].startswith("layer") else ""


def _encode(row, block):
    """Return what does not depend on the image: name, operation, channels, window, parameters, MACs per position."""
    name = row.name.removeprefix(block).removeprefix(".") or row.operation
    kernel, stride, padding = (pair[0] for pair in (row.kernel, row.stride, row.padding)) if row.kernel else (0, 0, 0)
    if row.operation == "Shortcut":  # option A takes every second position, as a 1x1 kernel of stride 2 does
        kernel, stride = 1, -(-row.input[1] // row.output[1])
    macs = row.macs // (row.output[1] * row.output[2]) if len(row.output) == 3 else 0
    return [name, row.operation, row.output[0], kernel, stride, padding, row.parameters, macs]
