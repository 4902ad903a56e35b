"""dllm speculate, as a user types it, with the bundled pair."""

import io
import json
import re

import pytest
from rich.console import Console

import dllm.spec_view
import dllm.verify.api
from tests.cli.common import fails, modules_after

PROMPT = "Reverse the list: pear, fig, plum"
ANSWER = "plum, fig, pear"
LINE = r"target passes \d+ · tokens \d+ · tokens/pass [\d.]+ · drafter passes \d+ · accepted: .*\n"


@pytest.fixture(scope="module")
def pair():
    return dllm.verify.api.load("tiny-ar", "tiny")


@pytest.fixture
def speculate(run, pair, monkeypatch):
    asked = {}

    def load(target, drafter=None, **options):
        asked.update(options, target=target, drafter=drafter)
        return pair

    monkeypatch.setattr(dllm.verify.api, "load", load)

    def go(*arguments, **more):
        return run("speculate", *arguments, **more)

    go.asked = asked
    return go


def test_text_on_stdout_and_numbers_on_stderr(speculate):
    result = speculate(PROMPT, "--control", "fixed:depth=8,nodes=8")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert re.fullmatch(LINE, result.stderr)
    assert "greedy (output as the target alone) · finished: eos" in result.stderr
    assert speculate.asked == {"target": "tiny-ar", "drafter": "tiny"}


def test_a_markov_head_may_be_left_out(speculate):
    assert speculate(PROMPT, "--no-markov", "--control", "fixed:depth=8,nodes=8").exit_code == 0
    assert speculate.asked["markov"] is False


def test_json_has_every_round(speculate):
    options = "--control fixed:depth=8,nodes=8 --search product --source none --json"
    found = json.loads(speculate(PROMPT, *options.split()).stdout)
    assert (found["text"], found["finish_reason"], found["lossless"]) == (ANSWER, "eos", True)
    rounds = found["rounds"]
    assert len(rounds) == found["target_passes"]
    tokens = [token for each in rounds for token in each["tokens"]]
    assert tokens[:-1] == found["token_ids"]
    assert all(each["accepted"] == len(each["sources"]) for each in rounds)
    assert {"lattice"} == {source for each in rounds for source in each["sources"]}


def test_options_reach_target_and_configuration(speculate):
    options = "--dtype float32 --device cpu --drafter none --target x --temperature 1 --seed 3"
    parts = "--search rsd:widths=2+1 --accept ratio --reuse 2 --top-p 0.9 --max-new-tokens 5"
    result = speculate(PROMPT, *options.split(), *parts.split(), "--json")
    found = json.loads(result.stdout)
    assert found["rule"] == "ratio"
    assert sum(len(each["tokens"]) for each in found["rounds"]) <= 5
    expected = {"target": "x", "drafter": None, "dtype": "float32", "device": "cpu"}
    assert speculate.asked == expected


def test_many_prompts(speculate, tmp_path):
    questions = tmp_path / "in.txt"
    questions.write_text(f"{PROMPT}\nCopy the list: fig, kiwi, plum\n")
    result = speculate("--input", questions, "--batch-size", 2)
    assert result.stdout == f"{ANSWER}\nfig, kiwi, plum\n"
    result = speculate("--input", questions, "--output", tmp_path / "out.jsonl")
    assert result.stdout == ""
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [ANSWER, "fig, kiwi, plum"]


def test_a_lossy_rule_says_so(speculate):
    options = "--accept typical --temperature 1".split()
    fails(speculate(PROMPT, *options), "'typical'", "lossless=False")
    result = speculate(PROMPT, *options, "--lossy")
    assert "typical (NOT the target's own law)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--search", "wide"), ("unknown search method 'wide'", "coupled")),
        (("--source", "web"), ("'web'", "suffix")),
        (("--control", "cost:nodes=x"), ("cost:nodes='x'",)),
        (("--watch", "--json"), ("--watch",)),
        (("--target", "no-such"), ("no model 'no-such'", "tiny-ar")),
    ],
)
def test_errors(run, arguments, words):
    result = run("speculate", PROMPT, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    for word in words:
        assert re.search(word, result.stderr)


def test_drafts_and_own_tokens_have_two_colours(pair):
    output = pair.generate(PROMPT, control="fixed:depth=4,nodes=4")
    text = dllm.spec_view.coloured(output.rounds, len(output.token_ids), pair.pieces)
    assert text.plain == ANSWER
    console = Console(force_terminal=True, color_system="standard", file=io.StringIO())
    console.print(text)
    styles = {str(span.style) for span in text.spans}
    assert styles == {dllm.spec_view.DRAFTED, dllm.spec_view.OWN}


def test_the_view_follows_the_rounds(pair, monkeypatch):
    screen = Console(force_terminal=True, file=io.StringIO(), width=80)
    monkeypatch.setattr(dllm.spec_view, "Console", lambda **_: screen)
    view = dllm.spec_view.SpecView(pair.pieces, delay=0, live=True)
    with view:
        output = pair.generate([PROMPT], control="fixed:depth=4,nodes=4", on_round=view.show)[0]
    view.finish(output)
    shown = screen.file.getvalue()
    for number, each in enumerate(output.rounds, 1):
        assert f"round {number}: {each.drafts} drafts verified, {each.accepted} accepted" in shown
    assert "accepted from the draft" in shown


def test_help_is_light():
    heavy = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}
    assert modules_after("speculate", "--help") & heavy == set()
