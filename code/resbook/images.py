"""Read pictures from folders: any format, mode and size, and what cannot be read is told by name."""

import csv
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from resbook.arithmetic import check_integer

SHOWN = 10  # names in a message


class Listing(NamedTuple):
    """Files, the position of each one's class in ``classes``, and the photograph each was cut from, or None for all."""

    paths: list
    labels: list
    classes: tuple
    photographs: list | None


def list_folders(root):
    """Return the paths of the folders in a folder, but for those whose names begin with a dot.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder; {root} is {'a file' if root.exists() else 'not there'}")
    return [path for path in _visible(root) if path.is_dir()]


def list_classes(root, photograph=None):
    """Return the :class:`Listing` of a folder that has a folder of pictures for every class.

    Names that begin with a dot are passed over, and so are files beside the folders; every other file is taken for a
    picture.

    Args:
        root: the folder.
        photograph: None, or maps a file's path to a name of the photograph it was cut from. Default None.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are fewer than two classes, one has no file or has folders inside, or ``photograph`` gives
            None.
    """
    files = {folder.name: _visible(folder) for folder in list_folders(root)}
    if len(files) < 2:
        raise ValueError(f"{root} must have a folder for each of at least two classes; there is {_few(files)}")
    inner = [path for found in files.values() for path in found if path.is_dir()]
    if inner:
        raise ValueError(f"the folder of a class must hold pictures only; there are folders inside: {_few(inner)}")
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise ValueError(f"every class needs pictures; in {root} there is none for {_few(empty)}")
    paths = [path for found in files.values() for path in found]
    labels = [label for label, found in enumerate(files.values()) for _ in found]
    photographs = [photograph(path) for path in paths] if photograph else None
    if photographs and None in photographs:
        path = paths[photographs.index(None)]
        raise ValueError(f"photograph must give the name of every picture's photograph; it gives None for {path}")
    return Listing(paths, labels, tuple(files), photographs)


def list_file(root, labels):
    """Return the :class:`Listing` of the pictures that a CSV file names; a picture that it names twice counts once.

    Args:
        root: the folder that the file's paths start from.
        labels: path of the CSV file, in UTF-8. Its first line names the columns: ``file`` and ``class``, and perhaps
            ``photograph``, in any order and beside others.

    Raises:
        FileNotFoundError: there is no such file, or a picture that it names is missing.
        ValueError: the file is not CSV, a column or a value is missing, a picture has two classes or two photographs,
            or there are fewer than two classes.
    """
    rows = {}
    for line, row in _read_rows(labels):
        known = rows.setdefault((Path(root) / row["file"]).resolve(), row)  # one picture, however its path is written
        for column in known.keys() - {"file"}:
            if row[column] != known[column]:
                raise ValueError(
                    f"{labels}, line {line}: {row['file']} has the {column} {row[column]} here, {known[column]} above"
                )
    rows = rows.values()
    paths = [Path(root) / row["file"] for row in rows]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{labels} names pictures that are not there: {_few(absent)}")
    classes = tuple(sorted({row["class"] for row in rows}))
    if len(classes) < 2:
        raise ValueError(f"{labels} must name at least two classes; there is {_few(classes)}")
    chosen = [classes.index(row["class"]) for row in rows]
    photographs = [row["photograph"] for row in rows if "photograph" in row] or None
    return Listing(paths, chosen, classes, photographs)


def _read_rows(path):
    """Yield the number of each line of a CSV file, and its values in the columns that matter here, by their names."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"labels must be a CSV file; {path} is {'a folder' if Path(path).exists() else 'not there'}"
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = [(reader.line_num, row) for row in reader], reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"labels must be a CSV file in UTF-8; {path} is not: {error}") from error
    if not {"file", "class"} <= set(header):
        raise ValueError(f"{path} must have columns named file and class, separated by commas; it has {header}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} must name every column once; it has {header}")
    for line, row in rows:
        if None in row:
            raise ValueError(f"{path}, line {line} has {len(header) + len(row[None])} values for {len(header)} columns")
        row = {name: (row[name] or "").strip() for name in ("file", "class", "photograph") if name in header}
        if not all(row.values()):
            raise ValueError(f"{path}, line {line}: {', '.join(row)} must not be empty")
        yield line, row


def read_pictures(listing, size, corrupt="refuse", progress=False):
    """Return a listing's pictures as one tensor, and the listing of those that could be read.

    Every picture is turned upright as its EXIF data say, laid on white where it is transparent, made RGB, and, if a
    size is given, scaled until its shorter side fits and cut to a square around its middle. Of an animation it is the
    first picture; 16 bits are scaled to 8.

    Args:
        listing: a :class:`Listing`.
        size: height and width in pixels, at least 8, or None for pictures that have one size already.
        corrupt: "refuse" files that are no pictures, or damaged ones, or "skip" them with a warning; both name them.
            Default "refuse".
        progress: show a bar. Default False.

    Returns:
        uint8 ``(N, 3, H, W)``, and the :class:`Listing`.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: a picture cannot be read, sizes differ, none of a class can be read, or an argument is not allowed.
    """
    if size is not None:
        check_integer("size", size, least=8)
    if corrupt not in ("refuse", "skip"):
        raise ValueError(f'corrupt must be "refuse" or "skip", got {corrupt!r}')
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        found = pool.map(lambda path: _read(path, size), listing.paths)
        pictures = list(tqdm(found, "pictures", len(listing.paths), disable=not progress))
    bad = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, str)}
    good = [i for i in range(len(pictures)) if i not in bad]
    if bad:
        names = _few(f"{listing.paths[i]} ({reason})" for i, reason in bad.items())
        text = f"{len(bad)} of {len(pictures)} files cannot be read as pictures: {names}"
        if corrupt == "refuse":
            raise ValueError(f'{text}. To leave them out: corrupt="skip"')
        warnings.warn(text, stacklevel=4)  # shown at the line that calls image_folder or sdnet2018
    columns = (listing.paths, listing.labels, listing.photographs)
    paths, labels, photographs = (column and [column[i] for i in good] for column in columns)
    lost = [name for label, name in enumerate(listing.classes) if label not in labels]
    if lost:
        raise ValueError(f"every class needs pictures; none can be read of {_few(lost)}")
    shapes = {pictures[i].shape: listing.paths[i] for i in reversed(good)}
    if len(shapes) > 1:
        sizes = [f"{path.name} has {width}x{height}" for (height, width, _), path in shapes.items()]
        raise ValueError(f"pictures must have one size, or be given one by size=...; {_few(sizes[:2])}")
    images = torch.from_numpy(np.stack([pictures[i] for i in good])).permute(0, 3, 1, 2)
    return images, Listing(paths, labels, listing.classes, photographs)


def _read(path, size):
    """Return a picture as an array ``(H, W, 3)`` of uint8, or why it cannot be read."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # by its name, Pillow scrambles a TIFF on its side
            image = _upright_rgb(image)
    except UnidentifiedImageError:
        return "no format that Pillow knows"
    except Exception as error:  # decoders fail in a dozen ways; the file is named with the reason
        return str(error) or type(error).__name__
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _upright_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point values have no known range")
    if image.mode.startswith("I"):  # 16 bits, which Pillow may cut off at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("whole numbers beyond 0 to 65535 have no known range")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _few(names):
    names = list(map(str, names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
