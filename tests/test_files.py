"""Text and JSON read within bounds; files written whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from dllm.files import (
    FileError,
    destination,
    read_bytes,
    read_json,
    read_text,
    replacing,
    write_json,
    write_text,
)


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffé\n".encode())
    assert read_text(file) == "é\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("é".encode("utf-16"), "UTF-16"),
        (b"one\ntwo\xe9\n", "line 2: expected UTF-8 text, found the byte 0xe9"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path, data, expected):
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(FileError, match=expected):
        read_text(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 100_000, "nested too deep"),
        ("9" * 10_000, "expected JSON"),
        ("{", "expected JSON"),
        ("", "expected JSON"),
    ],
)
def test_what_is_no_json_is_told_in_one_line(tmp_path, text, expected):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(FileError, match=expected) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_or_a_device_is_read_only_where_it_may_be_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="found a pipe or a device"):
        read_text(pipe)
    with pytest.raises(FileError, match="found a pipe or a device"):
        read_text("/dev/zero")
    writer = threading.Thread(target=lambda: pipe.write_text("text"))
    writer.start()
    assert read_text(pipe, pipes=True) == "text"
    writer.join()
    with pytest.raises(FileError, match="at most 1 MiB"):
        read_text("/dev/zero", pipes=True, limit=2**20)


@pytest.mark.parametrize(("size", "fits"), [(4, True), (5, False)])
def test_the_limit_is_the_last_size_that_is_read(tmp_path, size, fits):
    file = tmp_path / "a"
    file.write_bytes(b"x" * size)
    if fits:
        assert len(read_bytes(file, limit=4)) == size
    else:
        with pytest.raises(FileError):
            read_bytes(file, limit=4)


def test_missing_files_and_directories_are_told(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read_text(tmp_path / "missing")
    with pytest.raises(FileError, match="found a directory"):
        read_text(tmp_path)


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_link_to_nothing_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": "é"}, indent=None)
    reader.join()
    assert found == ['{"a": "é"}\n']
    assert pipe.is_fifo()


def test_the_writing_end_of_a_process_substitution_is_a_destination():
    read, write = os.pipe()
    try:
        write_text(f"/dev/fd/{write}", "text")
        assert os.read(read, 10) == b"text"
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left")])
def test_what_fails_changes_nothing_and_leaves_nothing(tmp_path, error):
    file = tmp_path / "a"
    file.write_text("old")
    wanted = FileError if isinstance(error, OSError) else error

    def write():
        with replacing(file) as temp:
            temp.write_text("half")
            raise error

    with pytest.raises(wanted):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_text() == "old"


def test_where_nothing_can_be_written_is_told_before(tmp_path):
    with pytest.raises(FileError, match="found a directory"):
        destination(tmp_path)
    with pytest.raises(FileError, match="no directory"):
        destination(tmp_path / "missing" / "a")
    assert destination(tmp_path / "a") == (tmp_path / "a").resolve()
    assert not (tmp_path / "a").exists()


def test_new_files_have_the_usual_permissions(tmp_path):
    write_text(tmp_path / "a", "text")
    Path(tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
