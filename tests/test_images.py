"""Pictures read from folders: every kind against Pillow or plain arithmetic, and all that can be wrong with a file."""

import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from resbook import images
from resbook.data import image_folder
from resbook.images import Listing, list_classes, list_file, read_pictures
from torchvision.transforms import v2

COLOURS = np.random.RandomState(0).randint(0, 256, (12, 16, 3), np.uint8)
GREYS = COLOURS[..., 0]


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def read(*paths, size=None, **options):
    listing = Listing(list(paths), list(range(len(paths))), tuple(path.name for path in paths), None)
    return read_pictures(listing, size, **options)[0]


def read_one(path):
    return read(path)[0].permute(1, 2, 0).numpy()


def rgb(greys):
    return np.repeat(np.asarray(greys, np.uint8)[..., None], 3, 2)


def on_white(colours, alpha):
    return colours * (alpha[..., None] / 255) + 255 - alpha[..., None]


def reading_fails(*paths):
    with pytest.raises(ValueError) as caught:
        read(*paths)
    return str(caught.value)


# Kinds of pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "PNG"])
def test_colours_come_out_as_they_are(tmp_path, suffix):
    found = read(save(tmp_path / f"a.{suffix}", COLOURS))
    assert found.shape == (1, 3, 12, 16) and found.dtype == torch.uint8
    assert (found[0].permute(1, 2, 0).numpy() == COLOURS).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_turned_photograph_is_set_upright(tmp_path, suffix, orientation):
    stored = {  # what the camera stores of a scene, by the number it writes beside it
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](COLOURS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, **options)
    assert (read_one(path) == COLOURS).all()


def test_transparency_lies_on_white(tmp_path):
    alpha = GREYS[::-1]
    picture = Image.fromarray(np.dstack([COLOURS, alpha]))
    assert abs(read_one(save(tmp_path / "a.png", picture)) - on_white(COLOURS, alpha)).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(GREYS), Image.fromarray(np.ascontiguousarray(alpha))])
    assert abs(read_one(save(tmp_path / "b.png", grey)) - on_white(rgb(GREYS), alpha)).max() <= 1


def test_a_palette_may_have_a_transparent_colour(tmp_path):
    picture = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    expected = [[[255, 0, 0], [0, 255, 0]], [[255, 255, 255], [10, 20, 30]]]
    for suffix in ("png", "gif"):
        assert read_one(save(tmp_path / f"a.{suffix}", picture, transparency=2)).tolist() == expected
    assert read_one(save(tmp_path / "b.png", picture)).tolist()[1][0] == [0, 0, 255]


def test_a_colour_may_stand_for_transparency(tmp_path):
    path = save(tmp_path / "a.png", COLOURS, transparency=tuple(COLOURS[3, 4].tolist()))
    expected = COLOURS.copy()
    expected[(COLOURS == COLOURS[3, 4]).all(-1)] = 255
    assert (read_one(path) == expected).all() and (expected != COLOURS).any()


def test_one_bit_is_black_or_white(tmp_path):
    expected = rgb(255 * (GREYS > 127))
    for suffix in ("png", "tif"):
        assert (read_one(save(tmp_path / f"a.{suffix}", Image.fromarray(GREYS > 127))) == expected).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix, orientation):
    values = np.array([[0, 256, 257], [32768, 65278, 65535]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.array([[0, 0, 1], [127, 254, 255]])
    found = read_one(save(tmp_path / f"a.{suffix}", values, exif=exif))
    assert (found == rgb(np.rot90(expected, -1) if orientation == 6 else expected)).all()


def test_whole_numbers_beyond_sixteen_bits_are_named(tmp_path):
    for value in (-1, 65536):
        path = save(tmp_path / "a.tif", np.array([[value, 3]], np.int32))
        assert "a.tif (whole numbers beyond 0 to 65535 have no known range)" in reading_fails(path)
    assert read_one(save(tmp_path / "b.tif", np.array([[65535, 257]], np.int32))).tolist() == [[[255] * 3, [1] * 3]]


def test_floating_point_is_named(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((3, 3), np.float32))
    assert reading_fails(path) == (
        f"1 of 1 files cannot be read as pictures: {path} (floating-point values have no known range). "
        'To leave them out: corrupt="skip"'
    )


def test_inks_become_colours(tmp_path):
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert (abs(read_one(save(tmp_path / "a.jpg", inks)).astype(int) - [0, 255, 255]) <= 3).all()


def test_an_animation_gives_its_first_picture(tmp_path):
    first, second = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    path = save(tmp_path / "a.gif", first, save_all=True, append_images=[second], duration=100)
    assert Image.open(path).n_frames == 2
    assert (read_one(path) == [255, 0, 0]).all()


# Sizes


@pytest.mark.parametrize("shape", [(40, 40), (40, 90), (90, 40), (200, 130), (20, 20), (7, 31), (1, 1)])
def test_the_middle_square_is_scaled(tmp_path, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape)
    smooth = (127 + 100 * np.sin(4 * rows + 1) * np.cos(3 * columns)).astype(np.uint8)
    picture = Image.fromarray(np.dstack([smooth, 255 - smooth, smooth // 2]))
    found = read(save(tmp_path / "a.png", picture), size=24)[0]
    assert found.shape == (3, 24, 24)
    scaled = v2.Compose([v2.PILToTensor(), v2.Resize(24, antialias=True), v2.CenterCrop(24)])(picture)
    assert (found.float() - scaled.float()).abs().max() <= 12  # theirs cuts at whole pixels: half a pixel of the slope
    assert (found.float() - scaled.float()).abs().mean() <= 3
    side = min(shape)
    left, top = (shape[1] - side) / 2, (shape[0] - side) / 2
    exact = picture.resize((24, 24), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    assert (found.permute(1, 2, 0).numpy() == np.asarray(exact)).all()


def test_a_circle_stays_round(tmp_path):
    rows, columns = np.mgrid[:100, :300]
    circle = ((rows - 50) ** 2 + (columns - 150) ** 2 < 40**2).astype(np.uint8) * 255
    inside = read(save(tmp_path / "a.png", circle), size=50)[0, 0] > 127
    assert inside.any(0).sum() == inside.any(1).sum() == 40


def test_a_picture_of_the_wanted_size_is_not_touched(tmp_path):
    square = np.ascontiguousarray(COLOURS[:, :12])
    assert (read(save(tmp_path / "a.png", square), size=12)[0].permute(1, 2, 0).numpy() == square).all()


def test_sizes_that_differ_need_a_size(tmp_path):
    paths = save(tmp_path / "a.png", COLOURS), save(tmp_path / "b.png", COLOURS[:, :10].copy())
    with pytest.raises(ValueError, match=r"one size, or be given one by size=...; .*a.png has 16x12") as caught:
        read(*paths)
    assert "b.png has 10x12" in str(caught.value)
    assert read(*paths, size=8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("size", "error"), [(7, ValueError), (0, ValueError), (8.0, TypeError), ("64", TypeError)])
def test_a_size_is_an_integer_of_at_least_8(tmp_path, size, error):
    with pytest.raises(error, match=f"size must be (an integer of )?at least 8, got {size!r}"):
        read(save(tmp_path / "a.png", COLOURS), size=size)


def test_pictures_keep_their_order_whatever_the_threads(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{i:02}.png", np.full((9, 9, 3), i, np.uint8)) for i in range(60)]
    original = images._read

    def slow_for_some(path, size):
        time.sleep(0.02 * path.stem.endswith("0"))
        return original(path, size)

    monkeypatch.setattr(images, "_read", slow_for_some)
    assert read(*paths)[:, 0, 0, 0].tolist() == list(range(60))


# Files that are no pictures


def damaged(folder):
    """Write one picture and five files that are none, and return the latter's paths."""
    good = save(folder / "good.jpg", Image.fromarray(COLOURS).resize((200, 200)))
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:1500])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "broken link.jpg").symlink_to(folder / "nowhere.jpg")
    save(folder / "float.tif", np.ones((9, 9), np.float32))
    return [folder / name for name in ("broken link.jpg", "cut.jpg", "empty.png", "float.tif", "text.jpg")]


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    bad = damaged(tmp_path / "a")
    save(tmp_path / "b" / "x.png", COLOURS)
    with pytest.raises(ValueError, match="^5 of 7 files cannot be read as pictures: ") as caught:
        read_pictures(list_classes(tmp_path), 16)
    message = str(caught.value)
    assert all(f"{path} (" in message for path in bad) and "good.jpg" not in message
    assert "text.jpg (no format that Pillow knows)" in message and "cut.jpg (image file is truncated" in message
    assert message.endswith('To leave them out: corrupt="skip"')


def test_what_cannot_be_read_is_skipped_by_name(tmp_path):
    bad = damaged(tmp_path / "a")
    save(tmp_path / "b" / "x.png", COLOURS)
    with pytest.warns(UserWarning, match="^5 of 7 files cannot be read as pictures: ") as caught:
        found, listing = read_pictures(list_classes(tmp_path, lambda path: path.stem), 16, corrupt="skip")
    assert len(caught) == 1 and all(str(path) in str(caught[0].message) for path in bad)
    assert [path.name for path in listing.paths] == ["good.jpg", "x.png"] and listing.labels == [0, 1]
    assert listing.photographs == ["good", "x"] and listing.classes == ("a", "b")
    assert torch.equal(found, read(tmp_path / "a/good.jpg", tmp_path / "b/x.png", size=16))


@pytest.mark.parametrize("split_already", [False, True])
def test_the_warning_points_to_the_readers_line(tmp_path, split_already):
    roots = [tmp_path / "train", tmp_path / "test"] if split_already else [tmp_path]
    for root in roots:
        for name in "ab":
            for i in range(6):
                save(root / name / f"{i}.png", COLOURS)
        (root / "a" / "text.png").write_text("no picture")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_folder(tmp_path, corrupt="skip")
    assert {warning.filename for warning in caught} == {__file__} and len(caught) == len(roots)


def test_a_class_of_which_nothing_can_be_read_is_told(tmp_path):
    save(tmp_path / "a" / "x.png", COLOURS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.png").touch()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none can be read of b$"):
        read_pictures(list_classes(tmp_path), 16, corrupt="skip")


def test_many_bad_files_are_counted(tmp_path):
    for i in range(13):
        (tmp_path / f"{i}.jpg").touch()
    assert " and 3 more. To leave" in reading_fails(*tmp_path.iterdir())


def test_corrupt_is_one_of_two_words(tmp_path):
    with pytest.raises(ValueError, match='corrupt must be "refuse" or "skip", got None'):
        read(save(tmp_path / "a.png", COLOURS), corrupt=None)


# Folders


def test_classes_are_folders_in_order(tmp_path):
    for name in ("zebra", "Äpfel und Birnen", "10", "2"):
        for file in ("b.JPG", "a.jpeg", "ü ñ.png"):
            save(tmp_path / name / file, COLOURS)
    (tmp_path / "2" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "README.txt").touch()
    listing = list_classes(str(tmp_path) + "/")
    assert listing.classes == ("10", "2", "zebra", "Äpfel und Birnen")
    assert [path.name for path in listing.paths] == ["a.jpeg", "b.JPG", "ü ñ.png"] * 4
    assert [path.parent.name for path in listing.paths] == [listing.classes[label] for label in listing.labels]
    assert listing == list_classes(tmp_path) and listing.photographs is None
    assert read_pictures(listing, 8)[0].shape == (12, 3, 8, 8)


def test_a_root_that_is_no_folder_is_told(tmp_path):
    file = save(tmp_path / "a.png", COLOURS)
    with pytest.raises(FileNotFoundError, match="root must be a folder; .*a.png is a file"):
        list_classes(file)
    with pytest.raises(FileNotFoundError, match="root must be a folder; .*nowhere is not there"):
        list_classes(str(tmp_path / "nowhere"))


def test_a_folder_that_must_not_be_read_is_told(tmp_path):
    save(tmp_path / "a" / "x.png", COLOURS)
    save(tmp_path / "b" / "x.png", COLOURS)
    (tmp_path / "b").chmod(0)
    try:
        list((tmp_path / "b").iterdir())
    except PermissionError:
        with pytest.raises(PermissionError, match="/b'"):
            list_classes(tmp_path)
    else:
        pytest.skip("this user may read everything")
    finally:
        (tmp_path / "b").chmod(0o700)


def test_fewer_than_two_classes_are_told(tmp_path):
    with pytest.raises(ValueError, match="at least two classes; there is none$"):
        list_classes(tmp_path)
    save(tmp_path / "cats" / "x.png", COLOURS)
    with pytest.raises(ValueError, match="at least two classes; there is cats$"):
        list_classes(tmp_path)


def test_an_empty_class_is_told(tmp_path):
    save(tmp_path / "cats" / "x.png", COLOURS)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / ".DS_Store").touch()
    with pytest.raises(ValueError, match="every class needs pictures; in .* there is none for dogs$"):
        list_classes(tmp_path)


def test_a_folder_inside_a_class_is_told(tmp_path):
    for name in ("cats/x.png", "dogs/x.png", "dogs/more/y.png"):
        save(tmp_path / name, COLOURS)
    with pytest.raises(ValueError, match="pictures only; there are folders inside: .*dogs/more$"):
        list_classes(tmp_path)


def test_a_photograph_that_has_no_name_is_told(tmp_path):
    for name in ("a/1-x.png", "a/none.png", "b/1-x.png"):
        save(tmp_path / name, COLOURS)
    assert list_classes(tmp_path, lambda path: path.name[0]).photographs == ["1", "n", "1"]
    with pytest.raises(ValueError, match="photograph must give the name .*; it gives None for .*none.png"):
        list_classes(tmp_path, lambda path: path.name[0] if "-" in path.name else None)


# Lists of labels


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "b c.png", "ü.png", "sub/d.png"):
        save(tmp_path / "pictures" / name, COLOURS)

    def listed(text, encoding="utf-8"):
        (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
        return list_file(tmp_path / "pictures", tmp_path / "labels.csv")

    listed.root = tmp_path / "pictures"
    return listed


def test_a_list_names_files_and_classes(pictures):
    listing = pictures("by,class,file\nme,10,a.png\nme,9,ü.png\n\nme,10,sub/d.png\n")
    assert listing.paths == [pictures.root / name for name in ("a.png", "ü.png", "sub/d.png")]
    assert listing.classes == ("10", "9") and listing.labels == [0, 1, 0] and listing.photographs is None


def test_a_list_may_name_photographs(pictures):
    listing = pictures('file,class,photograph\na.png,x,1\n"b c.png",y,2\n')
    assert listing.photographs == ["1", "2"] and listing.paths[1].name == "b c.png"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_may_come_from_a_spreadsheet(pictures, encoding, end):
    assert pictures(end.join(["file,class", "a.png,x", "ü.png,y", ""]), encoding).classes == ("x", "y")


def test_a_list_may_give_whole_paths_and_may_repeat_itself(pictures):
    listing = pictures(f"file,class\n{pictures.root / 'a.png'},x\nü.png, y\na.png ,x\nsub/../ü.png,y\n")
    assert listing.paths == [pictures.root / "a.png", pictures.root / "ü.png"] and listing.labels == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns named file and class, separated by commas; it has \[\]"),
        ("a.png,x\nü.png,y\n", r"columns named file and class, .* it has \['a.png', 'x'\]"),
        ("file,label\na.png,x\n", r"columns named file and class, .* it has \['file', 'label'\]"),
        ("file;class\na.png;x\nü.png;y\n", r"separated by commas; it has \['file;class'\]"),
        ("file,class\na.png,x\nü.png\n", "line 3: file, class must not be empty"),
        ("file,class\na.png,\n", "line 2: file, class must not be empty"),
        ("file,class\n,x\n", "line 2: file, class must not be empty"),
        ("file,class,photograph\na.png,x,1\nü.png,y,\n", "line 3: file, class, photograph must not be empty"),
        ("file,class\na.png,x\nb, c.png,y\n", "line 3 has 3 values for 2 columns"),
        ("file,class\na.png,x\nü.png,y\na.png,y\n", "line 4: a.png has the class y here, x above"),
        ("file,class,class\na.png,x,y\n", r"must name every column once; it has \['file', 'class', 'class'\]"),
        ("file,class\na.png,x\nü.png, \n", "line 3: file, class must not be empty"),
        ("file,class\na.png,x\nü.png,y\nsub/../a.png,y\n", "line 4: sub/../a.png has the class y here, x above"),
        ("file,class\na.png,x\nü.png,y\n./a.png,y\n", "line 4: ./a.png has the class y here, x above"),
        ("file,class,photograph\na.png,x,1\na.png,x,2\n", "line 3: a.png has the photograph 2 here, 1 above"),
        ("file,class\na.png,x\nü.png,x\n", "at least two classes; there is x$"),
        ("file,class\n", "at least two classes; there is none$"),
        ('file,class\n"a.png,x\nü.png,y\n', "must be a CSV file in UTF-8; .* is not: unexpected end of data"),
    ],
)
def test_a_wrong_list_is_told(pictures, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        pictures(text)
    assert "labels.csv" in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_in_another_encoding_is_told(pictures, encoding):
    with pytest.raises(ValueError, match="labels must be a CSV file in UTF-8; .*labels.csv is not"):
        pictures("file,class\na.png,x\nü.png,y\n", encoding)


def test_a_picture_in_place_of_a_list_is_told(pictures):
    with pytest.raises(ValueError, match="labels must be a CSV file in UTF-8; .*a.png is not"):
        list_file(pictures.root, pictures.root / "a.png")


def test_a_missing_list_is_told(pictures):
    with pytest.raises(FileNotFoundError, match="labels must be a CSV file; .*nowhere.csv is not there"):
        list_file(pictures.root, "nowhere.csv")
    with pytest.raises(FileNotFoundError, match="labels must be a CSV file; .*sub is a folder"):
        list_file(pictures.root, pictures.root / "sub")


def test_missing_pictures_of_a_list_are_told(pictures):
    with pytest.raises(FileNotFoundError, match="names pictures that are not there: .*pictures/e.png, .*pictures/sub$"):
        pictures("file,class\na.png,x\ne.png,y\nsub,y\n")


def test_upright_pictures_equal_pillows_own(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", COLOURS, exif=exif)
    with Image.open(path) as picture:
        assert (read_one(path) == np.asarray(ImageOps.exif_transpose(picture))).all()
