"""The comparison of He et al. 2016a, Figure 6, on CIFAR-10: as far as a machine gets."""

import copy
import json
from pathlib import Path

import torch

from resbook.anatomy import layer_responses, lesions
from resbook.data import cifar10, image_folder
from resbook.device import default_device
from resbook.experiments.base import Experiment, observed_training
from resbook.files import write_whole
from resbook.gradients import trace_gradients
from resbook.images import list_classes
from resbook.networks import cifar_resnet
from resbook.recipes import crop_and_flip, paper_schedule

PICTURES = {"train": 50_000, "test": 10_000}


def describe(root):
    """Return which copy of CIFAR-10 is in a folder, all of it: torchvision's files, or folders ``train`` and ``test``.

    Where there is neither, torchvision's files are downloaded: here, and not by several runs at a time.
    """
    if not _in_folders(root):
        cifar10(root, download=True)
        return "CIFAR-10 (Krizhevsky 2009), in torchvision's files"
    found = {part: _jpeg_files(Path(root) / part) for part in PICTURES}
    if found != PICTURES:
        raise ValueError(f"root must have all of CIFAR-10 as JPEG files, {PICTURES}; {root} has {found}")
    return "CIFAR-10 (Krizhevsky 2009), all of it, in a copy of JPEG files: not quite the pixels of the paper"


def load(root):
    """Return CIFAR-10 from what :func:`describe` has found."""
    return image_folder(root, size=None) if _in_folders(root) else cifar10(root)


def _jpeg_files(folder):
    return sum(path.suffix.lower() in (".jpg", ".jpeg") for path in list_classes(folder).paths)


def _in_folders(root):
    if root is None:
        raise ValueError("root must be the folder of CIFAR-10, or where to download it to; got none")
    return (Path(root) / "train").is_dir()


def measure(settings, folder=None, root=None, only_beginning=False):
    """Train one network by the paper's recipe; see :class:`resbook.experiments.base.Experiment`.

    The results are those of :func:`resbook.experiments.digits.measure`, with a probe of the first 128 training images,
    responses to the first 10,000 of these and lesions judged by the first 2,000 test images.
    The training keeps a checkpoint in ``folder``, so what was interrupted goes on; without ``only_beginning``, there
    must be one.
    """
    data = load(root).to(default_device())
    seed, epochs, depth, kind = (settings[name] for name in ("seed", "epochs", "depth", "kind"))
    torch.manual_seed(seed)
    model = cifar_resnet(depth, residual=kind == "residual").to(default_device())
    options = {"epochs": epochs, "seed": seed, "schedule": paper_schedule, "augment": crop_and_flip}
    options |= {"bf16": settings["bf16"], "channels_last": True}
    _, beginning = observed_training(copy.deepcopy(model), data, only_beginning=True, **options)
    if only_beginning:
        return {"beginning": beginning}
    probe, per_epoch = (data.train_images[:128], data.train_labels[:128]), len(data.train_images) // 128
    log = Path(folder) / f"{kind}-{depth}-{seed}.log"  # beside the checkpoint, for what a History does not hold
    gradients = json.loads(log.read_text()) if log.exists() else {}

    def observe(step, model):
        if step % per_epoch == 0:
            gradients[str(step // per_epoch)] = trace_gradients(model, *probe).ends()
            write_whole(log, json.dumps(gradients).encode())

    history, _ = observed_training(model, data, observe, checkpoint=log.with_suffix(".pt"), **options)
    if history.diverged is None:
        observe(epochs * per_epoch, model.train())
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return {
        **{name: history.column(name) for name in names},
        "gradients": list(gradients.values()),
        "beginning": beginning,
        "diverged": history.diverged,
        "responses": layer_responses(model, data.train_images[:10_000]),
        "lesions": lesions(model, data.test_images[:2000], data.test_labels[:2000]),
    }


def _runs(depths, epochs, bf16):
    return [
        {"depth": depth, "kind": kind, "seed": 0, "epochs": epochs, "bf16": bf16}
        for depth in depths
        for kind in ("plain", "residual")
    ]


DEGRADATION_CIFAR10 = Experiment(
    "degradation-cifar10",
    "Plain and residual networks of 20 and 56 layers by the paper's recipe, shortened to four epochs.",
    describe,
    _runs((20, 56), epochs=4, bf16=False),
    measure,
)
PAPER_CIFAR10 = Experiment(
    "paper-cifar10",
    "Plain and residual networks of 20, 56 and 110 layers by the paper's recipe, in 164 epochs of 390 steps and with "
    "16 bits, that of 110 layers without a warm-up; for a GPU.",
    describe,
    _runs((20, 56, 110), epochs=164, bf16=True),
    measure,
)
