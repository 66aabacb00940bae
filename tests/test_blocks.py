"""The blocks, against torchvision's blocks and against their formulas written out. Equalities are exact throughout:
the same operations in the same order on the same values.
"""

import itertools

import pytest
import torch
from conftest import assert_states_equal, gradients_of, randomize_
from resbook import BasicBlock, Bottleneck, Shortcut
from torch import nn
from torchvision.models import resnet as torchvision_resnet

relu = torch.relu
BLOCKS = pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
PREACTIVATION = pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
# A stride and the input channels, for a block with 8 output channels: an identity, two ways to change the shape.
SHAPES = pytest.mark.parametrize(("stride", "channels"), [(1, 8), (2, 8), (2, 4)])


def make(kind, channels, stride=1, **options):
    """Return a block with 8 output channels, seeded, with arbitrary normalisations, in training mode."""
    torch.manual_seed(1)
    return randomize_(kind(channels, 8 // kind.expansion, stride, **options))


def images(channels, size=7):
    return torch.randn(3, channels, size, size)


def branch(block, x):
    """The branch by its formula; for pre-activation, from the activated input on."""
    b = block
    if isinstance(block, BasicBlock):
        return b.conv2(relu(b.bn2(b.conv1(x)))) if b.preactivation else b.bn2(b.conv2(relu(b.bn1(b.conv1(x)))))
    if b.preactivation:
        return b.conv3(relu(b.bn3(b.conv2(relu(b.bn2(b.conv1(x)))))))
    return b.bn3(b.conv3(relu(b.bn2(b.conv2(relu(b.bn1(b.conv1(x))))))))


def padded(x, channels, stride):
    """Option A by hand: copy every stride-th pixel between two halves of zero channels."""
    kept = x[:, :, ::stride, ::stride]
    before = (channels - x.shape[1]) // 2
    output = torch.zeros(len(x), channels, *kept.shape[2:])
    output[:, before : before + x.shape[1]] = kept
    return output


@BLOCKS
@PREACTIVATION
@SHAPES
def test_plain_and_residual_have_the_same_weights(kind, preactivation, stride, channels):
    states = [
        make(kind, channels, stride, residual=residual, shortcut="A", preactivation=preactivation).state_dict()
        for residual in (False, True)
    ]
    assert_states_equal(*states)


@BLOCKS
@SHAPES
@pytest.mark.parametrize("shortcut", "ABC")
def test_post_activation_formula(kind, stride, channels, shortcut):
    block, x = make(kind, channels, stride, shortcut=shortcut), images(channels)
    projection = block.downsample
    around = projection[1](projection[0](x)) if len(projection) else padded(x, 8, stride)
    assert torch.equal(block(x), relu(branch(block, x) + around))


@BLOCKS
@SHAPES
@pytest.mark.parametrize("shortcut", "ABC")
def test_pre_activation_formula(kind, stride, channels, shortcut):
    """The shortcut starts from x where it is an identity, and else from the activated x (He et al. 2016b)."""
    block, x = make(kind, channels, stride, shortcut=shortcut, preactivation=True), images(channels)
    activated, projection = relu(block.bn1(x)), block.downsample
    if len(projection):  # a convolution alone, as in the authors' own code
        assert [type(module) for module in projection] == [nn.Conv2d]
        around = projection[0](activated)
    else:
        around = x if (stride, channels) == (1, 8) else padded(activated, 8, stride)
    assert torch.equal(block(x), branch(block, activated) + around)


@BLOCKS
@PREACTIVATION
def test_plain_formula(kind, preactivation):
    block, x = make(kind, 4, 2, residual=False, preactivation=preactivation), images(4)
    expected = branch(block, relu(block.bn1(x))) if preactivation else relu(branch(block, x))
    assert torch.equal(block(x), expected)
    assert block.downsample is None


@pytest.mark.parametrize(("channels", "stride", "size"), list(itertools.product((3, 4, 8), (1, 2, 3), (7, 8))))
def test_option_a_is_a_padded_copy_without_weights(channels, stride, size):
    shortcut, x = Shortcut(channels, 8, stride, "A"), images(channels, size)
    assert torch.equal(shortcut(x), padded(x, 8, stride))
    assert not shortcut.state_dict()


@pytest.mark.parametrize("option", "ABC")
@SHAPES
def test_which_shortcuts_project(option, stride, channels):
    """B projects where the shape changes, C always, A never."""
    changes = (stride, channels) != (1, 8)
    shortcut = Shortcut(channels, 8, stride, option)
    assert len(shortcut) == (2 if option == "C" or (option == "B" and changes) else 0)
    assert shortcut.is_identity == (not changes and option != "C")
    if len(shortcut):
        assert shortcut[0].weight.shape == (8, channels, 1, 1)
        assert shortcut[0].bias is None
        x = images(channels)
        assert torch.equal(shortcut(x), shortcut[1](shortcut[0](x)))


@pytest.mark.parametrize("name", ["BasicBlock", "Bottleneck"])
@SHAPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_blocks_equal_torchvisions(name, stride, channels, training):
    ours = make({"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[name], channels, stride)
    projection = nn.Sequential(nn.Conv2d(channels, 8, 1, stride, bias=False), nn.BatchNorm2d(8))
    width = 8 // ours.expansion
    changes = (stride, channels) != (1, 8)
    theirs = getattr(torchvision_resnet, name)(channels, width, stride, projection if changes else None)
    theirs.load_state_dict(ours.state_dict())
    inputs = [images(channels).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [block.train(training)(x) for block, x in zip((ours, theirs), inputs, strict=True)]
    assert torch.equal(*outputs)
    cotangent = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(cotangent)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert_states_equal(gradients_of(ours), gradients_of(theirs))
    assert_states_equal(ours.state_dict(), theirs.state_dict())  # the running statistics have moved alike


ZERO_INIT = pytest.mark.parametrize(
    ("kind", "preactivation", "norm"),
    list(itertools.product((BasicBlock, Bottleneck), (False, True), (nn.BatchNorm2d, nn.Identity))),
)


@ZERO_INIT
@SHAPES
def test_zero_init_starts_as_the_shortcut(kind, preactivation, norm, stride, channels):
    block = kind(channels, 8 // kind.expansion, stride, preactivation=preactivation, norm=norm, zero_init=True)
    x = images(channels)
    if preactivation:
        around = x if block.downsample.is_identity else block.downsample(relu(block.bn1(x)))
    else:
        around = relu(block.downsample(x))
    assert torch.equal(block(x), around)


@ZERO_INIT
def test_zero_init_wakes_up(kind, preactivation, norm):
    """The first step moves what was set to zero, the second one all that comes before it."""
    block = kind(8, 8 // kind.expansion, preactivation=preactivation, norm=norm, zero_init=True)
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    x, target = images(8), images(8)
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) - target).square().mean().backward()
        optimizer.step()
    asleep = [name for name, p in block.named_parameters() if torch.equal(p, before[name])]
    assert not asleep


@BLOCKS
@PREACTIVATION
def test_convolutions_have_a_bias_only_without_normalisation(kind, preactivation):
    for norm, bias in ((nn.BatchNorm2d, False), (nn.Identity, True)):
        block = kind(4, 8, 2, preactivation=preactivation, norm=norm)
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == (3 if kind is BasicBlock else 4)
        assert all((c.bias is not None) == bias for c in convolutions)


@BLOCKS
def test_norm_makes_every_normalisation(kind):
    block = kind(4, 8, 2, norm=lambda channels: nn.GroupNorm(2, channels))
    assert not [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in block.modules() if isinstance(m, nn.GroupNorm)]) == (3 if kind is BasicBlock else 4)


@BLOCKS
@PREACTIVATION
@SHAPES
@pytest.mark.parametrize("shortcut", "ABC")
def test_backward_hooks_work_on_every_module(kind, preactivation, stride, channels, shortcut):
    """An addition in place, as torchvision has it, makes PyTorch refuse such hooks."""
    block, x = make(kind, channels, stride, preactivation=preactivation, shortcut=shortcut), images(channels)
    block(x).square().sum().backward()
    expected = {name: gradient.clone() for name, gradient in gradients_of(block).items()}
    block.zero_grad()
    called = set()
    for name, module in block.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: called.add(name))
    block(x.requires_grad_()).square().sum().backward()
    assert called == {name for name, _ in block.named_modules()}
    assert_states_equal(gradients_of(block), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BasicBlock(0, 8), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: Bottleneck(8, -1), ValueError, "width must be at least 1, got -1"),
        (lambda: BasicBlock(8, 8, 0), ValueError, "stride must be at least 1, got 0"),
        (lambda: BasicBlock(8, 8.0), TypeError, "width must be an integer of at least 1, got 8.0"),
        (lambda: BasicBlock(8, 8, shortcut="D"), ValueError, 'shortcut must be "A", "B" or "C", got \'D\''),
        (lambda: BasicBlock(8, 8, shortcut=None, residual=False), ValueError, "got None"),
        (lambda: BasicBlock(8, 4, shortcut="A"), ValueError, 'cannot match 8 channels with 4; use "B" or "C"'),
        (lambda: Shortcut(8, 4, option="A"), ValueError, 'cannot match 8 channels with 4; use "B" or "C"'),
        (lambda: BasicBlock(8, 8, norm=8), TypeError, "norm must make a module from a number of channels"),
        (lambda: Shortcut(8, 8, option="a"), ValueError, 'shortcut must be "A", "B" or "C", got \'a\''),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
