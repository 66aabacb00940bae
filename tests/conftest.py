"""What several test files share: a fixed seed, and the comparison of two networks' states and gradients."""

import pytest
import resbook  # noqa: F401  before any test file imports torchvision
import torch
from hypothesis import settings

# The same examples in every run: a test that failed fails again. (pytest --hypothesis-profile=random draws new ones.)
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("fixed")

# Most tensors here are small: a second thread gains little, and on a busy machine the two wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_states_equal(ours, theirs):
    """Assert that two state dictionaries have the same names in the same order, and exactly the same values."""
    assert list(ours) == list(theirs)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def gradients_of(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def randomize_(module):
    """Give every normalisation of a network a scale, a shift and running statistics of its own."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_mean") or ("bn" in name or "downsample.1" in name) and name.endswith("bias"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var") or ("bn" in name or "downsample.1" in name) and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
    return module
