"""Files that are written whole or not at all, also by several at once."""

import os
import threading

import pytest
from resbook.files import write_whole


def test_a_reader_sees_one_content_or_the_other_and_writers_do_not_meet(tmp_path):
    path, contents = tmp_path / "file", [bytes([letter]) * (200_000 + letter) for letter in b"abcd"]
    write_whole(path, contents[0])
    failures, done = [], threading.Event()

    def write(content):
        try:
            for _ in range(25):
                write_whole(path, content)
        except Exception as error:
            failures.append(error)

    def read():
        while not done.is_set():
            if path.read_bytes() not in contents:
                failures.append("torn")

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=[c]) for c in contents]
    for thread in (reader, *writers):
        thread.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert failures == [] and path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("content", [b"", b"new", memoryview(b"new")], ids=repr)
def test_writes_exactly_what_it_is_given(tmp_path, content):
    (tmp_path / "file").write_bytes(b"something longer")
    write_whole(str(tmp_path / "file"), content)
    assert (tmp_path / "file").read_bytes() == bytes(content)


def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").symlink_to(tmp_path / "disk" / "file")
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").is_symlink() and (tmp_path / "disk" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_changes_nothing_and_the_error_says_so(tmp_path, monkeypatch, function, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    kept = "what it held before is still there" if before else "nothing was written"
    with pytest.raises(OSError) as raised:
        write_whole(path, b"new")
    assert str(raised.value) == f"[Errno 28] {path} could not be written, {kept}: No space left on device"
    assert raised.value.errno == 28
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"file": b"old"} if before else {})


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing/file", FileNotFoundError), ("a file/file", NotADirectoryError), ("folder", IsADirectoryError)],
)
def test_where_no_file_can_be_the_error_names_it_and_nothing_is_left(tmp_path, name, error):
    (tmp_path / "a file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error) as raised:
        write_whole(tmp_path / name, b"new")
    assert f"{tmp_path / name} could not be written" in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["a file", "folder"] and (tmp_path / "a file").read_bytes() == b"old"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_interrupt_changes_nothing(tmp_path, monkeypatch, function):
    (tmp_path / "file").write_bytes(b"old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"old"}


def test_the_file_is_as_readable_as_others(tmp_path):
    """Not for its owner alone, as temporary files are."""
    (tmp_path / "other").touch()
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
