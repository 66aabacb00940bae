"""The blocks of residual networks; plain or residual, and the order of their layers, are options of one block."""

import torch.nn.functional as F
from torch import nn

from resbook.arithmetic import check_integer

# Fig. 4 (a) to (e) of He et al. 2016b; what they mean is said at Block.
ORDERS = ("original", "norm-after-addition", "relu-before-addition", "relu-only-preactivation", "preactivation")
BARE = ("norm-after-addition", "preactivation")  # those in which the branch ends with a convolution


class Shortcut(nn.Sequential):
    """The path around a block's branch: an identity wherever shapes allow, else one of the paper's three options.

    * A: take every ``stride``-th position and fill new channels with zeros, half before and half after the old ones;
      nothing is learned.
    * B: a 1x1 convolution and a normalisation where the shape changes, an identity elsewhere.
    * C: that projection everywhere.

    (He et al. 2016a, section 3.3 and Table 3. The paper does not say where A's zeros go.)

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of the branch's output.
        stride: the branch's stride. Default 1.
        option: "A", "B" or "C". Default "B".
        norm: makes the projection's normalisation from a number of channels. Default ``nn.BatchNorm2d``.
        bare: leave the projection without a normalisation, as some orders of a :class:`Block` do. Default False.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        TypeError: a count is not an integer, or ``norm`` cannot be called.
        ValueError: a count below 1, an unknown option, or option A where channels would have to be removed.
    """

    def __init__(self, in_channels, out_channels, stride=1, option="B", norm=nn.BatchNorm2d, *, bare=False):
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("stride", stride)):
            check_integer(name, value)
        check_option(option)
        check_norm(norm)
        if option == "A" and out_channels < in_channels:
            raise ValueError(
                f'shortcut="A" can add channels but not remove them, so it cannot match {in_channels} channels with '
                f'{out_channels}; use "B" or "C"'
            )
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels
        changes = stride != 1 or self.new_channels != 0
        if option == "C" or (option == "B" and changes):
            self.append(convolution(in_channels, out_channels, 1, stride, norm))
            if not bare:
                self.append(norm(out_channels))
        self.is_identity = not len(self) and not changes

    def forward(self, x):
        if len(self):
            return super().forward(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class Block(nn.Module):
    """What both blocks share: a branch, a shortcut around it, the addition, and what stands at their ends.

    Between two convolutions there are always a normalisation and a ReLU. What comes before the first convolution,
    after the last and after the addition is the block's ``order`` (He et al. 2016b, Fig. 4; here with two
    convolutions):

    * "original": conv norm ReLU conv norm | + | ReLU, as in He et al. 2016a;
    * "norm-after-addition": conv norm ReLU conv | + | norm ReLU;
    * "relu-before-addition": conv norm ReLU conv norm ReLU | + | nothing;
    * "relu-only-preactivation": ReLU conv norm ReLU conv norm | + | nothing;
    * "preactivation": norm ReLU conv norm ReLU conv | + | nothing.

    An identity starts from the block's input, any other shortcut where the first convolution does: in the two
    pre-activations from the activated input (2016b, appendix). Whether a projection has a normalisation the paper
    does not say: here it has one unless the branch ends with a convolution. So there is none for "preactivation", as
    in the authors' code, nor for "norm-after-addition", which normalises the sum.

    Args:
        in_channels: channels of the input.
        width: channels inside the branch; the output has ``expansion * width``.
        stride: how much the branch shrinks height and width. Default 1.
        residual: whether there is a shortcut; without it the block is a stack of plain layers. Default True.
        shortcut: "A", "B" or "C", see :class:`Shortcut`. Default "B".
        order: one of :data:`ORDERS`, see above. Default "original".
        norm: makes a normalisation from a number of channels; ``nn.Identity`` for none, and then the convolutions
            have biases. Default ``nn.BatchNorm2d``.
        zero_init: start with a branch that puts out zeros, see :meth:`zero_branch`. Default False.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, expansion * width, ceil(H / stride), ceil(W / stride))``.

    Raises:
        TypeError: a count is not an integer, a switch not a bool, or ``norm`` does not make modules.
        ValueError: a count is below 1, the shortcut or the order is unknown, the shortcut cannot match the shapes,
            or the order allows no ``zero_init``.
    """

    expansion = 1

    def __init__(
        self,
        in_channels,
        width,
        stride=1,
        *,
        residual=True,
        shortcut="B",
        order="original",
        norm=nn.BatchNorm2d,
        zero_init=False,
    ):
        for name, value in (("in_channels", in_channels), ("width", width), ("stride", stride)):
            check_integer(name, value)
        for name, value in (("residual", residual), ("zero_init", zero_init)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        check_option(shortcut)
        check_order(order)
        check_norm(norm)
        super().__init__()
        self.residual, self.order, self.zero_init = residual, order, zero_init
        self.build_branch(in_channels, width, stride, norm)
        self.relu = nn.ReLU()
        # torchvision's name for the shortcut, kept so that its weights fit; most of them do not downsample.
        out_channels = self.expansion * width
        self.downsample = None
        if residual:
            self.downsample = Shortcut(in_channels, out_channels, stride, shortcut, norm, bare=order in BARE)
        if zero_init:
            self.zero_branch()

    def forward(self, x):
        start = x  # of the branch, and of a shortcut that is no identity
        if self.order == "preactivation":
            start = self.relu(self.bn1(x))
        elif self.order == "relu-only-preactivation":
            start = self.relu(x)
        y = self.branch(start)
        if self.order == "relu-before-addition":
            y = self.relu(y)
        if self.residual:
            y = y + self.downsample(x if self.downsample.is_identity else start)
        if self.order == "norm-after-addition":
            return self.relu(self.last_norm(y))
        return self.relu(y) if self.order == "original" else y

    def extra_repr(self):
        return "" if self.order == "original" else f"order={self.order!r}"  # orders may have the same layers

    def zero_branch(self):
        """Make the branch put out zeros, so that a residual block starts as its shortcut (Goyal et al. 2017, 5.1).

        What comes last in the branch is set to zero: the normalisation's scale or, where no normalisation follows
        before the addition, the convolution. A ReLU must not follow, as in "relu-before-addition" (ValueError): it
        passes no gradient at 0, and the branch could never wake up.
        """
        if self.order == "relu-before-addition":
            raise ValueError(
                'zero_init must be False with order="relu-before-addition", got True: the ReLU at the end of the '
                "branch passes no gradient at 0, so a branch that puts out zeros could never learn"
            )
        scale = None if self.order in BARE else getattr(self.last_norm, "weight", None)
        for parameter in self.last_conv.parameters() if scale is None else [scale]:
            nn.init.zeros_(parameter)


class BasicBlock(Block):
    """Two 3x3 convolutions. Arguments, shapes and errors: :class:`Block`."""

    last_conv = property(lambda self: self.conv2)
    last_norm = property(lambda self: self.bn2)

    def build_branch(self, in_channels, width, stride, norm):
        self.conv1 = convolution(in_channels, width, 3, stride, norm)
        self.bn1 = norm(in_channels if self.order == "preactivation" else width)
        self.conv2 = convolution(width, width, 3, 1, norm)
        self.bn2 = norm(width)

    def branch(self, x):
        y = self.conv1(x)
        if self.order == "preactivation":  # bn1 came before conv1, so bn2 comes before conv2
            return self.conv2(self.relu(self.bn2(y)))
        y = self.conv2(self.relu(self.bn1(y)))
        return y if self.order == "norm-after-addition" else self.bn2(y)


class Bottleneck(Block):
    """1x1 to a quarter of the channels, 3x3, and 1x1 back. Arguments, shapes and errors: :class:`Block`.

    The 3x3 convolution has the stride, as in torchvision ("v1.5"). In the paper the first 1x1 convolution has it
    ("v1"): a subclass with ``stride_at = 1``.
    """

    expansion = 4
    stride_at = 2
    last_conv = property(lambda self: self.conv3)
    last_norm = property(lambda self: self.bn3)

    def build_branch(self, in_channels, width, stride, norm):
        first, second = (stride, 1) if self.stride_at == 1 else (1, stride)
        self.conv1 = convolution(in_channels, width, 1, first, norm)
        self.bn1 = norm(in_channels if self.order == "preactivation" else width)
        self.conv2 = convolution(width, width, 3, second, norm)
        self.bn2 = norm(width)
        self.conv3 = convolution(width, self.expansion * width, 1, 1, norm)
        self.bn3 = norm(width if self.order == "preactivation" else self.expansion * width)

    def branch(self, x):
        y = self.conv1(x)
        if self.order == "preactivation":  # each normalisation comes before the convolution of its number
            y = self.conv2(self.relu(self.bn2(y)))
            return self.conv3(self.relu(self.bn3(y)))
        y = self.conv2(self.relu(self.bn1(y)))
        y = self.conv3(self.relu(self.bn2(y)))
        return y if self.order == "norm-after-addition" else self.bn3(y)


def convolution(in_channels, out_channels, kernel, stride, norm):
    """Return a convolution that keeps the size at stride 1; it has a bias only if no normalisation follows."""
    bias = norm is nn.Identity
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


def check_option(shortcut):
    """Raise ValueError unless ``shortcut`` is one of the paper's three options."""
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f'shortcut must be "A", "B" or "C", got {shortcut!r}')


def check_order(order):
    """Raise ValueError unless ``order`` is one of ``ORDERS``."""
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")


def check_norm(norm):
    """Raise TypeError unless ``norm`` makes modules; a module itself, which can be called too, does not."""
    if not callable(norm) or isinstance(norm, nn.Module):
        raise TypeError(f"norm must make a module from a number of channels, as nn.BatchNorm2d does; got {norm!r}")
