"""One training loop: stochastic gradient descent as in the paper, small enough to be read before it is run."""

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from resbook.arithmetic import check_integer
from resbook.checkpoints import Checkpoint
from resbook.distributed import average, share, team
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

    def __init__(self, rows=(), diverged=None):
        self.rows, self.diverged = [EpochRow(*row) for row in rows], diverged

    def column(self, name):
        """Return one of :class:`EpochRow`'s columns as a list."""
        return [getattr(row, name) for row in self.rows]

    def best_epoch(self):
        """Return the epoch with the least test loss, the first of several, or 0 before there is one."""
        losses = [(row.test_loss, row.epoch) for row in self.rows if row.test_loss < math.inf]
        return min(losses)[1] if losses else 0

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
    decay_all=True,
    batch_size=128,
    schedule=constant,
    augment=None,
    class_weights=None,
    clip=None,
    bf16=False,
    channels_last=False,
    patience=None,
    checkpoint=None,
    progress=False,
    writer=None,
    seed=0,
    watch=None,
):
    """Train a classifier by stochastic gradient descent and return its history.

    The defaults are those of He et al. 2016a, section 4.2. A last batch that is not full is left out, and its images
    come again in another epoch, in another order. Training stops when the loss is not finite, and the history says
    so. Afterwards the model is in evaluation mode.

    Several processes, inside :func:`resbook.distributed.process_group`, train one model: each takes its share of
    every batch, and the gradients are averaged. All go through the same images in the same order as one would; batch
    normalisation takes the statistics of each process's own share.

    Args:
        model: maps images to logits; trained in place, on the device where its parameters are.
        data: :class:`resbook.data.Data`, on any device; it is moved to the model's as a whole.
        epochs: passes over the training data, at least 1.
        lr: largest learning rate. Default 0.1.
        momentum: of SGD. Default 0.9.
        weight_decay: of SGD. Default 1e-4.
        decay_all: False takes biases, and scale and shift of normalisations, out of the weight decay. Default True.
        batch_size: images in a step, at most as many as there are. Default 128.
        schedule: maps the share of the training that is done, 0 up to but not including 1, to a factor of ``lr``.
            Default :func:`constant`.
        augment: None, or changes a batch: ``augment(images, generator)``, as :func:`crop_and_flip` does. Default None.
        class_weights: None, or a weight of the loss for each class, as :func:`resbook.data.class_weights` gives.
        clip: None, or the Euclidean norm that the gradient of all weights together is cut to. Default None.
        bf16: compute convolutions and matrix products in 16 bits, by autocast. Default False.
        channels_last: store images and weights in that memory format, with equal numbers. Default False.
        patience: None, or after how many epochs without a lower test loss the training stops; the model then gets
            the weights of the best epoch. Hand over validation images as the test part, then. Default None.
        checkpoint: None, or a file that is written after every epoch. Where it exists, the training goes on from it,
            on a CPU to the same result, bit for bit. Default None.
        progress: show a bar, in a terminal or a notebook. Default False.
        writer: None, or where to log every epoch: ``writer.add_scalar(name, value, epoch)``, as TensorBoard's
            ``SummaryWriter`` has it. Default None.
        seed: of the order of the images and of ``augment``. Default 0.
        watch: None, or called in every step as ``watch(step, model)``, when the gradients are there (and clipped) and
            before the weights move. Default None.

    Returns:
        A :class:`History`.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a number is out of range, or the checkpoint belongs to another training.
        OSError: the checkpoint could not be written; the one before is still there.
    """
    settings = {"epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay_all": decay_all}
    settings |= {"batch_size": batch_size, "schedule": _name(schedule), "augment": _name(augment), "clip": clip}
    settings |= {"bf16": bf16, "channels_last": channels_last, "patience": patience, "seed": seed}
    settings["class_weights"] = None if class_weights is None else class_weights.tolist()
    count, (rank, processes) = len(data.train_images), team()
    _check(settings, count, len(data.classes), processes)

    device = next(model.parameters()).device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data, model = data.to(device), model.to(memory_format=layout)
    class_weights = None if class_weights is None else class_weights.to(device)
    network = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay, decay_all), lr, momentum=momentum)
    generator = torch.Generator().manual_seed(seed)
    kept = Checkpoint(checkpoint, settings, data, {"model": model, "optimizer": optimizer, "generator": generator})
    stored = kept.load() or {"rows": (), "best": None}
    history, best, per_epoch = History(stored["rows"]), stored["best"], count // batch_size

    def judge(images, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(images.contiguous(memory_format=layout))
            loss = F.cross_entropy(logits, labels, class_weights)
        return loss, (logits.argmax(1) == labels).float().mean()

    def move_weights(loss, step):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step / (epochs * per_epoch))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        if watch is not None:
            watch(step, model)
        optimizer.step()

    for epoch in range(len(history.rows), epochs):
        if patience is not None and epoch - history.best_epoch() >= patience:
            break
        model.train()
        seen, turns = [], batches(data, batch_size, generator, augment)
        title, silent = f"epoch {epoch + 1} of {epochs}", not progress or rank > 0
        for i, batch in enumerate(tqdm(turns, title, per_epoch, leave=False, disable=silent)):
            step = epoch * per_epoch + i
            loss, right = judge(*batch)
            seen.append(average(torch.stack([loss.detach(), right])))
            if not torch.isfinite(seen[-1][0]):
                history.diverged = step
                break
            move_weights(loss, step)
        if history.diverged is not None:
            break
        share(model.buffers())
        means = (values.contiguous().mean().item() for values in torch.stack(seen).unbind(1))
        tested = average(
            torch.tensor(evaluate(model, data.test_images, data.test_labels), dtype=torch.float64)
        ).tolist()
        history.rows.append(EpochRow(epoch + 1, optimizer.param_groups[0]["lr"], *means, *tested))
        if patience is not None and history.best_epoch() == epoch + 1:
            best = copy.deepcopy(model.state_dict())
        if writer is not None and rank == 0:
            for name, value in zip(EpochRow._fields[1:], history.rows[-1][1:], strict=True):
                writer.add_scalar(name, value, epoch + 1)
        if rank == 0:
            kept.save(rows=[list(row) for row in history.rows], best=best)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history


def batches(data, batch_size, generator, augment=None):
    """Yield the training images and labels once, in a new order, in whole batches; what does not fill one is left out.

    Of several processes every one goes through the same batches and is given its own share of each.

    Args:
        data: :class:`resbook.data.Data`.
        batch_size: images in a batch of all processes together.
        generator: a ``torch.Generator`` of the CPU, from which everything random comes.
        augment: None, or changes a batch: ``augment(images, generator)``. Default None.
    """
    count, (rank, processes) = len(data.train_images), team()
    order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
    for chosen in order.to(data.train_images.device).split(batch_size):
        images = data.train_images[chosen]
        if augment is not None:
            images = augment(images, generator)
        yield images[rank::processes], data.train_labels[chosen][rank::processes]


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
    groups = {weight_decay: some, 0.0: others}
    return [{"params": group, "weight_decay": decay} for decay, group in groups.items() if group]


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


def _check(settings, count, classes, processes):
    """Raise TypeError or ValueError for a setting with which no training is possible."""
    check_integer("epochs", settings["epochs"])
    check_integer("batch_size", settings["batch_size"])
    if settings["batch_size"] > count:
        raise ValueError(
            f"batch_size must be at most {count}, the number of training images, got {settings['batch_size']}"
        )
    if settings["batch_size"] % processes:
        raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {settings['batch_size']}")
    if not 0 < settings["lr"] < math.inf:
        raise ValueError(f"lr must be a positive number, got {settings['lr']}")
    if settings["clip"] is not None and not settings["clip"] > 0:
        raise ValueError(f"clip must be None or a positive number, got {settings['clip']}")
    if settings["patience"] is not None:
        check_integer("patience", settings["patience"])
    weights = settings["class_weights"]
    if weights is not None and len(weights) != classes:
        raise ValueError(f"class_weights must be {classes} numbers, one per class, got {len(weights)}")


def _name(function):
    return getattr(function, "__qualname__", repr(function)) if function is not None else None
