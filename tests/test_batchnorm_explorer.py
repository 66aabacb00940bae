"""The batch normalisation explorer's numbers against PyTorch's own layers and autograd; its controls, by hand."""

import contextlib
import io
import itertools
import random
import re

import pytest
import torch
import torch.nn.functional as F
from explorers import ask_module, opened, short
from resbook.widgets import BatchNormExplorer
from resbook.widgets.batchnorm import CHANNELS, EPSILON, LAYERS, PATTERNS, SIDE, VALUES
from torch import nn

CLOSE = {"rel": 1e-9, "abs": 1e-9}


def settings(preset="steps", **changes):
    return {**BatchNormExplorer.defaults, **BatchNormExplorer.presets[preset][1], **changes}


def grid():
    """Return settings at the corners, where something is zero or refused, and others drawn with a fixed seed."""
    corners = [{"batch": 1}, {"batch": 2, "outlier": VALUES[0]}, {"outlier": -10}, {"gamma": 0}, {"batch": 2}]
    corners += [{"mode": "evaluation", "steps": 0}, {"mode": "evaluation", "batch": 1, "steps": 60}]
    corners += [{"mode": "evaluation", "steps": 7, "momentum": momentum} for momentum in (0, 1)]
    draw = random.Random(0)
    for _ in range(60):
        tenths = {
            name: draw.randint(-most, most) / 10 for name, most in (("outlier", 100), ("gamma", 30), ("beta", 30))
        }
        mode = {"mode": draw.choice(["training", "evaluation"]), "momentum": draw.randint(0, 20) / 20}
        corners.append({**tenths, **mode, "batch": draw.randint(1, 8), "steps": draw.randint(0, 60)})
    return [settings(pattern=pattern, **one) for one, pattern in zip(corners, itertools.cycle(PATTERNS), strict=False)]


def by_torch(s):
    """Return what nn.BatchNorm1d and autograd give in float64; None where PyTorch refuses."""
    exact = {"dtype": torch.float64}
    bn = nn.BatchNorm1d(1, momentum=s["momentum"], **exact)
    assert bn.eps == EPSILON
    for _ in range(s["steps"]):
        bn(torch.tensor(VALUES, **exact)[:, None])
    x = torch.tensor([*VALUES[: s["batch"] - 1], s["outlier"]], **exact)[:, None].requires_grad_()
    bn.train(s["mode"] == "training")
    if s["mode"] == "training" and s["batch"] == 1:
        with pytest.raises(ValueError) as refusal:
            bn(x)
        return str(refusal.value)
    mean, var = (x.mean(), x.var(correction=0)) if bn.training else (bn.running_mean, bn.running_var)
    mean, var = mean.detach().clone(), var.detach().clone()
    x_hat = bn(x).detach()  # gamma is 1, beta 0
    nn.init.constant_(bn.weight, s["gamma"])
    nn.init.constant_(bn.bias, s["beta"])
    y = bn(x)
    g = torch.ones_like(x_hat)
    if s["pattern"] == "one":
        g[:-1] = 0
    elif s["pattern"] == "alternating":
        g[1::2] = -1
    elif s["pattern"] == "xhat":
        g = x_hat
    y.backward(g)
    columns = {"x": x, "centred": x - mean, "x_hat": x_hat, "y": y, "g": g, "shifted": g - g.mean(), "dx": x.grad}
    used = [mean.item(), var.item(), torch.sqrt(var + EPSILON).item()]
    return used, {name: column.detach().flatten() for name, column in columns.items()}


def on_page(number):
    """Write a number as the explorer does: two decimals, more where these would be zero."""
    if abs(number) < 1e-12:
        return "0"
    return short(number, 2) if abs(number) < 0.005 else f"{number * (1 + 1e-12):.2f}".replace("-", "−")


def printed(code):
    """Run a listing and return the numbers that it prints, in order."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    return [[float(n) for n in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", line)] for line in output.getvalue().splitlines()]


@pytest.fixture
def alone(browser):
    with opened(browser, "batchnorm") as explorer:
        yield explorer


@pytest.fixture(scope="module")
def blank(browser):
    page = browser.new_page()
    yield page
    page.close()


def test_the_batch_that_trains_has_mean_5_and_variance_3():
    assert torch.tensor(VALUES).mean().item() == pytest.approx(5)
    assert torch.tensor(VALUES).var().item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"groups": 4}, ValueError, "groups must be one of 1, 2, 3, 6, got 4"),
        ({"batch": 9}, ValueError, "batch must be from 1 to 8, got 9"),
        ({"outlier": 10.5}, ValueError, "outlier must be from -10 to 10"),
        ({"gamma": "2"}, TypeError, "gamma must be a number from -3 to 3"),
        ({"mode": "test"}, ValueError, "mode must be one of 'training', 'evaluation'"),
    ],
)
def test_settings_outside_their_range_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        BatchNormExplorer(**bad)


@pytest.mark.parametrize("preset", BatchNormExplorer.presets)
def test_without_javascript_there_are_picture_table_and_sentence(preset):
    explorer = BatchNormExplorer(preset)
    assert explorer.picture().alt.endswith(" ".join(explorer.summary().split()))
    assert "NaN" not in explorer.picture().html() and "nan" not in explorer.picture().html()
    assert len(explorer.table().cells()) == (4 if preset == "axes" else explorer.settings["batch"])
    assert explorer.static_html() == BatchNormExplorer(preset).static_html()


def test_the_kernel_agrees():
    for one in [*grid(), *(settings("axes", batch=n, groups=g) for n in (1, 3) for g in (1, 2, 3, 6))]:
        for view in ("values", "gradient") if one["view"] != "axes" else ("axes",):
            (answer,) = BatchNormExplorer().recompute({**one, "view": view})
            assert answer["status"].startswith("PyTorch agrees"), (one, answer)
    assert "Expected more than 1 value per channel" in BatchNormExplorer("batch-of-one").summary()


def test_values_equal_pytorchs(blank):
    asked = grid()
    for one, shown in zip(asked, ask_module(blank, BatchNormExplorer, [{"settings": s} for s in asked]), strict=True):
        *rows, mean, variance, used = [numbers for _, numbers in shown["rows"]]
        expected = by_torch(one)
        if isinstance(expected, str):
            assert expected in shown["say"]
            assert rows == [[one["outlier"], 0, 0, one["beta"]]]
            continue
        columns = torch.stack([expected[1][name] for name in ("x", "centred", "x_hat", "y")])
        assert used == pytest.approx(expected[0], **CLOSE), one
        assert [v for column in zip(*rows, strict=True) for v in column] == pytest.approx(
            columns.flatten().tolist(), **CLOSE
        ), one
        assert mean == pytest.approx(columns.mean(1).tolist(), **CLOSE)
        assert variance == pytest.approx(columns.var(1, correction=0).tolist(), **CLOSE)
        y, x_hat = columns[3], columns[2]
        spread = [on_page(value.item()) for value in (y.mean(), y.std(correction=0), x_hat[-1], y[-1])]
        assert f"mean {spread[0]} and standard deviation {spread[1]};" in shown["say"], one
        assert shown["say"].endswith(f"x̂ = {spread[2]} and y = {spread[3]}."), one


def test_gradients_equal_autograds(blank):
    asked = [{**one, "view": "gradient", "pattern": pattern} for one in grid()[::2] for pattern in PATTERNS]
    for one, shown in zip(asked, ask_module(blank, BatchNormExplorer, [{"settings": s} for s in asked]), strict=True):
        *rows, sums, products, used = [numbers for _, numbers in shown["rows"]]
        expected = by_torch(one)
        if isinstance(expected, str):
            assert expected in shown["say"] and rows[0][-1] == 0
            continue
        columns = torch.stack([expected[1][name] for name in ("x_hat", "g", "shifted", "dx")])
        assert [v for column in zip(*rows, strict=True) for v in column] == pytest.approx(
            columns.flatten().tolist(), **CLOSE
        ), one
        assert sums == pytest.approx(columns.sum(1).tolist(), **CLOSE)
        assert products == pytest.approx((columns * columns[0]).sum(1).tolist(), **CLOSE)
        assert used == pytest.approx(expected[0], **CLOSE)
        if one["mode"] == "training" and used[1] > 0.1:
            assert sums[-1] == pytest.approx(0, abs=1e-12)
            left = one["gamma"] / used[2] * products[1] * EPSILON / (used[1] + EPSILON)  # what the ε leaves
            assert products[-1] == pytest.approx(left, abs=1e-12)
            assert one["pattern"] != "equal" or max(abs(row[-1]) for row in rows) < 1e-12


def layers_of(x, groups):
    return {
        "batch": F.batch_norm(x, None, None, training=True),
        "layer": F.layer_norm(x, x.shape[1:]),
        "instance": F.instance_norm(x),
        "group": F.group_norm(x, groups),
    }


def used_by(layer, s):
    """Return by autograd which inputs one output depends on, of shape [N, C, H, W]."""
    x = torch.randn(s["batch"], CHANNELS, SIDE, SIDE, requires_grad=True)
    at = min(s["image"], s["batch"]) - 1, s["channel"] - 1, 1, 1
    return torch.autograd.grad(layers_of(x, s["groups"])[layer][at], x)[0] != 0


def test_axes_are_those_of_pytorchs_layers(blank):
    asked = [settings("axes", batch=n, groups=g, image=8, channel=n % 6 + 1) for n in range(1, 9) for g in (1, 2, 3, 6)]
    for one, shown in zip(asked, ask_module(blank, BatchNormExplorer, [{"settings": s} for s in asked]), strict=True):
        used = [used_by(layer, one) for layer in LAYERS]
        assert [n for _, n in shown["rows"]] == [[m.sum().item(), m.numel() // m.sum().item()] for m in used], one
        assert printed(shown["code"]) == [numbers for _, numbers in shown["rows"]]


def test_every_listing_prints_the_numbers_of_the_table(blank):
    asked = [{**one, "view": view} for one in grid()[:24] for view in ("values", "gradient")]
    for one, shown in zip(asked, ask_module(blank, BatchNormExplorer, [{"settings": s} for s in asked]), strict=True):
        rows = [numbers for _, numbers in shown["rows"]]
        columns = [list(column) for column in zip(*rows[: one["batch"]], strict=True)]
        if isinstance(by_torch(one), str):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(shown["code"], {})
            assert by_torch(one) in output.getvalue()
        elif one["view"] == "values":
            for got, want in zip(printed(shown["code"]), [rows[-1][:2], *columns[1:]], strict=True):
                assert got == pytest.approx(want, **CLOSE), one
        else:
            wanted = [columns[-1], [rows[-3][-1]], [rows[-2][-1]]]
            for got, want in zip(printed(shown["code"]), wanted, strict=True):
                assert got == pytest.approx(want, **CLOSE), one


def test_controls_by_mouse_and_by_keyboard(alone):
    for view, preset in (("values", "outlier"), ("gradient", "gradient"), ("axes", "axes")):
        alone.preset(preset)
        assert alone.shown("view") == view
        visible = alone.root.locator("[data-setting]:not([type=number]):visible").count()
        assert 3 <= visible <= 7
    alone.set(view="values", mode="training", batch=5, outlier=-3.5, gamma=1.5, beta=0.5)
    expected = by_torch(settings(batch=5, outlier=-3.5, gamma=1.5, beta=0.5))[1]["y"].tolist()
    assert [row[3] for row in alone.numbers()[:5]] == pytest.approx(expected, **CLOSE)
    alone.press("outlier", "End", "ArrowLeft")
    assert alone.shown("outlier") == 9.9 and alone.numbers()[4][0] == 9.9
    alone.press("batch", "Home")
    assert "PyTorch refuses" in alone.says
    alone.set(view="gradient", batch=6, pattern="alternating")
    expected = by_torch(settings(batch=6, outlier=9.9, gamma=1.5, pattern="alternating"))[1]["dx"].tolist()
    assert [row[3] for row in alone.numbers()[:6]] == pytest.approx(expected, **CLOSE)
    assert float(alone.root.locator(".rbw-root").get_attribute("data-milliseconds")) < 50


def test_training_step_by_step_keeps_the_focus(alone):
    alone.preset("too-early")
    for steps in range(2, 5):
        alone.do("train")
        mean, var, _ = by_torch(settings("too-early", steps=steps))[0]
        assert alone.numbers()[-1][:2] == pytest.approx([mean, var], **CLOSE)
    alone.page.keyboard.press("Enter")
    assert alone.shown("steps") == 5


@pytest.mark.parametrize(("mode", "width"), [("training", 1280), ("evaluation", 1280), ("training", 360)])
def test_the_movable_value_can_be_dragged(alone, mode, width):
    alone.page.set_viewport_size({"width": width, "height": 900})
    alone.preset("outlier")
    alone.set(mode=mode)
    before = alone.numbers()
    picture = alone.root.locator(".rbw-picture svg")
    picture.scroll_into_view_if_needed()
    grip = picture.locator('[style*="ew-resize"]').bounding_box()
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    alone.page.mouse.move(x, y)
    alone.page.mouse.down()
    shown = []
    for step in range(1, 6):
        alone.page.mouse.move(x + 20 * step, y)
        shown.append(alone.shown("outlier"))
    alone.page.mouse.up()
    alone.page.mouse.move(x, y)
    assert shown == sorted(shown) and -10 < shown[0] < shown[4] == alone.shown("outlier")
    assert (
        alone.numbers()[7]
        == pytest.approx(  # the row of the value itself
            [c[7].item() for c in list(by_torch(settings("outlier", mode=mode, outlier=shown[4]))[1].values())[:4]],
            **CLOSE,
        )
    )
    kept = [old == new for old, new in zip(before[:7], alone.numbers()[:7], strict=True)]
    assert all(kept) if mode == "evaluation" else not any(kept)
    alone.page.mouse.click(x + 300 if width > 400 else x, y + 40)  # elsewhere nothing moves
    assert alone.shown("outlier") == shown[4]


def test_filled_maps_are_those_that_autograd_finds(alone):
    alone.preset("axes")
    for batch, groups, channel, image in [(4, 2, 3, 2), (3, 3, 6, 1), (8, 6, 1, 8), (1, 1, 2, 1)]:
        alone.set(layer="group", batch=batch, groups=groups)
        alone.root.locator(f'[data-map="layer {image} {channel}"]').click()
        assert (alone.shown("image"), alone.shown("channel"), alone.shown("layer")) == (image, channel, "layer")
        filled = set(alone.root.locator('[data-same="true"]').evaluate_all("maps => maps.map(map => map.dataset.map)"))
        one = settings("axes", batch=batch, groups=groups, channel=channel, image=image)
        expected = {
            f"{layer} {i + 1} {j + 1}"
            for layer in LAYERS
            for i, j in used_by(layer, one).all(dim=(2, 3)).nonzero().tolist()
        }
        assert filled == expected


def test_what_is_pinned_is_drawn_and_said(alone):
    marks = alone.root.locator(".rbw-picture circle, .rbw-picture path")
    count = marks.count()
    alone.do("pin")
    alone.preset("outlier")
    assert marks.count() == 2 * count
    assert "movable value −10.0 becomes" in alone.says and "Pinned: Training" in alone.says
    alone.preset("axes")  # another view: both pictures stand below one another
    assert (
        alone.root.locator("[data-map]").count() == 4 * 4 * CHANNELS
        and alone.root.locator(".rbw-picture circle").count()
    )
