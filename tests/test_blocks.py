"""The blocks, against torchvision's blocks and against their formulas written out. Equalities are exact throughout:
the same operations in the same order on the same values.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_states_equal, gradients_of, randomize_
from resbook import BasicBlock, Bottleneck, Shortcut, trace_shapes
from resbook.blocks import ORDERS
from torch import nn
from torchvision.models import resnet as torchvision_resnet

relu = torch.relu
BLOCKS = pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
ORDER = pytest.mark.parametrize("order", ORDERS)
# He et al. 2016b, Fig. 4 (a) to (e), with two convolutions and with three: where a shortcut that is no identity splits
# off, and where it is added. Normalisations have the number of the convolution that they follow or, in (e), precede.
FIGURE = {
    ("original", 2): "split conv1 bn1 relu conv2 bn2 + relu",
    ("original", 3): "split conv1 bn1 relu conv2 bn2 relu conv3 bn3 + relu",
    ("norm-after-addition", 2): "split conv1 bn1 relu conv2 + bn2 relu",
    ("norm-after-addition", 3): "split conv1 bn1 relu conv2 bn2 relu conv3 + bn3 relu",
    ("relu-before-addition", 2): "split conv1 bn1 relu conv2 bn2 relu +",
    ("relu-before-addition", 3): "split conv1 bn1 relu conv2 bn2 relu conv3 bn3 relu +",
    ("relu-only-preactivation", 2): "relu split conv1 bn1 relu conv2 bn2 +",
    ("relu-only-preactivation", 3): "relu split conv1 bn1 relu conv2 bn2 relu conv3 bn3 +",
    ("preactivation", 2): "bn1 relu split conv1 bn2 relu conv2 +",
    ("preactivation", 3): "bn1 relu split conv1 bn2 relu conv2 bn3 relu conv3 +",
}
# A stride and the input channels, for a block with 8 output channels: an identity, two ways to change the shape.
SHAPES = pytest.mark.parametrize(("stride", "channels"), [(1, 8), (2, 8), (2, 4)])


def make(kind, channels, stride=1, **options):
    """Return a block with 8 output channels, seeded, with arbitrary normalisations, in training mode."""
    torch.manual_seed(1)
    return randomize_(kind(channels, 8 // kind.expansion, stride, **options))


def images(channels, size=7):
    return torch.randn(3, channels, size, size)


def reference(order, block, state, x, stride, option):
    """A block by the figure, written a second time, from its weights; ``option`` is None for a plain block."""
    convolutions = 2 if isinstance(block, BasicBlock) else 3
    strided = "conv1" if convolutions == 2 else "conv2"

    def layer(name, x):
        """Convolve or normalise; normalisations that are not there are identities."""
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if weight is None:
            return x
        if weight.dim() == 1:
            return F.batch_norm(x, None, None, weight, bias, training=True)
        by = stride if name in (strided, "downsample.0") else 1
        return F.conv2d(x, weight, bias, by, padding=weight.shape[-1] // 2)

    around, y = x, x
    for step in FIGURE[order, convolutions].split():
        if step == "split":
            if "downsample.0.weight" in state:
                around = layer("downsample.1", layer("downsample.0", y))
            elif option == "A" and (stride, x.shape[1]) != (1, 8):
                around = padded(y, 8, stride)
        elif step == "+":
            y = y if option is None else y + around
        else:
            y = relu(y) if step == "relu" else layer(step, y)
    return y


def padded(x, channels, stride):
    """Option A by hand: copy every stride-th pixel between two halves of zero channels."""
    kept = x[:, :, ::stride, ::stride]
    before = (channels - x.shape[1]) // 2
    output = torch.zeros(len(x), channels, *kept.shape[2:])
    output[:, before : before + x.shape[1]] = kept
    return output


@BLOCKS
@ORDER
@SHAPES
def test_plain_and_residual_have_the_same_weights(kind, order, stride, channels):
    states = [
        make(kind, channels, stride, residual=residual, shortcut="A", order=order).state_dict()
        for residual in (False, True)
    ]
    assert_states_equal(*states)


@BLOCKS
@ORDER
@SHAPES
@pytest.mark.parametrize("option", ["A", "B", "C", None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_orders_are_those_of_the_figure(kind, order, stride, channels, option, norm):
    """The output, and the gradients of the input and of every parameter."""
    block = make(kind, channels, stride, order=order, norm=norm, residual=option is not None, shortcut=option or "B")
    x, parameters = images(channels).requires_grad_(), dict(block.named_parameters())
    outputs = block(x), reference(order, block, parameters, x, stride, option)
    assert torch.equal(*outputs)
    cotangent = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, [x, *parameters.values()], cotangent) for output in outputs]
    assert_states_equal(*(dict(zip(["x", *parameters], values, strict=True)) for values in gradients))
    if option is not None and len(block.downsample):  # normalised, unless the branch ends with a convolution
        bare = order in ("preactivation", "norm-after-addition")
        assert [type(module) for module in block.downsample] == ([nn.Conv2d] if bare else [nn.Conv2d, norm])
    assert (block.downsample is None) == (option is None)


@BLOCKS
@ORDER
@SHAPES
def test_the_trace_has_the_order_of_the_figure(kind, order, stride, channels):
    rows = trace_shapes(kind(channels, 8 // kind.expansion, stride, order=order), (channels, 7, 7)).rows
    names = [row.name or {"add": "+"}[row.operation] for row in rows if not row.name.startswith("downsample")]
    assert " ".join(names) == FIGURE[order, 2 if kind is BasicBlock else 3].replace("split ", "")


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
    ("kind", "order", "norm"),
    [
        case
        for case in itertools.product((BasicBlock, Bottleneck), ORDERS, (nn.BatchNorm2d, nn.Identity))
        if case[1] != "relu-before-addition"
    ],
)


@ZERO_INIT
@SHAPES
def test_zero_init_starts_as_the_shortcut(kind, order, norm, stride, channels):
    block = kind(channels, 8 // kind.expansion, stride, order=order, norm=norm, zero_init=True)
    x, last_norm = images(channels), block.bn2 if kind is BasicBlock else block.bn3
    before = {"relu-only-preactivation": relu, "preactivation": lambda x: relu(block.bn1(x))}
    after = {"original": relu, "norm-after-addition": lambda y: relu(last_norm(y))}
    around = x if block.downsample.is_identity else block.downsample(before.get(order, nn.Identity())(x))
    assert torch.equal(block(x), after.get(order, nn.Identity())(around))


@ZERO_INIT
def test_zero_init_wakes_up(kind, order, norm):
    """The first step moves what was set to zero, the second one all that comes before it."""
    block = kind(8, 8 // kind.expansion, order=order, norm=norm, zero_init=True)
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    zeroed = [name for name, p in before.items() if name.endswith("weight") and not p.any()]
    assert len(zeroed) == 1
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    x, target = images(8), images(8)
    for step in range(2):
        optimizer.zero_grad()
        (block(x) - target).square().mean().backward()
        optimizer.step()
        asleep = [name for name, p in block.named_parameters() if torch.equal(p, before[name])]
        assert not set(asleep) & set(zeroed) if step == 0 else not asleep


@BLOCKS
@ORDER
def test_convolutions_have_a_bias_only_without_normalisation(kind, order):
    for norm, bias in ((nn.BatchNorm2d, False), (nn.Identity, True)):
        block = kind(4, 8, 2, order=order, norm=norm)
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == (3 if kind is BasicBlock else 4)
        assert all((c.bias is not None) == bias for c in convolutions)


@BLOCKS
def test_norm_makes_every_normalisation(kind):
    block = kind(4, 8, 2, norm=lambda channels: nn.GroupNorm(2, channels))
    assert not [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in block.modules() if isinstance(m, nn.GroupNorm)]) == (3 if kind is BasicBlock else 4)


@BLOCKS
@ORDER
@SHAPES
@pytest.mark.parametrize("shortcut", "ABC")
def test_backward_hooks_work_on_every_module(kind, order, stride, channels, shortcut):
    """An addition in place, as torchvision has it, makes PyTorch refuse such hooks."""
    block, x = make(kind, channels, stride, order=order, shortcut=shortcut), images(channels)
    block(x).square().sum().backward()
    expected = {name: gradient.clone() for name, gradient in gradients_of(block).items()}
    block.zero_grad()
    called = set()
    for name, module in block.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: called.add(name))
    block(x.requires_grad_()).square().sum().backward()
    assert called == {name for name, _ in block.named_modules()}
    assert_states_equal(gradients_of(block), expected)


ORDER_NAMES = "'original', 'norm-after-addition', 'relu-before-addition', 'relu-only-preactivation', 'preactivation'"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BasicBlock(0, 8), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: Bottleneck(8, -1), ValueError, "width must be at least 1, got -1"),
        (lambda: BasicBlock(8, 8, 0), ValueError, "stride must be at least 1, got 0"),
        (lambda: BasicBlock(8, 8.0), TypeError, "width must be an integer of at least 1, got 8.0"),
        (lambda: BasicBlock(8, 8, shortcut="D"), ValueError, 'shortcut must be "A", "B" or "C", got \'D\''),
        (lambda: BasicBlock(8, 8, shortcut=None, residual=False), ValueError, "got None"),
        (lambda: BasicBlock(8, 8, order="post"), ValueError, f"order must be one of {ORDER_NAMES}, got 'post'"),
        (lambda: BasicBlock(8, 8, order=True), ValueError, f"order must be one of {ORDER_NAMES}, got True"),
        (lambda: Bottleneck(8, 2, order=["original"]), ValueError, "got ['original']"),
        (lambda: Bottleneck(8, 2, order=torch.ones(2)), ValueError, "order must be one of 'original', 'norm-after-"),
        (lambda: BasicBlock(8, 8, preactivation=True), TypeError, "preactivation"),
        (
            lambda: BasicBlock(8, 8, order="relu-before-addition", zero_init=True),
            ValueError,
            'zero_init must be False with order="relu-before-addition", got True',
        ),
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
