"""The block workshop: every combination against the block that its line builds, and what a browser shows of it."""

import json
import random
import re
from itertools import product

import pytest
import resbook
import torch
from explorers import opened
from resbook import trace_shapes
from resbook.blocks import ORDERS
from resbook.widgets import BlockWorkshop
from torch import nn

NAMES = [control.name for control in BlockWorkshop.controls]
EVERY = [dict(zip(NAMES, v, strict=True)) for v in product(*(c.options for c in BlockWorkshop.controls))]
SAMPLE = [*random.Random(0).sample(EVERY, 20), *({**BlockWorkshop.defaults, "order": order} for order in ORDERS)]
ZEROS = {"stride": 2, "channels": "doubled"}


def sent(settings):
    """Return what is sent of one combination: rows, where the shortcut leaves, the two answers, the line."""
    data = BlockWorkshop().data()
    numbers, split, identity, gradient, line = data["blocks"][EVERY.index({**BlockWorkshop.defaults, **settings})]
    return [data["rows"][i] for i in numbers], split, data["texts"][identity], data["texts"][gradient], line


def block_of(line):
    """Return the block that the shown line builds, and the shape of its input."""
    return eval(line, vars(resbook)), (64 if line.startswith("Basic") else 256, 56, 56)


def label(row):
    if row.operation == "Conv2d":
        return f"conv {row.kernel[0]}×{row.kernel[0]}" + f", stride {row.stride[0]}" * (row.stride[0] > 1)
    if row.operation == "Shortcut":
        return ", ".join(["subsample"] * (row.output[1] < 56) + ["pad"] * (row.output[0] > row.input[0]))
    return {"BatchNorm2d": "batch norm"}.get(row.operation, row.operation)


def test_settings_and_presets_are_checked():
    assert len(EVERY) == len(BlockWorkshop().data()["blocks"]) == 160
    for name, text in [("block", "'BasicBlock', 'Bottleneck'"), ("stride", "1, 2"), ("shortcut", "'A', 'B', 'C'")]:
        with pytest.raises(ValueError, match=f"{name} must be one of .*{text}, got 'D'"):
            BlockWorkshop(**{name: "D"})
    with pytest.raises(ValueError, match="'relu-before-addition'.*got 'preact'"):
        BlockWorkshop(order="preact")
    with pytest.raises(ValueError, match="'option-a'"):
        BlockWorkshop("option-b")
    with pytest.raises(TypeError, match="no setting 'width'"):
        BlockWorkshop(width=3)
    assert set(BlockWorkshop.controls[-1].options) == set(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck"])
def test_what_is_sent_is_true_of_the_block_that_the_line_builds(kind, order):
    for settings in (s for s in EVERY if (s["block"], s["order"]) == (kind, order)):
        rows, split, identity, gradient, line = sent(settings)
        block, size = block_of(line)
        trace = trace_shapes(block, size)
        numbers = [(row.parameters, row.macs, row.activation_bytes) for row in trace]
        assert rows == [(r.name or "add", label(r), *r.output[:2], *n) for r, n in zip(trace, numbers, strict=True)]
        assert sum(row[4] for row in rows) == sum(p.numel() for p in block.parameters())
        with torch.inference_mode():
            output = block.eval()(torch.randn(1, *size))
        side, channels = 56 // settings["stride"], size[0] * (1 + (settings["channels"] == "doubled"))
        assert output.shape[1:] == (channels, side, side) == trace.output == (*rows[-1][2:4], side)
        # The line says what the settings say, and nothing that would be so anyway.
        assert type(block).__name__ == kind and block.order == order and block.residual == (split is not None)
        assert not re.search('residual=True|"B"|"original"|, 1[,)]', line)
        changes = output.shape[1:] != size
        if settings["shortcut"] == "none":
            assert not block.residual and not any(row[0].startswith("downsample") for row in rows)
            continue
        projection = settings["shortcut"] == "C" or (settings["shortcut"] == "B" and changes)
        assert projection == any(row[0] == "downsample.0" for row in rows) == ("projection" in gradient)
        branch = [row[0] for row in rows if not row[0].startswith("downsample")]
        activated = order.endswith("preactivation") and (projection or changes)
        assert branch[split] == "conv1" if activated else split == 0
        assert identity.startswith("No: the shapes differ") == changes
        assert ("25 %" in gradient) == (settings["stride"] == 2 and not projection)


# What an identity would need, worked out on paper. F is the branch, which is made to be zero; n is a normalisation,
# in evaluation a division by sqrt(1 + eps), in training by what the batch happens to have.
ANSWERS = [
    # relu(0 + x) is x where x is not negative, and its slope is 1 where x is positive.
    ({}, "Only for inputs that are not negative: .*zeros .* exactly", "Only where x is positive.*exactly"),
    # n(n(x)), once both kernels copy; there is nothing but the branch.
    ({"shortcut": "none"}, "Only in evaluation, for inputs that are not neg.*copy.*ε.*In training", "There is no"),
    # relu(n(0 + x)): the normalisation takes part.
    ({"order": "norm-after-addition"}, "Only in evaluation, for inputs that are not negative.*ε.*In training",
     "Only in evaluation, where x is positive.*ε.*In training"),
    # relu(n(0)) + x: nothing follows the addition, but that ReLU has slope 0, so no gradient gets into the branch.
    ({"order": "relu-before-addition"}, "Yes, for all inputs.*exactly.*no gradient", "Yes: .*both signs"),
    # 0 + x, and the gradient of zero kernels is not zero.
    ({"order": "relu-only-preactivation"}, "Yes, for all inputs.*exactly[.]$", "Yes: .*both signs[.]$"),
    ({"order": "preactivation"}, "Yes, for all inputs.*exactly[.]$", "Yes: .*both signs[.]$"),
    # A projection that copies, then n, then nothing: all inputs in evaluation.
    ({"order": "relu-before-addition", "shortcut": "C"}, "Only in evaluation, for all inputs.*In training", "No: "),
    # That projection starts from relu(n(x)), which has lost the negative values.
    ({"order": "preactivation", "shortcut": "C"}, "Only in evaluation, for inputs that are not neg.*copies", "No: "),
    ({**ZEROS}, "No: the shapes differ, 64×56×56 and 128×28×28", "No: it is multiplied by the weights"),
    # Every second row and column of x itself, and of relu(n(x)).
    ({**ZEROS, "shortcut": "A", "order": "relu-before-addition"}, "No: the shapes", "Yes, where it is kept: .*25 %"),
    ({**ZEROS, "shortcut": "A", "order": "preactivation"}, "No: the shapes", "Only in evaluation, where x is.*25 %"),
    # 256 channels do not fit through 64.
    ({"block": "Bottleneck", "shortcut": "none"}, "No: the middle has 64 channels, fewer than the 256", "There is no"),
    ({"block": "Bottleneck", "order": "preactivation"}, "Yes, for all inputs.*exactly[.]$", "Yes: "),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "identity", "gradient"), ANSWERS)
def test_answers_are_those_worked_out_on_paper(settings, identity, gradient):
    _, _, about_identity, about_gradient, _ = sent(settings)
    assert re.match(identity, about_identity) and re.match(gradient, about_gradient)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck"])
def test_answers_hold_at_full_width(kind, order):
    """They were found with an eighth of the channels."""
    _, _, answer, _, line = sent({"block": kind, "order": order})
    block, (channels, *_) = block_of(line)
    nn.init.zeros_(block.last_conv.weight)
    x = torch.randn(2, channels, 5, 5)
    assert torch.allclose(block.eval()(x.abs()), x.abs(), rtol=1e-4, atol=1e-7)  # first: training moves statistics
    assert torch.equal(block.train()(x), x) == ("all inputs" in answer)
    assert torch.equal(block(x.abs()), x.abs()) == ("exactly" in answer) == ("In training" not in answer)


def test_page_data_stay_small_and_random_numbers_untouched():
    before = torch.get_rng_state()
    resbook.widgets.workshop.facts_of.__wrapped__(**BlockWorkshop.defaults)
    explorer = BlockWorkshop("option-a")
    list(explorer.recompute({**explorer.settings, "size": 7, "batch": 1}))
    assert torch.equal(torch.get_rng_state(), before)
    assert explorer.static_html() == BlockWorkshop("option-a").static_html()
    assert len(json.dumps(explorer.data(), separators=(",", ":"))) < 25_000


@pytest.mark.parametrize("preset", BlockWorkshop.presets)
def test_recompute_runs_the_block(preset):
    explorer = BlockWorkshop(preset)
    *_, answer = explorer.recompute({**explorer.settings, "size": 9, "batch": 2})
    block, size = block_of(sent(explorer.settings)[-1])
    output = "×".join(map(str, [2, *trace_shapes(block, (size[0], 9, 9)).output]))
    assert f" to {output} and back" in answer["status"]
    assert f"{explorer.table().parameters:,} parameters" in answer["status"]
    assert f"{explorer.table().parameters:,}" in explorer.summary()


@pytest.fixture(scope="module")
def workshop(browser):
    with opened(browser, "workshop") as explorer:
        yield explorer


def check(workshop, settings):
    """Compare everything shown with the block that the shown code builds."""
    rows, split, identity, gradient, line = sent(settings)
    namespace = {}
    exec(workshop.code, namespace)
    trace = trace_shapes(namespace["block"], block_of(line)[1])
    assert line in workshop.code
    *layers, total = workshop.numbers()
    assert layers == [[*r.output[:2], r.parameters, r.macs, r.activation_bytes] for r in trace]
    assert total == [*trace.output[:2], trace.parameters, trace.macs, trace.activation_bytes]
    assert f"{trace.parameters:,} parameters, {trace.macs:,} multiply-accumulates" in workshop.says
    facts = workshop.root.locator(".rbw-detail").inner_text()
    assert identity in facts and gradient in facts
    picture = workshop.root.locator(".rbw-picture svg")
    drawn = picture.locator("rect").evaluate_all("all => all.map(box => [box.dataset.layer, box.y.baseVal.value])")
    assert sorted(name for name, _ in drawn) == sorted(row[0] for row in rows if row[0] != "add")
    assert picture.locator("circle").count() == (split is not None)
    dashed = picture.locator("rect[stroke-dasharray]").count()
    assert dashed == (len(drawn) if split is None else 0)
    if split is not None:
        # In the branch's column the boxes stand in the order of the rows; the shortcut leaves between two of them.
        ys = [y for name, y in sorted(drawn, key=lambda box: box[1]) if not name.startswith("downsample")]
        lines = picture.locator('polyline[stroke="var(--rb-residual)"]')
        top = lines.first.evaluate("line => line.points[0].y")
        assert sum(y < top for y in ys) == split
        join = float(picture.locator("circle").get_attribute("cy"))
        branch = [row[0] for row in rows if not row[0].startswith("downsample")]
        assert sum(y < join for y in ys) == branch.index("add")


def test_the_page_shows_what_python_computes(workshop):
    for settings in SAMPLE:
        workshop.set(**settings)
        assert {name: workshop.shown(name) for name in NAMES} == settings
        check(workshop, settings)


def test_every_control_works_by_keyboard(workshop):
    workshop.do("reset")
    settings = dict(BlockWorkshop.defaults)
    for control in BlockWorkshop.controls:
        options = list(control.options)
        workshop.press(control.name, "Home", "ArrowDown")
        settings[control.name] = options[1]
        check(workshop, settings)
    workshop.do("reset")
    check(workshop, BlockWorkshop.defaults)


def test_two_blocks_stand_side_by_side(workshop):
    workshop.preset("projection")
    workshop.do("pin")
    workshop.preset("option-a")
    boxes = workshop.root.locator(".rbw-picture rect").count()
    (pinned, *_), (now, *_) = (sent(BlockWorkshop.presets[name][1]) for name in ("projection", "option-a"))
    assert boxes == len(pinned) + len(now) - 2  # the additions are circles
    more = [sum(row[i] for row in pinned) - sum(row[i] for row in now) for i in (4, 5)]
    assert f"{more[0]:,} parameters fewer, {more[1]:,} multiply-accumulates fewer, the same shapes" in workshop.says
    assert more == [128 * 64 + 2 * 128, 128 * 64 * 28 * 28]  # the projection and its normalisation
    assert "the answers differ on the gradient along the shortcut" in workshop.says
    assert "pinned: No: it is multiplied" in workshop.root.locator(".rbw-detail").inner_text()
    workshop.page.set_viewport_size({"width": 360, "height": 740})
    tops = workshop.root.locator(".rbw-picture circle").evaluate_all("all => all.map(c => c.getBoundingClientRect().x)")
    assert abs(tops[0] - tops[1]) < 1 and workshop.page.evaluate("document.scrollingElement.scrollWidth") <= 360
    workshop.do("pin")
    check(workshop, {**BlockWorkshop.defaults, **BlockWorkshop.presets["option-a"][1]})
