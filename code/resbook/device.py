"""Where the book computes."""

import torch


def default_device():
    """Return the fastest device there is: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_text():
    """Return what computes, in words: "PyTorch 2.13.0 on cpu"."""
    return f"PyTorch {torch.__version__.split('+')[0]} on {default_device()}"
