"""Data that needs no download, split and normalised."""

from typing import NamedTuple

import torch


class Data(NamedTuple):
    """Images and labels to train on and to test on, and the names of the classes.

    Images are float32 ``(N, C, H, W)``, shifted and scaled so that every channel of the training images has mean 0
    and standard deviation 1; labels are int64 ``(N,)``, positions in ``classes``.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple

    def to(self, device):
        """Return the same data with its tensors on ``device``."""
        return self._replace(**{name: getattr(self, name).to(device) for name in self._fields[:4]})


def digits(seed=0):
    """Return 1,797 real handwritten digits of 8x8 pixels, 1,437 to train on and 360 to test on.

    They are scikit-learn's copy of a test set of the UCI repository, each pixel a count of 0 to 16 dots. A fifth of
    every class is drawn for the test.

    Args:
        seed: of the split. Default 0.

    Returns:
        :class:`Data` with images ``(N, 1, 8, 8)``.

    Raises:
        ModuleNotFoundError: scikit-learn, which holds the images, is not installed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    parts = train_test_split(source.images, source.target, test_size=0.2, stratify=source.target, random_state=seed)
    train, test = (torch.tensor(images, dtype=torch.float32)[:, None] for images in parts[:2])
    train_labels, test_labels = (torch.tensor(labels) for labels in parts[2:])
    train, test = normalise(train, test)
    return Data(train, train_labels, test, test_labels, tuple(str(name) for name in source.target_names))


def normalise(train, test):
    """Return both with the training images' mean subtracted and divided by their standard deviation, per channel.

    Args:
        train: float images ``(N, C, H, W)``, which alone give the statistics.
        test: float images ``(M, C, H, W)``.

    Raises:
        ValueError: a channel of ``train`` has the same value everywhere.
    """
    mean = train.mean((0, 2, 3), keepdim=True)
    deviation = train.std((0, 2, 3), correction=0, keepdim=True)
    if not deviation.all():
        channel = int((deviation.flatten() == 0).nonzero()[0])
        raise ValueError(f"train must vary in every channel; channel {channel} has the value {mean[0, channel].item()}")
    return (train - mean) / deviation, (test - mean) / deviation
