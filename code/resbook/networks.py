"""Residual networks and their plain counterparts, assembled from one block."""

import torch
import torch.fx
from torch import nn

from resbook.arithmetic import check_integer
from resbook.blocks import BasicBlock, Block, Bottleneck, check_norm, convolution

STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}  # kernel and stride of the first convolution


class ResNet(nn.Module):
    """A stem, stages of blocks, global average pooling and one linear layer (He et al. 2016a, Table 1).

    Every stage but the first halves height and width in its first block. Modules have torchvision's names, so a
    ``state_dict`` of ``torchvision.models.resnet*`` fits, and the same random seed gives the same initial weights.
    Convolutions start with He's normal initialisation over ``fan_out``, as in torchvision.

    A pre-activation network activates once before its first block and once more after its last (He et al. 2016b,
    appendix). With ``order="preactivation"`` that is a normalisation and a ReLU, and the first block has no
    normalisation of its own at the front; with "relu-only-preactivation" a ReLU alone follows the last addition. With
    the other orders nothing stands between the last block and the pooling.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: number of blocks in each stage, at most as many as ``widths``.
        num_classes: number of outputs. Default 1000.
        widths: the blocks' width in each stage. Default (64, 128, 256, 512).
        stem: "imagenet" (7x7 convolution of stride 2, 3x3 max-pooling of stride 2) or "cifar" (one 3x3
            convolution). Default "imagenet".
        in_channels: channels of the images. Default 3.
        **options: residual, shortcut, order, norm, zero_init of the :class:`Block`.

    Shape:
        images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        TypeError: a count is not an integer, or ``norm`` cannot be called.
        ValueError: a count is below 1, there are more ``layers`` than ``widths``, or ``stem`` is unknown; in
            ``forward``, the images have another number of dimensions or channels.
    """

    def __init__(
        self, block, layers, num_classes=1000, *, widths=(64, 128, 256, 512), stem="imagenet", in_channels=3, **options
    ):
        check_integer("num_classes", num_classes)
        check_integer("in_channels", in_channels)
        if not isinstance(stem, str) or stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(map(repr, STEMS))}, got {stem!r}")
        if not all(isinstance(values, (tuple, list)) for values in (layers, widths)):
            raise TypeError(f"layers and widths must be lists of counts, got {layers!r} and {widths!r}")
        if not 1 <= len(layers) <= len(widths):
            raise ValueError(f"layers must have 1 to {len(widths)} counts, at most as many as widths, got {layers!r}")
        for name, values in (("layers", layers), ("widths", widths)):
            for value in values:
                check_integer(name, value)
        norm = options.get("norm", nn.BatchNorm2d)
        check_norm(norm)
        super().__init__()
        self.in_channels, self.order = in_channels, options.get("order", "original")
        kernel, stride = STEMS[stem]
        self.conv1 = convolution(in_channels, widths[0], kernel, stride, norm)
        self.bn1 = norm(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        channels = widths[0]
        for i, (stage, count, width) in enumerate(zip(self.stages, layers, widths, strict=False)):
            blocks = []
            for j in range(count):
                blocks.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1, **options))
                channels = block.expansion * width
            self.add_module(stage, nn.Sequential(*blocks))
        if self.order == "preactivation":
            # The stem has normalised and activated already, and relu(relu(x)) is relu(x).
            self.layer1[0].bn1 = nn.Identity()
            self.bn_last = norm(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.initialize()

    def initialize(self):
        """Draw the convolutions' weights: normal, mean 0, variance ``2 / fan_out`` (He et al. 2015, section 2.2)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there, nothing would be drawn, slowly
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block) and module.zero_init:
                module.zero_branch()

    def forward(self, images):
        _check_images(images, self.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        if self.order == "preactivation":
            x = self.relu(self.bn_last(x))
        elif self.order == "relu-only-preactivation":
            x = self.relu(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


@torch.fx.wrap  # not to be traced: torchvision's feature extractors then work on this network
def _check_images(images, channels):
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images must have the shape (N, {channels}, H, W), got {tuple(images.shape)}")


def resnet18(num_classes=1000, *, weights=None, **options):
    """Two basic blocks in each of four stages: 11,689,512 parameters (He et al. 2016a, Table 1).

    Args:
        num_classes: number of outputs. Default 1000.
        weights: None for random ones, or the name of weights that torchvision has for this network, such as
            "IMAGENET1K_V1" or "DEFAULT"; they are downloaded once and then kept by ``torch.hub``. Default None.
        **options: in_channels of :class:`ResNet`; residual, shortcut ("B"), order, norm, zero_init of the
            :class:`Block`.

    Returns:
        A :class:`ResNet`: images ``(N, 3, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        TypeError: a count is not an integer, or an option is unknown.
        ValueError: a value is out of range, the weights are unknown, or the options do not fit the weights.
        ConnectionError: the weights could not be fetched.
    """
    return _imagenet_resnet("resnet18", BasicBlock, (2, 2, 2, 2), num_classes, weights, options)


def resnet34(num_classes=1000, *, weights=None, **options):
    """3, 4, 6 and 3 basic blocks: 21,797,672 parameters. Arguments and errors: :func:`resnet18`."""
    return _imagenet_resnet("resnet34", BasicBlock, (3, 4, 6, 3), num_classes, weights, options)


def resnet50(num_classes=1000, *, weights=None, **options):
    """3, 4, 6 and 3 bottlenecks: 25,557,032 parameters. Arguments and errors: :func:`resnet18`."""
    return _imagenet_resnet("resnet50", Bottleneck, (3, 4, 6, 3), num_classes, weights, options)


def resnet101(num_classes=1000, *, weights=None, **options):
    """3, 4, 23 and 3 bottlenecks: 44,549,160 parameters. Arguments and errors: :func:`resnet18`."""
    return _imagenet_resnet("resnet101", Bottleneck, (3, 4, 23, 3), num_classes, weights, options)


def resnet152(num_classes=1000, *, weights=None, **options):
    """3, 8, 36 and 3 bottlenecks: 60,192,808 parameters. Arguments and errors: :func:`resnet18`."""
    return _imagenet_resnet("resnet152", Bottleneck, (3, 8, 36, 3), num_classes, weights, options)


def cifar_resnet(depth, num_classes=10, *, shortcut="A", **options):
    """Return a residual network for 32x32 images: three stages of n basic blocks, ``depth = 6 n + 2``.

    The widths are 16, 32 and 64 and the shortcuts learn nothing (option A), so with ``residual=False`` it is the
    plain network of the same parameters, and the same seed gives both the same weights (He et al. 2016a, 4.2).

    Args:
        depth: layers with weights, 6n + 2. The paper has 20, 32, 44, 56, 110 and 1202.
        num_classes: number of outputs. Default 10.
        shortcut: "A", "B" or "C". Default "A".
        **options: widths and in_channels of :class:`ResNet`; residual, order, norm, zero_init of the
            :class:`Block`.

    Raises:
        TypeError: ``depth`` is not an integer.
        ValueError: ``depth`` is not 6n + 2 with n of at least 1.
    """
    check_integer("depth", depth)
    below = max(8, depth - (depth - 2) % 6)
    if depth != below:
        raise ValueError(f"depth must be 6n + 2 and at least 8, got {depth}; the nearest are {below} and {below + 6}")
    options = {"widths": (16, 32, 64), **options}
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, num_classes, stem="cifar", shortcut=shortcut, **options)


def _imagenet_resnet(name, block, layers, num_classes, weights, options):
    if weights is not None:
        weights = _find_weights(name, weights, num_classes, options)
    model = ResNet(block, layers, num_classes, **options)
    if weights is not None:
        model.load_state_dict(_fetch(weights))
    return model


def _find_weights(name, weights, num_classes, options):
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    network, _, key = str(weights).rpartition(".")
    if key not in known.__members__ or network not in ("", known.__name__):
        raise ValueError(f"weights of {name} must be one of {', '.join(known.__members__)}, got {weights!r}")
    needed = {"residual": True, "shortcut": "B", "order": "original", "in_channels": 3, "stem": "imagenet"}
    needed["widths"] = (64, 128, 256, 512)
    wrong = {k: v for k, v in options.items() if needed.get(k, v) != v}
    norm = options.get("norm", nn.BatchNorm2d)
    check_norm(norm)
    if norm(64).state_dict().keys() != nn.BatchNorm2d(64).state_dict().keys():
        wrong["norm"] = norm
    if num_classes != len(known[key].meta["categories"]):
        wrong["num_classes"] = num_classes
    if wrong:
        given = ", ".join(f"{k}={v!r}" for k, v in wrong.items())
        raise ValueError(
            f"weights={key!r} are those of torchvision's {name}, which do not fit {given}; build with the defaults, "
            "then replace what differs (for other classes: model.fc)"
        )
    return known[key]


def _fetch(weights):
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; or a file that is not what its name says
        raise ConnectionError(
            f"weights {weights} could not be fetched from {weights.url} ({error}); without a network, put that file "
            f"into {torch.hub.get_dir()}/checkpoints, or build the network with weights=None"
        ) from error
