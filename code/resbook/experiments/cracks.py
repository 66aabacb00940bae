"""ResNet-18 from random weights on pictures of cracks: drawn ones, and real tiles of one bridge deck."""

import copy

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resbook.cracks import CRACK_CLASSES, draw_cracks
from resbook.data import Data, normalise
from resbook.device import default_device
from resbook.experiments.base import Experiment, observed_training
from resbook.gradcam import grad_cam, heat_inside
from resbook.images import list_classes, read_pictures
from resbook.networks import resnet18
from resbook.recipes import one_cycle
from resbook.records import digits_of

RECIPE = {"lr": 0.02, "batch_size": 32, "schedule": one_cycle}
LAYERS = ("layer1", "layer2", "layer3")  # 12, 6 and 3 positions a side; layer4 has 2
SHOWN = 6  # maps in the record
VISIBLE = 0.05  # what a crack must take from a pixel, of a brightness from 0 to 1, to count as crack there


def turn(images, generator):
    """Apply one of the square's eight symmetries to a batch, at random."""
    down, across, swap = torch.randint(2, (3,), generator=generator).tolist()
    images = images.flip(2) if down else images
    images = images.flip(3) if across else images
    return images.transpose(2, 3).contiguous() if swap else images


@torch.no_grad()
def logits_of(model, images):
    """Return a network's logits in evaluation mode, a batch at a time, on the CPU."""
    model.eval()
    return torch.cat([model(batch.to(default_device())) for batch in images.split(200)]).cpu()


def _maps(model, images, classes, layer):
    return grad_cam(model, images.to(default_device()), classes.to(default_device()), layer).cpu()


def measure_drawn(settings, folder=None, root=None, only_beginning=False):
    """Train ResNet-18 on 1,800 drawn pictures; record its logits for 600 others, and where Grad-CAM says it looked."""
    train, labels = draw_cracks(1800, 48, seed=0)
    validation, test = (draw_cracks(600, 48, seed=seed) for seed in (1, 2))
    healed, _ = draw_cracks(600, 48, seed=2, healed=True)
    mask = (healed - test[0]).amax(1) > VISIBLE
    train, rest = normalise(train, torch.cat([validation[0], test[0]]))
    data = Data(train, labels, rest[:600], validation[1], CRACK_CLASSES)
    torch.manual_seed(settings["seed"])
    model = resnet18(num_classes=len(CRACK_CLASSES)).to(default_device())
    untrained = copy.deepcopy(model)
    options = {**RECIPE, "epochs": settings["epochs"], "seed": settings["seed"], "augment": turn}
    history, beginning = observed_training(model, data, None, only_beginning, **options)
    if only_beginning:
        return {"beginning": beginning}
    images = rest[600:]
    chosen = ((test[1] % 2 == 1) & (logits_of(model, images).argmax(1) == test[1])).nonzero().flatten()
    heat, maps = {}, {}
    for name, network in {"trained": model, "random weights": untrained}.items():
        for layer in LAYERS:
            found = _maps(network, images[chosen], test[1][chosen], layer)
            inside, area = heat_inside(found, mask[chosen])
            heat[f"{name}, {layer}"] = [(inside / area).nanmean().item(), inside.isnan().sum().item()]
        few = chosen[:SHOWN]
        maps[name] = digits_of(_maps(network, images[few], test[1][few], "layer2").tolist(), 3)
    return {
        "train_accuracy": history.column("train_accuracy"),
        "validation_accuracy": history.column("test_accuracy"),
        "validation_logits": digits_of(logits_of(model, rest[:600]).tolist(), 3),
        "test_logits": digits_of(logits_of(model, images).tolist(), 3),
        "heat_on_crack": heat,
        "maps": {"pictures": chosen[:SHOWN].tolist(), **maps},
        "beginning": beginning,
    }


def measure_deck(settings, folder=None, root=None, only_beginning=False):
    """Train ResNet-18 on four fifths of the tiles of one deck; record what it says of the rest, with their photographs.

    Beside it a logistic regression on six colour numbers, mean and deviation of red, green and blue. The fifths are
    drawn from the *tiles*, as one should not: see the chapter.
    """
    if root is None:
        raise ValueError("root must be the folder of the deck's tiles, with CD and UD in it; got none")
    images, listing = read_pictures(list_classes(root, lambda path: path.stem.split("-")[0]), size=64)
    labels, photographs = 1 - torch.tensor(listing.labels), np.array(listing.photographs)  # 1 is cracked
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
    train, test = list(folds)[settings["fold"]]
    images = images.float() / 255
    normalised = normalise(images[train], images[test])
    data = Data(normalised[0], labels[train], normalised[1], labels[test], ("intact", "cracked"))
    torch.manual_seed(settings["seed"])
    model = resnet18(num_classes=2).to(default_device())
    options = {**RECIPE, "epochs": settings["epochs"], "seed": settings["seed"], "augment": turn}
    history, beginning = observed_training(model, data, None, only_beginning, **options)
    if only_beginning:
        return {"beginning": beginning}
    colours = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1).numpy()
    baseline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(colours[train], labels[train])
    logits = logits_of(model, data.test_images)
    return {
        "train_accuracy": history.column("train_accuracy"),
        "score": (logits[:, 1] - logits[:, 0]).tolist(),
        "score_of_colours": baseline.decision_function(colours[test]).tolist(),
        "cracked": labels[test].tolist(),
        "photograph": photographs[test].tolist(),
        "beginning": beginning,
    }


DRAWN_CRACKS = Experiment(
    "cracks-drawn",
    "ResNet-18 from random weights on 1,800 drawn pictures of six classes, 12 epochs, three seeds.",
    "draw_cracks: seed 0 to train on, 1 for validation, 2 for the test, 48x48 pixels",
    [{"seed": seed, "epochs": 12} for seed in range(3)],
    measure_drawn,
    threads=2,
)
DECK_CRACKS = Experiment(
    "cracks-deck",
    "ResNet-18 from random weights on real tiles of one bridge deck, split by tile: each fifth is the test once.",
    "400 tiles of SDNET2018 (CC BY 4.0), 200 CD from six photographs and 200 UD from one of these; scaled to 64x64",
    [{"fold": fold, "seed": 0, "epochs": 30} for fold in range(5)],
    measure_deck,
    threads=2,
)
