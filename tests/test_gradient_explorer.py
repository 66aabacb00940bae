"""The gradient explorer's numbers against the record, its predictions against closed forms, a model of one's own."""

import contextlib
import io
import itertools
import math

import pytest
import torch
from explorers import ask_module, opened, short
from resbook import cifar_resnet, resnet18, trace_gradients
from resbook.widgets import GradientExplorer
from resbook.widgets.gradient_grid import AXES
from resbook.widgets.gradients import predicted_factor, recorded

CHOICES = {
    "depth": AXES["depth"],
    "norm": AXES["norm"],
    "init": AXES["init"],
    "order": AXES["order"],
    "zero": (False, True),
}


def kinds(settings):
    return {"plain": "plain", "residual": "zero-init" if settings["zero"] else "residual"}


def curves(settings):
    """Return the record's curves by name; read straight from the record, not through the explorer's class."""
    found = recorded()[1]
    key = tuple(settings[name] for name in ("depth", "norm", "init", "order"))
    return {name: found[(*key, kind)] for name, kind in kinds(settings).items()}


def growth_text(settings):
    ends = {name: (c["gradient"]["median"][0], c["gradient"]["median"][-1]) for name, c in curves(settings).items()}
    return ", ".join(f"{name} {short(first / last, 2)}" for name, (first, last) in ends.items())


def test_every_setting_shows_the_records_numbers(browser):
    asked = [dict(zip(CHOICES, values, strict=True), block=1) for values in itertools.product(*CHOICES.values())]
    page = browser.new_page()
    answers = ask_module(page, GradientExplorer, [{"settings": settings} for settings in asked])
    page.close()
    for settings, shown in zip(asked, answers, strict=True):
        columns = [(curves(settings)[name], q) for q in ("gradient", "activation") for name in ("plain", "residual")]
        expected = [
            [[curve[q][s][i] for s in ("median", "least", "greatest")] for curve, q in columns]
            for i in range((settings["depth"] - 2) // 2)
        ]
        for (_, row), wanted in zip(shown["rows"], expected, strict=True):
            assert row == [pytest.approx(values, rel=1e-12) for values in wanted]
        assert growth_text(settings) in shown["say"]


@pytest.mark.parametrize("preset", GradientExplorer.presets)
def test_by_hand_the_page_shows_the_records_numbers(browser, preset):
    settings = GradientExplorer(preset).settings
    with opened(browser, "gradients") as explorer:
        explorer.preset("vanishing")
        explorer.set(**{**settings, "block": 7})
        assert growth_text(settings) in explorer.says
        for name, curve in curves(settings).items():
            values = [short(curve["gradient"][s][6], 2) for s in ("median", "least", "greatest")]
            assert f"{name} {values[0]} ({values[1]} to {values[2]})" in explorer.says
        rows = explorer.numbers()
        assert len(rows) == (settings["depth"] - 2) // 2
        assert rows[6][1][0] == pytest.approx(curves(settings)["residual"]["gradient"]["median"][6])


def test_the_keyboard_reads_off_block_after_block(browser):
    settings = GradientExplorer("vanishing").settings
    with opened(browser, "gradients") as explorer:
        for block in (2, 3, 4):
            explorer.press("block", "ArrowRight")
            plain = curves(settings)["plain"]["gradient"]["median"][block - 1]
            assert f"At block {block}: plain {short(plain, 2)}" in explorer.says
        explorer.press("block", "End")
        assert "At block 27:" in explorer.says, "the slider ends at the last block"


def test_dragging_over_the_chart_reads_off_a_block(browser):
    with opened(browser, "gradients") as explorer:
        picture = explorer.root.locator(".rbw-picture")
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        mouse = explorer.page.mouse
        mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 120)
        mouse.down()
        mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 120)
        first = explorer.shown("block")
        mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 120)
        assert explorer.shown("block") > first > 1
        mouse.up()
        mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 120)
        assert explorer.shown("block") > first, "released, the pointer no longer drags"


def test_the_lessons_can_be_found():
    """What the issue of vanishing and exploding is about, each in one preset."""

    def growths(preset):
        return [
            c["gradient"]["median"][0] / c["gradient"]["median"][-1] for c in GradientExplorer(preset).curves().values()
        ]

    assert growths("vanishing")[0] < 1e-18
    assert growths("exploding")[1] > 1e3
    assert growths("growing")[0] > 1e3
    assert growths("tame")[1] < 1e2 and growths("tame")[0] > 1e6
    assert 0.1 < growths("zero-init")[1] < 1


@pytest.mark.parametrize(("init", "variance"), [("default", 1 / 3), ("xavier", 1), ("he", 2)])
def test_predicted_factors(init, variance):
    assert predicted_factor("none", init, "original", "plain") == pytest.approx(math.sqrt(variance / 2) ** 2)
    assert predicted_factor("batch", init, "original", "plain") == pytest.approx(1.2112**2, rel=1e-3)
    assert predicted_factor("none", init, "preactivation", "residual") == pytest.approx(math.hypot(1, variance / 2))
    assert predicted_factor("none", init, "original", "residual") is None
    assert predicted_factor("batch", init, "preactivation", "residual") is None


@pytest.mark.parametrize("init", ["default", "xavier", "he"])
@pytest.mark.parametrize(("norm", "kind"), [("none", "plain"), ("batch", "plain"), ("none", "residual")])
def test_predictions_are_near_what_was_measured(init, norm, kind):
    """Within 7 % per block (borders are not in the theory), over the 27 blocks of the network of 56 layers."""
    gradient = recorded()[1][(56, norm, init, "preactivation", kind)]["gradient"]["median"]
    measured = (gradient[0] / gradient[-1]) ** (1 / 26)
    assert measured == pytest.approx(predicted_factor(norm, init, "preactivation", kind), rel=0.07)


def test_a_model_of_ones_own_is_drawn_and_measured():
    torch.manual_seed(0)
    model, images, labels = resnet18(10), torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    own = GradientExplorer(model=model, images=images, labels=labels).data()["own"]
    trace = trace_gradients(model, images, labels)
    assert own["label"] == "ResNet" and own["curve"]["gradient"]["median"] == trace.column("gradient")


@pytest.mark.parametrize(
    "given", [{"model": resnet18(10)}, {"images": torch.randn(2, 3, 32, 32)}], ids=["model", "images"]
)
def test_a_model_without_images_is_refused(given):
    with pytest.raises(TypeError, match="give all three, or none"):
        GradientExplorer(**given)


def test_what_would_not_fit_is_refused_before_it_is_built():
    explorer = GradientExplorer()
    settings = {**explorer.settings, **explorer.live_defaults, "another_depth": 302, "width": 8, "batch": 512}
    with pytest.raises(ValueError, match="would keep .* GB of outputs; allowed are 8 GB"):
        next(explorer.recompute(settings))


def test_what_is_not_finite_is_said_to_be(browser):
    nothing = dict.fromkeys(("median", "least", "greatest"), [None, 1.0, 2.0])
    curves = {name: {"gradient": nothing, "activation": nothing} for name in ("plain", "residual")}
    answer = {"curves": curves, "title": "T", "source": "S", "settings": {"depth": 8, "width": 1, "batch": 4}}
    page = browser.new_page()
    (shown,) = ask_module(page, GradientExplorer, [{"settings": GradientExplorer().settings, "answer": answer}])
    page.close()
    assert "plain not finite, residual not finite" in shown["say"]


def test_a_recomputation_is_what_trace_gradients_measures():
    explorer = GradientExplorer("growing")
    settings = {**explorer.settings, **explorer.live_defaults, "another_depth": 14, "width": 2, "batch": 8, "seeds": 2}
    state = torch.get_rng_state()
    *_, answer = explorer.recompute(settings)
    assert torch.equal(torch.get_rng_state(), state)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
        torch.manual_seed(seed)
        model = cifar_resnet(14, residual=False, widths=(32, 64, 128))
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        found.append(trace_gradients(model, images, labels).column("gradient"))
    least = [min(values) for values in zip(*found, strict=True)]
    assert answer["curves"]["plain"]["gradient"]["least"] == pytest.approx(least, rel=1e-6)
    assert "batch of 8, noise, 2 of 2 seeds" in answer["source"]


@pytest.mark.parametrize("preset", ["vanishing", "zero-init", "preactivation"])
def test_the_python_code_runs(browser, preset):
    settings = {**GradientExplorer(preset).settings, "depth": 20}
    page = browser.new_page()
    (shown,) = ask_module(page, GradientExplorer, [{"settings": settings}])
    page.close()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(shown["code"], {})
    assert printed.getvalue().count("layer3.2") == 2
