"""Checkpoints: a training that was stopped goes on as if nothing had happened."""

import errno
import io
import zipfile
import zlib
from itertools import zip_longest
from pathlib import Path

import torch

from resbook.distributed import broadcast_object, gather_objects, rank_and_size
from resbook.files import write_whole


class Checkpoint:
    """The file in which one training keeps its state between epochs; without a path, nothing is kept.

    Args:
        path: of the file, in a folder that exists, or None.
        settings: what makes the training what it is, by name: numbers, text, lists of these, None.
        data: :class:`resbook.data.Data`, of which checksums are kept: the same also where rounding differs.
        parts: what changes in a training, by name: objects with ``state_dict`` and ``load_state_dict``, the network as
            ``"model"`` among them, or ``torch.Generator``.

    Raises:
        FileNotFoundError: the folder does not exist.
    """

    def __init__(self, path, settings, data, parts):
        self.path, self.parts, self.settings = None if path is None else Path(path), parts, settings
        if self.path is not None:
            if not self.path.parent.is_dir():  # said now, and not after the first epoch
                raise FileNotFoundError(errno.ENOENT, "checkpoint must be in a folder that exists", str(path))
            self.settings = {**settings, "data": _checksum(data)}

    def save(self, **more):
        """Write the state of all parts, and ``more``: plain numbers, lists, dictionaries and tensors.

        Of several processes all must call it, and the first one writes, with the random state of each.

        Raises:
            OSError: the file could not be written; the checkpoint before it is still there.
        """
        if self.path is None:
            return
        random = gather_objects(torch.get_rng_state())
        if rank_and_size()[0] != 0:
            return
        state = {name: _state(part) for name, part in self.parts.items()}
        state |= {"settings": self.settings, "layers": str(self.parts["model"]), "random": random}
        buffer = io.BytesIO()
        torch.save({**state, **more}, buffer)
        write_whole(self.path, buffer.getbuffer())

    def load(self):
        """Put every part into its stored state and return what was stored; None if there is no file yet.

        Of several processes all get what the first one reads.

        Raises:
            ValueError: the file is no checkpoint, or one of another network, other settings or other data. Nothing is
                changed, then.
            OSError: the file cannot be read.
        """
        if self.path is None:
            return None
        content = broadcast_object(self.path.read_bytes() if self.path.exists() else None)
        if content is None:
            return None
        try:
            if zipfile.ZipFile(io.BytesIO(content)).testzip():  # a part of it is not what its checksum says
                raise ValueError
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            states = {name: stored[name] for name in self.parts}
            tensors, layers, random = _tensors(states["model"]), stored["layers"], stored["random"]
            settings = dict(stored["settings"])
        except Exception as error:  # a damaged archive fails in a dozen ways
            raise ValueError(
                f"checkpoint {self.path} is damaged, or no checkpoint: name another file, or delete this one"
            ) from error
        self._compare_networks(tensors, layers)
        for name in [*self.settings, *settings]:
            if (then := settings.get(name)) != (now := self.settings.get(name)):
                raise ValueError(
                    f"checkpoint {self.path} belongs to a training with {name}={then!r}, and this one has {now!r}: "
                    "name another file, or delete this one"
                )
        for name, part in self.parts.items():
            restore = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            restore(states[name])
        torch.set_rng_state(random[rank_and_size()[0]])
        return stored

    def _compare_networks(self, tensors, layers):
        """Raise ValueError for a network of other tensors, or of other layers with tensors of the same shapes."""
        model = self.parts["model"]
        wanted, other = _tensors(model.state_dict()), f"checkpoint {self.path} is of another network"
        for name in [*wanted, *tensors]:
            then, now = tensors.get(name, "nothing of that name"), wanted.get(name, "nothing of that name")
            if then != now:
                raise ValueError(f"{other}: for {name} it has {then}, and the model has {now}")
        for then, now in zip_longest(layers.splitlines(), str(model).splitlines(), fillvalue="nothing"):
            if then != now:
                raise ValueError(f"{other}: it has {then.strip()} where the model has {now.strip()}")


def _state(part):
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _checksum(data):
    """Return checksums of both labels, and of the images which of two neighbours is brighter, mean and deviation.

    Not a checksum of the pixels: normalised on another machine, they may differ in the last digit.
    """
    train, labels, test, test_labels = (tensor.cpu() for tensor in data[:4])
    brighter = [images[..., 1:] > images[..., :-1] for images in (train, test)]
    sums = [zlib.crc32(tensor.contiguous().numpy()) for tensor in (labels, test_labels, *brighter)]
    # As text, in which NaN equals NaN.
    return sums + [f"{f(images).item():.2f}" for images in (train, test) for f in (torch.mean, torch.std)]


def _tensors(state):
    return {name: f"{value.dtype} of shape {tuple(value.shape)}" for name, value in state.items()}
