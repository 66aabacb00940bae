"""Data sets to train on: embedded, drawn, downloaded, or the reader's own; split and normalised."""

from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch

from resbook.arithmetic import check_integer
from resbook.cracks import CRACK_CLASSES, SURFACES, draw_cracks
from resbook.images import Listing, list_classes, list_file, list_folders, read_pictures
from resbook.splits import split

SDNET_FOLDERS = {"pavement": "P", "wall": "W", "bridge deck": "D"}


class Data(NamedTuple):
    """Images and labels to train on and to test on, and the names of the classes.

    Images are float32 ``(N, C, H, W)``, shifted and scaled so that every channel of the training images has mean 0
    and standard deviation 1; labels are int64 ``(N,)``, positions in ``classes``. ``mean`` and ``deviation``, float32
    ``(C,)``, are what images from 0 to 1 (digits: 0 to 16) were shifted and scaled by, or None where nobody noted it.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple
    mean: torch.Tensor | None = None
    deviation: torch.Tensor | None = None

    def to(self, device):
        """Return the same data with its images and labels on ``device``."""
        return self._replace(**{name: getattr(self, name).to(device) for name in self._fields[:4]})


def digits(seed=0):
    """Return 1,797 real handwritten digits of 8x8 pixels, 1,437 to train on and 360 to test on.

    They are scikit-learn's copy of a test set of the UCI repository, each pixel a count of 0 to 16 dots. A fifth of
    every class is drawn for the test.

    Args:
        seed: of the split. Default 0.

    Returns:
        :class:`Data` with images ``(N, 1, 8, 8)``.

    Raises:
        ModuleNotFoundError: scikit-learn, which holds the images, is not installed.
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is out of range.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images, labels = torch.tensor(source.images, dtype=torch.float32)[:, None], torch.tensor(source.target)
    classes = [str(name) for name in source.target_names]
    return _data(images, labels, classes, split(labels, classes, seed=seed))


def synthetic_cracks(count=2400, size=64, seed=0):
    """Return drawn pictures of six classes, pavement, wall and bridge deck, intact and cracked; nothing is loaded.

    Args:
        count: how many pictures, at least 30, of which a fifth is for the test. Default 2400.
        size: height and width in pixels, at least 16. Default 64.
        seed: of the pictures (:func:`resbook.cracks.draw_cracks`) and of the split. Default 0.

    Returns:
        :class:`Data` with images ``(N, 3, size, size)``.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is too small.
    """
    check_integer("count", count, least=30)  # five of each class, of which one is for the test
    images, labels = draw_cracks(count, size, seed)
    return _data(images, labels, CRACK_CLASSES, split(labels, CRACK_CLASSES, seed=seed))


def image_folder(
    root, size=64, *, labels=None, photograph=None, test_share=0.2, seed=0, corrupt="refuse", progress=False
):
    """Return the pictures of a folder, one folder inside it for every class, as :class:`Data` in memory.

    A folder whose folders are ``train`` and ``test`` is split already. All others are split here, every class in the
    same proportion, and nothing is in both parts that was cut from one photograph. Files beside the folders do not
    matter, nor do names that begin with a dot.

    Args:
        root: the folder.
        size: height and width in pixels that every picture is scaled and cut to, at least 8; None if they have one
            size. In memory a picture takes 12 times ``size`` squared bytes, and 18 times while it is read. Default 64.
        labels: None, or a CSV file in place of folders; see :func:`resbook.images.list_file`. Default None.
        photograph: None, or maps a picture's path to the name of the photograph it was cut from. Default None.
        test_share: the part that is for the test, above 0 and at most 0.5; without meaning if the folder is split
            already, as is ``seed``. Default 0.2.
        seed: of the split. Default 0.
        corrupt: "refuse" files that are no pictures, or "skip" them; see :func:`resbook.images.read_pictures`.
            Default "refuse".
        progress: show a bar. Default False.

    Returns:
        :class:`Data` with images ``(N, 3, H, W)`` and the classes sorted by name.

    Raises:
        FileNotFoundError: the folder, the CSV file or a picture in it is missing.
        TypeError: ``size`` or ``seed`` is not an integer.
        ValueError: there are fewer than two classes, a class is empty, a picture cannot be read, sizes differ, the
            split is impossible or shares a photograph, or an argument is not allowed.
    """
    folders, reading = list_folders(root), {"size": size, "corrupt": corrupt, "progress": progress}
    if labels is not None:
        if photograph is not None:
            raise ValueError("photograph must be None where labels are given: a column of that name says it")
        return _split_listing(list_file(root, labels), test_share, seed, reading)
    if {folder.name for folder in folders} == {"train", "test"}:
        return _split_already(*(list_classes(Path(root) / name, photograph) for name in ("train", "test")), reading)
    return _split_listing(list_classes(root, photograph), test_share, seed, reading)


def sdnet2018(root, size=64, *, test_share=0.2, seed=0, corrupt="refuse", progress=False):
    """Return SDNET2018, photographs of concrete with and without cracks in tiles of 256x256 (Dorafshan et al. 2018).

    Its folders are D (bridge decks), W (walls) and P (pavements), each with one of cracked (CD, CW, CP) and one of
    intact tiles (UD, UW, UP). A file's name begins with its photograph's, and the split is by photograph.

    Args:
        root: the folder that has D, W and P in it, or some of them.
        size: height and width in pixels; None for the tiles as they are. Default 64.
        test_share: the part that is for the test, about, above 0 and at most 0.5. Default 0.2.
        seed: of the split. Default 0.
        corrupt: "refuse" files that are no pictures, or "skip" them. Default "refuse".
        progress: show a bar. Default False.

    Returns:
        :class:`Data` with the classes of :data:`resbook.cracks.CRACK_CLASSES` that are there.

    Raises:
        FileNotFoundError: there is no such folder.
        TypeError: ``size`` or ``seed`` is not an integer.
        ValueError: there is none of D, W and P in it; a name has no photograph; and as :func:`image_folder`.
    """
    folders = {folder.name: folder for folder in list_folders(root)}
    found = [surface for surface in SURFACES if SDNET_FOLDERS[surface] in folders]
    if not found:
        raise ValueError(f"{root} must have the folders of SDNET2018, {', '.join(SDNET_FOLDERS.values())}; it has none")
    paths, labels, classes, photographs = [], [], [], []
    for surface in found:
        letter = SDNET_FOLDERS[surface]
        part = list_classes(folders[letter], _sdnet_photograph)
        if part.classes != (f"C{letter}", f"U{letter}"):
            names = ", ".join(part.classes)
            raise ValueError(f"{folders[letter]} must have the folders C{letter} and U{letter}; it has {names}")
        labels += [len(classes) + 1 - label for label in part.labels]  # intact first, as in CRACK_CLASSES
        classes += [f"{surface}, {state}" for state in ("intact", "cracked")]
        paths, photographs = paths + part.paths, photographs + part.photographs
    listing = Listing(paths, labels, tuple(classes), photographs)
    return _split_listing(listing, test_share, seed, {"size": size, "corrupt": corrupt, "progress": progress})


def cifar10(root, download=False):
    """Return CIFAR-10, 50,000 colour pictures of 32x32 pixels to train on and 10,000 to test on (Krizhevsky 2009).

    Args:
        root: the folder where torchvision keeps or finds its own folder, ``cifar-10-batches-py``.
        download: fetch 163 MiB if that is not there, and show a bar; in one process, before others start, since two
            would write the same file. Default False.

    Returns:
        :class:`Data` with images ``(N, 3, 32, 32)``, in the order of the files.

    Raises:
        FileNotFoundError: they are not there, or damaged, and ``download`` is False.
        OSError: the download failed or was interrupted; the next attempt starts over.
    """
    from torchvision.datasets import CIFAR10

    try:
        sets = [CIFAR10(root, train, download=download and train) for train in (True, False)]  # one download has both
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        if not download:
            raise FileNotFoundError(f"CIFAR-10 is not in {root}, or damaged; download=True fetches it") from error
        raise OSError(
            f"CIFAR-10 could not be downloaded to {root} ({error}); try again, or try an empty folder"
        ) from error
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in sets]
    (train, test), (first, second) = images, [torch.tensor(part.targets) for part in sets]
    return _normalised(train, first, test, second, sets[0].classes)


def normalise(train, test):
    """Return both with the training images' mean subtracted and divided by their standard deviation, per channel.

    Args:
        train: float images ``(N, C, H, W)``, which alone give the statistics.
        test: float images ``(M, C, H, W)``.

    Raises:
        ValueError: a channel of ``train`` has the same value everywhere.
    """
    mean, deviation = statistics(train)
    return tuple(_normalise_in_place(part.clone(), mean, deviation) for part in (train, test))


def statistics(images):
    """Return the mean and the standard deviation of each channel of float images ``(N, C, H, W)``, each ``(C,)``.

    Raises:
        ValueError: a channel has the same value everywhere.
    """
    constant = images.amax((0, 2, 3)) == images.amin((0, 2, 3))  # rounding can leave it a deviation above 0
    if constant.any():
        channel = int(constant.nonzero()[0])
        value = images[0, channel, 0, 0].item()
        raise ValueError(f"training images must vary in every channel; channel {channel} has the value {value:g}")
    return images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)


def _split_listing(listing, test_share, seed, reading):
    def parts(listing):
        return split(listing.labels, listing.classes, listing.photographs, test_share, seed)

    parts(listing)  # what cannot be split is told before the long reading
    images, listing = read_pictures(listing, **reading)
    return _data(images, torch.tensor(listing.labels), listing.classes, parts(listing))


def _split_already(train, test, reading):
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise ValueError(f"train and test must have the same classes; in one only: {odd}")
    shared = set(train.photographs or ()) & set(test.photographs or ())
    if shared:
        raise ValueError(f"train and test must not share a photograph; {min(shared, key=str)} is in both")
    images, train = read_pictures(train, **reading)
    others, test = read_pictures(test, **reading)
    if images.shape[2:] != others.shape[2:]:
        sizes = " and ".join(f"{width}x{height}" for *_, height, width in (images.shape, others.shape))
        raise ValueError(f"train and test must have one size, or be given one by size=...; they have {sizes}")
    return _normalised(images, torch.tensor(train.labels), others, torch.tensor(test.labels), train.classes)


def _data(images, labels, classes, parts):
    train, test = (torch.tensor(part) for part in parts)
    return _normalised(images[train], labels[train], images[test], labels[test], classes)


def _normalised(train, train_labels, test, test_labels, classes):
    """Return :class:`Data` of images that are uint8, or float and then overwritten."""
    train, test = (part.float().div_(255) if part.dtype == torch.uint8 else part for part in (train, test))
    mean, deviation = statistics(train)
    for part in (train, test):  # a large data set fits into memory once
        _normalise_in_place(part, mean, deviation)
    return Data(train, train_labels, test, test_labels, tuple(classes), mean, deviation)


def _normalise_in_place(images, mean, deviation):
    return images.sub_(mean[:, None, None]).div_(deviation[:, None, None])


def _sdnet_photograph(path):
    photograph, hyphen, _ = path.stem.partition("-")
    if not hyphen:
        raise ValueError(f"{path} must be named as in SDNET2018, by its photograph, a hyphen and a number")
    return f"{path.parent.parent.name}-{photograph}"
