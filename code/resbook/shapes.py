"""Trace the shapes, costs and receptive fields of any network without computing anything."""

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from resbook.arithmetic import check_integer
from resbook.tables import Table
from resbook.tracer import Tracer


class ShapeTrace(Table):
    """What :func:`trace_shapes` found: ``rows`` in the order of execution, and their totals for one image.

    ``output`` is the shape of what the model returned, without the batch axis; None if it is not a single tensor.
    """

    labels = 2

    def __init__(self, rows, input_size):
        self.rows, self.input_size, self.output = rows, input_size, None

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    parameters = property(lambda self: sum(row.parameters for row in self.rows), doc="All parameters used.")
    macs = property(lambda self: sum(row.macs for row in self.rows), doc="Multiply-accumulates for one image.")
    activation_bytes = property(
        lambda self: sum(row.activation_bytes for row in self.rows),
        doc="Bytes of all outputs together, for one image: what is held if no output is dropped or reused.",
    )

    def __getitem__(self, name):
        """Return the last row of the module called ``name``: what it put out in the end."""
        for row in reversed(self.rows):
            if row.name == name:
                return row
        raise KeyError(
            f"no row is called {name!r}; the names are {', '.join(dict.fromkeys(r.name for r in self.rows))}"
        )

    def header(self):
        return ["module", "operation", "input", "output", "kernel/stride/pad", "parameters", "MACs", "bytes", "field"]

    def cells(self):
        return [
            [
                row.name,
                row.operation,
                shape_text(row.input),
                shape_text(row.output),
                _window(row),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                f"{row.activation_bytes:,}",
                _brief(row.receptive_field) if row.receptive_field else "",
            ]
            for row in self.rows
        ]

    def caption(self):
        return (
            f"input {shape_text(self.input_size)}: {self.parameters:,} parameters, {self.macs:,} MACs and "
            f"{self.activation_bytes:,} bytes of outputs for one image"
        )


class ShapeError(ValueError):
    """A network does not accept an input; ``trace`` holds the rows up to the layer that refused."""

    def __init__(self, message, trace):
        super().__init__(message)
        self.trace = trace


def trace_shapes(model, input_size):
    """Return every step of a network's forward pass with its shapes and costs, without computing a value.

    Args:
        model: any ``nn.Module`` whose forward pass takes one tensor and does not depend on its values.
        input_size: shape of one image without the batch axis, ``(C, H, W)``; ``(features,)`` for a network of
            linear layers.

    Returns:
        A :class:`ShapeTrace`. MACs are multiply-accumulates of convolutions and matrix products; normalisation,
        activation, pooling and addition count none, as in He et al. 2016a, Table 1.

    Raises:
        TypeError: ``model`` is not a module, or ``input_size`` not a sequence of integers.
        ValueError: a size is below 1.
        ShapeError: a layer does not accept its input, because the image is too small or has the wrong number of
            channels, for example. Its ``trace`` ends with the last layer that did.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules.values()):
        raise TypeError("model must be written in Python; the functions that a ScriptModule calls cannot be seen")
    if not isinstance(input_size, (tuple, list, torch.Size)) or not input_size:
        raise TypeError(f"input_size must be a shape such as (3, 224, 224), got {input_size!r}")
    for size in input_size:
        check_integer("input_size", size)
    tracer = Tracer(model, modules, tuple(input_size))
    trace = ShapeTrace(tracer.rows, tuple(input_size))
    held = [(d, dict(d)) for module in modules.values() for d in (module._parameters, module._buffers)]
    hooks = [
        register_module_forward_pre_hook(tracer.enter),
        register_module_forward_hook(tracer.leave, always_call=True),
    ]
    try:
        with torch.random.fork_rng([]), torch.no_grad(), tracer:
            trace.output = tracer.finish(model(tracer.image))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ShapeError(f"input_size={tuple(input_size)} does not fit: {tracer.where()}: {error}", trace) from error
    finally:
        for hook in hooks:
            hook.remove()
        for tensors, before in held:  # a forward pass may have assigned to them
            tensors.update(before)
    return trace


def shape_text(shape):
    """Return a shape as it is read: "64×56×56"."""
    return "×".join(map(str, shape))


def _window(row):
    return "/".join(_brief(pair) for pair in (row.kernel, row.stride, row.padding)) if row.kernel else ""


def _brief(pair):
    return str(pair[0]) if pair[0] == pair[1] else shape_text(pair)
