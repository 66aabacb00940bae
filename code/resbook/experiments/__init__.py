"""The experiments on record: ``python -m resbook.experiments`` lists them, with a name it repeats one."""

from resbook.experiments.augmentation import AUGMENTATION_DIGITS
from resbook.experiments.cifar import DEGRADATION_CIFAR10, PAPER_CIFAR10
from resbook.experiments.cracks import DECK_CRACKS, DRAWN_CRACKS
from resbook.experiments.digits import DEGRADATION, LEARNING_RATES, NO_NORMALISATION, ZERO_GAMMA

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        DEGRADATION,
        LEARNING_RATES,
        AUGMENTATION_DIGITS,
        ZERO_GAMMA,
        NO_NORMALISATION,
        DEGRADATION_CIFAR10,
        PAPER_CIFAR10,
        DRAWN_CRACKS,
        DECK_CRACKS,
    )
}
