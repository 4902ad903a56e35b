"""stdin and stdout as they come: other encodings, marks, full disks, readers that leave."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.common import fails

MARK = b"\xef\xbb\xbf"


def dllm(*arguments, input=b"", **settings):
    """The command line as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    command = [sys.executable, "-m", "dllm", *map(str, arguments)]
    return subprocess.run(command, input=input, env=environment, check=False, **settings)


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


def test_json_in_another_encoding_loses_nothing():
    prompt = "世界 é 🙂"
    command = ("generate", prompt, "--json", "--max-new-tokens", 4)
    done = dllm(*command, env={"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["prompt"] == prompt
    plain = dllm(*command, env={"PYTHONIOENCODING": "utf-8"})
    assert f'"prompt": "{prompt}"'.encode() in plain.stdout


def test_text_in_another_encoding_is_spelled_out():
    code = "import typer; from dllm.cli.app import app; app.command('show')(lambda: print('é世'))"
    command = [sys.executable, "-c", f"{code}\napp(['show'])"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "é\\u4e16\n".encode("cp1252")), done.stderr


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@FULL
@pytest.mark.parametrize("more", [["--json"], []])
def test_a_full_stdout_is_one_error(more):
    with open("/dev/full", "wb") as full:
        done = dllm("generate", "one", "--max-new-tokens", 4, *more, stdout=full)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.decode().splitlines() if "forwards" not in line]
    assert line == "error: stdout: No space left on device"


@FULL
def test_a_full_stdout_of_a_table_is_one_error():
    with open("/dev/full", "wb") as full:
        done = dllm("samplers", stdout=full)
    assert (done.returncode, done.stderr) == (2, b"error: stdout: No space left on device\n")


@pytest.mark.parametrize("command", [["samplers"], ["env", "--json"], ["env"]])
def test_a_reader_that_leaves_ends_it_silently(command):
    read, write = os.pipe()
    os.close(read)
    try:
        done = dllm(*command, stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_closed_stream_is_no_traceback(closed):
    command = f"{sys.executable} -m dllm generate {closed}"
    done = subprocess.run(
        command, shell=True, capture_output=True, check=False, input=b"one", text=False
    )
    assert b"Traceback" not in done.stderr
