"""Pictures, drawings and shown source: well-formed, labelled, the same in every run, and true to what they show."""

import base64
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
import resbook
from resbook import BasicBlock, Bottleneck, Shortcut, cifar_resnet, conv_output_size, show_source, trace_shapes
from resbook.blocks import ORDERS
from resbook.drawings import draw_block, draw_network, draw_norm_axes, draw_units
from resbook.pictures import OKABE_ITO, Picture, inline_html, line_style, new_figure, picture_of
from torch import nn

CODE = Path(resbook.__file__).parent.parent
BLOCKS = {
    "identity": lambda: BasicBlock(64, 64),
    "plain": lambda: BasicBlock(64, 64, residual=False),
    "projection": lambda: BasicBlock(64, 128, 2),
    "option A": lambda: BasicBlock(64, 128, 2, shortcut="A"),
    "plain, stride 2": lambda: BasicBlock(64, 128, 2, residual=False),
    "pre-activation": lambda: BasicBlock(64, 64, order="preactivation"),
    "pre-activation, projection": lambda: BasicBlock(64, 128, 2, order="preactivation"),
    "normalisation after the addition": lambda: BasicBlock(64, 64, order="norm-after-addition"),
    "ReLU before the addition, projection": lambda: BasicBlock(64, 128, 2, order="relu-before-addition"),
    "pre-activation by ReLU, option A": lambda: BasicBlock(64, 128, 2, order="relu-only-preactivation", shortcut="A"),
    "without normalisation": lambda: BasicBlock(64, 64, norm=nn.Identity),
    "bottleneck": lambda: Bottleneck(64, 16),
    "bottleneck, projection": lambda: Bottleneck(64, 64, 2),
}


def plot(title="a title"):
    figure, axes = new_figure()
    for name in OKABE_ITO:
        axes.plot([0, 0.002], [0, len(name)], label=name, **line_style(name))
    axes.legend()
    axes.set_xticks([0.001, 0.002])
    axes.set_title(title)
    return picture_of(figure, f"Lines under {title}.")


def elements(picture):
    """Return all elements of a picture as it is shown; parsing fails if it is not well-formed XML."""
    return list(ElementTree.fromstring(picture.html()).iter())


def texts(picture):
    return ["".join(element.itertext()) for element in elements(picture) if element.tag.endswith("}text")]


def ids(picture):
    return re.findall(r'\bid="([^"]+)"', picture.html())


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_alt_is_required(alt):
    with pytest.raises(ValueError, match="alt must say what the picture shows"):
        Picture("<svg></svg>", alt)
    with pytest.raises(TypeError, match="alt"):
        picture_of(plt.figure())
    plt.close("all")


def test_a_picture_is_labelled_whatever_its_alt_says():
    picture = Picture('<svg xmlns="http://www.w3.org/2000/svg"></svg>', 'x < y & "z"\n   in two lines')
    svg = elements(picture)[0]
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == picture.alt == 'x < y & "z" in two lines'
    assert picture._repr_mimebundle_()["text/plain"] == picture.alt


def test_a_notebook_gets_ink_on_paper_and_a_page_its_own_colours():
    picture = draw_units()
    assert not re.search("var\\(|currentColor", picture._repr_mimebundle_()["image/svg+xml"])
    picture = plot()
    bundle = picture._repr_mimebundle_()
    alone = ElementTree.fromstring(bundle["image/svg+xml"])
    assert alone.get("style").startswith("background: #fefefe") and alone.get("role") == "img"
    assert not re.search("var\\(|currentColor", bundle["image/svg+xml"])
    assert inline_html(bundle["image/svg+xml"]) == f'<div class="rb rb-picture">{picture.html()}</div>'
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "image/png" not in draw_units()._repr_mimebundle_()
    height, width, _ = plt.imread(io.BytesIO(picture.png)).shape
    corner = plt.imread(io.BytesIO(picture.png))[0, 0]
    assert (width, height) == (640, 340) and list(corner) == [1, 1, 1, 1]


def test_colours_are_those_of_the_page():
    picture = Picture('<svg><a fill="#d55e00"/><a fill="#0072B2"/><a fill="#000000"/><a fill="#123456"/></svg>', "alt")
    fills = re.findall(r'fill="([^"]+)"', picture.html())
    assert fills == ["var(--rb-plain, #D55E00)", "var(--rb-residual, #0072B2)", "currentColor", "#123456"]
    for name, (colour, _) in OKABE_ITO.items():
        assert f"var(--rb-{name}, {colour})" in plot().html()
    assert "#000000" not in plot().html()


def test_plain_and_residual_look_the_same_everywhere():
    assert line_style("plain") == {"color": "#D55E00", "linestyle": "--"}
    assert line_style("residual") == {"color": "#0072B2", "linestyle": "-"}
    assert len({str(style) for _, style in OKABE_ITO.values()}) == len(OKABE_ITO)


def test_ids_are_unique_across_pictures():
    """Matplotlib gives the parts of every figure the same ids, and refers to them."""
    first, second = plot("one title"), plot("another title")
    both = ids(first) + ids(second)
    assert len(ids(first)) > 10 and len(set(both)) == len(both)
    for picture in (first, second):
        referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', picture.html())
        assert referred and {a or b for a, b in referred} <= set(ids(picture))


def test_figures_become_pictures_that_fit_a_page():
    before = plt.get_fignums()
    picture = plot("0.123456")
    assert plt.get_fignums() == before  # closed
    assert not re.search("<style|<metadata|<\\?xml|<!DOCTYPE", picture.html())
    svg = elements(picture)[0]
    assert svg.get("width").endswith("pt") and svg.get("height") is None and svg.get("viewBox")
    assert {"0.001", "0.002", "0.123456", *OKABE_ITO} <= set(texts(picture))  # text is not rounded as coordinates are
    assert "rcParams" not in picture.html() and plt.rcParams["axes.grid"] is False  # the style is not left behind


def test_pictures_are_the_same_bytes_in_every_process():
    script = (
        "import test_pictures as t; from resbook.drawings import draw_block;"
        "print(t.plot().html()); print(draw_block(t.BLOCKS['projection'](), (64, 8, 8)).html())"
    )
    path = os.pathsep.join([str(CODE), str(Path(__file__).parent)])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 5000


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_drawn_with_its_layers_and_shapes(make):
    block = make()
    picture = draw_block(block, (64, 12, 10))
    drawn, rows = texts(picture), trace_shapes(block, (64, 12, 10)).rows
    assert drawn.count("×".join(map(str, rows[-1].output))) >= 2  # after the last layer, and at the end
    assert "64×12×10" in drawn
    for row in rows:
        assert "×".join(map(str, row.output)) in drawn
    windows = [text for text in drawn if text.startswith("conv ")]
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert len(windows) == len(convolutions)
    assert sum("stride 2" in window for window in windows) == sum(c.stride == (2, 2) for c in convolutions)
    assert drawn.count("batch norm") == sum(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    circles = [element for element in elements(picture) if element.tag.endswith("}circle")]
    assert len(circles) == block.residual  # the addition
    assert ("identity" in drawn) == (block.residual and block.downsample.is_identity)
    assert ("There is no shortcut." in picture.alt) == (not block.residual)


FIGURE = {  # He et al. 2016b, Fig. 4 (a) to (e), and "<" where a shortcut that is no identity leaves
    "original": "< conv norm ReLU conv norm + ReLU",
    "norm-after-addition": "< conv norm ReLU conv + norm ReLU",
    "relu-before-addition": "< conv norm ReLU conv norm ReLU +",
    "relu-only-preactivation": "ReLU < conv norm ReLU conv norm +",
    "preactivation": "norm ReLU < conv norm ReLU conv +",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("channels", "stride"), [(64, 1), (128, 2)])
def test_orders_are_drawn_as_in_the_figure(order, channels, stride):
    expected = [{"conv": "conv 3×3", "norm": "batch norm"}.get(step, step) for step in FIGURE[order].split()]
    if stride == 1:  # the identity leaves at the front
        expected = ["<", *(step for step in expected if step != "<")]
    else:
        expected[expected.index("conv 3×3")] = "conv 3×3, stride 2"
    picture = draw_block(BasicBlock(64, channels, stride, order=order), (64, 8, 8))
    # From top to bottom, what stands in the block's own column.
    labels = re.findall(r'y="([\d.]+)"[^>]*fill="#000000"[^>]*"inherit">([^<]+)', picture.svg)
    start, end = re.search(r'd="M \S+ (\S+) L \S+ \S+ L \S+ \S+ L \S+ (\S+)"', picture.svg).groups()
    assert f'cy="{end}"' in picture.svg
    column = sorted([(float(y), label) for y, label in labels] + [(float(start), "<"), (float(end), "+")])
    assert [label for _, label in column] == expected
    assert ("The shortcut on the left, which leaves after the first ReLU: " in picture.alt) == (expected[0] != "<")
    assert f": {', '.join(step for step in expected if step != '<').replace('+', 'add')}. The" in picture.alt


def test_different_blocks_are_drawn_and_described_differently():
    pictures = [draw_block(make(), (64, 8, 8)) for make in BLOCKS.values()]
    assert len({picture.svg for picture in pictures}) == len({picture.alt for picture in pictures}) == len(BLOCKS)


@pytest.mark.parametrize(
    ("network", "size", "blocks", "boxes"),
    [
        (lambda: resbook.resnet18(6), (3, 224, 224), 8, ["112", "56", "28", "14", "7"]),
        (lambda: resbook.resnet50(), (3, 64, 64), 16, ["32", "16", "8", "4", "2"]),
        (lambda: cifar_resnet(20), (3, 32, 32), 9, ["32", "16", "8"]),
    ],
)
def test_a_network_is_drawn_with_its_shapes(network, size, blocks, boxes):
    network = network()
    picture = draw_network(network, size)
    drawn = " ".join(texts(picture))
    for row in trace_shapes(network, size).rows:
        if row.name in ("conv1", "maxpool", "avgpool", "fc") or row.operation == "add":
            assert "×".join(map(str, row.output)) in drawn
    for side in boxes:
        assert f"×{side}×{side}" in drawn
    assert f"{blocks} blocks" in picture.alt and f"{network.fc.out_features} outputs" in picture.alt
    circles = [element for element in elements(picture) if element.tag.endswith("}circle")]
    assert len(circles) == blocks


@pytest.mark.parametrize(
    ("shortcut", "labels"),
    [
        ("A", {"pad": 1, "subsample, pad": 3}),
        ("B", {"1×1": 1, "1×1, stride 2": 3}),
        ("C", {"1×1": 13, "1×1, stride 2": 3}),
    ],
)
def test_shortcuts_say_what_they_do(shortcut, labels):
    """In ResNet-50 the first stage widens without a stride, the first block of each other one has stride 2."""
    drawn = texts(draw_network(resbook.resnet50(shortcut=shortcut), (3, 64, 64)))
    assert {label: drawn.count(label) for label in labels} == labels


def test_a_plain_network_is_drawn_without_shortcuts():
    plain, residual = (draw_network(cifar_resnet(20, residual=r), (3, 32, 32)) for r in (False, True))
    assert "<circle" not in plain.svg and plain.svg.count("stroke-dasharray") == 9
    assert "<circle" in residual.svg and "stroke-dasharray" not in residual.svg


def test_units_and_axes():
    drawn = texts(draw_units())
    assert {"plain unit", "residual unit", "F(x)", "F(x) + x", "ReLU"} <= set(drawn)
    picture = draw_norm_axes(4, 32, (64, 64))
    assert any("16,384 values" in text for text in texts(picture)) and "16,384 values" in picture.alt
    squares = [element for element in elements(picture) if element.tag.endswith("}rect")]
    assert len(squares) == 4 * 32 and sum(square.get("opacity") == "1" for square in squares) == 4


@pytest.mark.parametrize("item", [conv_output_size, Shortcut, BasicBlock.branch, cifar_resnet])
def test_the_source_shown_is_the_source_that_runs(item):
    source = show_source(item)
    assert source.text == inspect.cleandoc("\n" + inspect.getsource(item)).strip()
    bundle = source._repr_mimebundle_()
    assert bundle == {"text/markdown": f"```python\n{source.text}\n```", "text/plain": source.text}


def test_the_source_of_several_things():
    assert show_source(Shortcut, conv_output_size).text == "\n\n".join(
        show_source(item).text for item in (Shortcut, conv_output_size)
    )
    with pytest.raises(TypeError):
        show_source(3)


def test_a_network_is_drawn_with_the_normalisations_it_has():
    def labels(**options):
        return re.findall(r"<text[^>]*>([^<]*)", draw_network(cifar_resnet(8, **options), (3, 32, 32)).svg)

    assert "conv 3×3, batch norm, ReLU" in labels() and "conv 3×3, ReLU" in labels(norm=nn.Identity)


@pytest.mark.parametrize("order", ORDERS)
def test_a_network_is_drawn_with_what_follows_its_last_block(order):
    picture = draw_network(cifar_resnet(8, order=order), (3, 32, 32))
    head = {"relu-only-preactivation": ["ReLU"], "preactivation": ["batch norm", "ReLU"]}.get(order, [])
    head.append("global average pool")
    assert [text for text in texts(picture) if text in ("batch norm", "ReLU", "global average pool")] == head
    assert f"3 blocks, {', '.join(head)}, and a linear layer" in picture.alt
