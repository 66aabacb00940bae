"""Trace what one forward and one backward pass do to the size of activations and gradients, block by block."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from resbook.blocks import Block
from resbook.shapes import trace_shapes
from resbook.tables import Table

NAN = torch.tensor(math.nan)


class GradientRow(NamedTuple):
    """One block: its output x, the loss's gradient with respect to x, and with respect to the block's weights.

    ``activation`` is the root mean square of all values of x; ``gradient`` the Euclidean norm of dL/dx over all its
    values, for the mean loss of the batch; ``weight_gradient`` the Euclidean norm of dL/dW over the weights of all
    convolutions and linear layers of the block. NaN stands where nothing was computed because the layer is frozen or
    not used.
    """

    name: str
    activation: float
    gradient: float
    weight_gradient: float


class GradientTrace(Table):
    """What :func:`trace_gradients` found: ``rows`` from the input to the output, the ``loss``, and the ``device``."""

    def __init__(self, rows, loss, device):
        self.rows, self.loss, self.device = rows, loss, device

    def column(self, name):
        """Return "activation", "gradient" or "weight_gradient" of all rows as a list."""
        return [getattr(row, name) for row in self.rows]

    @property
    def growth(self):
        """How much larger dL/dx is at the first block than at the last: above 1 it grows toward the input."""
        first, last = self.rows[0].gradient, self.rows[-1].gradient
        return first / last if last else math.nan

    def ends(self):
        """Return |dL/dx| at the first and at the last block, then |dL/dW| in these two."""
        first, last = self.rows[0], self.rows[-1]
        return [first.gradient, last.gradient, first.weight_gradient, last.weight_gradient]

    def header(self):
        return ["block", "|x| rms", "|dL/dx|", "|dL/dW|"]

    def cells(self):
        return [[row.name, *(f"{value:.3g}" for value in row[1:])] for row in self.rows]

    def caption(self):
        return f"loss {self.loss:.3g}; |dL/dx| at the first block is {self.growth:.3g} times that at the last"


def trace_gradients(model, images, labels, blocks=None):
    """Measure every block's activation and gradients in one forward and one backward pass of the cross-entropy loss.

    The pass runs on the model's device and in its present mode; in training mode batch normalisation uses the
    batch's statistics, and updates a copy of the running ones. Parameters, their ``grad``, buffers, mode and the
    random state of CPU and CUDA are left as they were. A block that is used twice is measured at its last use. The
    norms are accumulated in float64 (float32 on MPS, which has none), so that neither 1e-30 nor 1e+30 is squared
    away, and cross from the device together, at the end.

    Args:
        model: a network that maps images to logits ``(N, classes)`` and that :func:`trace_shapes` can trace.
        images: float tensor ``(N, C, H, W)`` of finite values, on any device.
        labels: int64 tensor ``(N,)`` of values from 0 to classes - 1, on any device.
        blocks: names of the modules to trace, in order. Default: every :class:`Block`, or block of torchvision's
            ResNets; where there is none, every convolution and linear layer.

    Returns:
        A :class:`GradientTrace` with one row per block.

    Raises:
        TypeError: an argument is not a module or tensor of that type.
        ValueError: images do not fit the model or are not finite, labels are out of range or not one per image, a
            block is unknown, or no weight of a block is trained.
    """
    _check(model, images, labels)
    modules = dict(model.named_modules())
    names = _names(modules, blocks)
    weights = [_weights(modules[name]) for name in names]
    trained = [weight for group in weights for weight in group]
    if not trained:
        raise ValueError(f"blocks must have a weight that is trained; there is none in {names}")
    device = trained[0].device
    if images.dtype != trained[0].dtype:
        raise TypeError(f"images must have the type of the model's weights, {trained[0].dtype}, got {images.dtype}")
    measured = {name: [NAN, NAN] for name in names}  # activation and gradient, scalars on the device
    hooks = [modules[name].register_forward_hook(_watcher(measured, name)) for name in names]
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            images, labels = (x.clone() if x.is_inference() else x for x in (images, labels))
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = torch.func.functional_call(model, buffers, (images.to(device),))
            loss = F.cross_entropy(logits, labels.to(device))
            if not loss.requires_grad:
                raise ValueError(f"blocks must have a weight that the loss depends on; there is none in {names}")
            gradients = iter(torch.autograd.grad(loss, trained, allow_unused=True))
    finally:
        for hook in hooks:
            hook.remove()
    columns = [_norm(torch.stack([_norm(next(gradients)).to(device) for _ in g])) if g else NAN for g in weights]
    scalars = [x.to(device) for name, last in zip(names, columns, strict=True) for x in (*measured[name], last)]
    loss, *values = torch.stack([loss.detach().to(scalars[0].dtype), *scalars]).tolist()
    return GradientTrace([GradientRow(n, *values[3 * i : 3 * i + 3]) for i, n in enumerate(names)], loss, device)


def _watcher(measured, name):
    """Return a forward hook that notes the size of the output now, and of its gradient when the backward pass comes."""

    def watch(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output  # recurrent layers return their state beside
        measured[name] = entry = [_norm(output.detach()) / math.sqrt(output.numel()), NAN]
        if output.requires_grad:
            output.register_hook(lambda gradient: entry.__setitem__(1, _norm(gradient)))

    return watch


def _norm(tensor):
    if tensor is None:
        return NAN
    return torch.linalg.vector_norm(tensor, dtype=torch.float32 if tensor.is_mps else torch.float64)


def _weights(module):
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [layer.weight for layer in layers if layer.weight.requires_grad]


def _names(modules, blocks):
    """Return the names of the chosen blocks, once they are known to be modules."""
    if isinstance(blocks, str):
        raise TypeError(f"blocks must be a list of names of modules, got {blocks!r}")
    names = _default_blocks(modules) if blocks is None else list(blocks)
    for name in names:
        if name not in modules:
            raise ValueError(f"blocks must be names of modules, got {name!r}; there are {', '.join(modules)}")
    return names


def _default_blocks(modules):
    blocks = [name for name, module in modules.items() if isinstance(module, Block) or _is_torchvision_block(module)]
    return blocks or [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _is_torchvision_block(module):
    kind = type(module)
    return kind.__module__ == "torchvision.models.resnet" and kind.__name__ in ("BasicBlock", "Bottleneck")


def _check(model, images, labels):
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise TypeError(f"images must be a tensor of floats, got {_kind(images)}")
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels must be a tensor of int64, got {_kind(labels)}")
    if images.dim() < 2 or not len(images):
        raise ValueError(f"images must have the shape (N, C, H, W) with at least one image, got {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have the shape ({len(images)},), one per image, got {tuple(labels.shape)}")
    output = trace_shapes(model, images.shape[1:]).output
    if output is None or len(output) != 1:
        raise ValueError(f"model must return logits (N, classes) and nothing beside, got the shape {output} per image")
    classes = output[0]
    least, most = labels.min().item(), labels.max().item()
    if least < 0 or most >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {least if least < 0 else most}")
    if not torch.isfinite(images).all():
        raise ValueError(f"images must be finite, got {int((~torch.isfinite(images)).sum())} values that are not")


def _kind(value):
    return f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
