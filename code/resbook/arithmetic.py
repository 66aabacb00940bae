"""The arithmetic of one layer: output size, parameters, multiply-accumulates, receptive field.

Everything here is exact integer arithmetic on plain Python numbers; nothing needs a tensor. A *size* is a number of
positions along one spatial axis, a *MAC* is one multiplication together with the addition that accumulates it (the
"FLOPs" of He et al. 2016a, Table 1).
"""

from numbers import Integral


def conv_output_size(size, kernel, stride=1, padding=0, dilation=1):
    """Return how many positions a convolution has along one axis.

    The kernel, spread over ``dilation * (kernel - 1) + 1`` positions, is placed on the padded axis at every
    ``stride``-th position at which it fits entirely, so the division is rounded *down*::

        floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1

    (Dumoulin and Visin 2016, relationships 6 and 15; the formula in the documentation of ``torch.nn.Conv2d``.)

    Args:
        size: input positions along the axis, at least 1.
        kernel: kernel size, at least 1.
        stride: step between two placements, at least 1. Default 1.
        padding: zeros added at *each* end, at least 0. Default 0.
        dilation: distance between two kernel elements, at least 1. Default 1.

    Returns:
        The number of output positions, at least 1.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range, or the kernel does not fit on the padded axis even once.
    """
    _check_window(size, kernel, stride, padding, dilation)
    extent = dilation * (kernel - 1) + 1
    if extent > size + 2 * padding:
        raise ValueError(
            f"kernel={kernel} with dilation={dilation} covers {extent} positions, more than the "
            f"{size + 2 * padding} there are (size={size}, padding={padding}); use a larger input or more padding"
        )
    return (size + 2 * padding - extent) // stride + 1


def pool_output_size(size, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Return how many positions a pooling window has along one axis.

    As :func:`conv_output_size`, with the two rules that ``torch.nn.MaxPool2d`` adds: the padding may be at most
    half of the kernel size (a window must never see padding alone), and with ``ceil_mode`` the division is
    rounded *up*, as Caffe does, unless the last window would then start beyond the input and its left padding.

    Args:
        size: input positions along the axis, at least 1.
        kernel: window size, at least 1.
        stride: step between two windows, at least 1. Default: the kernel size.
        padding: positions added at each end, from 0 to half of the kernel size, rounded down. Default 0.
        dilation: distance between two window elements, at least 1. Default 1.
        ceil_mode: round up instead of down. Default False.

    Returns:
        The number of output positions, at least 1.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range, or no window fits.
    """
    stride = kernel if stride is None else stride
    _check_window(size, kernel, stride, padding, dilation)
    extent = dilation * (kernel - 1) + 1
    if padding > kernel // 2:
        raise ValueError(f"padding={padding} is more than half of kernel={kernel}; allowed are 0 to {kernel // 2}")
    if not ceil_mode:
        return conv_output_size(size, kernel, stride, padding, dilation)
    positions = -(-(size + 2 * padding - extent) // stride) + 1
    if (positions - 1) * stride >= size + padding:
        positions -= 1
    if positions < 1:
        raise ValueError(f"no window of {extent} positions fits on size={size} with padding={padding}")
    return positions


def conv_parameters(in_channels, out_channels, kernel, bias=False, groups=1):
    """Return the number of learned values of a 2-d convolution.

    ``out_channels * (in_channels / groups) * kernel_height * kernel_width``, and one more per output channel with a
    bias. The convolutions of a ResNet have none: the batch normalisation that follows would remove it again.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, that is, the number of kernels.
        kernel: kernel size, an integer or a pair (height, width).
        bias: whether a bias per output channel is learned. Default False.
        groups: groups of channels that do not see each other; must divide both channel counts. Default 1.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a count is below 1, or ``groups`` does not divide the channels.
    """
    _check_channels(in_channels, out_channels, groups)
    height, width = _pair("kernel", kernel)
    return out_channels * (in_channels // groups) * height * width + (out_channels if bias else 0)


def conv_macs(in_channels, out_channels, kernel, output_size, groups=1):
    """Return the multiply-accumulates of a 2-d convolution for one image.

    Every output value is a sum of ``(in_channels / groups) * kernel_height * kernel_width`` products, and there are
    ``out_channels * output_height * output_width`` output values. Products with padded zeros are counted, as is
    usual (He et al. 2016, Table 1). The bias is not.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel size, an integer or a pair (height, width).
        output_size: positions of the output, an integer or a pair (height, width).
        groups: groups of channels that do not see each other. Default 1.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a count is below 1, or ``groups`` does not divide the channels.
    """
    height, width = _pair("output_size", output_size)
    return conv_parameters(in_channels, out_channels, kernel, groups=groups) * height * width


def receptive_field(layers):
    """Return how many input positions along one axis one output value can depend on.

    Walking from the input, a kernel adds ``(kernel - 1) * dilation`` steps, and one step of a layer is as many input
    positions as the product of all strides before it (Araujo, Norris and Sim 2019, equation 2).

    Args:
        layers: an iterable of ``(kernel, stride)`` or ``(kernel, stride, dilation)``, from the input on.

    Returns:
        The receptive field in input positions; 1 for no layer at all.

    Raises:
        TypeError: an entry is not made of two or three integers.
        ValueError: a number is below 1.
    """
    field, step = 1, 1
    for layer in layers:
        if not isinstance(layer, (tuple, list)) or len(layer) not in (2, 3):
            raise TypeError(f"layers must hold (kernel, stride) or (kernel, stride, dilation), got {layer!r}")
        kernel, stride, dilation = (*layer, 1)[:3]
        for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
            check_integer(name, value)
        field += (kernel - 1) * dilation * step
        step *= stride
    return field


def check_integer(name, value, least=1, most=None):
    """Raise unless ``value`` is an integer in this range; ``name`` is the argument named in the message."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):  # numpy's integers are fine
        raise TypeError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def _check_window(size, kernel, stride, padding, dilation):
    for name, value in (("size", size), ("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        check_integer(name, value)
    check_integer("padding", padding, least=0)


def _check_channels(in_channels, out_channels, groups):
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        check_integer(name, value)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")


def _pair(name, value):
    height, width = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    check_integer(name, height)
    check_integer(name, width)
    return height, width
