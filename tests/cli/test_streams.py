"""stdin and stdout as they come: other encodings, marks, full disks, readers that leave."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.common import fails
from tests.cli.forked import run_all

MARK = b"\xef\xbb\xbf"


WIDE = "世界 é 🙂"
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
TABLES = (("samplers",), ("env", "--json"), ("env",))
CASES = {
    "cp1252": {"arguments": ("generate", WIDE, "--json"), "encoding": "cp1252"},
    "utf-8": {"arguments": ("generate", WIDE, "--json")},
    "spelled": {"arguments": ("generate", WIDE), "encoding": "cp1252"},
    "full json": {"arguments": ("generate", "one", "--json"), "stdout": "/dev/full"},
    "full text": {"arguments": ("generate", "one"), "stdout": "/dev/full"},
    "full table": {"arguments": ("samplers",), "stdout": "/dev/full"},
    **{f"gone {' '.join(each)}": {"arguments": each, "stdout": "gone"} for each in TABLES},
    "no stdin": {"arguments": ("generate",), "stdin": None},
    "no stdout": {"arguments": ("generate", "one"), "stdout": None},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All cases, in processes of their own."""
    usable = {
        name: case
        for name, case in CASES.items()
        if case.get("stdout") != "/dev/full" or os.path.exists("/dev/full")
    }
    return run_all(tmp_path_factory.mktemp("streams"), usable)


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_changes_nothing(run, tmp_path, name, ends):
    lines = ["one two", "three"]
    if name == "in.jsonl":
        lines = [json.dumps({"prompt": line}) for line in lines]
    file = tmp_path / name
    file.write_bytes(MARK + "".join(line + ends for line in lines).encode())
    for source in ({"input": file.read_bytes()}, {}):
        result = run("generate", *([] if source else ["--input", file]), "--json", **source)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(line["prompt"], line["text"]) for line in found] == [
            ("one two", "one two"),
            ("three", "three"),
        ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("one\ncafé\n".encode("latin-1"), "line 2: expected UTF-8 text, found the byte 0xe9"),
        ("one\n".encode("utf-16"), "found UTF-16"),
        (b'{"prompt": "one"}\n{"prompt": \n', "line 2: expected JSON"),
        (b'{"a":' * 100_000 + b"\n", "line 1: this JSON is nested too deep"),
    ],
)
def test_what_is_no_text_is_one_error(run, tmp_path, content, words):
    file = tmp_path / "in"
    file.write_bytes(content)
    for verb in ("generate", "speculate"):
        fails(run(verb, "--input", file), f"{file}", words)
        fails(run(verb, "--input", "-", input=content), "stdin", words)
    fails(run("tune", "--prompts", file, "--output", tmp_path / "preset.json"), f"{file}", words)
    train = ("train", "mdlm", "--model", "tiny", "--data", file, "--out", tmp_path / "run")
    result = run(*train)
    assert result.exit_code == 2
    assert words in result.stderr


def test_half_a_character_is_one_error(run, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"prompt": "a\\ud800"}\n{"prompt": [{"role": "user", "content": "\\udfff"}]}\n'
    )
    for number in (0, 1):
        line = file.read_text().splitlines()[number]
        fails(run("generate", input=line), "half of a surrogate pair")
        fails(run("speculate", input=line), "half of a surrogate pair")


def test_a_line_that_is_no_text_ends_no_chat(run):
    lines = MARK + b"one\n" + "café\n".encode("latin-1") + b"two\n"
    result = run("chat", input=lines)
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert "half of a surrogate pair" in result.stderr


def test_a_pipe_may_be_the_input(run, tmp_path):
    read, write = os.pipe()
    os.write(write, b"one two\n")
    os.close(write)
    try:
        assert run("generate", "--input", f"/dev/fd/{read}").stdout == "one two\n"
    finally:
        os.close(read)


def test_json_in_another_encoding_loses_nothing(done):
    status, stdout, stderr = done["cp1252"]
    assert status == 0, stderr
    assert json.loads(stdout.decode("ascii"))["prompt"] == WIDE
    assert f'"prompt": "{WIDE}"'.encode() in done["utf-8"].stdout


def test_text_in_another_encoding_is_spelled_out(done):
    assert done["spelled"][:2] == (0, "\\u4e16\\u754c é \\U0001f642\n".encode("cp1252"))


@FULL
@pytest.mark.parametrize("name", ["full json", "full text"])
def test_a_full_stdout_is_one_error(done, name):
    status, _, stderr = done[name]
    assert status == 2
    (line,) = [line for line in stderr.decode().splitlines() if "forwards" not in line]
    assert line == "error: stdout: No space left on device"


@FULL
def test_a_full_stdout_of_a_table_is_one_error(done):
    status, _, stderr = done["full table"]
    assert (status, stderr) == (2, b"error: stdout: No space left on device\n")


@pytest.mark.parametrize("table", TABLES)
def test_a_reader_that_leaves_ends_it_silently(done, table):
    assert done[f"gone {' '.join(table)}"] == (1, b"", b"")


@pytest.mark.parametrize(("name", "status"), [("no stdin", 2), ("no stdout", 0)])
def test_a_closed_stream_is_no_traceback(done, name, status):
    assert done[name].status == status
    assert b"Traceback" not in done[name].stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_an_interpreter_that_begins_without_a_stream(closed):
    """What is told before torch is imported."""
    command = f"{sys.executable} -m dllm generate x --watch --json {closed}"
    found = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert found.stderr.startswith(b"error: --watch shows text")
