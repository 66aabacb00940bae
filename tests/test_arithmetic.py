"""The arithmetic of one layer, against real layers of PyTorch. All comparisons are of integers and exact."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from resbook import conv_macs, conv_output_size, conv_parameters, pool_output_size, receptive_field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# A few values below what is allowed are among the cases: PyTorch refuses them, and so must we.
SIZE, KERNEL, STRIDE = st.integers(0, 20), st.integers(-1, 7), st.integers(-1, 4)
PADDING, DILATION = st.integers(-1, 4), st.integers(-1, 3)


def measured(layer, size):
    """Return the output size of a layer of PyTorch, or None if it refuses to be made or to run."""
    try:
        return layer()(torch.zeros(1, 1, size, size)).shape[-1]
    except RuntimeError:
        return None


def computed(function, *args, **kwargs):
    """Return the output size of our formula, or None if it raises ValueError."""
    try:
        return function(*args, **kwargs)
    except ValueError:
        return None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # PyTorch, about a kernel of size 0
@settings(max_examples=500)
@given(size=SIZE, kernel=KERNEL, stride=STRIDE, padding=PADDING, dilation=DILATION)
@example(size=3, kernel=4, stride=1, padding=0, dilation=1)  # refused: the kernel does not fit
@example(size=3, kernel=3, stride=1, padding=0, dilation=2)  # refused: the dilated kernel does not fit
@example(size=0, kernel=1, stride=1, padding=1, dilation=1)  # refused, although one padded position exists
def test_conv_output_size_is_that_of_conv2d(size, kernel, stride, padding, dilation):
    expected = measured(lambda: nn.Conv2d(1, 1, kernel, stride, padding, dilation), size)
    assert computed(conv_output_size, size, kernel, stride, padding, dilation) == expected


@settings(max_examples=500)
@given(
    size=SIZE,
    kernel=KERNEL,
    stride=st.none() | STRIDE,
    padding=PADDING,
    dilation=DILATION,
    ceil_mode=st.booleans(),
)
@example(size=5, kernel=2, stride=2, padding=1, dilation=1, ceil_mode=True)  # the last window would start in padding
@example(size=8, kernel=2, stride=1, padding=2, dilation=3, ceil_mode=False)  # refused: padding 2 for a kernel of 2
@example(size=1, kernel=3, stride=1, padding=0, dilation=1, ceil_mode=True)  # refused: no window fits
@example(size=1, kernel=3, stride=3, padding=0, dilation=1, ceil_mode=True)  # and here one hangs over the end
def test_pool_output_size_is_that_of_max_pool2d(size, kernel, stride, padding, dilation, ceil_mode):
    expected = measured(lambda: nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode), size)
    assert computed(pool_output_size, size, kernel, stride, padding, dilation, ceil_mode) == expected


def test_sizes_of_the_textbook():
    assert conv_output_size(224, 7, stride=2, padding=3) == 112  # ResNet's stem
    assert pool_output_size(112, 3, stride=2, padding=1) == 56  # its max-pooling
    assert pool_output_size(112, 2, stride=2, padding=1) == 57  # the seeds' max-pooling, which they say gives 56
    assert pool_output_size(112, 3, stride=2, padding=0, ceil_mode=True) == 56  # Caffe's, in the paper's own model
    assert pool_output_size(112, 3, stride=2, padding=0) == 55  # the same rounded down
    assert conv_output_size(56, 1, stride=2) == 28  # a projection


@settings(max_examples=100)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.integers(1, 4) | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    output=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
)
def test_parameters_and_macs_are_those_of_conv2d(groups, channels, kernel, output, bias):
    cin, cout = (groups * c for c in channels)
    layer = nn.Conv2d(cin, cout, kernel, groups=groups, bias=bias)
    height, width = (n + k - 1 for n, k in zip(output, layer.kernel_size, strict=True))
    with FlopCounterMode(display=False) as flops:
        assert layer(torch.zeros(1, cin, height, width)).shape[2:] == output
    assert conv_parameters(cin, cout, kernel, bias=bias, groups=groups) == sum(p.numel() for p in layer.parameters())
    assert 2 * conv_macs(cin, cout, kernel, output, groups=groups) == flops.get_total_flops()


LAYER = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=100)
@given(layers=st.lists(LAYER, max_size=4))
@example(layers=[(7, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)])
def test_receptive_field_is_the_extent_of_a_gradient(layers):
    """One output position of convolutions with positive weights is traced back to the pixels that reach it."""
    net = [nn.Conv2d(1, 1, (k, 1), (s, 1), dilation=(d, 1), bias=False, dtype=torch.float64) for k, s, d in layers]
    for layer in net:
        nn.init.ones_(layer.weight)
    image = torch.zeros(1, 1, 1000, 1, dtype=torch.float64, requires_grad=True)
    output = nn.Sequential(*net)(image)
    output[0, 0, output.shape[2] // 2, 0].backward()
    touched = image.grad.flatten().nonzero()
    assert receptive_field(layers) == touched.max() - touched.min() + 1


def test_receptive_field_takes_layers_with_and_without_dilation():
    assert receptive_field([]) == 1
    assert receptive_field(iter([(3, 2), [3, 1, 1]])) == receptive_field([(3, 2, 1), (3, 1, 1)]) == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_output_size(0, 3), "size must be at least 1, got 0"),
        (lambda: conv_output_size(8, 3, padding=-1), "padding must be at least 0, got -1"),
        (lambda: conv_output_size(2, 5, padding=1), "kernel=5 with dilation=1 covers 5 positions, more than the 4"),
        (lambda: pool_output_size(8, 3, padding=2), "padding=2 is more than half of kernel=3; allowed are 0 to 1"),
        (lambda: pool_output_size(1, 3, 1, ceil_mode=True), "no window of 3 positions fits on size=1 with padding=0"),
        (lambda: conv_parameters(0, 4, 3), "in_channels must be at least 1, got 0"),
        (lambda: conv_parameters(6, 4, 3, groups=3), "groups=3 must divide in_channels=6 and out_channels=4"),
        (lambda: conv_macs(3, 4, 3, 0), "output_size must be at least 1, got 0"),
        (lambda: conv_macs(3, 4, (3, 0), 7), "kernel must be at least 1, got 0"),
        (lambda: receptive_field([(3, 0)]), "stride must be at least 1, got 0"),
    ],
)
def test_value_errors_name_argument_value_and_limit(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_output_size(8.0, 3), "size must be an integer of at least 1, got 8.0"),
        (lambda: conv_output_size(8, 3, stride=True), "stride must be an integer of at least 1, got True"),
        (lambda: pool_output_size(8, "3"), "kernel must be an integer of at least 1, got '3'"),
        (lambda: conv_parameters(3, None, 3), "out_channels must be an integer of at least 1, got None"),
        (lambda: conv_macs(3, 4, 3, (7, 7, 7)), "output_size must be an integer of at least 1, got (7, 7, 7)"),
        (lambda: receptive_field([3]), "layers must hold (kernel, stride) or (kernel, stride, dilation), got 3"),
        (lambda: receptive_field([(3, 1, 1, 1)]), "got (3, 1, 1, 1)"),
    ],
)
def test_type_errors_name_argument_and_value(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert message in str(error.value)
