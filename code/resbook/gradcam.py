"""Grad-CAM: where in a picture a layer's maps speak for a class, as far as the method can tell."""

import torch
from torch import nn


def grad_cam(model, images, classes, layer):
    """Return where one layer's maps speak for a class, by its gradient (Selvaraju et al. 2017, equations 1 and 2).

    For each image, the gradient of its class's logit with respect to a channel of the layer's output is averaged over
    positions; the channels are added with these means as weights, and what is negative is cut off.

    Args:
        model: maps images to logits; left in evaluation mode, its gradients as they were.
        images: ``(N, C, H, W)``, on the model's device.
        classes: int64 ``(N,)``: the logit that is asked about, for each image.
        layer: name of a module of the model whose output has the shape ``(N, channels, h, w)``.

    Returns:
        float ``(N, h, w)``, none negative. They are not scaled: a map of zeros says that nothing speaks for the class.

    Raises:
        ValueError: there is no such module, it does not run exactly once, or its output has no positions.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"layer must name a module of the model, got {layer!r}")
    kept = []

    def keep(module, inputs, output):
        kept.append(output)
        return output.clone()  # what comes next may change its input in place

    hook = modules[layer].register_forward_hook(keep)
    model.eval()
    with torch.enable_grad():  # also where a chapter has switched it off
        try:
            logits = model(images.detach().requires_grad_())  # also with frozen weights
        finally:
            hook.remove()
        if len(kept) != 1:
            raise ValueError(f"layer must run once on the way, {layer!r} ran {len(kept)} times")
        (maps,) = kept
        if maps.dim() != 4:
            shape = tuple(maps.shape)
            raise ValueError(f"layer must put out maps (N, channels, h, w), got {shape} from {layer!r}")
        chosen = logits.gather(1, classes[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), maps)  # no image sees another
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu().detach()


def heat_inside(heat, mask):
    """Return how much of each map's heat lies on a mask, and how much of the area the mask has.

    Args:
        heat: ``(N, h, w)``, none negative.
        mask: bool ``(N, H, W)``, with H and W multiples of h and w.

    Returns:
        Two tensors ``(N,)``: the share of the heat, NaN where there is none at all, and the share of the area. Their
        ratio is 1 for heat that knows nothing of the mask.

    Raises:
        ValueError: H or W is no multiple.
    """
    covered = nn.functional.avg_pool2d(mask[:, None].float(), _cell(heat, mask))[:, 0]
    return (heat * covered).sum((1, 2)) / heat.sum((1, 2)), covered.mean((1, 2))


def peak_inside(heat, mask):
    """Return whether each map's hottest position has any of the mask in it, and what share of all positions has.

    Args:
        heat: as for :func:`heat_inside`.
        mask: as for :func:`heat_inside`.

    Returns:
        Two tensors ``(N,)``: 1 or 0, NaN where there is no heat, and the share, which is what chance would reach.

    Raises:
        ValueError: H or W is no multiple.
    """
    touched = nn.functional.max_pool2d(mask[:, None].float(), _cell(heat, mask)).flatten(1)
    hit = touched.gather(1, heat.flatten(1).argmax(1, keepdim=True))[:, 0]
    return hit.where(heat.amax((1, 2)) > 0, torch.nan), touched.mean(1)


def _cell(heat, mask):
    """Return how many pixels of the mask, down and across, one position of the heat stands for."""
    if mask.shape[1] % heat.shape[1] or mask.shape[2] % heat.shape[2]:
        sizes = " and ".join(f"{height}x{width}" for height, width in (mask.shape[1:], heat.shape[1:]))
        raise ValueError(f"mask must have multiples of heat's height and width, got {sizes}")
    return mask.shape[1] // heat.shape[1], mask.shape[2] // heat.shape[2]
