"""The networks, against torchvision's and against a CIFAR network written a second time. Equalities of networks are
exact: the same operations in the same order on the same values.
"""

from urllib.error import URLError

import pytest
import resbook
import torch
import torch.nn.functional as F
import torchvision
from conftest import assert_states_equal, gradients_of, randomize_
from resbook import BasicBlock, BatchNorm2d, Bottleneck, ResNet, cifar_resnet, resnet18, resnet34
from resbook.blocks import ORDERS
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.feature_extraction import create_feature_extractor

# Parameters with 1000 classes, computed with torchvision 0.28 (the table "torchvision, 224x224, 1000 classes").
IMAGENET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
# Parameters with 10 classes of option A (and plain) and of option B; He et al. 2016, Table 6, gives 0.27, 0.46, 0.66,
# 0.85, 1.7 and 19.4 million.
CIFAR = {
    20: (269_722, 272_474),
    32: (464_154, 466_906),
    44: (658_586, 661_338),
    56: (853_018, 855_770),
    110: (1_727_962, 1_730_714),
    1202: (19_421_274, 19_424_026),
}
SIZES = {"resnet101": [33], "resnet152": [33]}  # the others run at three


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module", params=IMAGENET)
def pair(request):
    """Our network and torchvision's of the same name, from the same seed; tests may change them."""
    networks = []
    for library in (resbook, torchvision.models):
        torch.manual_seed(2)
        networks.append(getattr(library, request.param)())
    networks[0].name = request.param
    return networks


def test_same_seed_same_weights(pair):
    """Must come first: the tests that follow change the weights."""
    ours, theirs = pair
    assert_states_equal(ours.state_dict(), theirs.state_dict())
    assert count(ours) == IMAGENET[ours.name]


def test_state_dicts_fit_either_way(pair):
    ours, theirs = pair
    randomize_(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_states_equal(ours.state_dict(), theirs.state_dict())
    randomize_(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_states_equal(ours.state_dict(), theirs.state_dict())


def test_equal_torchvisions(pair):
    """Logits in evaluation; logits, all gradients and the running statistics of a training step."""
    ours, theirs = pair
    theirs.load_state_dict(randomize_(ours).state_dict())
    for size in SIZES.get(ours.name, [33, 64, 97]):
        images, labels = torch.randn(2, 3, size, size), torch.tensor([3, 141])
        with torch.no_grad():
            assert torch.equal(ours.eval()(images), theirs.eval()(images))
        logits = [network.train()(images) for network in pair]
        assert torch.equal(*logits)
        for network, output in zip(pair, logits, strict=True):
            network.zero_grad()
            F.cross_entropy(output, labels).backward()
        assert_states_equal(gradients_of(ours), gradients_of(theirs))
        assert_states_equal(ours.state_dict(), theirs.state_dict())


def test_counts_with_other_shortcuts():
    """Six classes; plain and option A, which save the projections; option C, which has 13 more (He et al., Table 3)."""
    with torch.device("meta"):
        assert count(resnet18(6)) == 11_179_590
        for plain in ({"residual": False}, {"shortcut": "A"}):
            assert count(resnet18(**plain)) == 11_689_512 - 173_824 == 11_515_688
            assert count(resnet34(**plain)) == 21_797_672 - 173_824 == 21_623_848
        assert count(resnet34(shortcut="C")) == 21_797_672 + 919_168
        assert count(resbook.resnet50(shortcut="A")) == 25_557_032 - 2_776_576


@pytest.mark.parametrize("depth", CIFAR)
def test_cifar_counts(depth):
    with torch.device("meta"):
        assert count(cifar_resnet(depth)) == count(cifar_resnet(depth, residual=False)) == CIFAR[depth][0]
        network = cifar_resnet(depth, shortcut="B")
    assert count(network) == CIFAR[depth][1]
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.shape[2:] != (1, 1)]
    assert len(layers) == depth  # layers with weights, projections not counted


def reference_cifar(state, images, residual, training):
    """A second, functional implementation of the CIFAR networks of He et al. 2016, section 4.2, with option A."""

    def conv_bn(x, conv, bn, stride=1):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, gamma, beta = (state[f"{bn}.{s}"] for s in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean.clone(), var.clone(), gamma, beta, training)

    x = conv_bn(images, "conv1", "bn1").relu()
    for name in dict.fromkeys(key.rsplit(".", 2)[0] for key in state if key.startswith("layer")):
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        y = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
        y = conv_bn(y, f"{name}.conv2", f"{name}.bn2")
        if residual and stride == 2:
            half = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
            x = torch.cat([half, x[:, :, ::2, ::2], half], 1)
        x = (y + x if residual else y).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize(("depth", "size"), [(20, 32), (32, 19)])
def test_cifar_equals_the_reference(depth, size, residual, training):
    """To rounding of float32: the mean and the last matrix product are summed in another order."""
    network, images = randomize_(cifar_resnet(depth, residual=residual)), torch.randn(2, 3, size, size)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    expected = reference_cifar(state, images, residual, training)
    torch.testing.assert_close(network.train(training)(images), expected, rtol=1e-4, atol=1e-4)


def test_plain_and_residual_start_from_the_same_weights():
    states = []
    for residual in (False, True):
        torch.manual_seed(3)
        states.append(cifar_resnet(20, residual=residual).state_dict())
    assert_states_equal(*states)


@pytest.mark.parametrize(
    ("build", "size", "channels"),
    [(lambda **o: cifar_resnet(20, **o), 16, 64), (resnet18, 40, 512), (resbook.resnet50, 40, 2048)],
)
def test_preactivation_networks(build, size, channels):
    """The stem normalises before the first block, and one more normalisation comes after the last."""
    network = build(num_classes=7, order="preactivation")
    assert network.bn_last.num_features == channels
    assert isinstance(network.layer1[0].bn1, nn.Identity)
    images = torch.randn(2, 3, size, size)
    logits = network(images)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    seen = []
    network.bn_last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = network(images)
    assert torch.equal(logits, network.fc(network.avgpool(seen[0].relu()).flatten(1)))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("order", ORDERS)
def test_networks_of_every_order(block, order):
    """Plain and residual from the same weights; a pre-activation network activates once more after its last block."""
    networks = []
    for residual in (False, True):
        torch.manual_seed(3)
        options = {"widths": (8, 16), "stem": "cifar", "shortcut": "A", "residual": residual, "order": order}
        networks.append(ResNet(block, (2, 2), 5, **options))
    assert_states_equal(*(network.state_dict() for network in networks))
    for network in networks:
        outputs = []
        network.layer2.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output))
        logits = network(torch.randn(3, 3, 12, 12))
        x = network.bn_last(outputs[0]) if order == "preactivation" else outputs[0]
        x = x.relu() if order in ("preactivation", "relu-only-preactivation") else x
        assert torch.equal(logits, network.fc(network.avgpool(x).flatten(1)))
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("order", ORDERS)
def test_torchvisions_names_in_every_order(order):
    """The same modules in all; with "preactivation", the first block's first normalisation is after the last block."""
    ours = {name.rsplit(".", 1)[0] for name in cifar_resnet(8, order=order).state_dict()}
    original = {name.rsplit(".", 1)[0] for name in cifar_resnet(8).state_dict()}
    changes = {"bn_last", "layer1.0.bn1"} if order == "preactivation" else set()
    assert ours ^ original == changes


def test_zero_init_makes_every_block_its_shortcut():
    network, x = cifar_resnet(20, zero_init=True), torch.rand(2, 16, 8, 8)
    assert torch.equal(network.layer1(x), x)  # x is positive: the ReLU changes nothing


def test_options_reach_every_block():
    network = cifar_resnet(20, norm=BatchNorm2d, widths=(4, 8, 16), in_channels=1, num_classes=3)
    norms = [m for m in network.modules() if "Norm" in type(m).__name__]
    assert len(norms) == 19 and all(type(m) is BatchNorm2d for m in norms)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert all(m.bias is not None for m in cifar_resnet(20, norm=nn.Identity).modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_our_batch_norm_gives_the_same_network(training):
    """To rounding of float32, which grows over 20 normalised layers."""
    networks = []
    for norm in (BatchNorm2d, nn.BatchNorm2d):
        torch.manual_seed(4)
        networks.append(cifar_resnet(20, norm=norm).train(training))
    images = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(*(network(images) for network in networks), rtol=1e-3, atol=1e-3)


# Pretrained weights, without a network: what torchvision would download is put in its place.


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT", torchvision.models.ResNet18_Weights.DEFAULT])
def test_weights_are_loaded(monkeypatch, weights):
    theirs = randomize_(torchvision.models.resnet18())
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: theirs.state_dict())
    assert_states_equal(resnet18(weights=weights, norm=BatchNorm2d).state_dict(), theirs.state_dict())


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError) as raised:
        resnet18(weights="IMAGENET1K_V1")
    message = str(raised.value)
    for part in ("https://download.pytorch.org", "no route to host", str(tmp_path), "weights=None"):
        assert part in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": "IMAGENET1K_V9"},
            "weights of resnet18 must be one of IMAGENET1K_V1, DEFAULT, got 'IMAGENET1K_V9'",
        ),
        ({"weights": torchvision.models.ResNet50_Weights.IMAGENET1K_V1}, "weights of resnet18 must be one of"),
        ({"weights": "DEFAULT", "num_classes": 6}, "do not fit num_classes=6"),
        ({"weights": "DEFAULT", "residual": False}, "do not fit residual=False"),
        ({"weights": "DEFAULT", "shortcut": "A"}, "do not fit shortcut='A'"),
        ({"weights": "DEFAULT", "order": "preactivation"}, "do not fit order='preactivation'"),
        ({"weights": "DEFAULT", "in_channels": 1}, "do not fit in_channels=1"),
        ({"weights": "DEFAULT", "norm": nn.Identity}, "do not fit norm="),
    ],
)
def test_weights_that_do_not_fit(monkeypatch, options, message):
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **kwargs: pytest.fail("tried to download"))
    with pytest.raises(ValueError) as raised:
        resnet18(**options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: cifar_resnet(21),
            ValueError,
            "6n + 2 and at least 8, got 21; the nearest are 20 and 26",
        ),
        (lambda: cifar_resnet(2), ValueError, "at least 8, got 2; the nearest are 8 and 14"),
        (lambda: cifar_resnet(20.0), TypeError, "depth must be an integer of at least 1, got 20.0"),
        (lambda: cifar_resnet(20, 0), ValueError, "num_classes must be at least 1, got 0"),
        (lambda: resnet18(0), ValueError, "num_classes must be at least 1, got 0"),
        (lambda: resnet18("6"), TypeError, "num_classes must be an integer of at least 1, got '6'"),
        (lambda: resnet18(in_channels=0), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: resnet18(shortcut="D"), ValueError, 'shortcut must be "A", "B" or "C", got \'D\''),
        (lambda: resnet18(order="pre"), ValueError, "order must be one of 'original', 'norm-after-addition', "),
        (lambda: resnet18(order=None), ValueError, "'relu-only-preactivation', 'preactivation', got None"),
        (lambda: resnet18(preactivation=True), TypeError, "preactivation"),
        (
            lambda: cifar_resnet(8, order="relu-before-addition", zero_init=True),
            ValueError,
            'zero_init must be False with order="relu-before-addition", got True',
        ),
        (lambda: ResNet(BasicBlock, (1,), stem="mnist"), ValueError, "stem must be one of 'imagenet', 'cifar', got"),
        (lambda: ResNet(BasicBlock, (1,) * 5), ValueError, "layers must have 1 to 4 counts, at most as many as widths"),
        (
            lambda: ResNet(BasicBlock, ()),
            ValueError,
            "layers must have 1 to 4 counts, at most as many as",
        ),
        (lambda: ResNet(BasicBlock, (1, 0)), ValueError, "layers must be at least 1, got 0"),
        (lambda: cifar_resnet(8, widths=(4, 8.0, 16)), TypeError, "widths must be an integer of at least 1, got 8.0"),
        (lambda: resnet18(norm=8), TypeError, "norm must make a module from a number of channels"),
        (
            lambda: resnet18(norm=None, weights="DEFAULT"),
            TypeError,
            "norm must make a module from a number of channels",
        ),
        (lambda: cifar_resnet(8)(torch.ones(2, 1, 8, 8)), ValueError, "shape (N, 3, H, W), got (2, 1, 8, 8)"),
        (lambda: cifar_resnet(8)(torch.ones(3, 8, 8)), ValueError, "shape (N, 3, H, W), got (3, 8, 8)"),
        (lambda: cifar_resnet(8, strides=2), TypeError, "strides"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_feature_extractors_work():
    extract = create_feature_extractor(resnet18(), ["layer4"])
    assert extract(torch.zeros(1, 3, 64, 64))["layer4"].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("options", [{"stem": "cifar"}, {"widths": (8, 16, 32, 64)}])
def test_options_that_weights_do_not_fit_are_refused_before_any_download(options):
    with pytest.raises(ValueError, match=f"do not fit {next(iter(options))}="):
        resnet18(weights="DEFAULT", **options)
