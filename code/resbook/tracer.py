"""Run a network on tensors without values, and follow what comes of the image.

Every function that the network calls is intercepted. The few that make up almost all of a convolutional network
(convolution, normalisation, ReLU, addition, pooling, linear) are answered by a rule; anything else is asked of
PyTorch itself, on the meta device. The network's parameters, buffers and mode are left as they are.
"""

import threading
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import FlopCounterMode

from resbook.tracing_rules import BATCH, RULES

# Functions that return what is known without a value: attributes, mostly. Answered at once, as they are many.
ASKS_ABOUT = frozenset({"__get__", "dim", "size", "numel", "is_floating_point"})

# Other functions whose output sees, at each position, what the inputs see there.
POSITIONWISE = frozenset(
    "add sub mul div relu relu6 hardtanh sigmoid hardsigmoid silu hardswish gelu tanh clamp dropout feature_dropout "
    "stochastic_depth cat pad view reshape flatten contiguous clone to float squeeze unsqueeze".split()
)


class ShapeRow(NamedTuple):
    """One step of a network: a module without children, or a function called outside of one.

    ``input`` and ``output`` are shapes without the batch axis, ``(C, H, W)`` or ``(features,)``; ``kernel``,
    ``stride`` and ``padding`` are pairs or None; ``parameters`` are counted where they are first used; ``macs`` and
    ``activation_bytes`` (the memory of the step's output) are for one image; ``receptive_field`` is a pair (height,
    width) of input pixels, or None where it is not known.
    """

    name: str
    operation: str
    input: tuple
    output: tuple
    kernel: tuple | None
    stride: tuple | None
    padding: tuple | None
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: tuple | None


class Field(NamedTuple):
    """What one value sees of the image: pixels, and pixels between two neighbours, along height and width.

    ``span`` is the size of the map whose positions a flattened tensor holds side by side, (1, 1) if it holds none.
    """

    size: tuple = (1, 1)
    step: tuple = (1, 1)
    span: tuple = (1, 1)

    def grow(self, kernel, stride, dilation=(1, 1)):
        size = tuple(s + (k - 1) * d * j for s, k, d, j in zip(self.size, kernel, dilation, self.step, strict=True))
        return Field(size, tuple(j * s for j, s in zip(self.step, stride, strict=True)))

    def merge(self):
        return self.grow(self.span, (1, 1))


class Tracer(TorchFunctionMode):
    """Intercepts every function that the model calls, and follows what comes of the image."""

    def __init__(self, model, modules, input_size):
        super().__init__()
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.image = torch.empty((BATCH, *input_size), dtype=dtype, device="meta")
        self.names = {id(module): name for name, module in modules.items()}
        self.model, self.thread = model, threading.get_ident()
        self.rows = []
        self.fields = {}  # id of a tensor made from the image -> (its field or None, the tensor, kept alive)
        self.counted = set()  # ids of the parameters that a row has counted
        self.pending = []  # parameters that were used before the step to which they belong made its row
        self.modules = []  # the modules being executed, outermost first
        self.failed = None  # the innermost module that an exception has left
        self.work = None  # MACs and window of the childless module being executed, once it has called a function
        self.follow(self.image, Field() if len(input_size) == 3 else None)

    def enter(self, module, inputs):
        if threading.get_ident() != self.thread:  # the hooks are global: another thread may run a network, too
            return
        self.modules.append(module)
        self.work = self.failed = None

    def leave(self, module, inputs, output):
        if threading.get_ident() != self.thread:
            return
        self.modules.pop()
        if output is None:
            self.failed = self.failed or module
            return
        with torch._C.DisableTorchFunction():  # what follows is ours, not the network's
            output = self.first(output)
            uncalled = isinstance(module, nn.MultiheadAttention)  # it uses its children without calling them
            parameters = module.parameters() if uncalled else module._parameters.values()
            self.pending += [p for p in parameters if p is not None]
            if self.work and _is_one_step(module) and output is not None:
                source = self.first(inputs)
                if "Norm" in type(module).__name__:  # by convention, the pixels behind its statistics do not count
                    self.follow(output, self.field(source))
                self.add_row(module, type(module).__name__, source, output, *self.work)
        self.work = None

    def finish(self, output):
        """Count what is still pending in the last row; return the shape of the network's output for one image."""
        if self.rows:
            self.rows[-1] = self.rows[-1]._replace(parameters=self.rows[-1].parameters + self.count_pending())
        with torch._C.DisableTorchFunction():
            return tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else None

    def where(self):
        module = self.failed or (self.modules[-1] if self.modules else self.model)
        return f"{self.names.get(id(module)) or 'the network'} ({type(module).__name__})"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        name = func.__name__
        if name in ASKS_ABOUT:
            output = func(*args, **kwargs)
            if not isinstance(output, torch.Tensor):
                return output
        if args and _changes_in_place(name) and id(args[0]) not in self.fields:
            return self.leave_alone(args)
        rule = RULES.get(func)
        done = rule(self, *args, **kwargs) if rule and args and id(args[0]) in self.fields else None
        output, macs, window = done or self.ask_torch(func, args, kwargs)
        made = self.first(output)  # the output, or what comes first in it: recurrent layers return their state beside
        if made is None:
            return output
        module = self.modules[-1] if self.modules else None
        if module is not None and _is_one_step(module):
            self.work = (macs + self.work[0], window or self.work[1]) if self.work else (macs, window)
        elif macs or not made._is_view():
            tensors = _tensors((args, kwargs))
            source = next(x for x in tensors if id(x) in self.fields)
            self.pending += [x for x in tensors if isinstance(x, nn.Parameter)]
            self.add_row(module, _operation(name), source, made, macs, window)
        return output

    def leave_alone(self, args):
        """Answer a change in place: the model's own state stays as it is, other tensors now follow the image."""
        if self.first(args[1:]) is not None and not any(
            args[0] is x for x in self.model.state_dict(keep_vars=True).values()
        ):
            self.follow(args[0], None)
        return args[0]

    def ask_torch(self, func, args, kwargs):
        """Call a function that has no rule on the meta device; return its output, its MACs for one image, no window."""
        sources = [x for x in _tensors((args, kwargs)) if id(x) in self.fields]
        if not sources:  # something about the weights, or a constant: it has values
            return func(*args, **kwargs), 0, None
        args, kwargs = tree_map(_without_values, (args, kwargs))
        positionwise = _operation(func.__name__) in POSITIONWISE
        with nullcontext() if positionwise else FlopCounterMode(display=False) as flops:
            output = func(*args, **kwargs)
        field = self.join(sources) if positionwise else None
        for x in _tensors(output):
            flat = field and sources[0].dim() == 4 and x.dim() != 4
            self.follow(x, field._replace(span=tuple(sources[0].shape[2:])) if flat else field)
        return output, 0 if positionwise else flops.get_total_flops() // (2 * BATCH), None

    def first(self, tree):
        """Return the first tensor made from the image, or None."""
        if isinstance(tree, torch.Tensor):
            return tree if id(tree) in self.fields else None
        if isinstance(tree, tuple) and tree and id(tree[0]) in self.fields:  # a module's inputs, nearly always
            return tree[0]
        return next((x for x in _tensors(tree) if id(x) in self.fields), None)

    def count_pending(self):
        """Return how many values the pending parameters hold, counting each parameter once in the whole trace."""
        new = {id(p): p.numel() for p in self.pending if id(p) not in self.counted}
        self.counted.update(new)
        self.pending = []
        return sum(new.values())

    def follow(self, tensor, field):
        self.fields[id(tensor)] = (field, tensor)
        return tensor

    def field(self, tensor):
        return self.fields[id(tensor)][0]

    def join(self, tensors):
        fields = [self.field(x) for x in tensors]
        if None in fields:
            return None
        sizes, steps, spans = zip(*fields, strict=True)
        return Field(
            *(tuple(map(f, zip(*pairs, strict=True))) for f, pairs in ((max, sizes), (min, steps), (max, spans)))
        )

    def add_row(self, module, operation, source, output, macs, window):
        field, shape = self.field(output), tuple(output.shape[1:])
        self.rows.append(
            ShapeRow(
                self.names.get(id(module), ""),
                operation,
                tuple(source.shape[1:]),
                shape,
                *(window or (None,) * 3),
                self.count_pending(),
                macs,
                output.numel() * output.element_size() // BATCH,
                field and field.size,
            )
        )


def _is_one_step(module):
    """Tell whether a module gives one row: it has no children or, as attention does, uses them without calling them."""
    return not module._modules or isinstance(module, nn.MultiheadAttention)


def _tensors(tree):
    return [x for x in tree_iter(tree) if isinstance(x, torch.Tensor)]


def _without_values(x):
    return torch.empty_like(x, device="meta") if isinstance(x, torch.Tensor) and not x.is_meta else x


def _changes_in_place(name):
    return name.endswith("_") and (not name.endswith("__") or name.startswith("__i") or name == "__setitem__")


def _operation(name):
    return name.strip("_").removeprefix("i" if name.startswith("__i") else "")
