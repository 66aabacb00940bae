"""Looking into trained networks, against networks whose answers are known and hooks on all images at once."""

import copy

import pytest
import torch
import torchvision
from conftest import assert_states_equal, randomize_
from resbook.anatomy import layer_responses, lesions
from resbook.blocks import ORDERS, Bottleneck
from resbook.networks import ResNet, cifar_resnet, resnet18
from resbook.training import evaluate
from torch import nn


def probe(count=40):
    return torch.randn(count, 3, 8, 8), torch.randint(10, (count,))


def make_undecided(model, images):
    """Shift a network's logits to mean 0, so that its answers differ from image to image, and return it."""
    with torch.no_grad():
        model.fc.bias -= model.eval()(images).mean(0)
    return model


def answers(model, images):
    """Return a network's own answers as labels, so that every answer that changes is counted."""
    with torch.no_grad():
        return model.eval()(images).argmax(1)


def accuracy(model, images, labels):
    return (answers(model, images) == labels).float().mean().item()


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "relu-before-addition"])
def test_a_block_whose_branch_puts_out_zeros_is_not_missed(order):
    images, _ = probe()
    model = make_undecided(cifar_resnet(20, zero_init=True, order=order), images)
    assert lesions(model, images, answers(model, images)) == [1.0] * 9


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_residual_block_without_its_branch_is_its_shortcut(order, shortcut):
    """Compared with copies in which the branch is multiplied by zero, by a hook on its last layer."""
    images, _ = probe()
    model = make_undecided(randomize_(cifar_resnet(20, order=order, shortcut=shortcut)), images)
    labels, expected = answers(model, images), []
    for name, block in model.named_modules():
        if hasattr(block, "branch"):
            lamed = copy.deepcopy(model)
            bare = order in ("norm-after-addition", "preactivation")
            last = lamed.get_submodule(f"{name}.{'conv2' if bare else 'bn2'}")
            last.register_forward_hook(lambda layer, inputs, output: 0 * output)
            expected.append(accuracy(lamed, images, labels))
    assert lesions(model, images, labels) == expected
    assert min(expected) < 1 and len(expected) == 9


@pytest.mark.parametrize("order", ORDERS)
def test_a_plain_block_is_taken_out_whole_unless_it_changes_the_shape(order):
    images, _ = probe()
    model = make_undecided(randomize_(cifar_resnet(20, order=order, residual=False)), images)
    labels, expected = answers(model, images), []
    for stage in model.stages:
        for i in range(3):
            without = copy.deepcopy(model)
            without.get_submodule(stage)[i] = nn.Identity()
            changes = i == 0 and stage != "layer1"
            expected.append(None if changes else accuracy(without, images, labels))
    assert lesions(model, images, labels) == expected
    assert min(share for share in expected if share is not None) < 1


def test_a_plain_block_that_is_an_identity_is_not_missed():
    model, (images, _) = cifar_resnet(8, residual=False, norm=nn.Identity), probe()
    for layer in (model.layer1[0].conv1, model.layer1[0].conv2):
        nn.init.dirac_(layer.weight)  # its input is what a ReLU has let through, so its own ReLUs change nothing
    make_undecided(model, images)
    assert lesions(model, images, answers(model, images)) == [1.0, None, None]
    nn.init.normal_(model.layer1[0].conv2.weight)
    assert lesions(model, images, answers(model, images))[0] < 1


def test_a_stride_inside_a_plain_bottleneck_is_seen():
    model = ResNet(Bottleneck, [2, 2], 10, widths=(4, 4), stem="cifar", residual=False)
    found = lesions(model, *probe())
    assert [share is None for share in found] == [True, False, True, False]  # channels; stride in the middle


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("as arranged")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_network_is_as_it_was_also_after_an_exception(residual, fails):
    model, (images, labels) = randomize_(cifar_resnet(8, residual=residual)), probe()
    with torch.no_grad():
        expected = model.eval()(images)
    state, names = copy.deepcopy(model.state_dict()), [set(vars(module)) for module in model.modules()]
    if fails:
        pooling, model.avgpool = model.avgpool, Fails()
        for function, arguments in ((lesions, (images, labels)), (layer_responses, (images,))):
            with pytest.raises(RuntimeError, match="as arranged"):
                function(model, *arguments)
        model.avgpool = pooling
    else:
        lesions(model, images, labels)
        layer_responses(model, images)
    assert_states_equal(model.state_dict(), state)
    assert [set(vars(module)) for module in model.modules()] == names
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(images), expected)


def test_lesions_are_shares_of_right_answers():
    model, (images, labels) = randomize_(cifar_resnet(8)), probe()
    found = lesions(model, images, labels)
    model.layer2[0].branch = lambda x: 0 * model.layer2[0].downsample(x)
    assert found[1] == evaluate(model, images, labels)[1]


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"norm": nn.Identity}, {"shortcut": "B"}], ids=str)
@pytest.mark.parametrize("batch_size", [7, 500])
def test_responses_are_deviations_of_what_the_layers_put_out(options, batch_size):
    model, (images, _) = randomize_(cifar_resnet(20, **options)), probe()
    outputs, twin = [], copy.deepcopy(model).eval()
    for stage in twin.stages:
        for block in twin.get_submodule(stage):
            for layer in (block.bn1, block.bn2):
                layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.double()))
    with torch.no_grad():
        twin(images)
    expected = [output.std(correction=0).item() for output in outputs]
    assert len(expected) == 18 and layer_responses(model.train(), images, batch_size) == pytest.approx(expected)
    assert not model.training


def test_a_layer_that_always_says_the_same_has_no_response():
    model = cifar_resnet(8, zero_init=True)
    nn.init.constant_(model.layer1[0].bn2.bias, 0.1)
    responses = layer_responses(model, probe()[0])
    assert responses[1] == pytest.approx(0, abs=1e-7) and responses[3] == 0 and responses[0] > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (cifar_resnet(8, order="preactivation"), "in the original order, got BasicBlock, order 'preactivation'"),
        (ResNet(Bottleneck, [1], stem="cifar"), "must have basic blocks in the original order, got Bottleneck"),
        (torchvision.models.resnet18(), "blocks of this package, resbook.Block; there is none in ResNet"),
        (nn.Linear(3, 3), "blocks of this package, resbook.Block; there is none in Linear"),
    ],
    ids=["order", "bottleneck", "torchvision", "linear"],
)
def test_other_networks_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        layer_responses(model, probe()[0])


def test_networks_without_blocks_have_none_to_take_out():
    with pytest.raises(ValueError, match="blocks of this package, resbook.Block; there is none in ResNet"):
        lesions(torchvision.models.resnet18(), *probe())
    assert len(lesions(resnet18(num_classes=10), *probe(4))) == 8
