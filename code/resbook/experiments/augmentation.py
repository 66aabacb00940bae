"""What an augmentation teaches: ResNet-8 on 500 digits, tested on digits as they are, moved, and mirrored."""

import torch
import torch.nn.functional as F

from resbook.data import digits
from resbook.device import default_device
from resbook.experiments.base import Experiment, observed_training
from resbook.networks import cifar_resnet
from resbook.recipes import constant, crop_and_flip, paper_schedule
from resbook.training import evaluate


def move(images, generator):
    """Return every image moved by up to one pixel along each axis, the background coming in.

    Args:
        images: ``(N, C, H, W)``, in which the least value is the background.
        generator: a ``torch.Generator`` of the CPU, from which everything random comes.
    """
    height, width = images.shape[2:]
    down, right = torch.randint(3, (2, len(images)), generator=generator).tolist()
    padded = F.pad(images, (1, 1, 1, 1), value=images.min().item())
    shifts = zip(padded, down, right, strict=True)
    return torch.stack([image[:, d : d + height, r : r + width] for image, d, r in shifts])


def flip(images, generator):
    """Return the images, half of them mirrored."""
    return crop_and_flip(images, generator, pad=0)


AUGMENTATIONS = {"none": None, "moves": move, "mirror images": flip}
SCHEDULES = {"constant": constant, "paper": paper_schedule}


def measure(settings, folder=None, root=None, only_beginning=False):
    """Train ResNet-8 on 500 digits; see :class:`resbook.experiments.base.Experiment`.

    ``"accuracy"`` holds the share of right answers, after the training, on the 360 test digits as they are, on the
    same moved at random by up to a pixel, and on their mirror images.
    """
    data = digits().to(default_device())
    digit, label = data.test_images, data.test_labels
    few = data._replace(
        train_images=data.train_images[:500],
        train_labels=data.train_labels[:500],
        test_images=digit[:1],  # tested at the end, and not after every epoch
        test_labels=label[:1],
    )
    torch.manual_seed(settings["seed"])
    model = cifar_resnet(8, in_channels=1).to(default_device())
    recipe = {
        "augment": AUGMENTATIONS[settings["augment"]],
        "schedule": SCHEDULES[settings["schedule"]],
        "epochs": settings["epochs"],
        "lr": 0.1,
        "batch_size": 32,
        "seed": settings["seed"],
    }
    _, beginning = observed_training(model, few, None, only_beginning, **recipe)
    if only_beginning:
        return {"beginning": beginning}
    tests = {
        "as they are": digit,
        "moved": move(digit, torch.Generator().manual_seed(0)),
        "mirrored": digit.flip(3),
    }
    accuracy = {name: evaluate(model, of, label)[1] for name, of in tests.items()}
    return {"beginning": beginning, "accuracy": accuracy}


AUGMENTATION_DIGITS = Experiment(
    "augmentation-digits",
    "ResNet-8 on 500 digits, unmoved, moved or mirrored, 20 epochs, five seeds.",
    "scikit-learn's digits: the first 500 training images of digits(seed=0), and its 360 test images",
    [
        {"schedule": "paper", "augment": augment, "epochs": 20, "seed": seed}
        for augment in AUGMENTATIONS
        for seed in range(5)
    ],
    measure,
)
