"""The replay's numbers against the record, read straight from its file; what a kernel trains; how that is stopped."""

import contextlib
import io
import itertools
import json
import threading

import numpy as np
import pytest
import torch
from explorers import ask_module, opened, short
from resbook import cifar_resnet, trace_gradients
from resbook.data import digits
from resbook.records import FOLDER
from resbook.training import train
from resbook.widgets import DegradationReplay
from resbook.widgets.replay import live_run, train_by_steps

FILES = [FOLDER / f"degradation-{data}.json" for data in ("digits", "cifar10")]
RECORD, CIFAR = (json.loads(file.read_text(encoding="utf-8")) for file in FILES)
DEPTHS, RATES, RATIOS, EPOCHS = (32, 44, 56, 110), (0.1, 0.01, 0.001), ("dx", "dW"), range(21)
SEEDS = {run["settings"]["seed"] for run in RECORD["runs"]}
OF_DIGITS = [preset for preset in DegradationReplay.presets if preset != "cifar10"]
TITLES = {"training": "Training error in per cent", "test": "Test error in per cent"}
TITLES |= {"dx": "|dL/dx|, first / last block", "dW": "|dL/dW|, first / last block"}
THOUSANDTH, THREE_DIGITS = {"abs": 0.501}, {"rel": 0.00501}  # how the explorer rounds errors and ratios


def settings(preset="degradation", **changes):
    return {**DegradationReplay.defaults, **DegradationReplay.presets[preset][1], **changes}


def networks(depth):
    """Return name, kind and depth of the networks on record, in the order of the picture."""
    plain, residual = ((kind, (20, depth)) for kind in ("plain", "residual"))
    pairs = [(kind, d) for kind, depths in (plain, residual) for d in depths]
    found = [(f"{'ResNet' if kind == 'residual' else kind}-{d}", kind, d) for kind, d in pairs]
    return [network for network in found if network[0] != "plain-110"]


def measured(kind, depth, rate):
    """Return for each quantity median, least and greatest of the seeds, a row for each epoch, the first before it."""
    return statistics(RECORD, {"kind": kind, "depth": depth, "lr": rate})


def statistics(record, wanted):
    runs = [run["results"] for run in record["runs"] if wanted.items() <= run["settings"].items()]
    gradients = np.array([run["gradients"] for run in runs])
    none = np.full((len(runs), 1), np.nan)
    values = {
        "training": np.hstack([none, 1000 * (1 - np.array([run["train_accuracy"] for run in runs]))]),
        "test": np.hstack([none, 1000 * (1 - np.array([run["test_accuracy"] for run in runs]))]),
        "dx": gradients[..., 0] / gradients[..., 1],
        "dW": gradients[..., 2] / gradients[..., 3],
    }
    return {name: np.stack([np.median(v, 0), v.min(0), v.max(0)], 1) for name, v in values.items()}


def test_the_record_is_whole():
    for depth, rate in itertools.product(DEPTHS, RATES):
        for name, kind, d in networks(depth):
            wanted = {"kind": kind, "depth": d, "lr": rate}
            runs = [run["settings"] for run in RECORD["runs"] if wanted.items() <= run["settings"].items()]
            assert {run["seed"] for run in runs} == SEEDS and len(runs) == len(SEEDS), (name, rate)


def words(quantity, entry):
    texts = [f"{value / 10:.1f}" if quantity in ("training", "test") else short(value) for value in entry]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def test_every_setting_shows_the_records_numbers(browser):
    every = itertools.product(DEPTHS, RATES, RATIOS, EPOCHS)
    asked = [settings(depth=depth, rate=rate, ratio=ratio, epoch=epoch) for depth, rate, ratio, epoch in every]
    page = browser.new_page()
    answers = ask_module(page, DegradationReplay, [{"settings": one} for one in asked])
    page.close()
    for one, shown in zip(asked, answers, strict=True):
        names, epoch = [name for name, _, _ in networks(one["depth"])], one["epoch"]
        quantities = ("training", "test", one["ratio"])
        assert f"{one['depth']} layers at rate {one['rate']}, " in shown["say"]
        assert f"median (least to greatest) of {len(SEEDS)} seeds" in shown["say"]
        assert ("There is no plain-110 in the record" in shown["say"]) == (one["depth"] == 110)
        entries = dict(zip(itertools.product(quantities, names), shown["rows"][epoch][1], strict=True))
        for quantity in quantities:
            found = [entries[quantity, name] for name in names]
            if epoch == 0 and quantity != one["ratio"]:
                assert found == [None] * len(names) and TITLES[quantity] not in shown["say"]
                continue
            said = [f"{name} {words(quantity, entry)}" for name, entry in zip(names, found, strict=True)]
            assert f"{TITLES[quantity]}: {', '.join(said)}." in shown["say"]
        guessing = [
            f"{name} in {quantity}"
            for quantity in ("training", "test")
            for name in names
            if epoch and abs(entries[quantity, name][0] - 900) <= 20
        ]
        assert ("Near guessing" in shown["say"]) == bool(guessing)
        assert ", ".join(guessing) in shown["say"]
        if epoch != EPOCHS[-1]:
            continue
        columns = [measured(kind, d, one["rate"])[q] for q in quantities for _, kind, d in networks(one["depth"])]
        for e, (_, row) in enumerate(shown["rows"]):
            for i, (entry, column) in enumerate(zip(row, columns, strict=True)):
                close = THREE_DIGITS if i >= 2 * len(names) else THOUSANDTH
                assert entry is None if np.isnan(column[e]).any() else entry == pytest.approx(column[e], **close)


@pytest.mark.parametrize("preset", OF_DIGITS)
def test_the_static_picture_sentence_and_table_hold_the_records_numbers(preset):
    one = settings(preset)
    explorer = DegradationReplay(preset)
    names = [name for name, _, _ in networks(one["depth"])]
    header, rows = explorer.table().header(), explorer.table().cells()
    heads = [f"{head}, {name}" for head in ("training", "test", "|dL/dx|") for name in names]
    assert header == ["epoch", *heads] and [row[0] for row in rows] == [str(epoch) for epoch in EPOCHS]
    columns = [measured(kind, d, one["rate"]) for _, kind, d in networks(one["depth"])]
    for epoch, (_, *cells) in zip(EPOCHS, rows, strict=True):
        expected = [column[quantity][epoch] for quantity in ("training", "test", "dx") for column in columns]
        for i, (cell, values) in enumerate(zip(cells, expected, strict=True)):
            if np.isnan(values).any():
                assert cell == "–"
                continue
            numbers = [float(text.replace(",", "")) for text in cell.rstrip(")").replace(" (", " to ").split(" to ")]
            errors = i < 2 * len(names)
            close = {"abs": 0.051} if errors else THREE_DIGITS
            assert numbers == pytest.approx(values / (10 if errors else 1), **close), (epoch, header[i + 1])
    last = [f"{name} {cell}" for name, cell in zip(names, rows[-1][1:], strict=False)]
    assert f"Training error in per cent: {', '.join(last)}." in explorer.summary()
    picture = explorer.picture()
    assert explorer.summary() in picture.alt and all(name in picture.svg for name in names)
    source = explorer.data()["records"]["digits"]["source"]
    assert (
        RECORD["date"] in source
        and RECORD["device"] in source
        and f"PyTorch {RECORD['versions']['torch'][:4]}" in source
    )
    assert source.endswith(f"Seeds: {', '.join(map(str, sorted(SEEDS)))}.")


def test_before_training_there_are_ratios_and_no_errors():
    said = DegradationReplay(epoch=0).summary()
    assert "before training" in said and "error" not in said
    ratio = measured("plain", 56, 0.01)["dx"][0, 0]
    assert f"plain-56 {ratio:,.0f}"[:11] in said and ratio > 1000


def test_cifar10_shows_its_own_record(browser):
    """One seed, one rate, 20 and 56 layers, and fewer epochs than the control has."""
    names = {"plain-20": ("plain", 20), "plain-56": ("plain", 56), "ResNet-20": ("residual", 20)}
    names["ResNet-56"] = ("residual", 56)
    last, explorer = CIFAR["runs"][0]["settings"]["epochs"], DegradationReplay("cifar10")
    columns = {name: statistics(CIFAR, {"kind": k, "depth": d}) for name, (k, d) in names.items()}
    rows = explorer.table().cells()
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(last + 1)]
    with opened(browser, "replay") as shown:
        shown.preset("cifar10")
        assert f"56 layers at rate 0.1, after epoch {last} of {last}: one seed." in shown.says
        assert explorer.summary() == shown.says
        numbers = shown.numbers()
        for epoch in range(1, last + 1):
            for i, (name, column) in enumerate(columns.items()):
                value = column["training"][epoch][0]
                assert numbers[epoch][i] == pytest.approx([value], **THOUSANDTH)
                assert rows[epoch][1 + i] == f"{round(value) / 10:.1f}", name
        shown.set(epoch=2)
        text = ", ".join(f"{name} {round(column['test'][2][0]) / 10:.1f}" for name, column in columns.items())
        assert f"after epoch 2 of {last}: one seed." in shown.says and f"Test error in per cent: {text}." in shown.says
    record = explorer.data()["records"]["cifar10"]
    assert CIFAR["date"] in record["source"] and "JPEG" in record["source"] and record["source"].endswith("Seeds: 0.")


def test_the_labels_of_the_presets_are_true():
    def error(kind, depth, rate):
        return measured(kind, depth, rate)["training"][-1]

    for rate in RATES:  # at each of them the worst plain-20 is better than the best plain-56
        assert error("plain", 20, rate)[2] < error("plain", 56, rate)[1]
        assert error("residual", 56, rate)[2] < error("plain", 56, rate)[1]
    assert error("plain", 32, 0.01)[0] < 30 and error("plain", 56, 0.01)[0] > 200
    assert error("residual", 110, 0.01)[2] < 10


def test_the_data_are_small():
    assert len(json.dumps(DegradationReplay().data())) < 60_000


def test_a_record_with_less_shows_what_it_has(browser):
    """That of CIFAR-10 has one rate, which it does not name, and one deep network."""
    last = CIFAR["runs"][0]["settings"]["epochs"]
    explorer = DegradationReplay(data="cifar10", depth=32, rate=0.001, epoch=20)
    said = f"56 layers at rate 0.1, after epoch {last} of {last}: one seed. "
    assert explorer.summary().startswith(said) and "<svg" in explorer.static_html()
    page = browser.new_page()
    shown = ask_module(page, DegradationReplay, [{"settings": explorer.settings}])[0]
    page.close()
    assert shown["say"].startswith(said) and len(shown["rows"]) == last + 1
    assert 'find_runs(record, depth=56, kind="plain")' in shown["code"] and "train(" not in shown["code"]
    with pytest.raises(ValueError, match="only the digits are trained on: CIFAR-10"):
        next(explorer.recompute({**explorer.settings, **explorer.live_defaults}))


@pytest.mark.parametrize("preset", OF_DIGITS)
def test_by_hand_the_page_shows_the_records_numbers(browser, preset):
    one = settings(preset, epoch=7, ratio="dW")
    with opened(browser, "replay") as explorer:
        explorer.preset("degradation")
        explorer.set(**{name: value for name, value in one.items() if name != "data"})
        rows = explorer.numbers()
        assert len(rows) == len(EPOCHS) and "after epoch 7 of 20" in explorer.says
        for i, (name, kind, depth) in enumerate(networks(one["depth"])):
            values = measured(kind, depth, one["rate"])["training"][7]
            assert rows[7][i] == pytest.approx(values, **THOUSANDTH)
            assert f"{name} {words('training', rows[7][i])}" in explorer.says
        assert explorer.root.locator(".rbw-picture svg").text_content().count("|dL/dW|") == 1


def test_the_replay_draws_strongly_up_to_the_epoch(browser):
    with opened(browser, "replay") as explorer:
        explorer.set(epoch=5)
        lines = explorer.root.locator(".rbw-picture g").first.locator("polyline")
        found = lines.evaluate_all("all => all.map(l => [+l.getAttribute('opacity'), l.points.length])")
        assert {count for strength, count in found if strength == 1} == {5}
        assert {count for strength, count in found if strength < 1} == {16}


def test_the_keyboard_replays_epoch_after_epoch(browser):
    with opened(browser, "replay") as explorer:
        explorer.press("epoch", "Home")
        assert "before training" in explorer.says and "error" not in explorer.says
        for epoch in (1, 2, 3):
            explorer.press("epoch", "ArrowRight")
            assert f"after epoch {epoch} of 20" in explorer.says
        explorer.press("epoch", "End")
        assert "after epoch 20 of 20" in explorer.says


def test_dragging_over_the_picture_moves_the_epoch(browser):
    with opened(browser, "replay") as explorer:
        picture = explorer.root.locator(".rbw-picture")
        picture.scroll_into_view_if_needed()
        box, mouse = picture.bounding_box(), explorer.page.mouse
        for start in (0.0, 1 / 3, 2 / 3):  # each of the three charts
            mouse.move(box["x"] + (start + 0.12) * box["width"], box["y"] + 120)
            mouse.down()
            first = explorer.shown("epoch")
            mouse.move(box["x"] + (start + 0.24) * box["width"], box["y"] + 120)
            assert 0 < first < explorer.shown("epoch") < 20
            mouse.up()
            mouse.move(box["x"] + (start + 0.14) * box["width"], box["y"] + 120)
            assert explorer.shown("epoch") > first, "released, the pointer no longer drags"


@pytest.fixture(scope="module")
def answers():
    """What a kernel sends for two networks of 32 layers, two epochs from seed 7."""
    explorer, state = DegradationReplay("nearly"), torch.get_rng_state()
    found = list(explorer.recompute({**explorer.settings, "seed": 7, "epochs": 2}))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == 2 * (2 * 22 + 1), "the kernel is given back in every step"
    return [answer for answer in found if answer is not None]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_recomputation_is_what_train_does(answers, kind):
    data = digits()
    torch.manual_seed(7)
    model = cifar_resnet(32, in_channels=1, residual=kind == "residual")
    probe = data.train_images[:64], data.train_labels[:64]
    before = trace_gradients(model, *probe)
    history = train(model, data, epochs=2, lr=0.01, batch_size=64, seed=7)
    after = trace_gradients(model.train(), *probe)
    curve = answers[-1]["curves"]["plain-32" if kind == "plain" else "ResNet-32"]
    for quantity, column in (("training", "train_accuracy"), ("test", "test_accuracy")):
        assert curve[quantity] == [None, *([round(1000 * (1 - value))] for value in history.column(column))]
    assert [len(curve[quantity]) for quantity in ("dx", "dW")] == [3, 3]
    for entry, trace in ((curve["dx"][0], before), (curve["dx"][-1], after)):
        assert entry == pytest.approx([trace.growth], **THREE_DIGITS)


def test_a_recomputation_shows_every_epoch_as_soon_as_it_is_done(answers):
    states = [[(name, len(curve["test"]) - 1) for name, curve in answer["curves"].items()] for answer in answers]
    plain = [[("plain-32", epoch)] for epoch in range(3)]
    both = [[("plain-32", 2), ("ResNet-32", epoch)] for epoch in range(3)]
    assert states == plain + both
    assert "PyTorch" in answers[0]["status"] and "plain-32, seed 7, 0 of 2 epochs" in answers[0]["status"]
    assert "ResNet-32, seed 7, 2 of 2 epochs" in answers[-1]["status"]


def test_what_was_recomputed_is_drawn_and_said_beside_the_record(browser, answers):
    one, answer = settings("nearly", epoch=20), answers[-1]
    page = browser.new_page()
    shown = ask_module(page, DegradationReplay, [{"settings": one, "answer": answer}])[0]
    page.close()
    new = answer["curves"]["plain-32"]
    assert f"plain-32 from seed 7 in epoch 2: {new['training'][2][0] / 10:.1f}, " in shown["say"]
    names = [name for name, _, _ in networks(32)]
    assert shown["rows"][2][1][len(names)] == new["training"][2]
    assert shown["rows"][3][1][len(names)] is None
    assert "torch.manual_seed(7)" in shown["code"] and "epochs=2" in shown["code"]


def test_closing_the_generator_ends_the_training():
    explorer, before = DegradationReplay(), threading.active_count()
    work = explorer.recompute({**explorer.settings, "seed": 0, "epochs": 20})
    assert next(work)["status"].endswith("plain-56, seed 0, 0 of 20 epochs.") and [next(work), next(work)] == [None] * 2
    assert threading.active_count() == before + 1
    work.close()
    assert threading.active_count() == before


def test_a_run_that_nobody_listens_to_any_more_ends():
    """As the base of all explorers leaves it: it drops the generator."""
    before = threading.active_count()
    work = live_run(32, "plain", 0.01, 0, 20)
    next(work)
    del work
    assert threading.active_count() == before


def test_between_two_steps_nothing_is_trained():
    data = digits()
    model = cifar_resnet(8, in_channels=1)
    steps = train_by_steps(model, data, epochs=1, batch_size=64)
    assert [next(steps), next(steps)] == [0, 1]
    weight = model.conv1.weight.detach().clone()
    threading.Event().wait(0.3)
    assert torch.equal(model.conv1.weight, weight)
    next(steps)
    assert not torch.equal(model.conv1.weight, weight)
    steps.close()


def test_what_train_raises_is_raised_and_a_divergence_ends_early():
    data = digits()
    with pytest.raises(ValueError, match="lr must be a positive number"):
        next(train_by_steps(cifar_resnet(8, in_channels=1), data, epochs=1, lr=-1.0))
    steps = list(train_by_steps(cifar_resnet(8, in_channels=1), data, epochs=1, lr=1e38, batch_size=64))
    assert steps == list(range(len(steps))) and len(steps) < 22
    assert list(train_by_steps(cifar_resnet(8, in_channels=1), data, epochs=1, batch_size=718)) == [0, 1, 2]


def test_the_python_code_runs(browser):
    page = browser.new_page()
    shown = ask_module(page, DegradationReplay, [{"settings": settings("nearly")}, {"settings": settings("deepest")}])
    page.close()
    assert "epochs=20" in shown[0]["code"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(shown[0]["code"].replace("epochs=20", "epochs=1"), {})
    growth = float(printed.getvalue().split(" times that at the last")[0].split()[-1])
    wanted = {"depth": 32, "kind": "plain", "lr": 0.01, "seed": 0}
    (run,) = [run for run in RECORD["runs"] if wanted.items() <= run["settings"].items()]
    first = run["results"]["gradients"][0]
    assert growth == pytest.approx(first[0] / first[1], rel=0.02)
    assert str(run["results"]["train_accuracy"]) in printed.getvalue()
    assert "cifar_resnet(110, in_channels=1)." in shown[1]["code"] and 'kind="residual"' in shown[1]["code"]
