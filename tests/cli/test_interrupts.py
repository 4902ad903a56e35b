"""Ctrl-C on any line of a verb: exit status 130, no traceback, and the same command goes on."""

import json
import random
import re

import pytest

import dllm.verify.api
from dllm.cli.app import main
from tests.cli.common import PROMPT, random_pair
from tests.echo import echo
from tests.interrupting import Lines, every_line

VERBS = tuple(f"dllm/cli/{name}.py" for name in "decode speculate answering answers".split())
TASK = ("--task", "copy:n=3", "--sampler", "quota", "--count", 2)
LINES = "".join(f"{line}\n" for line in ("one two", "three", "four five six", "seven"))


@pytest.fixture(scope="module")
def pair(folder):
    return random_pair(folder)


@pytest.fixture
def run(run, folder, pair, monkeypatch):
    """Every command line has an echo of its own; `forward`: the one that is interrupted."""
    monkeypatch.setattr(dllm.verify.api, "load", lambda *_, **__: pair)

    def go(*arguments, forward=None, **more):
        run.asked["engine"] = echo(folder, forward)
        return run(*arguments, **more)

    return go


def lines_of(run, verb, *arguments, **more):
    """The lines that the function `verb` runs, and all below it."""
    run(*arguments, **more)  # what is made once is there
    with Lines() as lines:
        whole = run(*arguments, **more)
    assert whole.exit_code == 0, whole.output
    ran = lines.ran()
    return every_line(ran, verb, verb, VERBS), every_line(ran, verb, verb)


def is_cut(result, line):
    assert result.exit_code == 130, (line, result.output, result.exception)
    assert "Traceback" not in result.stderr
    assert "error:" not in result.stderr


def test_generate(run):
    arguments = ("generate", PROMPT, "--max-new-tokens", 8)
    own, every = lines_of(run, "generate", *arguments)
    for at in [*random.Random(0).sample(own, 15), *random.Random(1).sample(every, 5)]:
        with Lines(at) as lines:
            result = run(*arguments)
        is_cut(result, lines.ran()[-1])


def test_a_file_of_answers_goes_on(run, tmp_path):
    """Whatever the line, the same command ends with what an unbroken run writes."""
    target, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    options = ["generate", "--batch-size", 2, "--max-new-tokens", 8, "--output"]
    own, _ = lines_of(run, "generate", *options, whole, "--overwrite", input=LINES)
    for at in random.Random(0).sample(own, 8):
        target.unlink(missing_ok=True)
        with Lines(at) as lines:
            result = run(*options, target, "--overwrite", input=LINES)
        is_cut(result, lines.ran()[-1])
        if not target.exists():  # else it was cut when all was done
            assert run(*options, target, input=LINES).exit_code == 0
        assert texts(target) == texts(whole)


def test_behind_the_verb(run, monkeypatch):
    """While what it printed is flushed, and while what went wrong is told."""
    arguments = ("generate", PROMPT, "--max-new-tokens", 8)
    run(*arguments)
    with Lines() as lines:
        run(*arguments)
    functions = [line.function for line in lines.ran()]
    verb = len(functions) - functions[::-1].index("generate")
    flush = functions.index("Commands.main", verb)
    with Lines(flush):
        assert run(*arguments).exit_code == 130

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130


def texts(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [(each["text"], each["finish_reason"]) for each in found]


def test_in_the_first_forward_nothing_is_divided_by_none(run):
    result = run("generate", PROMPT, forward=1)
    assert (result.exit_code, result.stdout) == (130, "\n")
    numbers = r"forwards 0 · tokens 0 · tokens/forward – · tokens/s – · finished: interrupted\n"
    assert re.fullmatch(numbers, result.stderr)
    result = run("generate", "--json", input="one\ntwo\n", forward=1)
    assert result.exit_code == 130
    assert result.stderr == "2 prompts · 0 tokens · – tokens/forward\n"
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(a["nfe"], a["tokens_per_forward"], a["text"]) for a in answers] == [(0, 0, "")] * 2


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("speculate", ["speculate", "one two", "--max-new-tokens", 6]),
        ("tune", ["tune", "--prompts", "{prompts}", "--output", "{out}", "--max-new-tokens", 4]),
        ("run", ["eval", "run", "--out", "{out}", *TASK]),
    ],
)
def test_other_verbs(run, tmp_path, verb, arguments):
    (tmp_path / "prompts").write_text("one two\nthree\n")
    numbers = iter(range(1000))

    def fresh(*arguments):
        names = {"prompts": tmp_path / "prompts", "out": tmp_path / f"out{next(numbers)}"}
        return run(*(str(each).format(**names) for each in arguments))

    _, every = lines_of(fresh, verb, *arguments)
    for at in random.Random(verb).sample(every, 2):
        with Lines(at) as lines:
            result = fresh(*arguments)
        is_cut(result, lines.ran()[-1])
