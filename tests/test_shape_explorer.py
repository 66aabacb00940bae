"""The shape explorer's numbers against ``trace_shapes``: in its module for all networks, by hand in the built page."""

import contextlib
import io
import itertools
import re

import pytest
import torch
from explorers import ask_module, opened
from resbook import ShapeError, trace_shapes
from resbook.widgets import ShapeExplorer
from resbook.widgets.shapes import HEADS, NETWORKS, VARIANTS, build

SIZES = [16, 17, 31, 32, 33, 64, 97, 160, 193, 224, 225, 256, 511, 512]


def trace(network, variant, head, size, classes):
    with torch.device("meta"):
        model = build(network, variant, head, classes)
    try:
        return trace_shapes(model, (3, size, size)).rows, None
    except ShapeError as error:
        return error.trace.rows, str(error)


def expected_lines(lines, rows, batch):
    """Return for each of the explorer's lines what ``rows`` say of it: last output, costs together, last field."""
    for line in lines:
        members = [row for row in rows if belongs(row, line)]
        last = members[-1]
        costs = [sum(getattr(row, what) for row in members) for what in ("parameters", "macs", "activation_bytes")]
        size = last.output[1] if len(last.output) == 3 else 1
        yield [last.output[0], size, costs[0], costs[1] * batch, costs[2] * batch, last.receptive_field[0]]


def belongs(row, line):
    run = re.fullmatch(r"(layer\d+)\.(\d+)–(\d+)", line)
    if run:
        stage, number = row.name.split(".")[0], row.name.split(".")[1:2]
        return stage == run[1] and int(run[2]) <= int(number[0]) <= int(run[3])
    return row.name == line or row.name.startswith(f"{line}.") and re.fullmatch(r"layer\d+\.\d+", line)


def settings(network, variant="residual", head="global", size=224, batch=1, classes=1000):
    names = ("network", "variant", "head", "size", "batch", "classes")
    return dict(zip(names, (network, variant, head, size, batch, classes), strict=True))


@pytest.fixture(scope="module")
def blank(browser):
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize("network", NETWORKS)
def test_every_line_of_every_network_equals_the_trace(blank, network):
    asked = [
        settings(network, variant, head, size, batch, classes)
        for (variant, head), (i, size) in itertools.product(itertools.product(VARIANTS, HEADS), enumerate(SIZES[::3]))
        for batch, classes in [((1, 32)[i % 2], (1000, 6)[i % 2])]
    ]
    for one, shown in zip(asked, ask_module(blank, ShapeExplorer, [{"settings": s} for s in asked]), strict=True):
        rows, error = trace(**{key: value for key, value in one.items() if key != "batch"})
        lines, numbers = zip(*shown["rows"], strict=True)
        assert list(numbers) == list(expected_lines(lines, rows, one["batch"])), one
        assert sum(row.parameters for row in rows) == sum(n[2] for n in numbers)
        assert ("does not fit" in shown["say"]) == (error is not None)
        assert f"{sum(row.macs for row in rows) * one['batch']:,} multiply-accumulates" in shown["say"]


def test_every_size_of_one_network(blank):
    asked = [settings("resnet18", size=size) for size in range(16, 513)]
    for one, shown in zip(asked, ask_module(blank, ShapeExplorer, [{"settings": s} for s in asked]), strict=True):
        side = one["size"]
        for _ in range(5):  # five halvings that round up
            side = -(-side // 2)
        assert shown["rows"][-3][1][:2] == [512, side]


def unfold_all(explorer):
    folds = explorer.root.locator('button[aria-expanded="false"]')
    while folds.count():
        folds.first.click()


@pytest.mark.parametrize(
    "chosen",
    [
        settings("resnet18", size=225),
        settings("resnet50", "v1", size=97, batch=2),
        settings("cifar32", size=32, classes=10),
        settings("resnet34", "plain", size=64),
    ],
    ids=lambda s: s["network"],
)
def test_unfolded_by_hand_every_layer_equals_the_trace(browser, chosen):
    rows, _ = trace(**{key: value for key, value in chosen.items() if key != "batch"})
    with opened(browser, "shapes") as explorer:
        explorer.set(**chosen)
        unfold_all(explorer)
        names = explorer.root.locator("tr[data-numbers]").evaluate_all("all => all.map(row => row.dataset.layer)")
        numbers = dict(zip(names, explorer.numbers(), strict=True))
    layers = [name for name in names if not re.fullmatch(r"layer\d+\.\d+(–\d+)?", name)]
    assert [re.sub(r"\.add$| \(\d\)$", "", name) for name in layers] == [row.name for row in rows]
    found = [numbers[name] for name in layers if name != "fc"]
    batch = chosen["batch"]
    assert found == [
        [row.output[0], row.output[1], row.parameters, row.macs * batch, row.activation_bytes * batch,
         row.receptive_field[0]] for row in rows[:-1]
    ]  # fmt: skip


def test_layers_with_one_name_are_told_apart_when_chosen(browser):
    """A block calls its one ReLU twice: each line shows its own shape."""
    with opened(browser, "shapes") as explorer:
        explorer.root.locator('[data-key="fold layer2.0"]').click()
        relu = explorer.root.locator('[data-key^="layer layer2.0.relu"]')
        assert relu.count() == 2
        relu.nth(1).click()
        assert explorer.root.locator('tr [aria-pressed="true"]').count() == 1


@pytest.mark.parametrize(
    ("line", "formulas"),
    [
        ("conv1", ["⌊224+2·3−72⌋+1=112", "64·3·7·7=9,408", "9,408·112·112=118,013,952"]),
        ("fc", ["1000·(512+1)=513,000"]),
        ("bn1", ["2·64=128"]),
    ],
)
def test_a_chosen_layer_fills_its_numbers_into_the_formula(browser, line, formulas):
    with opened(browser, "shapes") as explorer:
        key = explorer.root.locator(f'[data-key="layer {line}"]')
        key.focus()
        explorer.page.keyboard.press("Enter")
        shown = explorer.root.locator(".rbw-detail math").evaluate_all(
            r"all => all.map(m => m.textContent.replace(/\s/g, ''))"
        )
        assert shown == formulas
        focused = explorer.page.evaluate("document.activeElement.dataset.key")
        assert focused == f"layer {line}", "the focus stays where it was"


def test_a_projection_is_explained_and_an_identity_too(browser):
    with opened(browser, "shapes") as explorer:
        explorer.root.locator('[data-key="layer layer2.0"]').click()
        detail = explorer.root.locator(".rbw-detail")
        assert (
            "64×56×56 to 128×28×28" in detail.inner_text() and "projection of 8,448 parameters" in detail.inner_text()
        )
        explorer.root.locator('[data-key="layer layer2.1"]').click()
        assert "identity" in detail.inner_text()


def test_a_size_that_does_not_fit_ends_at_the_layer_that_refuses(browser):
    with opened(browser, "shapes") as explorer:
        explorer.preset("fixed-window")
        assert "avgpool refuses, because its kernel needs 7 positions and there are 5" in explorer.says
        assert explorer.root.locator("tbody tr").last.inner_text().startswith("avgpool ✕")
        explorer.set(size=256)
        assert "fc refuses, because it was built for 512 values and gets 512·2·2 = 2,048" in explorer.says


def test_a_tensor_in_the_picture_can_be_clicked(browser):
    with opened(browser, "shapes") as explorer:
        explorer.root.locator('.rbw-tensor[data-layer="layer3.0"]').click()
        assert "128×28×28 to 256×14×14" in explorer.root.locator(".rbw-detail").inner_text()


@pytest.mark.parametrize("preset", ShapeExplorer.presets)
def test_the_python_code_traces_what_is_shown(blank, preset):
    chosen = ShapeExplorer(preset).settings
    (shown,) = ask_module(blank, ShapeExplorer, [{"settings": chosen}])
    printed, scope = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        if preset == "fixed-window":
            with pytest.raises(ShapeError):
                exec(shown["code"], scope)
            return
        exec(shown["code"], scope)
    assert f"{sum(n[2] for _, n in shown['rows']):,} parameters" in printed.getvalue()
    assert scope["output"].shape == (chosen["batch"], chosen["classes"])
