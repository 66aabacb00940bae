"""Look into a trained network: how strongly its layers respond, and what it does without one of its blocks."""

import torch
from torch import nn

from resbook.blocks import BasicBlock, Block
from resbook.training import evaluate


@torch.no_grad()
def layer_responses(model, images, batch_size=500):
    """Return the standard deviation of every block's convolutions' outputs, normalised (He et al. 2016a, Fig. 7).

    It is taken after the normalisation and before any addition or ReLU, over all images, channels and positions, in
    evaluation mode.

    Args:
        model: a network of basic blocks in the original order, in which it is left in evaluation mode.
        images: ``(N, C, H, W)``, on the model's device.
        batch_size: images at a time. Default 500.

    Returns:
        A list of floats, two for every block, from the input to the output.

    Raises:
        ValueError: the network has no blocks, or other ones.
    """
    blocks = _blocks(model)
    for block in blocks:
        if not isinstance(block, BasicBlock) or block.order != "original":
            raise ValueError(
                f"model must have basic blocks in the original order, got {type(block).__name__}, order {block.order!r}"
            )
    layers = [layer for block in blocks for layer in (block.bn1, block.bn2)]
    sums = {layer: torch.zeros(3, dtype=torch.float64) for layer in layers}  # of 1, y and y squared

    def add(layer, inputs, output):
        y = output.cpu().double()  # in this order: Apple's MPS has no float64
        sums[layer] += torch.stack([torch.tensor(float(y.numel()), dtype=y.dtype), y.sum(), (y * y).sum()])

    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        model.eval()
        for batch in images.split(batch_size):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [((square - total**2 / n) / n).clamp(min=0).sqrt().item() for n, total, square in sums.values()]


def lesions(model, images, labels):
    """Return the share of right answers that is left when one block after the other is taken out (Veit et al. 2016).

    Without its branch a residual block is its shortcut, also where the shape changes; a plain block becomes an
    identity. Nothing is trained again.

    Args:
        model: a network of :class:`resbook.Block`, left in evaluation mode and otherwise as it was.
        images: ``(N, C, H, W)``, on the model's device, as ``labels``.
        labels: int64 ``(N,)``.

    Returns:
        A list with a float for every block; None where a plain block changes the shape and cannot be taken out.

    Raises:
        ValueError: the network has no blocks.
    """
    return [_without(block, model, images, labels) for block in _blocks(model)]


def _without(block, model, images, labels):
    if block.residual:
        name, stand_in = "branch", lambda x: torch.zeros_like(block.downsample(x))
    elif _keeps_shape(block):
        name, stand_in = "forward", lambda x: x
    else:
        return None
    setattr(block, name, stand_in)
    try:
        return evaluate(model, images, labels)[1]
    finally:
        delattr(block, name)  # the class's own is found again


def _keeps_shape(block):
    strides = {layer.stride for layer in block.modules() if isinstance(layer, nn.Conv2d)}
    return strides == {(1, 1)} and block.conv1.in_channels == block.last_conv.out_channels


def _blocks(model):
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError(
            f"model must have blocks of this package, resbook.Block; there is none in {type(model).__name__}"
        )
    return blocks
