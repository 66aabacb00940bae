"""Drawing weights again: their variance against the closed form, and the same numbers as PyTorch's own calls."""

import math

import pytest
import torch
from conftest import assert_states_equal
from resbook import Bottleneck, cifar_resnet, initialize, resnet18
from resbook.initialization import SCHEMES
from torch import nn

# The calls as a reader would write them.
BY_HAND = {
    "default": lambda conv: conv.reset_parameters(),
    "xavier": lambda conv: nn.init.xavier_normal_(conv.weight),
    "he": lambda conv: nn.init.kaiming_normal_(conv.weight),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_variance(scheme, groups):
    """64 to 256 channels, 3x3: so many weights that chance moves the variance by less than 3 %."""
    conv = nn.Conv2d(64, 256, 3, groups=groups)
    assert initialize(conv, scheme) is conv
    fan_in, fan_out = 64 // groups * 9, 256 * 9
    expected = {"default": 1 / (3 * fan_in), "xavier": 2 / (fan_in + fan_out), "he": 2 / fan_in}[scheme]
    assert conv.weight.var().item() == pytest.approx(expected, rel=0.03)
    assert abs(conv.weight.mean().item()) < 5 * math.sqrt(expected / conv.weight.numel())


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_same_numbers_as_by_hand(scheme, norm):
    """Every convolution, in the order of modules(), and nothing else; and the generator is left where it would be."""
    networks, following = [], []
    for draw in (lambda model: initialize(model, scheme), lambda model: convolutions(model, BY_HAND[scheme])):
        torch.manual_seed(3)
        networks.append(cifar_resnet(20, norm=norm, shortcut="B"))
        draw(networks[-1])
        following.append(torch.rand(()))
    assert_states_equal(*(network.state_dict() for network in networks))
    assert following[0] == following[1]


def convolutions(model, draw):
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        draw(conv)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_biases(scheme):
    """Without normalisation convolutions have biases: zero in a new network, drawn again by PyTorch's default only."""
    model = initialize(cifar_resnet(8, norm=nn.Identity), scheme)
    biases = [module.bias for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(biases) == 7
    assert all(bool(bias.any()) is (scheme == "default") for bias in biases)
    conv = nn.Conv2d(3, 4, 3)
    before = conv.bias.clone()
    assert torch.equal(initialize(conv, scheme).bias, before) is (scheme != "default")


@pytest.mark.parametrize("order", ["original", "preactivation"])
@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_init_is_kept(scheme, norm, order):
    """Each block still starts as its shortcut; its first convolution is drawn as without zero_init."""
    networks = []
    for zero_init in (False, True):
        torch.manual_seed(3)
        model = cifar_resnet(20, norm=norm, order=order, zero_init=zero_init)
        networks.append(initialize(model, scheme))
    x = torch.randn(2, 16, 8, 8).relu()
    drawn, zeroed = (network.layer1[1] for network in networks)
    assert torch.equal(zeroed(x), x) and not torch.equal(drawn(x), x)
    assert torch.equal(drawn.conv1.weight, zeroed.conv1.weight)


def test_zero_init_of_a_bottleneck_and_a_block_alone():
    block = initialize(Bottleneck(16, 4, norm=nn.Identity, zero_init=True), "he")
    assert not block.conv3.weight.any() and block.conv1.weight.any()


def test_linear_layers_and_normalisations_keep_what_they_have():
    model = resnet18(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = initialize(model, "xavier").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_errors():
    conv = nn.Conv2d(3, 4, 3)
    before = conv.weight.clone()
    for scheme in ("He", None, ["he"]):
        with pytest.raises(ValueError, match=r"scheme must be one of 'default', 'xavier', 'he', got"):
            initialize(conv, scheme)
    with pytest.raises(TypeError, match="model must be a module, got Parameter"):
        initialize(conv.weight, "he")
    assert torch.equal(conv.weight, before)
