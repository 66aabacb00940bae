"""Several processes that train one model, for readers who outgrow one GPU."""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from resbook.device import default_device


@contextmanager
def process_group():
    """Join the other processes if ``torchrun`` started this one; otherwise do nothing. Yields the device to use.

    On GPUs every process gets one of its own and they speak NCCL, on CPUs Gloo::

        with process_group() as device:
            train(model.to(device), data, epochs=10)

    run by ``torchrun --nproc-per-node=2 script.py`` on one machine, trains with two processes; ``torchrun --help``
    says how to name several machines.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield default_device()
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_size():
    """Return this process's rank and how many train together: 0 and 1 outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def mean_over_processes(tensor):
    """Return the mean of a tensor over all processes, in all of them."""
    if rank_and_size()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / rank_and_size()[1]


def broadcast_object(value):
    """Return the first process's value, anything that can be pickled, in all of them."""
    values = [value]
    if rank_and_size()[1] > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value):
    """Return a list with every process's value, anything that can be pickled, in all of them."""
    size = rank_and_size()[1]
    values = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(tensors):
    """Give all processes the tensors of the first."""
    if rank_and_size()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
