"""Experiments on scikit-learn's digits: small, real, and done by one processor core in seconds to minutes a run."""

import torch
from torch import nn

from resbook.anatomy import layer_responses, lesions
from resbook.data import digits
from resbook.device import default_device
from resbook.experiments.base import Experiment, observed_training
from resbook.gradients import trace_gradients
from resbook.initialization import initialize
from resbook.networks import cifar_resnet

DATA = "scikit-learn's digits: 1,437 images of 8x8 pixels to train on, 360 to test, split by digits(seed=0)"


class Scale(nn.Module):
    """A learnable factor in place of a branch's last normalisation (SkipInit, De and Smith 2020: it starts at 0)."""

    def __init__(self, start):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(start)))

    def forward(self, x):
        return self.factor * x


def build(depth, kind, *, seed, norm="batch", init="he", zero_gamma=False, skip_init=False):
    """Return a plain or residual network for the digits, the same weights for both kinds from one seed."""
    torch.manual_seed(seed)
    options = {"norm": nn.Identity} if norm == "none" else {"zero_init": zero_gamma}
    model = cifar_resnet(depth, in_channels=1, residual=kind == "residual", **options)
    if init != "he":
        initialize(model, init)
    if skip_init:
        for block in (block for stage in model.stages for block in model.get_submodule(stage)):
            block.bn2 = Scale(0.0)
    return model


def measure(settings, folder=None, root=None, only_beginning=False):
    """Train one network on the digits and return its curves; see :class:`resbook.experiments.base.Experiment`.

    ``"gradients"`` holds, before every epoch and after the last, for the first 64 training digits in training mode,
    the four numbers of :meth:`resbook.GradientTrace.ends`.
    """
    settings = dict(settings)
    seed, lr, epochs, anatomy = (settings.pop(name) for name in ("seed", "lr", "epochs", "anatomy"))
    model, data = (part.to(default_device()) for part in (build(seed=seed, **settings), digits()))
    probe, gradients = (data.train_images[:64], data.train_labels[:64]), []
    per_epoch = len(data.train_images) // 64

    def observe(step, model):
        if step % per_epoch == 0:
            gradients.append(trace_gradients(model, *probe).ends())

    history, beginning = observed_training(
        model, data, observe, only_beginning, epochs=epochs, lr=lr, batch_size=64, seed=seed
    )
    if only_beginning:
        return {"beginning": beginning}
    if history.diverged is None:
        gradients.append(trace_gradients(model.train(), *probe).ends())
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    results = {name: history.column(name) for name in names}
    results |= {"gradients": gradients, "beginning": beginning, "diverged": history.diverged}
    if anatomy:
        results["responses"] = layer_responses(model, data.train_images)
        results["lesions"] = lesions(model, data.test_images, data.test_labels)
    return results


def _runs(networks, rates, *, epochs, seeds, anatomy=lambda lr: False, **options):
    return [
        {"depth": depth, "kind": kind, "lr": lr, "seed": seed, "epochs": epochs, "anatomy": anatomy(lr), **options}
        for seed in seeds
        for lr in rates
        for depth, kind in networks
    ]


PLAIN = [(depth, "plain") for depth in (20, 32, 44, 56)]
RESIDUAL = [(depth, "residual") for depth in (20, 32, 44, 56, 110)]
WITHOUT = {"norm": "none", "seeds": range(3), "epochs": 10}

DEGRADATION = Experiment(
    "degradation-digits",
    "Plain and residual networks of growing depth, 20 epochs at three constant learning rates, five seeds.",
    DATA,
    _runs(PLAIN + RESIDUAL, (0.01, 0.1, 0.001), epochs=20, seeds=range(5), anatomy=lambda lr: lr == 0.01),
    measure,
)
LEARNING_RATES = Experiment(
    "learning-rates-digits",
    "Plain-20 and ResNet-20, ten epochs at eight constant learning rates, three seeds.",
    DATA,
    _runs(
        [(20, "plain"), (20, "residual")],
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        epochs=10,
        seeds=range(3),
    ),
    measure,
)
ZERO_GAMMA = Experiment(
    "zero-gamma-digits",
    "ResNet-110 whose residual branches start at zero, 20 epochs at rate 0.1, five seeds.",
    DATA,
    _runs([(110, "residual")], (0.1,), epochs=20, seeds=range(5), zero_gamma=True),
    measure,
)
NO_NORMALISATION = Experiment(
    "no-normalisation-digits",
    "Networks without normalisation, from two initialisations, with and without SkipInit; ten epochs, three seeds.",
    DATA,
    [
        *_runs([(20, "plain"), (56, "plain"), (56, "residual")], (0.01,), init="default", **WITHOUT),
        *_runs([(20, "plain"), (56, "plain"), (56, "residual")], (0.01,), init="he", **WITHOUT),
        *_runs([(56, "residual")], (0.01, 0.1), init="he", skip_init=True, **WITHOUT),
    ],
    measure,
)
