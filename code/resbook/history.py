"""What a training was seen to do, epoch by epoch."""

import math
from typing import NamedTuple

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
