"""The gradient trace, against plain autograd, torchvision's networks and measurements made with other code."""

import copy
import math
from xml.etree import ElementTree

import pytest
import resbook
import torch
import torch.nn.functional as F
import torchvision
from conftest import assert_states_equal
from resbook import cifar_resnet, trace_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def batch(size=16, n=4, channels=3, classes=10):
    return torch.randn(n, channels, size, size), torch.randint(classes, (n,))


def by_hand(model, names, images, labels):
    """Return (|x| rms, |dL/dx|, |dL/dW|) of some modules, and the loss, with retain_grad and backward on a copy."""
    model, outputs = copy.deepcopy(model), {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: outputs.update({name: output}))
    logits = model(images)
    for output in outputs.values():
        output.retain_grad()
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    rows = []
    for name in names:
        layers = [m for m in model.get_submodule(name).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        weights = torch.cat([layer.weight.grad.flatten() for layer in layers])
        x = outputs[name].detach().double()
        rows.append((x.square().mean().sqrt(), outputs[name].grad.double().norm(), weights.double().norm()))
    return [tuple(map(float, row)) for row in rows], loss.item()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options", [{}, {"residual": False}, {"order": "preactivation"}, {"norm": nn.Identity}], ids=str
)
def test_equals_plain_autograd(options, training):
    """The same values, summed in another order in float64: to 1e-12."""
    model, (images, labels) = cifar_resnet(8, **options).train(training), batch()
    names = ["layer1.0", "layer2.0", "layer3.0"]
    expected, loss = by_hand(model, names, images, labels)
    trace = trace_gradients(model, images, labels)
    assert [row.name for row in trace.rows] == names
    for row, values in zip(trace.rows, expected, strict=True):
        assert row[1:] == pytest.approx(values, rel=1e-12)
    assert trace.loss == loss
    assert trace.column("gradient") == [row.gradient for row in trace.rows]
    assert trace.growth == pytest.approx(expected[0][1] / expected[-1][1], rel=1e-12)
    at_ends = [row[i] for i in (1, 2) for row in (expected[0], expected[-1])]
    assert trace.ends() == pytest.approx(at_ends, rel=1e-12)
    assert trace.device == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    model, (images, labels) = cifar_resnet(8).to(dtype), batch()
    expected, _ = by_hand(model, ["layer2.0"], images.to(dtype), labels)
    assert trace_gradients(model, images.to(dtype), labels).rows[1][1:] == pytest.approx(expected[0], rel=1e-12)


def test_layers_that_change_their_input_in_place():
    """Without blocks, convolutions and linear layers are traced; what a ReLU in place makes of their output is not."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(4, 10))
    images, labels = batch()
    trace = trace_gradients(model, images, labels)
    assert [row.name for row in trace.rows] == ["0", "4"]
    model[1].inplace = False
    expected, _ = by_hand(model, ["0", "4"], images, labels)
    assert [row[1:] for row in trace.rows] == [pytest.approx(values, rel=1e-12) for values in expected]


def test_chosen_blocks():
    model, (images, labels) = cifar_resnet(8), batch()
    names = ["layer2", "conv1"]
    expected, _ = by_hand(model, names, images, labels)
    trace = trace_gradients(model, images, labels, blocks=names)
    assert [row.name for row in trace.rows] == names
    assert [row[1:] for row in trace.rows] == [pytest.approx(values, rel=1e-12) for values in expected]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_networks_give_the_same_trace(name):
    """Exactly: the networks are equal to the last bit."""
    theirs = getattr(torchvision.models, name)(num_classes=10)
    ours = getattr(resbook, name)(num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    traces = [trace_gradients(model, *batch_) for model, batch_ in zip((ours, theirs), [batch(33)] * 2, strict=True)]
    assert traces[0].rows == traces[1].rows
    assert len(traces[0].rows) == {"resnet18": 8, "resnet50": 16}[name]


class RaisesOnValues(nn.Module):
    """Passes the trace of shapes, which has no values, and stops the pass that has."""

    def forward(self, x):
        if not x.is_meta:
            raise RuntimeError("as arranged")
        return x


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("last", [nn.Identity(), RaisesOnValues()], ids=["returns", "raises"])
def test_nothing_is_changed(last, training):
    """State, gradients (kept where there were any), mode, hooks and the random state, dropout or not."""
    model = nn.Sequential(cifar_resnet(8), nn.Dropout(), nn.Linear(10, 10), last)
    model.train(training)[0].layer2.eval()
    images, labels = batch()
    model[0](images).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in gradients]
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    if isinstance(last, RaisesOnValues):
        with pytest.raises(RuntimeError, match="as arranged"):
            trace_gradients(model, images, labels)
    else:
        trace_gradients(model, images, labels)
    assert torch.equal(torch.get_rng_state(), random)
    assert_states_equal(model.state_dict(), state)
    assert [m.training for m in model.modules()] == modes
    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, value)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert images.grad is None


def test_dropout_is_drawn_as_in_training():
    """The pass draws what the next pass would have drawn."""
    model, (images, labels) = nn.Sequential(cifar_resnet(8), nn.Dropout()), batch()
    trace = trace_gradients(model, images, labels)
    assert trace.loss == F.cross_entropy(model(images), labels).item()


def test_frozen_layers_have_no_numbers():
    model, (images, labels) = cifar_resnet(20), batch()
    model.requires_grad_(False).layer2[1].requires_grad_(True)
    rows = {row.name: row for row in trace_gradients(model, images, labels).rows}
    for name in ("layer1.0", "layer1.2", "layer2.0"):  # before what is trained, nothing is computed
        assert math.isnan(rows[name].gradient) and math.isnan(rows[name].weight_gradient)
    assert rows["layer2.1"].gradient > 0 and rows["layer2.1"].weight_gradient > 0
    for name in ("layer2.2", "layer3.2"):  # behind it, gradients pass but change no weight
        assert rows[name].gradient > 0 and math.isnan(rows[name].weight_gradient)
    assert all(row.activation > 0 for row in rows.values())


def test_a_layer_that_is_not_used_has_no_numbers():
    class Unused(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).mean((2, 3)))

    model = Unused(nn.Conv2d(3, 4, 3), nn.Linear(4, 10), nn.Linear(4, 10))
    images, labels = batch()
    rows = trace_gradients(model, images, labels).rows
    assert all(value > 0 for row in rows[:2] for value in row[1:])
    assert all(math.isnan(value) for value in rows[2][1:])
    assert math.isnan(trace_gradients(model, images, labels, blocks=[""]).rows[0].weight_gradient)


class Calls(TorchDispatchMode):
    """Writes down which operators run on tensors with values."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, torch.Tensor) or not output.is_meta:
            self.names.append(func._overloadpacket.__name__)
        return output


def test_no_value_is_read_during_the_passes():
    """Reading a value waits for the device: not between the first convolution and the last of the backward pass."""
    model, (images, labels) = cifar_resnet(8), batch()
    with Calls() as calls:
        trace_gradients(model, images, labels)
    names = calls.names
    first = names.index("convolution")
    last = len(names) - names[::-1].index("convolution_backward")
    assert names[first:last].count("convolution_backward") == 6  # two in each block
    assert not {"_local_scalar_dense", "is_nonzero", "nonzero", "equal"} & set(names[first:last])
    assert "_local_scalar_dense" in names[:first]  # the check of the labels: reading a value does show


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_do_not_underflow_or_overflow(scale):
    """Values that float32 holds but whose squares it does not. To rounding of float32."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].weight.div_(scale)
    images, labels = batch(2, 4, 1, 3)
    expected, _ = by_hand(copy.deepcopy(model).double(), ["0", "2"], images.double(), labels)
    for row, values in zip(trace_gradients(model, images, labels).rows, expected, strict=True):
        assert row[1:] == pytest.approx(values, rel=1e-4)
    assert expected[0][0] == pytest.approx(scale, rel=10)


# |dL/dx| at the first block over that at the last, at initialisation: depth 20, option A, 32x32 normal images, 32 of
# them, geometric mean of three seeds; measured with another implementation ("CIFAR-shaped conv nets at init").
GROWTH = {
    "plain, normalised": ({"residual": False}, 17),
    "residual, normalised": ({}, 4.6),
    "plain": ({"residual": False, "norm": nn.Identity}, 0.64),
    "residual": ({"norm": nn.Identity}, 9.0),
}


@pytest.mark.parametrize(("options", "expected"), GROWTH.values(), ids=GROWTH)
def test_growth_of_gradients_at_initialisation(options, expected):
    logarithms = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = cifar_resnet(20, **options)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        logarithms.append(math.log(trace_gradients(model, *batch(32, 32)).growth))
    assert expected / 2 < math.exp(sum(logarithms) / 3) < expected * 2


def test_tables():
    trace = trace_gradients(cifar_resnet(8), *batch())
    text, page = str(trace), trace._repr_html_()
    assert len(text.splitlines()) == 3 + 3  # header, rule, rows, caption
    ElementTree.fromstring(page)  # well-formed
    for row in trace.rows:
        for value in row[1:]:
            assert f"{value:.3g}" in text and f"{value:.3g}" in page
    assert f"loss {trace.loss:.3g}" in text and f"{trace.growth:.3g} times" in page


def call(images=None, labels=None, model=None, **options):
    good_images, good_labels = batch(8, 2)
    return trace_gradients(
        model or cifar_resnet(8),
        good_images if images is None else images,
        good_labels if labels is None else labels,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "resnet18"}, TypeError, "model must be a torch.nn.Module, got str"),
        ({"images": [1.0]}, TypeError, "images must be a tensor of floats, got list"),
        ({"images": torch.zeros(2, 3, 8, 8).int()}, TypeError, "images must be a tensor of floats, got a tensor of"),
        ({"labels": torch.zeros(2)}, TypeError, "labels must be a tensor of int64, got a tensor of torch.float32"),
        ({"labels": torch.zeros(3).long()}, ValueError, "labels must have the shape (2,), one per image, got (3,)"),
        ({"labels": torch.tensor([0, 10])}, ValueError, "labels must be from 0 to 9, got 10"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels must be from 0 to 9, got -1"),
        ({"images": torch.full((2, 3, 8, 8), math.nan)}, ValueError, "images must be finite, got 384 values that are"),
        ({"images": torch.full((2, 3, 8, 8), -math.inf)}, ValueError, "images must be finite"),
        ({"images": torch.zeros(2, 1, 8, 8)}, ValueError, "must have the shape (N, 3, H, W), got (2, 1, 8, 8)"),
        (
            {"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0).long()},
            ValueError,
            "at least one image, got (0,",
        ),
        (
            {"images": torch.zeros(2)},
            ValueError,
            "images must have the shape (N, C, H, W) with at least one image, got (2,)",
        ),
        ({"blocks": ["layer9"]}, ValueError, "blocks must be names of modules, got 'layer9'; there are "),
        ({"blocks": ["relu"]}, ValueError, "blocks must have a weight that is trained; there is none in ['relu']"),
        ({"blocks": []}, ValueError, "blocks must have a weight that is trained; there is none in []"),
        ({"model": cifar_resnet(8).requires_grad_(False)}, ValueError, "there is none in ['layer1.0', 'layer2.0'"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(options, error, message):
    with pytest.raises(error) as raised:
        call(**options)
    assert message in str(raised.value)


def test_logits_may_come_from_a_view_and_the_pass_may_stand_in_inference_mode():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    with torch.inference_mode():
        trace = trace_gradients(model, torch.zeros(2, 3, 8, 8), torch.tensor([0, 71]))
    assert trace.rows[0].gradient > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}, TypeError, "torch.float32, got torch.float64"),
        ({"blocks": "layer1"}, TypeError, "blocks must be a list of names of modules, got 'layer1'"),
        ({"model": nn.Conv2d(3, 4, 3)}, ValueError, "model must return logits (N, classes) and nothing beside"),
    ],
)
def test_more_errors_before_any_computation(options, error, message):
    with pytest.raises(error) as raised:
        call(**options)
    assert message in str(raised.value)
