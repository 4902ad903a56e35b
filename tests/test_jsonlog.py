"""Logs of JSON lines: continued after a kill, a full disk, a second process."""

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm import jsonlog
from dllm.files import FileError
from dllm.jsonlog import JsonLog, read_records

HEADER = {"format": "test-1", "model": "tiny", "sizes": (1, 2)}


def test_records_come_back_and_the_log_goes_on(tmp_path):
    path = tmp_path / "log"
    with JsonLog(path, HEADER) as log:
        log.append({"a": 1}, {"b": "\ud800 é"})
        assert list(log) == [{"a": 1}, {"b": "\ud800 é"}]
    with JsonLog(path, HEADER) as log:
        log.append({"c": 3})
        assert list(log) == [{"a": 1}, {"b": "\ud800 é"}, {"c": 3}]


def test_a_log_without_header_has_records_only(tmp_path):
    with JsonLog(tmp_path / "log") as log:
        log.append({"a": 1})
        assert list(log) == [{"a": 1}]
    assert list(read_records(tmp_path / "log")) == [(1, {"a": 1})]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=4), st.data())
def test_wherever_a_kill_cuts_whole_lines_stay(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("logs") / "log"
    with JsonLog(path, HEADER) as log:
        log.append(*({"text": text} for text in texts))
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = max(content[:cut].count(b"\n") - 1, 0)
    assert len(list(read_records(path))) == content[:cut].count(b"\n")
    with JsonLog(path, HEADER) as log:
        assert list(log) == [{"text": text} for text in texts[:whole]]
        log.append({"text": "more"})
        assert list(log) == [{"text": text} for text in [*texts[:whole], "more"]]


def test_a_torn_line_longer_than_a_piece_is_cut(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    with JsonLog(path) as log:
        assert list(log) == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({**HEADER, "model": "other"}, "another model .'tiny' there, 'other' here"),
        ({**HEADER, "more": 1}, "another more"),
        ({"format": "else-1"}, "expected a file of else-1"),
    ],
)
def test_another_header_is_refused_and_nothing_changes(tmp_path, other, expected):
    path = tmp_path / "log"
    with JsonLog(path, HEADER) as log:
        log.append({"a": 1})
    before = path.read_bytes()
    with pytest.raises(FileError, match=expected):
        JsonLog(path, other)
    assert path.read_bytes() == before
    with JsonLog(path, other, fresh=True) as log:
        assert list(log) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"nonsense\n", "line 1: expected JSON"),
        (b'{"a": 1}\n[1]\n', "line 2: expected a JSON object"),
        (b"\xff\xfe\n", "UTF-16"),
        (b'{"a": "\xe9"}\n', "expected UTF-8"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, expected):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(FileError, match=expected):
        list(read_records(tmp_path / "log"))


def test_an_endless_line_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlog, "LINE_LIMIT", 10)
    (tmp_path / "log").write_bytes(b'{"a": "' + b"x" * 100)
    with pytest.raises(FileError, match="line 1: longer than 10 bytes"):
        list(read_records(tmp_path / "log"))


def test_a_full_disk_takes_nothing_of_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "log"
    real = os.write

    def full(descriptor, data):
        if len(data) > 5:
            return real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with JsonLog(path, HEADER) as log:
        log.append({"a": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(FileError, match="No space left"):
                log.append({"b": 2}, {"c": 3})
        assert list(log) == [{"a": 1}]
        log.append({"d": 4})
        assert list(log) == [{"a": 1}, {"d": 4}]


WRITE = "import sys; from dllm.jsonlog import JsonLog; JsonLog(sys.argv[1]).append({'b': 2})"


def test_a_second_process_gets_one_error(tmp_path):
    path = tmp_path / "log"

    def second():
        command = [sys.executable, "-c", WRITE, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with JsonLog(path) as log:
        log.append({"a": 1})
        assert "another process is writing it" in second()
        assert list(log) == [{"a": 1}]
    assert second() == ""
    assert [record for _, record in read_records(path)] == [{"a": 1}, {"b": 2}]


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="found a pipe or a device"):
        JsonLog(tmp_path / "pipe")
    with pytest.raises(FileError, match="found a directory"):
        JsonLog(tmp_path)
