"""BatchNorm2d, against torch.nn.BatchNorm2d. The two order their sums differently, so values agree to rounding; what is
counted or copied agrees exactly.
"""

import copy
import math

import pytest
import torch
from conftest import assert_states_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from resbook import BatchNorm2d
from torch import nn

MOMENTUM = st.none() | st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1)
EPS = st.sampled_from([1e-5, 1e-3, 0.5])
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def make_pair(channels, dtype=torch.float64, **settings):
    """Return torch's and our normalisation with the same arbitrary parameters and statistics."""
    theirs = nn.BatchNorm2d(channels, **settings)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
        theirs.running_mean.normal_()
        theirs.running_var.uniform_(0.5, 2)
    ours = BatchNorm2d(channels, **settings)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def step(module, x, cotangent):
    """Return all that one forward and one backward pass make: output, gradients and running statistics."""
    x = x.clone().requires_grad_()
    output = module(x)
    module.zero_grad()
    output.backward(cotangent)
    return {
        "output": output.detach(),
        "input.grad": x.grad,
        "weight.grad": module.weight.grad,
        "bias.grad": module.bias.grad,
        "running_mean": module.running_mean.clone(),
        "running_var": module.running_var.clone(),
        "num_batches_tracked": module.num_batches_tracked.clone(),
    }


def assert_steps_close(pair, x, rtol, atol):
    cotangent = torch.randn_like(x)
    ours, theirs = (step(module, x, cotangent) for module in pair)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(ours["num_batches_tracked"], theirs["num_batches_tracked"])


@settings(max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    scale=st.floats(0.01, 100),
    offset=st.floats(-10, 10),
    momentum=MOMENTUM,
    eps=EPS,
    modes=st.lists(st.booleans(), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_equals_torch_in_float64(shape, scale, offset, momentum, eps, modes, seed):
    """Several steps in a row, each in training or evaluation, on any shape that PyTorch accepts.

    To rounding: 1e-10 is a million units of float64. With eps = 1e-5 a channel may be divided by 0.003, and its
    gradient is then a difference of numbers some 1e5 times larger.
    """
    torch.manual_seed(seed)
    pair = make_pair(shape[1], eps=eps, momentum=momentum)
    one_value = shape[0] * shape[2] * shape[3] == 1
    for training in modes:
        for module in pair:
            module.train(training and not one_value)
        x = scale * torch.randn(shape, dtype=torch.float64) + offset
        assert_steps_close(pair, x, rtol=1e-10, atol=1e-10)


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(3, 8), st.integers(3, 8)),
    momentum=MOMENTUM,
    training=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_torch_in_float32(shape, momentum, training, seed):
    """To rounding: sums of up to 256 values of size 1, each off by 6e-8, stay well within 2e-5."""
    torch.manual_seed(seed)
    pair = [module.train(training) for module in make_pair(shape[1], torch.float32, momentum=momentum)]
    for _ in range(3):
        assert_steps_close(pair, torch.randn(shape), rtol=2e-5, atol=2e-5)


def test_by_hand():
    """The values 1 and 3: mean 2, biased variance 1, unbiased variance 2. To rounding of float32."""
    module = BatchNorm2d(1)
    output = module(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)).flatten()
    torch.testing.assert_close(output, torch.tensor([-1, 1]) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(module.running_mean, torch.tensor([0.9 * 0 + 0.1 * 2]))
    torch.testing.assert_close(module.running_var, torch.tensor([0.9 * 1 + 0.1 * 2]))
    module.eval()
    torch.testing.assert_close(module(torch.full((1, 1, 1, 1), 0.2)), torch.zeros(1, 1, 1, 1))


@TRAINING
def test_second_derivatives(training):
    """Against finite differences, and against torch's (to rounding of float64)."""
    ours, theirs = (module.train(training) for module in make_pair(2))
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(ours, x)

    def second(module):
        first = torch.autograd.grad(module(x).pow(3).sum(), [x, module.weight, module.bias], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [x, module.weight])

    for mine, expected in zip(second(ours), second(theirs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@TRAINING
@pytest.mark.parametrize("parameters", ["float32", "half"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 300])  # 300 squared is more than float16 can hold
def test_half_precision_inputs(dtype, parameters, scale, training):
    """Each value within one unit in the last place of torch's in float64, and so computed in float32 at least.

    With float32 parameters torch's own values are as close. With half-precision ones torch, on the CPU, rounds the
    mean and the deviation of the batch to half precision and is off by several units; only its types are compared.
    A unit is at most eps times the value. Where a sum cancels, the error of float32 shows: some 1e-7 of the
    largest value. Below the smallest normal number, units no longer shrink.
    """
    ours, theirs = make_pair(3, torch.float32 if parameters == "float32" else dtype)
    exact = copy.deepcopy(theirs).double()
    x = (scale * torch.randn(4, 3, 5, 5)).to(dtype)
    cotangent = torch.randn_like(x)
    expected = step(exact.train(training), x.double(), cotangent.double())
    peer = step(theirs.train(training), x, cotangent)
    for name, value in step(ours.train(training), x, cotangent).items():
        assert value.dtype == peer[name].dtype, name
        references = [expected[name], peer[name]] if parameters == "float32" else [expected[name]]
        for reference in references:
            if name == "num_batches_tracked":
                assert value == reference
                continue
            unit = torch.finfo(value.dtype)
            atol = 1e-6 * reference.abs().max().item() + unit.smallest_normal * unit.eps
            torch.testing.assert_close(value, reference, rtol=unit.eps, atol=atol, check_dtype=False)


def test_state_dict_fits_either_way():
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    assert_states_equal(ours.state_dict(), theirs.state_dict())  # as initialised
    for source, target in ((ours, theirs), (theirs, ours)):
        source(torch.randn(4, 3, 5, 5))
        target.load_state_dict(source.state_dict(), strict=True)
        assert_states_equal(target.state_dict(), source.state_dict())
    assert str(copy.deepcopy(ours)) == "BatchNorm2d(3, eps=1e-05, momentum=0.1)"


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 2, 3), (2, 2, 3, 3, 3)])
def test_refuses_what_torch_refuses(shape):
    ours, x = BatchNorm2d(2), torch.randn(shape)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError):
        nn.BatchNorm2d(2)(x)
    with pytest.raises(ValueError):
        ours(x)
    assert_states_equal(ours.state_dict(), before)


def test_one_value_per_channel_is_fine_in_evaluation():
    """Exact but for the rounding of float32."""
    x = torch.randn(1, 2, 1, 1)
    torch.testing.assert_close(BatchNorm2d(2).eval()(x), nn.BatchNorm2d(2).eval()(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BatchNorm2d(0), ValueError, "num_features must be at least 1, got 0"),
        (lambda: BatchNorm2d(2.0), TypeError, "num_features must be an integer of at least 1, got 2.0"),
        (lambda: BatchNorm2d(2, eps=-1), ValueError, "eps must be at least 0, got -1"),
        (lambda: BatchNorm2d(2, eps=math.nan), ValueError, "eps must be at least 0, got nan"),
        (lambda: BatchNorm2d(2, momentum=1.5), ValueError, "momentum must be from 0 to 1, or None, got 1.5"),
        (lambda: BatchNorm2d(2)(torch.ones(2, 3, 4, 4)), ValueError, "shape (N, 2, H, W), got (2, 3, 4, 4)"),
        (lambda: BatchNorm2d(2)(torch.ones(2, 2)), ValueError, "shape (N, 2, H, W), got (2, 2)"),
        (lambda: BatchNorm2d(2)(torch.ones(1, 2, 1, 1)), ValueError, "use a larger batch or image, or call eval()"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_weights_from_before_batches_were_counted_are_accepted():
    old = {k: v for k, v in nn.BatchNorm2d(3).state_dict().items() if k != "num_batches_tracked"}
    BatchNorm2d(3).load_state_dict(old)


@pytest.mark.parametrize("settings", [{"eps": None}, {"momentum": "a"}, {"momentum": True}])
def test_settings_must_be_numbers(settings):
    with pytest.raises(TypeError, match=f"{next(iter(settings))} must be a number, got"):
        BatchNorm2d(3, **settings)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x must be a tensor of floats, got torch.int64"):
        BatchNorm2d(3)(torch.zeros(2, 3, 4, 4, dtype=torch.int64))
