"""The shape trace and its tables, against forward hooks, FlopCounterMode and gradients. All comparisons are of integers
and exact, but for published numbers, which are compared at the digits they have.
"""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import resbook
import torch
import torch.nn.functional as F
import torchvision.models as peers
from conftest import assert_states_equal
from resbook import (
    Bottleneck,
    ResNet,
    ShapeError,
    ShapeTrace,
    cifar_resnet,
    conv_macs,
    receptive_field,
    resnet18,
    resnet50,
    trace_shapes,
)
from resbook.tables import Table
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode

# Multiply-accumulates at 224x224 with 1000 classes, in units of 1e9 and, for the projections alone, of 1e6; computed
# with torchvision 0.28 (the table "torchvision, 224x224, 1000 classes").
GMACS = {
    "resnet18": (1.814073, 19.27),
    "resnet34": (3.663761, 19.27),
    "resnet50": (4.089184, 359.66),
    "resnet101": (7.801405, 359.66),
    "resnet152": (11.513627, 359.66),
}
# With the stride in the first 1x1 convolution, as in He et al. 2016, Table 1, which gives 3.8, 7.6 and 11.3.
GMACS_V1 = {(3, 4, 6, 3): 3.858, (3, 4, 23, 3): 7.570, (3, 8, 36, 3): 11.282}
# CIFAR networks with option A at 32x32, in units of 1e6 (the table "CIFAR ResNets, 10 classes").
MMACS_CIFAR = {20: 40.55, 32: 68.86, 44: 97.17, 56: 125.49, 110: 252.89}
# Output shapes of ResNet-18 at 224x224 by the start of the module's name (He et al. 2016, Table 1).
RESNET18 = {
    "conv1": (64, 112, 112),
    "bn1": (64, 112, 112),
    "relu": (64, 112, 112),
    "maxpool": (64, 56, 56),
    "layer1": (64, 56, 56),
    "layer2": (128, 28, 28),
    "layer3": (256, 14, 14),
    "layer4": (512, 7, 7),
    "avgpool": (512, 1, 1),
    "fc": (6,),
}
# Networks of other people, small enough to run, with a size of image for each.
PEERS = {
    "resnet18": (peers.resnet18, 65),
    "resnet50": (peers.resnet50, 64),
    "vgg11": (partial(peers.vgg11, init_weights=False), 32),
    "vgg19": (partial(peers.vgg19, init_weights=False), 32),
    "densenet121": (peers.densenet121, 33),
    "mobilenet_v3_small": (peers.mobilenet_v3_small, 40),
    "vit_b_16": (partial(peers.vit_b_16, image_size=48), 48),
}
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
PEERS = pytest.mark.parametrize(("build", "size"), PEERS.values(), ids=PEERS)


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def test_resnet18_shapes_at_224():
    trace = trace_shapes(on_meta(resbook.resnet18, 6), (3, 224, 224))
    stages = [row.name.split(".")[0] for row in trace.rows]
    assert list(dict.fromkeys(stages)) == list(RESNET18)
    assert [row.output for row in trace.rows] == [RESNET18[stage] for stage in stages]
    assert [row.name for row in trace.rows][:5] == ["conv1", "bn1", "relu", "maxpool", "layer1.0.conv1"]
    assert [row.operation for row in trace.rows if row.name.startswith("layer2.0")] == (
        "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d Conv2d BatchNorm2d add ReLU".split()
    )
    assert trace.parameters == 11_179_590
    assert trace.macs / 1e9 == pytest.approx(1.813564, abs=5e-7)
    assert trace["conv1"].kernel == (7, 7) and trace["conv1"].stride == (2, 2) and trace["conv1"].padding == (3, 3)
    assert trace["layer2.0.downsample.0"].parameters == 64 * 128
    assert trace["fc"].parameters == 3_078
    assert trace["conv1"].activation_bytes == 64 * 112 * 112 * 4


@pytest.mark.parametrize("name", GMACS)
def test_macs_of_the_imagenet_networks(name):
    ours, theirs = (trace_shapes(on_meta(getattr(m, name)), (3, 224, 224)) for m in (resbook, peers))
    projections = sum(row.macs for row in ours.rows if ".downsample." in row.name)
    assert ours.macs / 1e9 == pytest.approx(GMACS[name][0], abs=5e-7)
    assert projections / 1e6 == pytest.approx(GMACS[name][1], abs=5e-3)
    assert [row for row in ours.rows if row.macs] == [row for row in theirs.rows if row.macs]
    for options in ({"residual": False}, {"shortcut": "A"}):
        plain = trace_shapes(on_meta(getattr(resbook, name), **options), (3, 224, 224))
        assert plain.macs == ours.macs - projections


@pytest.mark.parametrize("layers", GMACS_V1)
def test_macs_of_the_papers_bottleneck(layers):
    class V1(Bottleneck):
        stride_at = 1

    trace = trace_shapes(on_meta(ResNet, V1, layers), (3, 224, 224))
    assert trace.macs / 1e9 == pytest.approx(GMACS_V1[layers], abs=5e-4)


@pytest.mark.parametrize("depth", MMACS_CIFAR)
def test_macs_of_the_cifar_networks(depth):
    trace = trace_shapes(on_meta(cifar_resnet, depth), (3, 32, 32))
    assert trace.macs / 1e6 == pytest.approx(MMACS_CIFAR[depth], abs=5e-3)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def hooked(model, images):
    """Return (name, class, input shape, output shape) of every call of a childless module, as real hooks see them."""
    calls, handles = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) or not module._modules and not isinstance(module, nn.Identity):

            def note(module, inputs, output, name=name):
                calls.append((name, type(module).__name__, *(tuple(x.shape[1:]) for x in (inputs[0], first(output)))))

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        output = model(images)
    for handle in handles:
        handle.remove()
    return calls, tuple(output.shape[1:])


@PEERS
@TRAINING
def test_shapes_are_those_of_a_real_pass(build, size, training):
    model = build().train(training)
    calls, output = hooked(model, torch.randn(2, 3, size, size))
    trace = trace_shapes(model, (3, size, size))
    names = {name for name, *_ in calls}
    assert [tuple(row[:4]) for row in trace.rows if row.name in names] == calls
    assert trace.rows[-1].output == output
    assert trace.parameters == sum(p.numel() for p in model.parameters())


@PEERS
@TRAINING
def test_macs_are_those_of_flop_counter_mode(build, size, training):
    """FlopCounterMode counts two operations for one multiply-accumulate, and two images are traced in it."""
    model = on_meta(build).train(training)
    with FlopCounterMode(display=False) as flops:
        model(torch.empty(2, 3, size, size, device="meta"))
    assert 4 * trace_shapes(model, (3, size, size)).macs == flops.get_total_flops()


class Small(nn.Module):
    """Convolutions of many kinds, poolings, a residual addition, a strided slice, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 5, 2, 1, bias=False)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.wide = nn.Conv2d(2, 2, (3, 1), dilation=(2, 1), padding=(2, 0), groups=2, bias=False)
        self.last = nn.Conv2d(4, 2, 3, bias=False)
        for module in (self.first, self.wide, self.last):
            nn.init.ones_(module.weight)

    def forward(self, x):
        x = self.pool(self.first(x)).relu()
        x = torch.cat([self.wide(x) + x, x], 1)[:, :, ::2, ::3]
        return self.last(x)


@pytest.mark.parametrize("name", ["first", "pool", "wide", "last"])
def test_receptive_fields_are_the_extents_of_gradients(name):
    """The weights are positive, so the pixels that a value sees are those that its gradient reaches."""
    model, found = Small(), []
    getattr(model, name).register_forward_hook(lambda module, inputs, output: found.append(output))
    image = torch.ones(1, 1, 161, 161, requires_grad=True)
    model(image)
    output = found[0]
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    rows, columns = (image.grad[0, 0].nonzero()[:, axis] for axis in (0, 1))
    extent = tuple(int(x.max() - x.min()) + 1 for x in (rows, columns))
    assert trace_shapes(Small(), (1, 161, 161))[name].receptive_field == extent


def test_receptive_fields_follow_the_formula():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, dilation=2), nn.ReLU(), nn.BatchNorm2d(4)
    )
    fields = [row.receptive_field for row in trace_shapes(model, (3, 96, 96)).rows]
    layers = [(7, 2), (3, 2), (3, 1, 2), (1, 1), (1, 1)]
    assert fields == [(receptive_field(layers[: i + 1]),) * 2 for i in range(5)]


def test_receptive_field_is_the_longest_path_in_a_residual_network():
    """20 layers: the stem, three stages of three blocks, and the pooling that sees all of them."""
    trace = trace_shapes(on_meta(cifar_resnet, 20), (3, 32, 32))
    layers = [(3, 1)] * 7 + [(3, 2)] + [(3, 1)] * 5 + [(3, 2)] + [(3, 1)] * 5
    assert trace["layer3.2.bn2"].receptive_field == (receptive_field(layers),) * 2
    assert trace["fc"].receptive_field == (receptive_field([*layers, (8, 1)]),) * 2


def snapshot(model):
    return {
        "state": copy.deepcopy(model.state_dict()),
        "training": [m.training for m in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "global": [len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)],
        "random": torch.get_rng_state(),
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    assert_states_equal(after.pop("state"), before.pop("state"))
    assert torch.equal(after.pop("random"), before.pop("random"))
    assert after == before


@pytest.mark.parametrize("channels", [3, 5], ids=["traced", "refused"])
@TRAINING
def test_nothing_is_changed(channels, training):
    model = nn.Sequential(cifar_resnet(8), nn.Dropout(), nn.Linear(10, 3), nn.BatchNorm1d(3))
    model.train(training)[2].eval()
    before = snapshot(model)
    if channels == 3:
        assert trace_shapes(model, (3, 16, 16)).rows[-1].output == (3,)
    else:
        with pytest.raises(ShapeError):
            trace_shapes(model, (5, 16, 16))
    assert_unchanged(model, before)


def test_an_image_too_small_leaves_the_rows_before():
    """At 16 pixels the last of VGG-19's five poolings has nothing left to halve."""
    model = on_meta(peers.vgg19)
    with pytest.raises(ShapeError) as raised:
        trace_shapes(model, (3, 16, 16))
    assert "input_size=(3, 16, 16) does not fit: features.36 (MaxPool2d): " in str(raised.value)
    rows = raised.value.trace.rows
    assert isinstance(raised.value, ValueError) and isinstance(raised.value.trace, ShapeTrace)
    assert rows[-1].name == "features.35" and rows[-1].output == (512, 1, 1)
    complete = trace_shapes(model, (3, 32, 32)).rows
    assert [row.name for row in rows] == [row.name for row in complete][:36]


def test_wrong_channels_leave_the_rows_before():
    with pytest.raises(ShapeError) as raised:
        trace_shapes(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(5, 6, 3)), (3, 8, 8))
    assert "2 (Conv2d): its input must have 5 channels, got 4" in str(raised.value)
    assert [row.operation for row in raised.value.trace.rows] == ["Conv2d", "ReLU"]
    with pytest.raises(ShapeError) as raised:
        trace_shapes(peers.resnet18(), (1, 64, 64))
    assert "conv1 (Conv2d): its input must have 3 channels, got 1" in str(raised.value)
    assert raised.value.trace.rows == []
    with pytest.raises(ShapeError, match=r"1 \(BatchNorm2d\): ") as raised:
        trace_shapes(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5)), (3, 8, 8))
    assert [row.operation for row in raised.value.trace.rows] == ["Conv2d"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_models_without_values(dtype):
    expected = trace_shapes(cifar_resnet(8), (3, 16, 16))
    trace = trace_shapes(on_meta(cifar_resnet, 8).to(dtype), (3, 16, 16))
    bytes_each = torch.finfo(dtype).bits // 8
    assert [row[:9] for row in trace.rows] == [row[:9] for row in expected.rows]
    assert 4 * trace.activation_bytes == bytes_each * expected.activation_bytes


def test_resnet152_takes_well_under_a_second():
    """A generous limit, for a loaded machine: it takes some hundredths of a second."""
    model = on_meta(resbook.resnet152)
    start = time.perf_counter()
    trace_shapes(model, (3, 224, 224))
    assert time.perf_counter() - start < 1


def test_shared_weights_are_counted_once_and_reused_modules_have_two_rows():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    trace = trace_shapes(nn.Sequential(layer, nn.ReLU(), layer), (3, 8, 8))
    assert [row.parameters for row in trace.rows] == [84, 0, 0]
    assert trace.macs == 2 * 3 * 3 * 9 * 64
    assert [row.name for row in trace.rows] == ["0", "1", "0"]


def test_a_tensor_that_the_image_is_written_into_is_followed():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 3)

        def forward(self, x):
            wide = torch.zeros(len(x), 4, *x.shape[2:])
            wide[:, 1:3] = x
            return self.conv(wide)

    trace = trace_shapes(Padded(), (2, 8, 8))
    assert trace.rows[-1].output == (2, 6, 6)
    assert trace.macs == 2 * 4 * 9 * 36


def test_networks_of_linear_layers():
    trace = trace_shapes(nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)), (10,))
    assert [row.output for row in trace.rows] == [(5,), (5,), (2,)]
    assert [row.parameters for row in trace.rows] == [55, 0, 10]
    assert [row.macs for row in trace.rows] == [50, 0, 10]


class Cells(HTMLParser):
    """Collects the cells of an HTML table, and which elements are open at the end."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_tables():
    trace = trace_shapes(cifar_resnet(8), (3, 32, 32))
    totals = [f"{n:,}" for n in (trace.parameters, trace.macs, trace.activation_bytes)]
    text, page = str(trace), trace._repr_html_()
    lines = text.splitlines()
    assert len(lines) == len(trace.rows) + 3  # header, rule, rows, caption
    assert max(map(len, lines[:-1])) == len(lines[1])
    assert all(total in lines[-1] and total in page for total in totals)
    assert "3×32×32" in text and "16×32×32" in page
    ElementTree.fromstring(page)  # well-formed
    parser = Cells()
    parser.feed(page)
    assert not parser.open
    columns = len(trace.header())
    assert parser.cells[:columns] == trace.header()
    assert parser.cells[columns : 2 * columns] == trace.cells()[0]
    assert len(parser.cells) == columns * (len(trace.rows) + 1)


def test_tables_escape_what_they_hold():
    class Strange(Table):
        def header(self):
            return ["<head>", "&"]

        def cells(self):
            return [["<cell>", "1"]]

        def caption(self):
            return '"<caption>"'

    parser = Cells()
    parser.feed(Strange()._repr_html_())
    assert parser.cells == ["<head>", "&", "<cell>", "1"] and not parser.open
    table = ElementTree.fromstring(Strange()._repr_html_())
    assert table.get("aria-label") == table.find(".//caption").text == '"<caption>"'


def test_a_row_is_found_by_its_name():
    """The last one, where a module has several: the block's ReLU is called twice."""
    trace = trace_shapes(cifar_resnet(8), (3, 16, 16))
    assert trace["conv1"] is trace.rows[0]
    assert trace["layer1.0.relu"] is trace.rows[9]
    with pytest.raises(KeyError, match="no row is called 'conv9'; the names are conv1, bn1, "):
        trace["conv9"]


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        ("resnet18", (3, 8, 8), TypeError, "model must be a torch.nn.Module, got str"),
        (nn.ReLU(), 224, TypeError, "input_size must be a shape such as (3, 224, 224), got 224"),
        (nn.ReLU(), (), TypeError, "input_size must be a shape such as (3, 224, 224), got ()"),
        (nn.ReLU(), (3, 8.0, 8), TypeError, "input_size must be an integer of at least 1, got 8.0"),
        (nn.ReLU(), (3, 0, 8), ValueError, "input_size must be at least 1, got 0"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(model, size, error, message):
    with pytest.raises(error) as raised:
        trace_shapes(model, size)
    assert message in str(raised.value)


class Remembers(nn.Module):
    """Assigns to its buffer, and draws random numbers, in every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        return x + torch.randn(3, 1, 1)


def test_assigned_buffers_and_the_random_state_come_back():
    model = Remembers()
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    before, state = model.mean, torch.get_rng_state()
    trace_shapes(model, (3, 8, 8))
    trace_shapes(spectral, (3, 8, 8))
    assert model.mean is before and torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in spectral.state_dict().values())


def test_costs_count_every_image_where_windows_are_stacked_on_the_batch_axis():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 3, 4, 4))

    assert trace_shapes(Windows(), (3, 16, 16))["conv"].macs == 16 * conv_macs(3, 4, 3, 2)


def test_threads_do_not_disturb_each_other():
    def rows(model):
        return [len(trace_shapes(model, (3, 64, 64))) for _ in range(20)]

    models = [resnet18(), resnet50()]
    expected = [20 * [len(trace_shapes(model, (3, 64, 64)))] for model in models]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(rows, models)) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_refused():
    with pytest.raises(TypeError, match="model must be written in Python"):
        trace_shapes(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), (3, 8, 8))


def test_keyword_arguments_padding_by_name_and_parametrised_weights():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Conv2d(3, 4, 3, padding="same")
            self.valid = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3, padding="valid"))

        def forward(self, x):
            return F.relu(input=F.avg_pool2d(input=self.valid(self.same(x)), kernel_size=2))

    trace, model = trace_shapes(Keywords(), (3, 8, 8)), Keywords()
    assert trace["same"].padding == (1, 1) and trace["valid"].padding == (0, 0)
    assert trace["valid"].receptive_field == (5, 5) and trace.output == (5, 3, 3)
    assert trace["same"].parameters == 3 * 4 * 9 + 4
    assert trace.parameters == sum(p.numel() for p in model.parameters())


def test_receptive_field_is_unknown_behind_uneven_adaptive_pooling():
    even, uneven = (trace_shapes(nn.AdaptiveAvgPool2d(3), (1, n, n)).rows[0].receptive_field for n in (6, 5))
    assert even == (2, 2) and uneven is None


def test_an_activation_does_not_lend_its_input_what_comes_after():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = torch.relu(x)
            y += self.wide(x)
            return self.narrow(x)

    assert trace_shapes(Late(), (3, 8, 8))["narrow"].receptive_field == (1, 1)


def test_a_failure_that_the_model_survives_leaves_no_mark():
    class Survives(nn.Module):
        def __init__(self):
            super().__init__()
            self.refuses, self.accepts = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            try:
                return self.refuses(x)
            except ValueError:
                return torch.sin(self.accepts(x))

    assert [row.operation for row in trace_shapes(Survives(), (3, 8, 8))] == ["Conv2d", "sin"]


def test_a_trace_is_a_sequence_of_rows_and_knows_the_output():
    trace = trace_shapes(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 8, 8))
    assert list(trace) == trace.rows and len(trace) == 2 and trace.output == (4 * 6 * 6,)


def test_normalisations_of_another_size_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(16, track_running_stats=False))
    with pytest.raises(ShapeError, match="1 .BatchNorm2d."):
        trace_shapes(model, (3, 8, 8))


def test_numpy_integers_are_integers():
    assert trace_shapes(nn.Identity(), tuple(np.array([3, 8, 8]))).input_size == (3, 8, 8)
