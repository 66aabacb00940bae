"""The recorded grid of gradients: its form, some of its numbers measured again, and what the book says about it."""

import base64
import functools
import hashlib
import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from resbook import cifar_resnet, initialize, trace_gradients
from resbook.widgets import gradient_grid
from resbook.widgets import record_gradients as recorder
from resbook.widgets.gradient_grid import GRID, Settings, decode, encode, measure, read_codes
from resbook.widgets.record_gradients import SEEDS, load_batch

PACK = ROOT.parent / "shared" / "data" / "cifar10_q75_packed.npz"
RECORD = json.loads(GRID.read_text(encoding="utf-8"))
DEPTHS = (20, 32, 44, 56, 110)
INITS = ("default", "xavier", "he")
ORDERS = ("original", "preactivation")
KINDS = ("plain", "residual", "zero-init")


@functools.cache
def codes():
    return read_codes(RECORD)


def all_values(settings, quantity="gradient", statistic="median"):
    return [decode(code) for code in codes()[Settings(*settings)][quantity][statistic]]


def growth(*settings):
    values = all_values(settings)
    return values[0] / values[-1]


# The form


def test_axes_and_length():
    axes = {"depth": DEPTHS, "norm": ("none", "batch"), "init": INITS, "order": ORDERS, "kind": KINDS}
    assert {name: tuple(values) for name, values in RECORD["axes"].items()} == axes
    assert list(RECORD["axes"]) == list(axes)
    assert RECORD["quantities"] == ["gradient", "activation"]
    assert RECORD["statistics"] == ["median", "least", "greatest"]
    blocks = 36 * sum((depth - 2) // 2 for depth in DEPTHS)
    assert len(base64.b64decode(RECORD["data"], validate=True)) == 2 * blocks * 2 * 3
    assert len(codes()) == 180 and GRID.stat().st_size < 110_000


def test_order():
    """Written a second time: the place of one number in the string, as the module's text tells it."""
    numbers = np.frombuffer(base64.b64decode(RECORD["data"]), dtype="<u2")
    place = 0
    for settings in product(*RECORD["axes"].values()):
        for quantity, statistic in product(RECORD["quantities"], RECORD["statistics"]):
            curve = codes()[settings][quantity][statistic]
            assert len(curve) == settings[0] // 2 - 1
            assert curve == numbers[place : place + len(curve)].tolist()
            place += len(curve)
    assert place == len(numbers)


def test_statistics_are_in_their_order():
    for curves in (curves for quantities in codes().values() for curves in quantities.values()):
        for least, median, greatest in zip(curves["least"], curves["median"], curves["greatest"], strict=True):
            assert least <= median <= greatest


def test_about():
    about = RECORD["about"]
    assert about["command"] == "python -m resbook.widgets.record_gradients IMAGE_FOLDER"
    assert about["seeds"] == [0, 1, 2, 3, 4] and about["batch"] == 32
    assert "quality 75" in about["images"] and about["torch"] and "CPU" in about["device"]
    assert not any(name in GRID.read_text(encoding="utf-8") for name in ("/home", "/tmp", "/work", "\\\\"))


@pytest.mark.parametrize("value", [1e-45, 1.234e-30, 0.5, 1.0, 7e14, 1.1e-49, 3.4e15])
def test_code_is_exact_to_a_thousandth_of_a_decade(value):
    code = encode(value)
    assert 0 < code < 65535
    assert decode(code) == pytest.approx(value, rel=0.0012)


def test_code_of_other_values():
    assert encode(0.0) == 0 and decode(0) == 0
    assert encode(math.inf) == encode(math.nan) == 65535 and math.isnan(decode(65535))
    for value in (-1.0, 1e-50, 1e-60, 1e16):
        with pytest.raises(ValueError, match="value must be 0, or from"):
            encode(value)


# The images


def write_images(folder):
    """Write the first 160 test images of the pack as an image folder, and return their labels."""
    if not PACK.exists():
        pytest.skip("the images are not part of the book; without ../shared/data the record is not measured again")
    with np.load(PACK) as pack:
        names, labels = [str(name) for name in pack["class_names"]], pack["test_labels"][:160]
        ends = np.cumsum(pack["test_len"][:160].astype(np.int64)).tolist()
        header, scans = pack["header"].tobytes(), pack["test_scan"][: ends[-1]].tobytes()
    for name in names:
        (folder / "test" / name).mkdir(parents=True)
    digest = hashlib.sha256()
    for number, (start, end, label) in enumerate(zip([0, *ends], ends, labels, strict=False)):
        content = header + scans[start:end]
        (folder / "test" / names[label] / f"{number:05d}.jpg").write_bytes(content)
        digest.update(content)
    assert digest.hexdigest() == RECORD["about"]["images_sha256"]
    return torch.from_numpy(labels.astype(np.int64))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return folder, write_images(folder)


def test_batches(images):
    """The labels of the pack, in its order; pixels that are near mean 0 and deviation 1 as they should be."""
    folder, labels = images
    batches = [load_batch(folder, seed) for seed in SEEDS]
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)
    pixels = torch.cat([batch[0] for batch in batches])
    assert pixels.shape == (160, 3, 32, 32) and pixels.dtype == torch.float32
    assert pixels.mean().abs() < 0.2 and 0.9 < pixels.std() < 1.1
    (file,) = (folder / "test").glob("*/00033.jpg")
    red, green, blue = Image.open(file).getpixel((5, 7))  # column 5, row 7
    expected = [(red / 255 - 0.4914) / 0.2470, (green / 255 - 0.4822) / 0.2435, (blue / 255 - 0.4465) / 0.2616]
    assert batches[1][0][1, :, 7, 5].tolist() == pytest.approx(expected, rel=1e-5)


def image_folder(folder, size=(32, 32), classes=10):
    for label in range(classes):
        (folder / "test" / f"class{label}").mkdir(parents=True)
    for number in range(32):
        Image.new("RGB", size).save(folder / "test" / f"class{number % classes}" / f"{number:04d}.jpg")
    return folder


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        load_batch(tmp_path / "nowhere", 0)
    folder = image_folder(tmp_path / "good")
    assert load_batch(folder, 0)[0].shape == (32, 3, 32, 32)
    with pytest.raises(FileNotFoundError, match="must hold the images 32 to 63; 32 is missing"):
        load_batch(folder, 1)
    (folder / "test" / "class0" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="numbers must be unique over the classes"):
        load_batch(folder, 0)
    with pytest.raises(ValueError, match="images must be 32x32, got 16x32"):
        load_batch(image_folder(tmp_path / "narrow", size=(16, 32)), 0)
    with pytest.raises(ValueError, match="must hold 10 folders, one per class, got 9"):
        load_batch(image_folder(tmp_path / "few", classes=9), 0)


def test_the_command_stops_before_it_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["record_gradients", str(tmp_path / "nowhere")])
    monkeypatch.setattr(recorder, "GRID", tmp_path / "grid.json")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(SystemExit) as stopped:
        recorder.main()
    assert stopped.value.code == 2 and "there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_record(tmp_path, monkeypatch, capsys):
    """A grid of four networks of 8 layers, on black images."""
    folder = image_folder(tmp_path / "images")
    small = {"depth": (8,), "norm": ("batch", "none"), "init": ("he",), "order": ("original",), "kind": KINDS[:2]}
    monkeypatch.setattr("sys.argv", ["record_gradients", str(folder)])
    monkeypatch.setattr(recorder, "GRID", tmp_path / "grid.json")
    for module in (recorder, gradient_grid):
        monkeypatch.setattr(module, "AXES", small)
    monkeypatch.setattr(recorder, "SEEDS", range(1))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    recorder.main()
    record = json.loads((tmp_path / "grid.json").read_text(encoding="utf-8"))
    images, labels = load_batch(folder, 0)
    for settings, quantities in read_codes(record).items():
        trace = measure(settings, 0, images, labels)
        for quantity, curves in quantities.items():
            expected = [encode(value) for value in trace.column(quantity)]
            assert list(curves.values()) == [expected] * 3 and len(expected) == 3
    assert record.keys() == RECORD.keys() and record["about"].keys() == RECORD["about"].keys()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "grid.json"}
    assert "4/4 8 none he original residual" in capsys.readouterr().out


# The numbers


@pytest.mark.parametrize(
    "settings",
    [
        (20, "none", "default", "original", "plain"),
        (20, "batch", "he", "preactivation", "zero-init"),
        (32, "batch", "xavier", "original", "plain"),
        (32, "none", "he", "preactivation", "residual"),
    ],
    ids=str,
)
def test_measured_again(images, settings):
    folder, _ = images
    traces = [measure(settings, seed, *load_batch(folder, seed)) for seed in SEEDS]
    for quantity in ("gradient", "activation"):
        ranked = np.sort([trace.column(quantity) for trace in traces], axis=0)
        for statistic, row in (("least", 0), ("median", 2), ("greatest", 4)):
            assert all_values(settings, quantity, statistic) == pytest.approx(ranked[row].tolist(), rel=0.01)


def test_one_number_in_a_few_lines(images):
    """What the book tells a reader to do, without the recorder."""
    torch.manual_seed(2)
    model = initialize(cifar_resnet(20, order="preactivation", zero_init=True), "he")
    batch = load_batch(images[0], 2)
    trace = trace_gradients(model, *batch)
    assert trace.rows == measure((20, "batch", "he", "preactivation", "zero-init"), 2, *batch).rows


def test_a_wider_network():
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([3, 1, 4, 1])
    torch.manual_seed(1)
    model = initialize(cifar_resnet(8, widths=(32, 64, 128)), "xavier")
    trace = measure((8, "batch", "xavier", "original", "residual"), 1, images, labels, width=2)
    assert trace.rows == trace_gradients(model, images, labels).rows


@pytest.mark.parametrize("name", ["norm", "init", "order", "kind"])
def test_an_unknown_setting_is_named(name):
    settings = Settings(8, "batch", "he", "original", "plain")._replace(**{name: "other"})
    name = "scheme" if name == "init" else name
    with pytest.raises(ValueError, match=f"{name} must be .*got 'other'"):
        measure(settings, 0, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))


# What the book says about it


def test_zeros_are_where_float32_ends():
    """The plain network of 110 layers without normalisation, PyTorch's default: x0.41 per layer, and then nothing."""
    zeros = {}
    for settings, quantities in codes().items():
        for quantity, curves in quantities.items():
            for statistic, curve in curves.items():
                assert 65535 not in curve
                if 0 in curve:
                    zeros[settings, quantity, statistic] = [block for block, code in enumerate(curve, 1) if code == 0]
    expected = product(product([110], ["none"], ["default"], ORDERS, ["plain"]), ["gradient"], ["least", "median"])
    assert {key for key in zeros if key[2] != "greatest"} == set(expected)
    assert all(blocks == list(range(1, len(blocks) + 1)) and len(blocks) <= 4 for blocks in zeros.values())
    assert sum(map(len, zeros.values())) == RECORD["about"]["zeros"] > 0
    assert RECORD["about"]["not_finite"] == 0


@pytest.mark.parametrize("order", ORDERS)
def test_plain_without_normalisation_vanishes_under_the_default(order):
    """The prediction for one layer is sqrt(1/6) = 0.408."""
    growths = [growth(depth, "none", "default", order, "plain") for depth in DEPTHS]
    assert growths[0] < 1e-6 and growths == sorted(growths, reverse=True) and growths[-1] == 0
    layers = 56 - 20
    assert (growths[3] / growths[0]) ** (1 / layers) == pytest.approx(math.sqrt(1 / 6), rel=0.05)


@pytest.mark.parametrize("order", ORDERS)
def test_residual_without_normalisation_explodes_under_he(order):
    growths = [growth(depth, "none", "he", order, "residual") for depth in DEPTHS]
    assert growths == sorted(growths)
    assert growths[3] > 1e3 and growths[4] > 1e6


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("init", INITS)
def test_plain_with_batch_normalisation_grows_toward_the_input(init, order):
    """The prediction for one layer is sqrt(pi / (pi - 1)) = 1.21; the curve falls from block to block."""
    growths = [growth(depth, "batch", init, order, "plain") for depth in DEPTHS]
    assert growths == sorted(growths) and growths[3] > 1e3
    assert 1.15 < (growths[4] / growths[0]) ** (1 / (110 - 20)) < 1.25
    curve = all_values((56, "batch", init, order, "plain"))
    assert curve.index(max(curve)) == 0 and curve.index(min(curve)) >= len(curve) - 2


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("init", INITS)
def test_residual_with_batch_normalisation_stays_within_two_orders(init, depth):
    """In the original order. In the other, in which no normalisation follows the branch, it comes to 140 under He."""
    for order, kind, bound in [
        ("original", "residual", 100),
        ("original", "zero-init", 10),
        ("preactivation", "residual", 200),
        ("preactivation", "zero-init", 10),
    ]:
        curve = all_values((depth, "batch", init, order, kind))
        assert max(curve) / min(curve) < bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [20, 32])
def test_he_and_xavier_are_one_under_batch_normalisation(depth, kind):
    """One seed draws the same numbers, larger by a factor in each layer; the normalisation divides by it."""
    curves = [all_values((depth, "batch", init, "original", kind)) for init in ("xavier", "he")]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)
