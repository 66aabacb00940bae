"""Drawings of units, blocks and networks, made from the modules themselves: data flows down, the shortcut is left."""

from html import escape

from resbook.blocks import Block
from resbook.pictures import INK, OKABE_ITO, PAPER, PLAIN, RESIDUAL, Picture
from resbook.shapes import shape_text, trace_shapes

GREEN = OKABE_ITO["green"][0]
BOX, GAP = 30, 26  # height of a box, and of the arrow to the next
MONO = "ui-monospace, monospace"
LAYERS = {"BatchNorm2d": "batch norm", "AdaptiveAvgPool2d": "global average pool", "Linear": "linear"}


def draw_units():
    """Draw the plain unit and the residual unit side by side, with what each computes."""
    canvas = Canvas()
    for x, title, colour, residual in ((150, "plain unit", PLAIN, False), (470, "residual unit", RESIDUAL, True)):
        canvas.text(x, 18, title, weight="bold", colour=colour)
        y = canvas.arrow(x, 30, 56, label="x")
        top = y - 13
        for text in ("weights W₁", "ReLU", "weights W₂"):
            canvas.box(x, y, text, colour, dashed=not residual)
            y += BOX
            y = canvas.arrow(x, y, y + GAP) if residual or text != "weights W₂" else y
        if residual:
            canvas.path([(x, top), (x - 105, top), (x - 105, y + 11), (x - 11, y + 11)], RESIDUAL, arrow=True)
            canvas.text(x - 112, (top + y) / 2, "x", anchor="end", colour=RESIDUAL)
            canvas.text(x + 16, y - 9, "F(x)", anchor="start")
            y = canvas.plus(x, y)
        canvas.arrow(x, y, y + GAP)
        canvas.text(x, y + GAP + 16, "F(x) + x" if residual else "F(x)", weight="bold", colour=colour)
    return canvas.picture(
        "Two units side by side. The plain unit sends x through weights, ReLU and weights and puts out F(x). The "
        "residual unit does the same, and a shortcut on the left carries x around them to an addition: F(x) + x."
    )


def draw_block(block, input_size):
    """Draw a block with the layers it has, and the shape after each.

    Args:
        block: a :class:`BasicBlock` or :class:`Bottleneck`.
        input_size: shape (C, H, W) of its input.
    """
    canvas = Canvas()
    rows = trace_shapes(block, input_size).rows
    around = [row for row in rows if row.name.startswith("downsample")]
    through = [row for row in rows if row not in around]
    split, join = split_and_join(block, through)
    x, y = (380 if around else 300) if block.residual else 170, 30
    canvas.text(x, 18, shape_text(input_size), family=MONO)
    for i, row in enumerate(through):
        if i == split:
            top = y + 13
        if i == join:
            y = _draw_shortcut(canvas, around, x, top, canvas.arrow(x, y, y + GAP))
        else:
            y = _draw_layer(canvas, x, canvas.arrow(x, y, y + GAP), row, PLAIN if not block.residual else INK)
    canvas.arrow(x, y, y + GAP)
    canvas.text(x, y + GAP + 16, shape_text(rows[-1].output), family=MONO, weight="bold")
    return canvas.picture(_describe(block, input_size, through, around, split))


def split_and_join(block, through):
    """Return before which row of the branch the shortcut leaves, and at which it is added; None without one."""
    if not block.residual:
        return None, None
    # An identity leaves at the very front. Other shortcuts start as the branch does, from what its convolution gets.
    split = 0 if block.downsample.is_identity else next(i for i, row in enumerate(through) if row.name == "conv1")
    return split, next(i for i, row in enumerate(through) if row.operation == "add")


def _draw_layer(canvas, x, y, row, colour=INK):
    canvas.box(x, y, layer_text(row), colour, dashed=colour == PLAIN)
    canvas.text(x + 92, y + 20, shape_text(row.output), anchor="start", family=MONO, size=11)
    return y + BOX


def _draw_shortcut(canvas, around, x, top, y):
    left = 120 if around else x - 120
    canvas.path([(x, top), (left, top), (left, y + 11), (x - 11, y + 11)], RESIDUAL, arrow=True)
    height = len(around) * (BOX + GAP) - GAP
    at = (top + y - height) / 2
    for row in around:
        canvas.box(left, at, layer_text(row), RESIDUAL, fill=True)
        at += BOX + GAP
    if around:
        canvas.text(left + 8, at - GAP + 20, shape_text(around[-1].output), anchor="start", family=MONO, size=11)
    else:
        canvas.text(left - 8, (top + y) / 2, "identity", anchor="end", colour=RESIDUAL)
    return canvas.plus(x, y)


def layer_text(row):
    if row.operation == "Conv2d":
        stride = f", stride {row.stride[0]}" if row.stride[0] > 1 else ""
        return f"conv {row.kernel[0]}×{row.kernel[1]}{stride}"
    if row.operation == "Shortcut":
        return ", ".join(["subsample"] * (row.input[1:] != row.output[1:]) + ["pad"] * (row.input[0] != row.output[0]))
    if row.operation == "MaxPool2d":
        return f"max-pool {row.kernel[0]}×{row.kernel[1]}, stride {row.stride[0]}"
    return LAYERS.get(row.operation, row.operation)


def _describe(block, input_size, through, around, split):
    layers = ", ".join(layer_text(row) for row in through)
    path = ", ".join(map(layer_text, around)) or "identity"
    leaves = f", which leaves after the first {layer_text(through[split - 1])}" if split else ""
    shortcut = f" The shortcut on the left{leaves}: {path}." if block.residual else " There is no shortcut."
    kind = f"{'A residual' if block.residual else 'A plain'} {type(block).__name__}"
    return f"{kind} from {shape_text(input_size)} to {shape_text(through[-1].output)}: {layers}.{shortcut}"


def draw_network(model, input_size):
    """Draw a network from the image to the logits: stem, every block with its shortcut, pooling, linear layer.

    Args:
        model: a :class:`ResNet`.
        input_size: shape (C, H, W) of an image.
    """
    canvas, x, y = Canvas(), 270, 30
    rows = trace_shapes(model, input_size).rows
    canvas.text(x, 18, f"image {shape_text(input_size)}", family=MONO)
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
    first = next(i for i, row in enumerate(rows) if row.name.startswith("layer"))
    stem = [row for row in rows[:first] if row.name != "maxpool"]
    y = _draw_step(canvas, x, y, ", ".join(map(layer_text, stem)), stem[-1].output)
    for row in rows[len(stem) : first]:
        y = _draw_step(canvas, x, y, layer_text(row), row.output)
    for path, block in blocks:
        convs = [row for row in rows if row.name.startswith(f"{path}.conv")]
        around = [row for row in rows if row.name.startswith(f"{path}.downsample")]
        y = _draw_unit(canvas, x, y, block, convs, around)
    head = [row for row in rows[first:] if not row.name.startswith("layer")]
    for row in head:
        y = _draw_step(canvas, x, y, layer_text(row), row.output)
    changing = [path for path, block in blocks if block.residual and not block.downsample.is_identity]
    return canvas.picture(
        f"The network, top to bottom: an image of {shape_text(input_size)}, the stem, {len(blocks)} blocks, "
        f"{', '.join(map(layer_text, head[:-1]))}, and a linear layer with {rows[-1].output[0]} outputs. "
        + (f"The shortcut changes shape in {', '.join(changing)}; the others are identities." if changing else "")
    )


def _draw_unit(canvas, x, y, block, convs, around):
    label = " · ".join(f"{row.kernel[0]}×{row.kernel[0]}, {row.output[0]}" for row in convs)
    top, bottom = y + 8, _draw_step(canvas, x, y, label, convs[-1].output, None if block.residual else PLAIN)
    if not block.residual:
        return bottom
    left, middle = x - 195, (top + bottom) / 2
    canvas.path([(x, top), (left, top), (left, bottom + 10), (x - 8, bottom + 10)], RESIDUAL, arrow=True)
    if around:
        canvas.box(left, middle - 10, layer_text(around[0]).removeprefix("conv "), RESIDUAL, width=110, fill=True)
    return canvas.plus(x, bottom + 2, radius=8)


def _draw_step(canvas, x, y, label, shape, colour=None):
    y = canvas.arrow(x, y, y + 20)
    canvas.box(x, y, label, colour or INK, width=240, dashed=colour == PLAIN)
    canvas.text(x + 132, y + 20, shape_text(shape), anchor="start", family=MONO, size=11)
    return y + BOX


def draw_norm_axes(n, c, size):
    """Draw a batch as a grid of maps, one row per image and one column per channel, and what shares one mean.

    Args:
        n: images in the batch.
        c: channels.
        size: shape (H, W) of one map.
    """
    canvas, side, chosen = Canvas(), 15, 5
    canvas.text(60 + c * side / 2, 16, f"C = {c} channels")
    for i in range(n):
        for j in range(c):
            canvas.square(60 + j * side, 26 + i * side, side - 3, GREEN if j == chosen else INK, fill=j == chosen)
    canvas.text(52, 26 + n * side / 2, f"N = {n}", anchor="end")
    x, y = 60 + chosen * side + (side - 3) / 2, 26 + n * side
    canvas.path([(x, y + 22), (x, y + 4)], GREEN, arrow=True)
    values = n * size[0] * size[1]
    canvas.text(
        x - 20, y + 40, f"one channel: {n} maps of {size[0]}×{size[1]}, {values:,} values, one mean", anchor="start",
        colour=GREEN,
    )  # fmt: skip
    return canvas.picture(
        f"A grid of {n} rows, the images, and {c} columns, the channels; each square is a map of {size[0]} by "
        f"{size[1]} values. One column is marked: its {n} maps, {values:,} values, share one mean and one variance."
    )


def draw_tensors(trace, alt):
    """Draw the image and what each step puts out from the side: as high as the map, as thick as the channels.

    Normalisations, ReLUs and additions, which change no shape, are left out, and so are the shortcuts.

    Args:
        trace: a :class:`ShapeTrace` of an image (C, H, W).
        alt: what it shows, in words.
    """
    canvas, gap, high = Canvas(), 3, 120
    rows = [row for row in trace if row.operation not in ("BatchNorm2d", "ReLU", "add")]
    shapes = [trace.input_size, *(row.output for row in rows if "downsample" not in row.name)]
    scale = high / max(shape[-1] for shape in shapes if len(shape) == 3)
    thickness = (640 - gap * len(shapes)) / sum(shape[0] for shape in shapes)
    x = 0
    for i, shape in enumerate(shapes):
        side = shape[-1] if len(shape) == 3 else 1
        width = max(1.5, shape[0] * thickness)
        canvas.bar(x, (high - side * scale) / 2, width, max(1.5, side * scale), RESIDUAL if i else GREEN)
        x += width + gap
    return canvas.picture(alt)


class Canvas:
    """Collects SVG elements and the space they take."""

    def __init__(self):
        self.parts, self.xs, self.ys = [], [], []

    def reach(self, *points):
        for x, y in points:
            self.xs.append(x)
            self.ys.append(y)

    def text(self, x, y, text, *, anchor="middle", colour=INK, size=13, weight="normal", family="inherit"):
        width = len(text) * size * (0.62 if family == MONO else 0.56)
        start = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        self.reach((start, y - size), (start + width, y + 4))
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
            f'font-weight="{weight}" font-family="{family}">{escape(text)}</text>'
        )

    def box(self, x, y, text, colour, *, width=160, dashed=False, fill=False):
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        inside = f'fill="{PAPER}"' if fill else 'fill="none"'
        self.reach((x - width / 2, y), (x + width / 2, y + BOX))
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y:g}" width="{width}" height="{BOX}" rx="4" {inside} '
            f'stroke="{colour}" stroke-width="1.6"{dash}/>'
        )
        self.text(x, y + 20, text, colour=colour)

    def square(self, x, y, side, colour, *, fill):
        self.reach((x, y), (x + side, y + side))
        opacity = 1 if fill else 0.16
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{side}" height="{side}" fill="{colour}" opacity="{opacity}"/>'
        )

    def bar(self, x, y, width, height, colour):
        self.reach((x, y), (x + width, y + height))
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}" '
            f'fill-opacity="0.35" stroke="{colour}"/>'
        )

    def path(self, points, colour, *, arrow=False):
        self.reach(*points)
        line = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="M {line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
            wings = [(x1 - 7 * dx - 4 * dy, y1 - 7 * dy - 4 * dx), (x1 - 7 * dx + 4 * dy, y1 - 7 * dy + 4 * dx)]
            self.parts.append(
                f'<path d="M {x1:g} {y1:g} ' + "".join(f"L {x:g} {y:g} " for x, y in wings) + f'Z" fill="{colour}"/>'
            )

    def arrow(self, x, start, end, label=None):
        """Draw an arrow down from ``start`` to ``end``; return ``end``."""
        self.path([(x, start), (x, end)], INK, arrow=True)
        if label:
            self.text(x + 8, start + 12, label, anchor="start")
        return end

    def plus(self, x, y, radius=11):
        """Draw the addition under ``y``; return where it ends."""
        self.reach((x - radius, y), (x + radius, y + 2 * radius))
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y + radius:g}" r="{radius}" fill="{PAPER}" '
            f'stroke="{RESIDUAL}" stroke-width="1.8"/>'
            f'<path d="M {x - 5:g} {y + radius:g} h 10 m -5 -5 v 10" stroke="{RESIDUAL}" stroke-width="1.8"/>'
        )
        return y + 2 * radius

    def picture(self, alt):
        left, top = min(self.xs) - 8, min(self.ys) - 4
        width, height = max(self.xs) - left + 8, max(self.ys) - top + 6
        return Picture(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:g} {top:g} {width:g} {height:g}" '
            f'width="{width:g}">{"".join(self.parts)}</svg>',
            alt,
        )
