"""Draw the weights of a network's convolutions again, by one of three schemes."""

from torch import nn

from resbook.blocks import Block

SCHEMES = {
    "default": lambda conv: conv.reset_parameters(),
    "xavier": lambda conv: nn.init.xavier_normal_(conv.weight),
    "he": lambda conv: nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu"),
}


def initialize(model, scheme):
    """Draw the weights of every ``nn.Conv2d`` again, in the order of ``model.modules()``, from PyTorch's generator.

    A weight counts ``fan_in = in_channels * kernel area`` (channels of one group) and ``fan_out = out_channels *
    kernel area``; all three schemes have mean 0.

    * "default": what ``nn.Conv2d`` starts with, uniform of variance ``1 / (3 fan_in)``, the bias too.
    * "xavier": normal of variance ``2 / (fan_in + fan_out)`` (Glorot and Bengio 2010, equation 12; they draw
      uniformly, equation 16).
    * "he": normal of variance ``2 / fan_in`` (He et al. 2015, equation 10), which makes up for a ReLU.

    "xavier" and "he" leave biases as they are, which in a new :class:`~resbook.networks.ResNet` is zero. Afterwards
    every :class:`~resbook.blocks.Block` with ``zero_init`` gets its zeros again. Nothing else changes: linear layers
    and normalisations keep what they have.

    Args:
        model: a network or a single layer, on any device; it is changed in place.
        scheme: "default", "xavier" or "he".

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``scheme`` is unknown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.Conv2d):
            SCHEMES[scheme](module)
    for module in modules:
        if isinstance(module, Block) and module.zero_init:
            module.zero_branch()
    return model
