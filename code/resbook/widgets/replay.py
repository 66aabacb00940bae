"""The degradation replay: recorded training runs of plain and residual networks, shallow and deep, epoch by epoch."""

from contextlib import closing
from functools import cache
from itertools import zip_longest
from queue import SimpleQueue
from statistics import median
from threading import Thread
from types import SimpleNamespace

import torch

from resbook.data import digits
from resbook.device import default_device, device_text
from resbook.gradients import trace_gradients
from resbook.networks import cifar_resnet
from resbook.pictures import line_style, new_figure, picture_of
from resbook.records import load_record
from resbook.tables import Table
from resbook.training import train
from resbook.widgets.base import Choice, Explorer, Range

RECORDS = {"digits": "degradation-digits", "cifar10": "degradation-cifar10"}
LABELS = {"digits": "digits", "cifar10": "CIFAR-10"}
NAMES = {"plain": "plain", "residual": "ResNet"}  # of the two kinds, in a network's name
SHALLOW, EPOCHS = 20, 20  # the depth that the others are compared with; the epochs of the longest record
PAPERS_RATE = 0.1  # of the records that do not vary it
BATCH, PROBE = 64, 64  # images in a step, and those on which the gradients are measured: as in the record
ERRORS, RATIOS = ("training", "test"), {"dx": "|dL/dx|", "dW": "|dL/dW|"}
GUESSING, NEAR = 900, 20  # tenths of a per cent: the error of guessing one of ten classes, and how near is "at" it


@cache
def record_of(data):
    """Return what is shown of a record: where it comes from, and its ``curves[network and rate][quantity]``.

    A curve is a list over the epochs, and begins before training. An entry holds median, least and greatest of the
    seeds, or, where there is one seed, its value; None where a run has no number. Errors ("training", "test") are in
    tenths of a per cent; the ratios of the gradient at the first block to that at the last ("dx", "dW") have three
    digits.
    """
    record, runs = load_record(RECORDS[data]), {}
    settings = [{"lr": PAPERS_RATE, **run["settings"]} for run in record["runs"]]
    for s, run in zip(settings, record["runs"], strict=True):
        runs.setdefault(_key(_name(s["kind"], s["depth"]), s["lr"]), []).append(run["results"])
    depths, rates, seeds, epochs = (sorted({s[name] for s in settings}) for name in ("depth", "lr", "seed", "epochs"))
    version = record["versions"]["torch"].split("+")[0]
    return {
        "name": record["name"],
        "source": f"Recorded {record['date']}: PyTorch {version} on {record['device']}. {record['data']}. "
        f"Seeds: {', '.join(map(str, seeds))}.",
        "seeds": len(seeds),
        "epochs": epochs[-1],
        "depths": [depth for depth in depths if depth != SHALLOW],
        "rates": rates,
        "curves": {key: summarise(found) for key, found in runs.items()},
    }


def summarise(runs):
    """Return the curves of :func:`record_of` for runs that differ in the seed alone, given as their results."""
    found = [_quantities(results) for results in runs]
    return {
        quantity: [_entry(quantity, values) for values in zip_longest(*(curves[quantity] for curves in found))]
        for quantity in (*ERRORS, *RATIOS)
    }


def _quantities(results):
    def errors(part):
        return [None, *(1000 * (1 - accuracy) for accuracy in results[f"{part}_accuracy"])]

    def ratios(i):
        return [g[i] / g[i + 1] if g[i] and g[i + 1] else None for g in results["gradients"]]

    return {"training": errors("train"), "test": errors("test"), "dx": ratios(0), "dW": ratios(2)}


def _entry(quantity, values):
    if None in values:
        return None
    found = values if len(values) == 1 else [median(values), min(values), max(values)]
    return [round(value) if quantity in ERRORS else float(f"{value:.3g}") for value in found]


def _name(kind, depth):
    return f"{NAMES[kind]}-{depth}"


def _key(name, rate):
    return f"{name} {rate}"


class DegradationReplay(Explorer):
    """Replay recorded training runs: errors and gradients of plain and residual networks, shallow and deep.

    With a kernel it trains the deep networks, plain and residual, on the digits, from a seed that the record may lack.

    Args:
        preset: "degradation" (default), "small-rate", "large-rate", "nearly", "deepest" or "cifar10".
        **settings: data ("digits", "cifar10"), depth (of the deep networks: 32, 44, 56, 110), rate (0.1, 0.01, 0.001),
            ratio ("dx", "dW": of which gradient, the first block's over the last's), epoch (0, before training, to 20).
            Of what a record has one value of only, that one is shown, and after its last epoch the last.

    Raises:
        TypeError: a setting is unknown or of the wrong type.
        ValueError: a setting is out of its range, or the preset is unknown.
    """

    name, title = "replay", "Degradation replay"
    controls = (
        Choice("data", "Data", LABELS),
        Choice("depth", "Depth", {depth: str(depth) for depth in (32, 44, 56, 110)}),
        Choice("rate", "Learning rate", {rate: str(rate) for rate in (0.1, 0.01, 0.001)}),
        Choice("ratio", "Gradient, first block over last", {ratio: f"of {text}" for ratio, text in RATIOS.items()}),
        Range("epoch", "Epoch (0: before training)", 0, EPOCHS),
    )
    readouts = ("ratio", "epoch")
    live_controls = (Range("seed", "Seed", 0, 99), Range("epochs", "Epochs", 1, 20))
    defaults = {"data": "digits", "depth": 56, "rate": 0.01, "ratio": "dx", "epoch": EPOCHS}
    live_defaults = {"seed": 5, "epochs": 3}
    presets = {
        "degradation": ("Degradation", {}),
        "small-rate": ("A tenth of the rate", {"rate": 0.001}),
        "large-rate": ("Ten times the rate", {"rate": 0.1}),
        "nearly": ("Nearly closed at 32 layers", {"depth": 32}),
        "deepest": ("ResNet-110 trains", {"depth": 110}),
        "cifar10": ("On CIFAR-10", {"data": "cifar10", "epoch": 4}),
    }

    def data(self):
        records = {data: record_of(data) for data in self.controls[0].options}
        return {"records": records, "shallow": SHALLOW, "guessing": GUESSING, "near": NEAR, "ratios": RATIOS}

    def lines(self):
        """Return the curves of the present settings by the networks' names; what was not recorded is left out."""
        (depth, rate, _), curves = self._shown(), record_of(self.settings["data"])["curves"]
        names = [_name(kind, d) for kind in NAMES for d in (SHALLOW, depth)]
        return {name: curves[_key(name, rate)] for name in names if _key(name, rate) in curves}

    def _shown(self):
        """Return depth, rate and epoch: what the settings say, as far as the record has it."""
        s, record = self.settings, record_of(self.settings["data"])
        depth, rate = (
            s[name] if s[name] in record[f"{name}s"] else record[f"{name}s"][-1] for name in ("depth", "rate")
        )
        return depth, rate, min(s["epoch"], record["epochs"])

    def summary(self):
        s, lines, record = self.settings, self.lines(), record_of(self.settings["data"])
        (depth, rate, epoch), near = self._shown(), []
        parts = [f"{_title(depth, rate)}, {_moment(epoch, record['epochs'])}: {_statistics(record)}"]
        for quantity, title in _titles(s["ratio"]).items():
            found = {name: curve[quantity][epoch] for name, curve in lines.items()}
            if any(found.values()):
                parts.append(f"{title}: " + ", ".join(f"{name} {_text(quantity, e)}" for name, e in found.items()))
            if quantity in ERRORS:
                near += [f"{name} in {quantity}" for name, e in found.items() if e and abs(e[0] - GUESSING) <= NEAR]
        if near:
            parts.append(f"Near guessing (90 %, at most 2 away): {', '.join(near)}")
        deep = [_name(kind, depth) for kind in NAMES]
        parts += [f"There is no {name} in the record" for name in deep if name not in lines]
        return ". ".join(parts) + "."

    def picture(self):
        figure, axes = new_figure(1, 3, figsize=(7.4, 3.2))
        for ax, (quantity, title) in zip(axes, _titles(self.settings["ratio"]).items(), strict=True):
            for name, curve in self.lines().items():
                style, scale = _style(name), 10 if quantity in ERRORS else 1
                epochs = [epoch for epoch, entry in enumerate(curve[quantity]) if entry]
                middle, *band = zip(*([v / scale for v in curve[quantity][epoch]] for epoch in epochs), strict=True)
                ax.plot(epochs, middle, label=name, **style)
                if band:
                    ax.fill_between(epochs, *band, color=style["color"], alpha=0.18, linewidth=0)
            ax.axvline(self._shown()[-1], color="black", alpha=0.5, linewidth=1)
            ax.set(xlabel="epoch", xlim=(0, None), **({"ylim": (0, 100)} if quantity in ERRORS else {"yscale": "log"}))
            ax.set_title(title, fontsize=9)
        entries = axes[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=4, frameon=False)
        return picture_of(figure, f"Three charts over the epochs, plain and residual networks. {self.summary()}")

    def table(self):
        ratio, record = self.settings["ratio"], record_of(self.settings["data"])
        what = f"errors in per cent, and the first block's {RATIOS[ratio]} over the last's; {_statistics(record)}"
        return _EpochTable(self.lines(), ratio, f"{_title(*self._shown()[:2])}: {what}.")

    def recompute(self, settings):
        if settings["data"] != "digits":
            raise ValueError(f"live, only the digits are trained on: {LABELS[settings['data']]} would take hours")
        depth, rate, seed, epochs = (settings[name] for name in ("depth", "rate", "seed", "epochs"))
        curves = {}
        for kind in NAMES:
            name = _name(kind, depth)
            with closing(live_run(depth, kind, rate, seed, epochs)) as run:
                for results in run:
                    if results is None:  # nothing new to show, but the kernel hears whether this is still wanted
                        yield None
                        continue
                    curves[name] = summarise([results])
                    done = f"{name}, seed {seed}, {len(results['test_accuracy'])} of {epochs} epochs"
                    yield {
                        "title": f"{_title(depth, rate)}, seed {seed}",
                        "settings": {"seed": seed, "epochs": epochs},
                        "source": f"Circles: computed by {device_text()}, seed {seed}.",
                        "status": f"{device_text()}: {done}.",
                        "curves": dict(curves),
                    }


def live_run(depth, kind, rate, seed, epochs):
    """Do one run as those on record, on the fastest device.

    Args:
        depth: of the network.
        kind: "plain" or "residual".
        rate: the learning rate.
        seed: of the weights and of the order of the images.
        epochs: passes over the digits.

    Yields:
        dict or None: before the first and after every epoch the results so far, in the record's format; between them
        None, once in every step.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)  # and not the generators of GPUs, which are somebody else's
        model = cifar_resnet(depth, in_channels=1, residual=kind == "residual").to(default_device())
    data, results = digits(), {"train_accuracy": [], "test_accuracy": [], "gradients": []}
    probe, per_epoch = (data.train_images[:PROBE], data.train_labels[:PROBE]), len(data.train_images) // BATCH
    log = SimpleNamespace(add_scalar=lambda name, value, epoch: results.setdefault(name, []).append(value))
    options = {"epochs": epochs, "lr": rate, "batch_size": BATCH, "seed": seed}
    with closing(train_by_steps(model, data, writer=log, **options)) as steps:
        for step in steps:
            if step % per_epoch == 0:
                results["gradients"].append(trace_gradients(model.train(), *probe).ends())
            yield None if step % per_epoch else results


def train_by_steps(model, data, **options):
    """Train as :func:`resbook.training.train` does, but never further than the caller asks for.

    The training has a thread of its own. It waits in every step, the gradients being there and the weights not yet
    moved, until the next one is asked for: so the two never run at once, and closing the generator ends the training.

    Args:
        model: as for ``train``.
        data: as for ``train``.
        **options: of ``train``, all but ``watch``.

    Yields:
        int: the number of steps done, from 0 to that of all; the last is missing if the training diverged.

    Raises:
        Exception: whatever ``train`` raises.
    """
    asked, told = SimpleQueue(), SimpleQueue()

    def watch(step, model):
        told.put(step)
        if not asked.get():
            raise InterruptedError

    def run():
        try:
            told.put(train(model, data, watch=watch, **options))
        except Exception as error:
            told.put(error)

    thread = Thread(target=run, daemon=True)  # a kernel that is shut down does not wait for it
    thread.start()
    step = -1
    try:
        while isinstance(news := told.get(), int):
            yield (step := news)
            asked.put(True)
        if isinstance(news, Exception):
            raise news
        if news.diverged is None:
            yield step + 1
    finally:
        asked.put(False)
        thread.join()


def _titles(ratio):
    return {
        "training": "Training error in per cent",
        "test": "Test error in per cent",
        ratio: f"{RATIOS[ratio]}, first / last block",
    }


def _title(depth, rate):
    return f"{depth} layers at rate {rate}"


def _statistics(record):
    return f"median (least to greatest) of {record['seeds']} seeds" if record["seeds"] > 1 else "one seed"


def _moment(epoch, last):
    return f"after epoch {epoch} of {last}" if epoch else "before training"


def _style(name):
    kind, depth = name.split("-")
    width = 1.2 if int(depth) == SHALLOW else 2.6
    return {**line_style("plain" if kind == "plain" else "residual"), "linewidth": width}


def _text(quantity, entry):
    if entry is None:
        return "–"
    median, *ends = (_digits(quantity, value) for value in entry)
    return f"{median} ({' to '.join(ends)})" if ends else median


def _digits(quantity, value):
    if quantity in ERRORS:
        return f"{value / 10:.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


class _EpochTable(Table):
    def __init__(self, lines, ratio, caption):
        self.lines, self.text = lines, caption
        self.heads = {quantity: quantity for quantity in ERRORS} | {ratio: RATIOS[ratio]}

    def header(self):
        return ["epoch", *(f"{head}, {name}" for head in self.heads.values() for name in self.lines)]

    def cells(self):
        columns = [(quantity, curve[quantity]) for quantity in self.heads for curve in self.lines.values()]
        count = max(len(curve) for _, curve in columns)
        return [[str(i), *(_text(quantity, curve[i]) for quantity, curve in columns)] for i in range(count)]

    def caption(self):
        return self.text
