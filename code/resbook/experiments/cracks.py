"""ResNet-18 from random weights on pictures of cracks: drawn ones, and real tiles of bridge decks."""

import copy
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from resbook.cracks import CRACK_CLASSES, draw_cracks
from resbook.data import Data, normalise
from resbook.device import default_device
from resbook.experiments.base import Experiment, observed_training
from resbook.gradcam import grad_cam, heat_inside, peak_inside
from resbook.images import list_classes, read_pictures
from resbook.networks import resnet18
from resbook.recipes import one_cycle, turn
from resbook.records import digits_of

RECIPE = {"lr": 0.02, "batch_size": 32, "schedule": one_cycle}
LAYERS = ("conv1", "layer1", "layer2", "layer3")  # 24, 12, 6 and 3 positions a side; layer4 has 2
SHOWN = 6  # pictures whose maps are in the record
VISIBLE = 0.05  # what a crack must take from a pixel, of a brightness from 0 to 1, to count as crack there


class Contrast(nn.Module):
    """From six logits, each less that of the same surface in the other state: why cracked and not intact?"""

    def forward(self, logits):
        return logits - logits[:, [1, 0, 3, 2, 5, 4]]


@torch.no_grad()
def logits_of(model, images):
    """Return a network's logits in evaluation mode, a batch at a time, on the CPU."""
    model.eval()
    return torch.cat([model(batch.to(default_device())) for batch in images.split(200)]).cpu()


def where_it_looked(model, images, classes, mask):
    """Return for each question and layer how Grad-CAM's heat lies on the cracks, and the maps of a few pictures.

    The heat on the crack is in multiples of what its area would get by chance, a mean over the pictures whose map has
    any heat; the peak is the share of these whose hottest position has crack in it. Beside it stand, of all pictures,
    the share that chance would reach and the number of maps without heat.
    """
    heat, maps = {}, {}
    for question, last in {"class": nn.Identity(), "contrast": Contrast()}.items():
        asked, of = nn.Sequential(model, last), (images.to(default_device()), classes.to(default_device()))
        for layer in LAYERS:
            found = grad_cam(asked, *of, f"0.{layer}").cpu()
            (inside, area), (hit, chance) = heat_inside(found, mask), peak_inside(found, mask)
            heat[f"{question}, {layer}"] = {
                "heat": (inside / area).nanmean().item(),
                "peak": hit.nanmean().item(),
                "peak_by_chance": chance.mean().item(),
                "without_heat": hit.isnan().sum().item(),
            }
            if layer == "layer1":
                few = found[:SHOWN] / found[:SHOWN].amax((1, 2), keepdim=True).clamp(min=1e-30)
                maps[question] = digits_of(few.tolist(), 2)
    return {"on_crack": heat, "maps": maps}


def measure_drawn(settings, folder=None, root=None, only_beginning=False):
    """Train ResNet-18 on 1,800 drawn pictures; record its logits for others, and where Grad-CAM says it looked.

    Validation and test have 600 pictures each; the last logits are of the 300 cracked test pictures with their cracks
    filled. Grad-CAM is asked about the cracked test pictures that it classifies rightly, and on the same pictures
    about the network before its training. The training keeps a checkpoint in ``folder``; without
    ``only_beginning``, there must be one.
    """
    train, labels = draw_cracks(1800, 48, seed=0)
    (validation, validation_labels), (test, test_labels) = (draw_cracks(600, 48, seed=seed) for seed in (1, 2))
    healed, _ = draw_cracks(600, 48, seed=2, healed=True)
    train, others = normalise(train, torch.cat([validation, test, healed]))
    validation, images, healed_images = others.split(600)
    data = Data(train, labels, validation, validation_labels, CRACK_CLASSES)
    torch.manual_seed(settings["seed"])
    model = resnet18(num_classes=len(CRACK_CLASSES)).to(default_device())
    untrained = copy.deepcopy(model)
    options = {**RECIPE, "epochs": settings["epochs"], "seed": settings["seed"], "augment": turn}
    _, beginning = observed_training(copy.deepcopy(model), data, only_beginning=True, **options)
    if only_beginning:
        return {"beginning": beginning}
    history, _ = observed_training(model, data, checkpoint=Path(folder) / f"{settings['seed']}.pt", **options)
    logits = {"validation": validation, "test": images, "healed": healed_images[1::2]}
    logits = {name: logits_of(model, of) for name, of in logits.items()}
    chosen = ((test_labels % 2 == 1) & (logits["test"].argmax(1) == test_labels)).nonzero().flatten()
    mask = (healed - test)[chosen].amax(1) > VISIBLE
    asked = images[chosen], test_labels[chosen], mask
    return {
        "train_accuracy": history.column("train_accuracy"),
        "validation_accuracy": history.column("test_accuracy"),
        "logits": {name: digits_of(values.tolist(), 3) for name, values in logits.items()},
        "shown": chosen[:SHOWN].tolist(),
        "trained": where_it_looked(model, *asked),
        "random weights": where_it_looked(untrained, *asked),
        "beginning": beginning,
    }


def measure_deck(settings, folder=None, root=None, only_beginning=False):
    """Train ResNet-18 on four fifths of the tiles; record what it says of the rest, with their photographs.

    Beside it a logistic regression on six colour numbers, mean and deviation of red, green and blue. The fifths are
    drawn from the *tiles*, as one should not: see the chapter.
    """
    if root is None:
        raise ValueError("root must be the folder of the deck's tiles, with CD and UD in it; got none")
    images, listing = read_pictures(list_classes(root, lambda path: path.stem.split("-")[0]), size=64)
    found = len(listing.paths), len(set(listing.photographs))
    if found != (400, 6):  # what the record says it was made of
        raise ValueError(
            f"root must have the deck's 400 tiles from 6 photographs; {root} has {found[0]} from {found[1]}"
        )
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
    "ResNet-18 from random weights on real tiles of bridge decks, split by tile: each fifth is the test once.",
    "400 tiles of SDNET2018 (CC BY 4.0), 200 CD from six photographs and 200 UD from one of these; scaled to 64x64",
    [{"fold": fold, "seed": 0, "epochs": 30} for fold in range(5)],
    measure_deck,
    threads=2,
)
