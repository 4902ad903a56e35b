"""--output and --record of generate and speculate: what stands there, interruptions, full disks."""

import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest

import dllm
import dllm.verify.api
from dllm import jsonlog
from dllm.cli.answers import answers_to
from dllm.recording import read_recording
from tests.cli.common import fails, random_pair
from tests.echo import echo

PROMPTS = ["one two", "three", "four five six", "seven", "eight nine"]
SAMPLED = "--temperature 1 --top-k 20 --seed 3 --max-new-tokens 12 --batch-size 2".split()


@pytest.fixture(scope="module")
def pair(folder):
    return random_pair(folder)


@pytest.fixture(params=["generate", "speculate"])
def verb(request, run, folder, pair, monkeypatch):
    """A verb that decodes, with everything that makes its answers the same in every run."""
    monkeypatch.setattr(dllm.verify.api, "load", lambda *_, **__: pair)
    run.asked["engine"] = dllm.load(folder)
    more = ["--control", "fixed:depth=4,nodes=4"] if request.param == "speculate" else []

    def go(*arguments, **settings):
        return run(request.param, *more, *arguments, **settings)

    go.name, go.run, go.pair = request.param, run, pair
    return go


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def untimed(file):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        for key in ("timings", "seconds"):
            line.pop(key, None)
        for each in line.get("rounds", ()):
            for key in ("draft", "verify", "host", "seconds"):
                each.pop(key, None)
    return lines


def break_after(verb, monkeypatch, batches, error):
    """Let the verb decode so many batches, then raise."""
    engine = verb.run.asked["engine"] if verb.name == "generate" else verb.pair
    name = "stream_steps" if verb.name == "generate" else "stream"
    real, left = getattr(engine, name), [batches]

    def some(*arguments, **settings):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments, **settings)

    monkeypatch.setattr(engine, name, some)
    return left


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_run_that_was_killed_is_gone_on_with(verb, tmp_path, questions, monkeypatch, cut):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert verb("--input", questions, "--output", whole, *SAMPLED).exit_code == 0
    with monkeypatch.context() as patch:
        break_after(verb, patch, 2, MemoryError())
        verb("--input", questions, "--output", broken, *SAMPLED)
    assert not broken.exists()
    part = tmp_path / "broken.jsonl.partial"
    os.truncate(part, part.stat().st_size - cut)  # as a kill leaves it
    with monkeypatch.context() as patch:
        left = break_after(verb, patch, 9, MemoryError())
        again = verb("--input", questions, "--output", broken, *SAMPLED)
    assert again.exit_code == 0, again.stderr
    assert 9 - left[0] == (1 if not cut else 2)
    assert f"has {3 if cut else 4} of 5 answers" in again.stderr
    assert untimed(broken) == untimed(whole)
    assert len({json.dumps(line["token_ids"]) for line in untimed(whole)}) > 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "broken.jsonl",
        "in.txt",
        "whole.jsonl",
    ]


def test_interrupted_answers_are_found_anew(run, folder, tmp_path, questions):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    command = ("generate", "--input", questions, "--batch-size", 2)
    run(*command, "--output", whole)
    run.asked["engine"] = echo(folder, interrupt_at=3)
    result = run(*command, "--output", broken)
    assert result.exit_code == 130
    assert "broken.jsonl.partial" in result.stderr
    run.asked["engine"] = echo(folder)
    assert run(*command, "--output", broken).exit_code == 0
    texts = [[line["text"] for line in untimed(file)] for file in (broken, whole)]
    assert texts[0] == texts[1] == PROMPTS


def test_all_answers_are_there_and_only_the_last_step_is_missing(run, tmp_path, questions):
    """As a disk leaves it that was full when the answers were put together."""
    target = tmp_path / "out.jsonl"
    command = ("generate", "--input", questions, "--output", target)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        result = run(*command)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.txt", "out.jsonl.partial"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.asked["engine"], "stream_steps", None)  # nothing is decoded
        assert run(*command).exit_code == 0
    assert [line["prompt"] for line in untimed(target)] == PROMPTS


def test_a_full_disk_is_one_error_and_the_rerun_goes_on(verb, tmp_path, questions):
    target = tmp_path / "out.jsonl"
    command = ("--input", questions, "--output", target, *SAMPLED)
    write, budget = os.write, [6000 if verb.name == "speculate" else 1500]

    def full(descriptor, data):
        if not budget[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        budget[0] -= (taken := min(budget[0], len(data)))
        return write(descriptor, data[:taken])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlog.os, "write", full)
        result = verb(*command)
    assert result.exit_code == 2
    assert result.stderr.count("error: ") == 1
    assert "out.jsonl.partial: No space left on device; what is in it is kept" in result.stderr
    again = verb(*command)
    assert again.exit_code == 0
    assert "of 5 answers" in again.stderr
    assert [line["prompt"] for line in untimed(target)] == PROMPTS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--seed", 4), "another seed (3 there, 4 here)"),
        (("--no-chat",), "another chat"),
        (("--max-new-tokens", 13), "another max_new_tokens"),
        ("prompts", "another prompt 1 than the"),
        ("fewer", "another prompt 2 than the"),
    ],
)
def test_the_answers_of_another_run_are_not_gone_on_with(
    verb, tmp_path, questions, monkeypatch, change, words
):
    target = tmp_path / "out.jsonl"
    command = ("--input", questions, "--output", target, *SAMPLED)
    with monkeypatch.context() as patch:
        break_after(verb, patch, 1, MemoryError())
        verb(*command)
    before = (tmp_path / "out.jsonl.partial").read_bytes()
    if isinstance(change, str):
        questions.write_text({"prompts": "ten\n" * 5, "fewer": PROMPTS[0]}[change])
        change = ()
    result = verb(*command, *change)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--overwrite" in result.stderr
    assert (tmp_path / "out.jsonl.partial").read_bytes() == before
    result = verb(*command, *change, "--overwrite")
    assert result.exit_code == 0
    assert "of 5 answers" not in result.stderr
    expected = questions.read_text().strip().split("\n")
    assert [line["prompt"] for line in untimed(target)] == expected


def test_more_prompts_may_come(run, tmp_path, questions, monkeypatch):
    target = tmp_path / "out.jsonl"
    engine = run.asked["engine"]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "encode", lambda prompt, _: 1 / (prompt != "seven"))
        run("generate", "--input", questions, "--output", target, "--batch-size", 1)
    questions.write_text("\n".join([*PROMPTS, "ten"]))
    assert run("generate", "--input", questions, "--output", target).exit_code == 0
    assert [line["text"] for line in untimed(target)] == [*PROMPTS, "ten"]


def test_what_stands_there_is_replaced_on_request_only(verb, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("precious")
    fails(verb("one", "--output", target), "out.jsonl: stands there already", "--overwrite")
    assert target.read_text() == "precious"
    assert verb("one", "--output", target, "--overwrite").exit_code == 0
    assert [line["prompt"] for line in untimed(target)] == ["one"]


def test_a_link_stays_a_link(verb, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert verb("one", "--output", tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert [line["prompt"] for line in untimed(tmp_path / "real")] == ["one"]


def test_a_pipe_is_written_to_and_stays(verb, tmp_path, questions):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.extend(pipe.read_text().splitlines()))
    reader.start()
    result = verb("--input", questions, "--output", pipe)
    reader.join(10)
    assert (result.exit_code, pipe.is_fifo()) == (0, True)
    assert [json.loads(line)["prompt"] for line in found] == PROMPTS
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.txt", "pipe"]


def test_process_substitution(verb):
    read, write = os.pipe()
    try:
        assert verb("one", "--output", f"/dev/fd/{write}").exit_code == 0
        assert json.loads(os.read(read, 10**6))["prompt"] == "one"
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("option", ["--output", "--record"])
@pytest.mark.parametrize("kind", ["same", "symbolic", "hard", "partial"])
def test_the_prompts_are_not_overwritten(run, monkeypatch, tmp_path, questions, option, kind):
    monkeypatch.setattr("dllm.api.load", None)  # told before the model is loaded
    target = tmp_path / "other"
    if kind == "symbolic":
        target.symlink_to(questions)
    elif kind == "hard":
        target.hardlink_to(questions)
    elif kind == "partial":
        target = tmp_path / "in"
        questions = questions.rename(tmp_path / "in.partial")
    else:
        target = questions
    before = questions.read_bytes()
    for more in ((), ("--overwrite",)):
        result = run("generate", "--input", questions, option, target, *more)
        fails(result, f"{option} {target}: expected another file than that of --input")
    assert questions.read_bytes() == before


def test_two_outputs_are_two_files(run, tmp_path):
    out = tmp_path / "out"
    fails(run("generate", "one", "--output", out, "--record", out), "--record", "that of --output")


@pytest.mark.parametrize("option", ["--output", "--record"])
def test_what_cannot_be_written_is_told_before_the_model_is_loaded(
    run, monkeypatch, tmp_path, option
):
    monkeypatch.setattr("dllm.api.load", None)
    fails(run("generate", "one", option, tmp_path), "found a directory")
    fails(run("generate", "one", option, tmp_path / "none" / "x"), "no directory")
    (tmp_path / "there").touch()
    fails(run("generate", "one", option, tmp_path / "there"), "stands there already")


def test_a_second_process_is_told(run, tmp_path):
    target = tmp_path / "out.jsonl"
    with jsonlog.JsonLog(tmp_path / "out.jsonl.partial") as log:
        result = run("generate", "one", "--output", target)
        assert result.exit_code == 2
        assert "error: " + log.name + ": another process is writing it" in result.stderr


def test_a_recording_is_replaced_on_request_only(run, tmp_path):
    file = tmp_path / "run.jsonl"
    run("generate", "one two", "--record", file)
    before = file.read_bytes()
    fails(run("generate", "three", "--record", file), "stands there already")
    assert file.read_bytes() == before
    assert run("generate", "three", "--record", file, "--overwrite").exit_code == 0
    assert read_recording(file).prompts == ["three"]


@pytest.mark.parametrize("terminal", [True, False])
def test_answers_to_several_prompts_do_not_steer_a_terminal(monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    answers = {row: SimpleNamespace(text=f"{row}\x1b[2J\n") for row in (1, 0)}
    with answers_to(None, [{"prompt": "x"}] * 2, 2, {}, to_dict=vars) as sink:
        sink.put(answers)
    escape = "\ufffd" if terminal else "\x1b"
    assert capsys.readouterr().out == f"0{escape}[2J\n\n1{escape}[2J\n\n"


def test_an_error_does_not_steer_a_terminal(run):
    fails(run("generate", "--input", "no\x1b[2Jsuch"), "no\ufffd[2Jsuch")
