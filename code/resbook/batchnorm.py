"""Batch normalisation written out, equal to ``torch.nn.BatchNorm2d``."""

from numbers import Real

import torch
from torch import nn

from resbook.arithmetic import check_integer


class BatchNorm2d(nn.Module):
    r"""Normalise every channel over the batch and all positions, then scale and shift it.

    In training, with the mean :math:`\mu_c` and the *biased* variance :math:`\sigma_c^2` of channel :math:`c` over its
    :math:`m = N H W` values (Ioffe and Szegedy 2015, algorithm 1):

    .. math:: y = \gamma_c \, \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \varepsilon}} + \beta_c

    and the running statistics, which evaluation uses in their place, move toward the batch's: ``momentum`` times the
    new value plus ``1 - momentum`` times the old one, with the *unbiased* variance :math:`\sigma_c^2 \, m / (m - 1)`.

    The names and shapes of parameters and buffers are those of ``torch.nn.BatchNorm2d``, so a ``state_dict`` fits
    either way. Statistics are computed in float32 at least, whatever the type of the input.

    Args:
        num_features: channels C of the input.
        eps: added to the variance. Default 1e-5.
        momentum: weight of the new batch in the running statistics, from 0 to 1, or None for the plain average over
            all batches seen. Default 0.1.

    Shape:
        input and output ``(N, C, H, W)``, any floating type; the output has the input's type.

    Raises:
        TypeError: ``num_features`` is not an integer, ``eps`` or ``momentum`` no number, or the input not of floats.
        ValueError: an argument is out of range; in ``forward``, the input is not four-dimensional, has not C
            channels, or leaves a single value per channel in training (its variance would always be 0).
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        _check_settings(num_features, eps, momentum)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))  # gamma
        self.bias = nn.Parameter(torch.zeros(num_features))  # beta
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # As PyTorch's: weights saved before it counted batches have no such entry.
        state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        _check_input(x, self.num_features, self.training)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
            self._track(mean.detach(), var.detach(), x.numel() // x.shape[1])
        else:
            mean, var = self.running_mean, self.running_var
        mean, var = (v.to(wide.dtype).view(1, -1, 1, 1) for v in (mean, var))
        x_hat = (wide - mean) / torch.sqrt(var + self.eps)
        gamma, beta = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        return (gamma * x_hat + beta).to(x.dtype)

    def _track(self, mean, var, m):
        self.num_batches_tracked += 1
        a = self.momentum
        if a is None:  # the plain average of all batches
            a = 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.copy_((1 - a) * self.running_mean + a * mean)
        self.running_var.copy_((1 - a) * self.running_var + a * var * (m / (m - 1)))

    def extra_repr(self):
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


def _check_settings(num_features, eps, momentum):
    check_integer("num_features", num_features)
    for name, value in (("eps", eps), ("momentum", 0 if momentum is None else momentum)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be from 0 to 1, or None, got {momentum}")


def _check_input(x, num_features, training):
    if not x.is_floating_point():
        raise TypeError(f"x must be a tensor of floats, got {x.dtype}")
    if x.dim() != 4 or x.shape[1] != num_features:
        raise ValueError(f"x must have the shape (N, {num_features}, H, W), got {tuple(x.shape)}")
    if training and x.numel() <= num_features:
        raise ValueError(
            f"x must hold more than one value per channel in training, got the shape {tuple(x.shape)}; "
            "use a larger batch or image, or call eval()"
        )
