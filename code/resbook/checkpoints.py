"""Checkpoints: a training that was stopped goes on as if nothing had happened."""

import io
import zlib
from pathlib import Path

import torch

from resbook.files import write_whole


class Checkpoint:
    """The file in which one training keeps its state between epochs; without a path, nothing is kept.

    Args:
        path: of the file, or None.
        settings: what makes the training what it is, by name: numbers, text, None.
        data: :class:`resbook.data.Data`, of which a checksum is kept.
        parts: what changes in a training, by name: objects with ``state_dict`` and ``load_state_dict``, the network as
            ``"model"`` among them, or ``torch.Generator``.
    """

    def __init__(self, path, settings, data, parts):
        self.path, self.parts = path and Path(path), parts
        self.settings = settings if path is None else {**settings, "data": _checksum(data)}

    def save(self, **more):
        """Write the state of all parts, and ``more``: plain numbers, lists, dictionaries and tensors.

        Raises:
            OSError: the file could not be written; the checkpoint before it is still there.
        """
        if self.path is None:
            return
        state = {name: _state(part) for name, part in self.parts.items()}
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, "random": torch.get_rng_state(), **state, **more}, buffer)
        write_whole(self.path, buffer.getbuffer())

    def load(self):
        """Put every part into its stored state and return what was stored; None if there is no file yet.

        Raises:
            ValueError: the file is no checkpoint, or one of another network, other settings or other data. Nothing is
                changed, then.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
            shapes, settings = {name: value.shape for name, value in stored["model"].items()}, stored["settings"]
        except Exception as error:  # a damaged archive fails in a dozen ways
            raise ValueError(f"checkpoint {self.path} is damaged, or no checkpoint: delete it ({error})") from error
        _compare_networks(self.path, shapes, self.parts["model"])
        for name in settings.keys() | self.settings.keys():
            if (then := settings.get(name)) != (now := self.settings.get(name)):
                raise ValueError(
                    f"checkpoint {self.path} belongs to a training with {name}={then!r}, and this one has {now!r}: "
                    "name another file, or delete this one"
                )
        for name, part in self.parts.items():
            part.set_state(stored[name]) if isinstance(part, torch.Generator) else part.load_state_dict(stored[name])
        torch.set_rng_state(stored["random"])
        return stored


def _state(part):
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _checksum(data):
    return [zlib.crc32(tensor.contiguous().cpu().numpy()) for tensor in data[:4]]


def _compare_networks(path, shapes, model):
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    for name in [*wanted, *shapes]:
        then, now = shapes.get(name), wanted.get(name)
        if then != now:
            then, now = ("nothing of that name" if shape is None else f"shape {tuple(shape)}" for shape in (then, now))
            raise ValueError(
                f"checkpoint {path} is of another network: for {name} it has {then}, and the model has {now}"
            )
