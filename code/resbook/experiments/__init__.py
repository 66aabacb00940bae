"""The experiments on record: ``python -m resbook.experiments`` lists them, with a name it repeats one."""

from resbook.experiments.digits import DEGRADATION, LEARNING_RATES, NO_NORMALISATION, ZERO_GAMMA

EXPERIMENTS = {
    experiment.name: experiment for experiment in (DEGRADATION, LEARNING_RATES, ZERO_GAMMA, NO_NORMALISATION)
}
