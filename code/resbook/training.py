"""One training loop: stochastic gradient descent as in the paper, small enough to be read before it is run."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from resbook.arithmetic import check_integer
from resbook.tables import Table


class EpochRow(NamedTuple):
    """One pass over the training data: the learning rate of its last step, mean losses, and shares of right answers.

    ``train_loss`` and ``train_accuracy`` are those of the batches as they were trained on, in training mode and with
    the weights of that moment; ``test_loss`` and ``test_accuracy`` are taken at the end, in evaluation mode.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class History(Table):
    """What :func:`train` saw: a row per epoch, and ``diverged``, the step whose loss was not finite, or None."""

    def __init__(self):
        self.rows, self.diverged = [], None

    def column(self, name):
        """Return one of :class:`EpochRow`'s columns as a list."""
        return [getattr(row, name) for row in self.rows]

    def header(self):
        return ["epoch", "lr", "train loss", "train accuracy", "test loss", "test accuracy"]

    def cells(self):
        return [[f"{row.epoch}", f"{row.lr:.3g}", *(f"{value:.3f}" for value in row[2:])] for row in self.rows]

    def caption(self):
        if self.diverged is not None:
            return f"stopped: the loss was not finite at step {self.diverged}"
        return f"{len(self.rows)} epochs"


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


def train(
    model,
    data,
    *,
    epochs,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    batch_size=128,
    schedule=constant,
    augment=None,
    seed=0,
    watch=None,
):
    """Train a classifier by stochastic gradient descent and return its history.

    The defaults are those of He et al. 2016a, section 4.2. A last batch that is not full is left out, and its images
    come again in another epoch, in another order. Training stops when the loss is not finite, and the history says
    so. Afterwards the model is in evaluation mode.

    Args:
        model: maps images to logits; trained in place, on the device where its parameters are.
        data: :class:`resbook.data.Data`, on any device.
        epochs: passes over the training data, at least 1.
        lr: largest learning rate. Default 0.1.
        momentum: of SGD. Default 0.9.
        weight_decay: of SGD, on all parameters. Default 1e-4.
        batch_size: images in a step, at most as many as there are. Default 128.
        schedule: maps the share of the training that is done, 0 up to but not including 1, to a factor of ``lr``.
            Default :func:`constant`.
        augment: None, or changes a batch: ``augment(images, generator)``, as :func:`crop_and_flip` does. Default None.
        seed: of the order of the images and of ``augment``. Default 0.
        watch: None, or called in every step as ``watch(step, model)``, when the gradients are there and before the
            weights move. Default None.

    Returns:
        A :class:`History`.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a count is out of range, or ``lr`` is not a positive number.
    """
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    count = len(data.train_images)
    if batch_size > count:
        raise ValueError(f"batch_size must be at most {count}, the number of training images, got {batch_size}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr}")
    data = data.to(next(model.parameters()).device)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    history, per_epoch = History(), count // batch_size
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)[: per_epoch * batch_size].to(data.train_images.device)
        losses, right = [], []
        model.train()
        for i, chosen in enumerate(order.split(batch_size)):
            step = epoch * per_epoch + i
            optimizer.param_groups[0]["lr"] = lr * schedule(step / (epochs * per_epoch))
            images, labels = data.train_images[chosen], data.train_labels[chosen]
            if augment is not None:
                images = augment(images, generator)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if not torch.isfinite(loss):
                history.diverged = step
                model.eval()
                return history
            optimizer.zero_grad()
            loss.backward()
            if watch is not None:
                watch(step, model)
            optimizer.step()
            losses.append(loss.detach())
            right.append((logits.argmax(1) == labels).float().mean())
        seen = [torch.stack(values).mean().item() for values in (losses, right)]
        tested = evaluate(model, data.test_images, data.test_labels)
        history.rows.append(EpochRow(epoch + 1, optimizer.param_groups[0]["lr"], *seen, *tested))
    return history


@torch.no_grad()
def evaluate(model, images, labels, batch_size=500):
    """Return a classifier's mean cross-entropy loss and its share of right answers, and leave it in evaluation mode.

    Args:
        model: maps images to logits.
        images: ``(N, C, H, W)``, on the model's device, as ``labels``.
        labels: int64 ``(N,)``.
        batch_size: images at a time, which changes the memory needed and not the result. Default 500.
    """
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
