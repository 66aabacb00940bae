"""Whether numbers that come out of a training can be expected to repeat to the last digit."""

import hashlib

import torch

from resbook.data import Data
from resbook.device import default_device
from resbook.networks import cifar_resnet, resnet18
from resbook.training import train


def arithmetic_fingerprint():
    """Return eight hexadecimal digits that differ where float32 is rounded differently.

    Processors, numbers of threads and versions of PyTorch add up in different orders, and training amplifies the last
    bit until it shows. The digits are a hash of the weights that ResNet-20 and ResNet-18 have after four steps on
    images of noise, with as many threads as are set, on :func:`resbook.default_device`: where they and PyTorch's
    version are the same, other trainings can be expected to repeat, too. Takes a few seconds, and leaves PyTorch's
    random numbers as they were.
    """
    digest = hashlib.sha1()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for model, size in ((cifar_resnet(20), 8), (resnet18(num_classes=10), 48)):
            images, labels = torch.randn(128, 3, size, size), torch.arange(128) % 10
            model.to(default_device())
            train(model, Data(images, labels, images[:1], labels[:1], tuple("0123456789")), epochs=1, batch_size=32)
            for value in model.state_dict().values():
                digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def arithmetic():
    """Return what a notebook notes of the arithmetic that made it: the fingerprint, and PyTorch's version."""
    return {"arithmetic": arithmetic_fingerprint(), "torch": torch.__version__.split("+")[0]}
