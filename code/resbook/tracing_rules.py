"""What the functions of a convolutional network do to shapes, costs and receptive fields: one rule each.

A rule is called with the tracer and the function's arguments, the first of which comes of the image. It returns
(output, MACs for one image, window), where a window is (kernel, stride, padding), each a pair; or None, to leave an
unusual call, and the refusal of a wrong one, to PyTorch.
"""

import torch
import torch.nn.functional as F

from resbook.arithmetic import conv_macs, conv_output_size

BATCH = 2  # images that are traced: one would make batch normalisation refuse a 1x1 map in training mode


def _conv2d(tracer, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    n, channels, *size = x.shape
    if len(size) != 2:
        return None
    out_channels, group, *kernel = weight.shape
    if channels != group * groups:
        raise ValueError(f"its input must have {group * groups} channels, got {channels}")
    kernel, stride, dilation = tuple(kernel), _pair(stride), _pair(dilation)
    if padding == "same":
        extra = _each(lambda k, d: d * (k - 1), (kernel, dilation))
        if any(n % 2 for n in extra):  # more padding at one end than at the other
            return None
        padding = _each(lambda n: n // 2, (extra,))
    padding = _pair(0 if padding == "valid" else padding)
    size = _each(conv_output_size, (size, kernel, stride, padding, dilation))
    output = _valueless(x, (n, out_channels, *size))
    field = tracer.field(x)
    tracer.follow(output, field and field.grow(kernel, stride, dilation))
    macs = conv_macs(channels, out_channels, kernel, size, groups) * n // BATCH  # windows may be stacked on axis 0
    return output, macs, (kernel, stride, padding)


def _linear(tracer, x, weight, bias=None):
    if x.shape[-1] != weight.shape[1]:
        return None
    output = _valueless(x, (*x.shape[:-1], weight.shape[0]))
    field = tracer.field(x)
    tracer.follow(output, field and field.merge())
    return output, output.numel() // BATCH * weight.shape[1], None


def _same(tracer, x):
    return tracer.follow(_valueless(x, x.shape), tracer.field(x)), 0, None


def _relu(tracer, x, inplace=False):
    return (x, 0, None) if inplace else _same(tracer, x)


def _batch_norm(tracer, x, mean, var, weight=None, *args, **kwargs):
    if any(values is not None and len(values) != x.shape[1] for values in (mean, weight)):
        return None
    return _same(tracer, x)


def _add(tracer, x, other, *args, **kwargs):
    if not isinstance(other, torch.Tensor) or other.shape != x.shape or id(other) not in tracer.fields:
        return None
    return tracer.follow(_valueless(x, x.shape), tracer.join([x, other])), 0, None


def _add_in_place(tracer, x, other, *args, **kwargs):
    done = _add(tracer, x, other)
    return done and (tracer.follow(x, tracer.field(done[0])), 0, None)


def _max_pool2d(tracer, x, kernel_size, stride=None, padding=0, dilation=1, **kwargs):
    output = F.max_pool2d(x, kernel_size, stride, padding, dilation, **kwargs)
    return _pooled(tracer, x, output, kernel_size, stride, padding, dilation)


def _avg_pool2d(tracer, x, kernel_size, stride=None, padding=0, *args, **kwargs):
    output = F.avg_pool2d(x, kernel_size, stride, padding, *args, **kwargs)
    return _pooled(tracer, x, output, kernel_size, stride, padding, 1)


def _pooled(tracer, x, output, kernel, stride, padding, dilation):
    window = _pair(kernel), _pair(stride or kernel), _pair(padding)
    field = tracer.field(x)
    tracer.follow(output, field and field.grow(window[0], window[1], _pair(dilation)))
    return output, 0, window


def _adaptive_avg_pool2d(tracer, x, output_size):
    output = F.adaptive_avg_pool2d(x, output_size)
    sizes = list(zip(x.shape[2:], output.shape[2:], strict=True))
    field = tracer.field(x)
    if any(n % m for n, m in sizes):
        field = None  # the windows overlap and differ in size, and no single step leads from one to the next
    kernel = tuple(n // m for n, m in sizes)
    stride = tuple(n // m if m > 1 else 1 for n, m in sizes)
    tracer.follow(output, field and field.grow(kernel, stride))
    return output, 0, None


def _mean(tracer, x, dim=None, keepdim=False, **kwargs):
    if x.dim() != 4 or dim is None or {d % 4 for d in (dim if isinstance(dim, (tuple, list)) else [dim])} != {2, 3}:
        return None
    output = x.mean(dim, keepdim)
    field = tracer.field(x)
    tracer.follow(output, field and field.grow(tuple(x.shape[2:]), (1, 1)))
    return output, 0, None


def _getitem(tracer, x, index):
    output = x[index]
    field, steps = tracer.field(x), _steps(index)
    tracer.follow(output, field.grow((1, 1), steps[2:]) if field and len(steps) == 4 else None)
    return output, 0, None


def _steps(index):
    """Return the steps of an index made of whole axes, such as ``[:, :, ::2, ::2]``; nothing for any other."""
    if not isinstance(index, tuple) or not all(isinstance(i, slice) and i == slice(None, None, i.step) for i in index):
        return ()
    return tuple(i.step or 1 for i in index)


def _valueless(x, shape):
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _each(function, pairs):
    """Apply a function to the first members of all pairs, and to the second members."""
    return tuple(map(function, *pairs))


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)


RULES = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.add: _add,
    torch.Tensor.add: _add,
    torch.Tensor.add_: _add_in_place,
    F.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch.mean: _mean,
    torch.Tensor.mean: _mean,
    torch.Tensor.__getitem__: _getitem,
}
