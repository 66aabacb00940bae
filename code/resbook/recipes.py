"""What recipes of training vary: the schedule of the learning rate, the augmentation, which parameters decay."""

import torch
import torch.nn.functional as F


def constant(progress):
    """Return 1: the learning rate stays what it is."""
    return 1.0


def paper_schedule(progress):
    """Return 1, from one half of the training on 0.1, and from three quarters on 0.01 (He et al. 2016a, 4.2)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def one_cycle(progress):
    """Return a ramp up to 1 in the first three tenths and one down to 0 in the rest (after Smith and Topin 2019)."""
    return progress / 0.3 if progress < 0.3 else (1 - progress) / 0.7


def crop_and_flip(images, generator, pad=4):
    """Return every image moved by up to ``pad`` pixels, zeros coming in, and half of them mirrored (2016a, 4.2).

    Args:
        images: ``(N, C, H, W)``.
        generator: a ``torch.Generator`` of the CPU, from which everything random comes.
        pad: the longest move along each axis, in pixels. Default 4.
    """
    count, _, height, width = images.shape
    down, right = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, -1)
    rows = (down + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (right + torch.where(mirrored, columns.flip(1), columns))[:, None, None, :].to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return F.pad(images, (pad, pad, pad, pad))[which, channel, rows, columns]


def turn(images, generator):
    """Apply one of the square's eight symmetries to a batch, the same to all its images.

    Args:
        images: ``(N, C, H, H)``.
        generator: a ``torch.Generator`` of the CPU, from which everything random comes.
    """
    down, across, swap = torch.randint(2, (3,), generator=generator).tolist()
    images = images.flip(2) if down else images
    images = images.flip(3) if across else images
    return images.transpose(2, 3).contiguous() if swap else images


def parameter_groups(model, weight_decay, decay_all=True):
    """Return a model's parameters as an optimiser takes them, with the weight decay of each.

    Args:
        model: any module.
        weight_decay: of the parameters that decay.
        decay_all: False takes out those with fewer than two axes: biases, scale and shift of a normalisation, factors
            of a branch. Default True.
    """
    parameters = list(model.parameters())
    if decay_all:
        return [{"params": parameters, "weight_decay": weight_decay}]
    some, others = ([p for p in parameters if (p.dim() > 1) is wanted] for wanted in (True, False))
    groups = (some, weight_decay), (others, 0.0)
    return [{"params": group, "weight_decay": decay} for group, decay in groups if group]
