"""One training loop: stochastic gradient descent as in the paper, small enough to be read before it is run."""

import copy
import math
import re
from contextlib import nullcontext
from numbers import Real

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from resbook.arithmetic import check_integer
from resbook.checkpoints import Checkpoint
from resbook.distributed import broadcast, broadcast_object, mean_over_processes, rank_and_size
from resbook.history import EpochRow, History
from resbook.recipes import constant, parameter_groups

NUMBERS = {  # arguments that are numbers: what is allowed, in words and as a condition
    "lr": ("a positive number", lambda value: 0 < value < math.inf),
    "momentum": ("a number of at least 0 and below 1", lambda value: 0 <= value < 1),
    "weight_decay": ("a number of at least 0", lambda value: 0 <= value < math.inf),
    "clip": ("None or a positive number", lambda value: value > 0),
}


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

    Rate, momentum, weight decay and batch size are by default those of He et al. 2016a, section 4.2; its schedule and
    augmentation are in :mod:`resbook.recipes`. A last batch that is not full is left out, and its images
    come again in another epoch, in another order. Training stops when the loss is not finite, and the history says
    so; the weights are those before that step, running statistics may not be finite. Afterwards the model is in
    evaluation mode.

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
            Default :func:`resbook.recipes.constant`.
        augment: None, or changes a batch, as :func:`resbook.recipes.crop_and_flip` does: ``augment(images,
            generator)``. Default None.
        class_weights: None, or a weight for each class in the training loss, a tensor or a list; the test loss has
            none. A batch whose images all have the weight 0 has the loss 0. Default None.
        clip: None, or the Euclidean norm that the gradient of all weights together is cut to. Default None.
        bf16: train with convolutions and matrix products in 16 bits, by autocast; the test is in full precision.
            Default False.
        channels_last: store images and weights in that memory format, in which a GPU may be faster; the numbers
            are the same but for rounding. Default False.
        patience: None, or after how many epochs without a lower test loss the training stops. The model gets the
            weights of the best epoch, also when all epochs were done. Hand over validation images as the test part,
            then. Default None.
        checkpoint: None, or a file that is written after every epoch, in a folder that exists. Where the file exists,
            the training goes on from it, on a CPU to the same result, bit for bit. It has to be the same training,
            with as many processes; functions are compared by name. Default None.
        progress: show a bar, in a terminal or a notebook. Default False.
        writer: None, or where to log every epoch: ``writer.add_scalar(name, value, epoch)``, as TensorBoard's
            ``SummaryWriter`` has it. Default None.
        seed: of the order of the images and of ``augment``, at least 0. Default 0.
        watch: None, or called in every step as ``watch(step, model)``, when the gradients are there (and clipped) and
            before the weights move. Default None.

    Returns:
        A :class:`History`.

    Raises:
        TypeError: a count is not an integer, or another number is none.
        ValueError: a number or a label is out of range, the model has fewer outputs than there are classes, or the
            checkpoint is damaged or belongs to another training.
        OSError: the checkpoint cannot be read or written; the one before is still there.
    """
    settings = {"epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay_all": decay_all}
    settings |= {"batch_size": batch_size, "schedule": schedule, "augment": augment, "class_weights": class_weights}
    settings |= {"clip": clip, "bf16": bf16, "channels_last": channels_last, "patience": patience, "seed": seed}
    settings = {name: _plain(value) for name, value in settings.items()}
    count, (rank, processes) = len(data.train_images), rank_and_size()
    _check(settings, data, processes)

    weight = next(model.parameters())
    if bf16 and not torch.amp.is_autocast_available(weight.device.type):
        raise ValueError(
            f"bf16 must be False on {weight.device.type}, for which this PyTorch has no autocast, got True"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data, model = data.to(weight.device), model.to(memory_format=layout)
    if class_weights is not None:
        class_weights = torch.as_tensor(class_weights, device=weight.device, dtype=weight.dtype)
    network = DistributedDataParallel(model) if processes > 1 else model
    groups = parameter_groups(model, settings["weight_decay"], decay_all)
    optimizer = torch.optim.SGD(groups, settings["lr"], momentum=settings["momentum"])
    generator = torch.Generator().manual_seed(settings["seed"])
    settings["processes"] = processes
    settings["frozen"] = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    kept = Checkpoint(checkpoint, settings, data, {"model": model, "optimizer": optimizer, "generator": generator})
    stored = kept.load() or {"rows": (), "best": None}
    _check_outputs(model, data)
    history, best, per_epoch = History(stored["rows"]), stored["best"], count // batch_size
    silent = None if progress and rank == 0 else True  # None: shown in a terminal or a notebook alone
    options = {"class_weights": class_weights, "clip": clip, "bf16": bf16}
    options["watch"] = watch and (lambda step: watch(step, model))

    for epoch in range(len(history.rows), epochs):
        if patience is not None and epoch - history.best_epoch() >= patience:
            break
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rates = {step: float(lr * schedule(step / (epochs * per_epoch))) for step in steps}
        turns, title = batches(data, batch_size, generator, augment, layout), f"epoch {epoch + 1} of {epochs}"
        model.train()
        with tqdm(turns, title, per_epoch, leave=False, disable=silent) as turns:
            try:
                means = train_epoch(network, turns, optimizer, rates, **options)
            except Diverged as error:
                history.diverged = error.step
        broadcast(model.buffers())
        if history.diverged is not None:
            break
        tested = evaluate(model, data.test_images, data.test_labels)
        tested = broadcast_object(tested)  # one answer, so that all processes stop together
        history.rows.append(EpochRow(epoch + 1, rates[steps[-1]], *means, *tested))
        if patience is not None and history.best_epoch() == epoch + 1:
            best = copy.deepcopy(model.state_dict())
        if writer is not None and rank == 0:
            for name, value in zip(EpochRow._fields[1:], history.rows[-1][1:], strict=True):
                writer.add_scalar(name, value, epoch + 1)
        kept.save(rows=[list(row) for row in history.rows], best=best)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history


class Diverged(Exception):
    """The loss was not finite at a ``step``."""

    def __init__(self, step):
        super().__init__(f"the loss was not finite at step {step}")
        self.step = step


def train_epoch(network, batches, optimizer, rates, *, class_weights=None, clip=None, bf16=False, watch=None):
    """Take a step of gradient descent for every batch.

    Args:
        network: maps images to logits; in training mode.
        batches: images and labels, on the network's device.
        optimizer: of the network's parameters.
        rates: the learning rate of each step, by its number.
        class_weights: None, or a tensor with a weight of the loss for each class. Default None.
        clip: None, or the Euclidean norm that the whole gradient is cut to. Default None.
        bf16: compute the way forward in 16 bits, by autocast. Default False.
        watch: None, or called in every step as ``watch(step)``, before the weights move. Default None.

    Returns:
        The mean loss, and the share of right answers.

    Raises:
        Diverged: a loss was not finite; the weights are those before that step.
    """
    seen = []
    for (step, rate), (images, labels) in zip(rates.items(), batches, strict=True):
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            logits = network(images)
            loss = mean_loss(logits, labels, class_weights)
        right = (logits.argmax(1) == labels).float().mean()
        seen.append(mean_over_processes(torch.stack([loss.detach(), right])))
        if not torch.isfinite(seen[-1][0]):
            raise Diverged(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            clip_grad_norm_(network.parameters(), clip)
        if watch is not None:
            watch(step)
        optimizer.step()
    return [values.contiguous().mean().item() for values in torch.stack(seen).unbind(1)]


def batches(data, batch_size, generator, augment=None, layout=torch.contiguous_format):
    """Yield the training images and labels once, in a new order, in whole batches; what does not fill one is left out.

    Of several processes every one goes through the same batches and is given its own share of each.

    Args:
        data: :class:`resbook.data.Data`.
        batch_size: images in a batch of all processes together.
        generator: a ``torch.Generator`` of the CPU, from which everything random comes.
        augment: None, or changes a batch: ``augment(images, generator)``. Default None.
        layout: memory format of the images. Default ``torch.contiguous_format``.
    """
    count, (rank, processes) = len(data.train_images), rank_and_size()
    order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
    for chosen in order.to(data.train_images.device).split(batch_size):
        images = data.train_images[chosen]
        if augment is not None:
            images = augment(images, generator)
        images = images[rank::processes].contiguous(memory_format=layout)
        yield images, data.train_labels[chosen][rank::processes]


@torch.no_grad()
def evaluate(model, images, labels, batch_size=500):
    """Return a classifier's mean cross-entropy loss and its share of right answers, and leave it in evaluation mode.

    Args:
        model: maps images to logits.
        images: ``(N, C, H, W)``, on the model's device, as ``labels``.
        labels: int64 ``(N,)``.
        batch_size: images at a time, which changes the memory needed, and the result by rounding alone. Default 500.
    """
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def mean_loss(logits, labels, class_weights):
    """Return the cross-entropy, as a mean whose weights are those of the whole batch, also where this is a share."""
    if class_weights is None:
        return F.cross_entropy(logits, labels)
    whole = mean_over_processes(class_weights[labels].sum()).clamp(min=torch.finfo(class_weights.dtype).tiny)
    return F.cross_entropy(logits, labels, class_weights, reduction="sum") / whole


def _check_outputs(model, data):
    with torch.no_grad():
        shape = tuple(model.eval()(data.train_images[:1]).shape)
    if len(shape) != 2 or shape[1] < len(data.classes):
        raise ValueError(
            f"model must map an image to a logit for each of the {len(data.classes)} classes, got outputs {shape}"
        )


def _check(settings, data, processes):
    """Raise TypeError or ValueError for a setting or labels with which no training is possible."""
    count, classes = len(data.train_images), len(data.classes)
    for labels in (data.train_labels, data.test_labels):
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ValueError(f"labels must be positions in classes, 0 to {classes - 1}, got {wrong[0]}")
    check_integer("seed", settings["seed"], least=0)
    check_integer("epochs", settings["epochs"])
    check_integer("batch_size", settings["batch_size"])
    if settings["batch_size"] > count:
        raise ValueError(
            f"batch_size must be at most {count}, the number of training images, got {settings['batch_size']}"
        )
    if settings["batch_size"] % processes:
        raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {settings['batch_size']}")
    for name, (allowed, fits) in NUMBERS.items():
        value = settings[name]
        if value is None and name == "clip":
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be {allowed}, got {value!r}")
        if not fits(value):
            raise ValueError(f"{name} must be {allowed}, got {value}")
    if settings["patience"] is not None:
        check_integer("patience", settings["patience"])
    if settings["class_weights"] is not None:
        weights = torch.as_tensor(settings["class_weights"], dtype=torch.float64)
        if weights.shape != (classes,) or not ((weights >= 0) & (weights < math.inf)).all() or not weights.any():
            raise ValueError(
                f"class_weights must be {classes} numbers of at least 0, one per class and not all 0, "
                f"got {settings['class_weights']}"
            )


def _plain(value):
    """Return numbers, lists or text that a checkpoint can hold and compare: of tensors, of numpy's, of functions."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if callable(value):
        return getattr(value, "__qualname__", None) or re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))
    return value
