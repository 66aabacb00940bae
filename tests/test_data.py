"""The data sets: what they hold, how they are split, what normalising does, and what is told of bad folders."""

import hashlib
import io
import pickle
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from resbook import data as data_module
from resbook.cracks import CRACK_CLASSES, draw_cracks
from resbook.data import cifar10, digits, image_folder, normalise, sdnet2018, statistics, synthetic_cracks
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10

REAL = Path(__file__).parent.parent.parent / "shared" / "data"


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the real pictures {path} are not here")
    return path


def test_digits_are_all_of_scikit_learns_split_by_class():
    data = digits()
    assert data.train_images.shape == (1437, 1, 8, 8) and data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    labels = torch.cat([data.train_labels, data.test_labels])
    assert torch.equal(labels.bincount(), torch.tensor(load_digits().target).bincount())
    share = data.test_labels.bincount() / labels.bincount()
    assert (share - 0.2).abs().max() < 0.005
    assert data.classes == tuple("0123456789")


def test_no_digit_is_in_both_parts_but_for_twins_of_the_source():
    data, source = digits(), torch.tensor(load_digits().images, dtype=torch.float32).flatten(1)
    images = torch.cat([data.train_images, data.test_images]).flatten(1)
    scaled = (images - images.min()) / (images.max() - images.min()) * 16
    assert torch.equal(scaled.round().unique(dim=0), source.unique(dim=0))


def test_the_seed_makes_the_split():
    assert torch.equal(digits(1).train_images, digits(1).train_images)
    assert not torch.equal(digits(1).train_labels, digits(2).train_labels)


@pytest.mark.parametrize("seed", [0, 5])
def test_digits_are_scikit_learns_split_of_that_seed(seed):
    source, data = load_digits(), digits(seed)
    parts = train_test_split(source.images, source.target, test_size=0.2, stratify=source.target, random_state=seed)
    train, test = (torch.tensor(images, dtype=torch.float32)[:, None] for images in parts[:2])
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), correction=0, keepdim=True)
    assert torch.equal(data.train_images, (train - mean) / deviation)  # to the bit: stored notebooks depend on it
    assert torch.equal(data.test_images, (test - mean) / deviation)
    assert torch.equal(data.train_labels, torch.tensor(parts[2]))
    assert torch.equal(data.test_labels, torch.tensor(parts[3]))
    assert torch.equal(data.mean, mean.flatten()) and torch.equal(data.deviation, deviation.flatten())


def test_normalise_uses_the_training_images_alone():
    train, test = 3 + 2 * torch.randn(50, 2, 4, 4), torch.randn(10, 2, 4, 4)
    changed, other = normalise(train, test)
    assert torch.allclose(changed.mean((0, 2, 3)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(changed.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-6)
    mean, deviation = train[:, 1].mean(), train[:, 1].std(correction=0)
    assert torch.allclose(other[:, 1], (test[:, 1] - mean) / deviation, atol=1e-6)


def test_a_constant_channel_is_refused():
    train = torch.randn(5, 3, 2, 2)
    train[:, 2] = 0.5
    with pytest.raises(ValueError, match="channel 2 has the value 0.5"):
        normalise(train, train)


def test_a_constant_channel_is_refused_although_its_mean_is_rounded():
    images = torch.rand(300, 2, 8, 8)
    images[:, 1] = 0.3
    assert images[:, 1].mean() != images[0, 1, 0, 0] or images[:, 1].std(correction=0) > 0
    with pytest.raises(ValueError, match="must vary in every channel; channel 1 has the value 0.3$"):
        statistics(images)


def test_normalise_leaves_its_arguments_alone():
    train, test = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    copies = train.clone(), test.clone()
    normalise(train, test)
    assert torch.equal(train, copies[0]) and torch.equal(test, copies[1])


def test_to_moves_every_tensor():
    moved = digits().to("meta")
    assert all(tensor.is_meta for tensor in moved[:4]) and moved.classes == digits().classes


# Drawn pictures


def test_synthetic_cracks_are_the_drawn_pictures_split_by_class():
    data, (images, labels) = synthetic_cracks(60, 16, 3), draw_cracks(60, 16, 3)
    assert data.train_labels.bincount().tolist() == [8] * 6 and data.test_labels.bincount().tolist() == [2] * 6
    assert data.classes == CRACK_CLASSES
    found = torch.cat([data.train_images, data.test_images]) * data.deviation[:, None, None] + data.mean[:, None, None]
    nearest = torch.cdist(found.flatten(1), images.flatten(1)).argmin(1)
    assert sorted(nearest.tolist()) == list(range(60)) and torch.allclose(found, images[nearest], atol=1e-6)
    assert torch.equal(labels[nearest], torch.cat([data.train_labels, data.test_labels]))


def test_synthetic_cracks_depend_on_the_seed_alone():
    first, again, other = (synthetic_cracks(30, 16, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not torch.equal(first.train_images, other.train_images)


def test_synthetic_cracks_need_five_pictures_of_a_class():
    assert len(synthetic_cracks(30, 16).test_labels) == 6
    with pytest.raises(ValueError, match="count must be at least 30, got 29"):
        synthetic_cracks(29, 16)
    with pytest.raises(ValueError, match="size must be at least 16, got 15"):
        synthetic_cracks(30, 15)


# Folders of pictures


def fill(folder, count=6, size=(12, 12), seed=0):
    """Write pictures of random colours; the names begin with one of two photographs each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    for i in range(count):
        colours = random.randint(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(colours).save(folder / f"{i // (count // 2)}-{i}.png")


def fill_parts(root, **options):
    for part in ("train", "test"):
        for name in ("cats", "dogs"):
            fill(root / part / name, **options)


def pixels(images, data):
    """Return images from 0 to 255 again, rows before columns before channels."""
    shifted = images * data.deviation[:, None, None] + data.mean[:, None, None]
    return (255 * shifted).round().permute(0, 2, 3, 1).numpy()


def on_disk(paths):
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize("as_text", [False, True])
def test_a_folder_is_split_by_class(tmp_path, as_text):
    for i, name in enumerate(("cats", "dogs", "ü x")):
        fill(tmp_path / name, 10, seed=i)
    data = image_folder(f"{tmp_path}/" if as_text else tmp_path, size=None)
    assert data.train_labels.bincount().tolist() == [8] * 3 and data.test_labels.bincount().tolist() == [2] * 3
    assert data.classes == ("cats", "dogs", "ü x") and data.train_labels.dtype == torch.int64
    for i, name in enumerate(data.classes):
        both = (
            pixels(data.train_images, data)[data.train_labels == i],
            pixels(data.test_images, data)[data.test_labels == i],
        )
        expected = on_disk(sorted((tmp_path / name).iterdir()))
        assert {picture.tobytes() for picture in np.concatenate(both)} == {p.astype("f4").tobytes() for p in expected}


def test_the_statistics_are_those_of_the_training_pictures(tmp_path):
    fill_parts(tmp_path)
    data = image_folder(tmp_path, size=None)
    values = on_disk(sorted(tmp_path.glob("train/*/*"))) / 255
    assert data.mean.tolist() == pytest.approx(values.mean((0, 1, 2)), rel=1e-5)
    assert data.deviation.tolist() == pytest.approx(values.std((0, 1, 2)), rel=1e-5)
    expected = (values - values.mean((0, 1, 2))) / values.std((0, 1, 2))
    assert np.allclose(data.train_images.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_train_and_test_are_taken_as_they_are_whatever_lies_beside(tmp_path):
    for part, seed in (("train", 1), ("test", 2)):
        for name in ("cats", "dogs"):
            fill(tmp_path / part / name, 4 if part == "test" else 8, seed=seed)
    (tmp_path / "README.md").write_text("Two animals.")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / "names.txt").touch()
    data = image_folder(tmp_path, None)
    assert data.train_labels.tolist() == [0] * 8 + [1] * 8 and data.test_labels.tolist() == [0] * 4 + [1] * 4
    assert (pixels(data.train_images, data) == on_disk(sorted(tmp_path.glob("train/*/*.png")))).all()
    assert (pixels(data.test_images, data) == on_disk(sorted(tmp_path.glob("test/*/*.png")))).all()


def test_train_and_test_must_have_the_same_classes(tmp_path):
    fill_parts(tmp_path)
    fill(tmp_path / "test" / "birds")
    fill(tmp_path / "train" / "fish")
    with pytest.raises(ValueError, match="the same classes; in one only: birds, fish$"):
        image_folder(tmp_path)


def test_train_and_test_must_have_one_size(tmp_path):
    fill_parts(tmp_path)
    for name in ("cats", "dogs"):
        fill(tmp_path / "test" / name, size=(13, 12))
    with pytest.raises(ValueError, match=r"one size, or be given one by size=...; they have 12x12 and 13x12$"):
        image_folder(tmp_path, size=None)
    assert image_folder(tmp_path, size=8).test_images.shape == (12, 3, 8, 8)


def test_train_and_test_must_not_share_a_photograph(tmp_path):
    fill_parts(tmp_path)
    assert image_folder(tmp_path, photograph=lambda path: f"{path.parts[-3]} {path.name[0]}").mean is not None
    with pytest.raises(ValueError, match="must not share a photograph; 0 is in both"):
        image_folder(tmp_path, photograph=lambda path: path.name[0])


def test_other_folders_beside_train_and_test_are_refused(tmp_path):
    fill_parts(tmp_path)
    fill(tmp_path / "val" / "cats")
    with pytest.raises(ValueError, match="pictures only; there are folders inside: .*test/cats, .*val/cats$"):
        image_folder(tmp_path)


def test_a_folder_is_split_by_photograph_where_it_is_named(tmp_path):
    for i, name in enumerate(("cats", "dogs")):
        fill(tmp_path / name, 10, seed=i)
    data = image_folder(tmp_path, None, photograph=lambda path: f"{path.parent.name} {path.name[0]}")
    parts = [
        {pixel.astype(np.uint8).tobytes() for pixel in pixels(images, data)}
        for images in (data.train_images, data.test_images)
    ]
    for name in ("cats", "dogs"):
        for number in "01":
            tiles = {picture.tobytes() for picture in on_disk((tmp_path / name).glob(f"{number}-*"))}
            assert tiles <= parts[0] or tiles <= parts[1]
    assert data.test_labels.bincount().tolist() == [5, 5]


def test_a_list_takes_the_place_of_folders(tmp_path):
    fill(tmp_path / "pictures", 20)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    rows = [f"{name},{i % 2},p{i // 5}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,class,photograph", *rows]))
    data = image_folder(tmp_path / "pictures", None, labels=tmp_path / "labels.csv", test_share=0.25)
    assert data.classes == ("0", "1") and len(data.test_labels) == 5
    found = [picture.tobytes() for picture in pixels(data.test_images, data).astype(np.uint8)]
    chosen = [i for i, name in enumerate(names) if on_disk([tmp_path / "pictures" / name]).tobytes() in found]
    assert len(chosen) == 5 and len({i // 5 for i in chosen}) == 1
    assert data.test_labels.tolist() == [i % 2 for i in chosen]


def test_a_list_and_a_function_for_photographs_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="photograph must be None where labels are given"):
        image_folder(tmp_path, labels="labels.csv", photograph=str)


def test_what_cannot_be_split_is_told_before_anything_is_read(tmp_path, monkeypatch):
    for name in ("cats", "dogs"):
        fill(tmp_path / name, 4)
    monkeypatch.setattr(data_module, "read_pictures", None)
    with pytest.raises(ValueError, match="test_share=0.2 needs 5 images or more of every class; 'cats' has 4"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="test_share must be above 0 and at most 0.5, got 20"):
        image_folder(tmp_path, test_share=20)


def test_skipped_pictures_leave_labels_and_photographs_in_step(tmp_path):
    for i, name in enumerate(("cats", "dogs")):
        fill(tmp_path / name, 12, seed=i)
        (tmp_path / name / "0-0.png").write_text("no picture")
    with pytest.warns(UserWarning, match="^2 of 24 files cannot be read"):
        data = image_folder(tmp_path, None, corrupt="skip")
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        for picture, label in zip(pixels(images, data).astype(np.uint8), labels, strict=True):
            own = [path for path in (tmp_path / data.classes[label]).glob("*.png") if path.name != "0-0.png"]
            assert picture.tobytes() in [on_disk([path]).tobytes() for path in own]
    assert len(data.train_labels) + len(data.test_labels) == 22


@pytest.mark.parametrize("load", [image_folder, sdnet2018])
def test_a_missing_root_is_told(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder; .*nowhere is not there"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="root must be a folder; .*file is a file"):
        load(str(tmp_path / "file"))


def test_flowers_of_all_sizes():
    root = real("flowers")
    data = image_folder(root, 32, progress=False)
    assert data.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert data.train_labels.bincount().tolist() == [32] * 5 and data.test_labels.bincount().tolist() == [8] * 5
    with pytest.raises(ValueError, match="pictures must have one size"):
        image_folder(root, size=None)


def test_jpegs_of_cifar10(tmp_path):
    """Of the copy packed as one file, 20 + 5 pictures of each class are unpacked as its own script does it."""
    pack = np.load(real("cifar10_q75_packed.npz"))
    header, names, chosen = pack["header"].tobytes(), pack["class_names"].tolist(), {}
    for part, each in (("train", 20), ("test", 5)):
        scans, labels = pack[f"{part}_scan"], pack[f"{part}_labels"]
        ends = pack[f"{part}_len"].astype(np.int64).cumsum()
        for label, name in enumerate(names):
            (tmp_path / part / name).mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[:each]:
                scan = scans[ends[i - 1] if i else 0 : ends[i]].tobytes()
                (tmp_path / part / name / f"{i:05}.jpg").write_bytes(header + scan)
        chosen[part] = on_disk(sorted(tmp_path.glob(f"{part}/*/*")))
    data = image_folder(tmp_path, size=None)
    assert data.classes == tuple(names) and data.train_images.shape == (200, 3, 32, 32)
    assert (pixels(data.train_images, data) == chosen["train"]).all()
    assert (pixels(data.test_images, data) == chosen["test"]).all()
    assert data.test_labels.bincount().tolist() == [5] * 10


# SDNET2018


def fill_surface(root, letter, photographs=5):
    for folder in (f"C{letter}", f"U{letter}"):
        fill(root / letter / folder, 0)
        for i in range(photographs):
            for tile in range(1, 5):
                level = {"P": 40, "W": 120, "D": 200}[letter] + 10 * (folder[0] == "C") + i
                colours = np.full((20, 20, 3), level, np.uint8)
                Image.fromarray(colours).save(root / letter / folder / f"{7000 + i}-{tile}.jpg", quality=100)


def test_sdnet2018_has_six_classes_split_by_photograph(tmp_path):
    for letter in "DWP":
        fill_surface(tmp_path, letter)
    data = sdnet2018(str(tmp_path), size=16)
    assert data.classes == CRACK_CLASSES
    levels = [
        np.median(pixels(images, data), (1, 2, 3)).astype(int) for images in (data.train_images, data.test_images)
    ]
    for found, labels in zip(levels, (data.train_labels, data.test_labels), strict=True):
        assert (found // 10 - np.array([4, 5, 12, 13, 20, 21])[labels] == 0).all()
    for start in (40, 120, 200):  # cracked and intact tiles of a photograph are 10 levels apart
        train, test = ({level % 10 for level in found[found // 80 == start // 80]} for found in levels)
        assert len(train) == 4 and len(test) == 1 and not train & test
    assert data.test_labels.bincount().tolist() == [4] * 6


def test_sdnet2018_may_be_there_in_part(tmp_path):
    fill_surface(tmp_path, "D")
    fill_surface(tmp_path, "P")
    assert sdnet2018(tmp_path, 16).classes == CRACK_CLASSES[:2] + CRACK_CLASSES[4:]


def test_folders_and_names_that_are_not_sdnet2018s_are_told(tmp_path):
    fill_surface(tmp_path, "D")
    with pytest.raises(ValueError, match="must have the folders of SDNET2018, P, W, D; it has none"):
        sdnet2018(tmp_path / "D")
    (tmp_path / "D" / "CD" / "IMG7.jpg").touch()
    with pytest.raises(ValueError, match="IMG7.jpg must be named as in SDNET2018, by its photograph, a hyphen"):
        sdnet2018(tmp_path)
    (tmp_path / "D" / "CD" / "IMG7.jpg").unlink()
    (tmp_path / "D" / "CD").rename(tmp_path / "D" / "CP")
    with pytest.raises(ValueError, match="must have the folders CD and UD; it has CP, UD$"):
        sdnet2018(tmp_path)


def test_the_real_decks_cannot_be_split_by_photograph(tmp_path):
    (tmp_path / "D").symlink_to(real("sdnet2018_decks"))
    for letter in "WP":
        fill_surface(tmp_path, letter)
    with pytest.raises(ValueError, match="two or more of every class; 'bridge deck, intact' comes from D-7001$"):
        sdnet2018(tmp_path)


def test_real_decks_beside_intact_ones_of_another_photograph_are_split(tmp_path):
    decks = real("sdnet2018_decks")
    for name in ("CD", "UD"):
        (tmp_path / "D" / name).mkdir(parents=True)
        for path in sorted((decks / name).iterdir())[::4]:
            (tmp_path / "D" / name / path.name).symlink_to(path)
    fill(tmp_path / "D" / "UD", 4, (256, 256))  # photographs 0 and 1
    data = sdnet2018(tmp_path, None)
    assert data.classes == ("bridge deck, intact", "bridge deck, cracked")
    assert data.train_images.shape[1:] == (3, 256, 256)
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == {0, 1}
    assert data.mean.tolist() == pytest.approx([0.5] * 3, abs=0.2)


# CIFAR-10


class Downloads(BaseHTTPRequestHandler):
    """Serve the server's ``content``; if it has a number ``cut``, that many bytes of it, and then hang up."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        try:
            self.wfile.write(self.server.content[: self.server.cut])
        except OSError:  # the client has asked for the address only, and has gone
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def cifar10_server(monkeypatch):
    """Serve 60 pictures in the format of the official archive, and have torchvision believe in it."""
    random, names = np.random.RandomState(0), [f"class {i}" for i in range(10)]
    batches = {
        name: {"data": random.randint(0, 256, (10, 3072), np.uint8), "labels": random.permutation(10).tolist()}
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    }
    buffer, sums = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (batches | {"batches.meta": {"label_names": names}}).items():
            packed = pickle.dumps(content, protocol=2)
            entry, sums[name] = tarfile.TarInfo(f"cifar-10-batches-py/{name}"), hashlib.md5(packed).hexdigest()
            entry.size = len(packed)
            archive.addfile(entry, io.BytesIO(packed))
    with ThreadingHTTPServer(("127.0.0.1", 0), Downloads) as server:
        server.content, server.cut, server.batches = buffer.getvalue(), None, batches
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(server.content).hexdigest())
        monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in list(batches)[:5]])
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def assert_is_served(data, server):
    *train, test = server.batches.values()
    for images, labels, parts in (
        (data.train_images, data.train_labels, train),
        (data.test_images, data.test_labels, [test]),
    ):
        expected = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert (pixels(images, data) == expected).all()
        assert labels.tolist() == [label for part in parts for label in part["labels"]]
    assert data.classes == tuple(f"class {i}" for i in range(10))


def test_cifar10_is_downloaded_once(cifar10_server, tmp_path):
    data = cifar10(tmp_path, download=True)
    assert_is_served(data, cifar10_server)
    assert data.train_images.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    assert data.train_images.mean().abs() < 1e-5 and data.train_images.std() == pytest.approx(1, abs=1e-4)
    cifar10_server.content = b""
    assert_is_served(cifar10(str(tmp_path), download=True), cifar10_server)
    assert_is_served(cifar10(tmp_path), cifar10_server)


def test_an_interrupted_download_is_told_and_the_next_succeeds(cifar10_server, tmp_path):
    cifar10_server.cut = len(cifar10_server.content) // 2
    with pytest.raises(OSError, match="CIFAR-10 could not be downloaded to .*; try again"):
        cifar10(tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match="download=True"):
        cifar10(tmp_path)
    cifar10_server.cut = None
    assert_is_served(cifar10(tmp_path, download=True), cifar10_server)


def test_a_server_that_is_not_there_or_sends_something_else_is_told(cifar10_server, tmp_path, monkeypatch):
    cifar10_server.content = b"<html>Sorry</html>"
    with pytest.raises(OSError, match="CIFAR-10 could not be downloaded to"):
        cifar10(tmp_path, download=True)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing")
    with pytest.raises(OSError, match="CIFAR-10 could not be downloaded to .*refused"):
        cifar10(tmp_path / "other", download=True)


def test_cifar10_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is not in .*, or damaged; download=True fetches it"):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_damaged_file_of_cifar10_is_told_and_fetched_anew(cifar10_server, tmp_path, name):
    cifar10(tmp_path, download=True)
    path = tmp_path / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileNotFoundError, match="or damaged; download=True fetches it"):
        cifar10(tmp_path)
    assert_is_served(cifar10(tmp_path, download=True), cifar10_server)


def test_damaged_names_of_cifar10_are_told(cifar10_server, tmp_path):
    """Of this file torchvision sees the damage, but does not fetch it anew."""
    cifar10(tmp_path, download=True)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    with pytest.raises(FileNotFoundError, match="or damaged; download=True fetches it"):
        cifar10(tmp_path)
    with pytest.raises(OSError, match="metadata file not found .*; try again, or try an empty folder"):
        cifar10(tmp_path, download=True)
