"""dllm speculate, as a user types it, with the bundled pair."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

import dllm.cli.spec_view
import dllm.cli.view
import dllm.verify.api
from dllm.decoding.driving import drive
from dllm.recording import read_recording
from dllm.text.following import SpecFollower
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
    distribution = "greedy (output as the target alone) · target: greedy · finished: eos"
    assert distribution in result.stderr
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


def test_the_targets_own_decoding_is_chosen_and_said(speculate):
    asked = "Copy the list: fig, plum, fig, plum"
    options = [
        "--generation",
        "no_repeat_ngram_size=2",
        "--generation",
        "suppress_tokens=[9,8,7,6]",
    ]
    result = speculate(asked, *options)
    assert "target: greedy, no_repeat_ngram_size 2, suppress_tokens (4) · " in result.stderr
    assert result.stdout != speculate(asked).stdout == "fig, plum, fig, plum\n"
    found = json.loads(speculate(asked, *options, "--temperature", 2, "--json").stdout)
    assert found["decoding"] == {
        "do_sample": True,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [9, 8, 7, 6],
        "temperature": 2.0,
        "top_k": 50,
    }
    fails(speculate(asked, "--generation", "beams=2"), "'beams'", "num_beams")
    fails(speculate(asked, "--generation", "num_beams=2"), "num_beams=2 asks for beam search")
    fails(speculate(asked, "--generation", "min_p"), "--generation min_p: expected JSON")


def test_many_prompts(speculate, tmp_path):
    questions = tmp_path / "in.txt"
    questions.write_text(f"{PROMPT}\nCopy the list: fig, kiwi, plum\n")
    result = speculate("--input", questions, "--batch-size", 2)
    assert result.stdout == f"{ANSWER}\nfig, kiwi, plum\n"
    result = speculate("--input", questions, "--output", tmp_path / "out.jsonl")
    assert result.stdout == ""
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [ANSWER, "fig, kiwi, plum"]


def test_draws_do_not_depend_on_the_batch_size(speculate, tmp_path):
    questions = tmp_path / "in.txt"
    questions.write_text("Shuffle the list: red, blue, green, gold\n" * 5)
    options = "--temperature 2 --max-new-tokens 9 --control fixed:depth=4,nodes=4".split()
    found = []
    for size in (1, 2, 5):
        result = speculate("--input", questions, "--batch-size", size, *options, "--json")
        found.append([json.loads(line)["token_ids"] for line in result.stdout.splitlines()])
    assert found[0] == found[1] == found[2]
    assert len({str(ids) for ids in found[0]}) == 5


def test_seeds_of_any_size(speculate):
    options = ("--temperature", 1, "--max-new-tokens", 3)
    assert speculate(PROMPT, *options, "--seed", 10**14).exit_code == 0
    for seed in (-1, 2**63):
        fails(speculate(PROMPT, *options, "--seed", seed), f"seed={seed}: expected a whole number")


def test_what_does_not_fit_into_the_target_is_refused(speculate):
    fails(speculate(PROMPT, "--max-new-tokens", 600), "600 new ones make 6", "exact only up to 512")
    fails(speculate("word " * 600), "but the model is exact only up to 512")


def test_a_rule_for_other_searches_says_for_which(speculate):
    result = speculate(PROMPT, "--accept", "ratio", "--temperature", 1)
    fails(
        result, "searches sample, rsd, kseq, greedy-plus-one", "expected one of greedy", "--lossy"
    )


def test_the_help_speaks_of_no_canvas(run):
    assert "canvas" not in run("speculate", "--help").stdout


def test_a_lossy_rule_says_so(speculate):
    options = "--accept typical --temperature 1".split()
    fails(speculate(PROMPT, *options), "accept='typical'", "lossless=False (--lossy)")
    result = speculate(PROMPT, *options, "--lossy")
    assert "typical (NOT the target's own distribution)" in result.stderr


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


def followed(pair, *prompts, **options):
    """A follower that has seen a whole run."""
    follower = SpecFollower.of(pair)
    for event in pair.stream(list(prompts), **options):
        follower.apply(event)
    return follower


def test_drafts_and_own_tokens_have_two_colours(pair):
    follower = followed(pair, PROMPT, control="fixed:depth=4,nodes=4")
    text = dllm.cli.spec_view.coloured(follower.rows[0])
    assert text.plain == ANSWER
    console = Console(force_terminal=True, color_system="standard", file=io.StringIO())
    console.print(text)
    styles = {str(span.style) for span in text.spans}
    assert styles == {dllm.cli.spec_view.DRAFTED, dllm.cli.spec_view.OWN}


def test_the_text_on_the_screen_is_the_one_returned(pair):
    """A stop string begins inside a token, and characters have several."""
    for prompt, stop in ((PROMPT, "lum"), ("Copy the list: 世界, naïve", "aï")):
        follower = followed(pair, prompt, stop=[stop])
        row = follower.rows[0]
        assert dllm.cli.spec_view.coloured(row).plain == row.output.text
        assert row.output.text == pair.generate(prompt, stop=[stop]).text
    whole = followed(pair, PROMPT).rows[0]
    assert "".join(whole.pieces) == ANSWER
    whole.output = replace(whole.output, text="what no pieces spell\x1b")
    assert dllm.cli.spec_view.coloured(whole).plain == "what no pieces spell\ufffd"


@pytest.fixture
def screen(monkeypatch):
    """A terminal for the view."""
    made = Console(force_terminal=True, file=io.StringIO(), width=80)
    monkeypatch.setattr(dllm.cli.view, "Console", lambda **_: made)
    monkeypatch.setattr(dllm.cli.spec_view, "Console", lambda **_: made)
    return made


def test_the_view_follows_the_rounds(pair, screen):
    with dllm.cli.spec_view.SpecView(SpecFollower.of(pair), delay=0) as view:
        done, _ = drive(pair.stream(PROMPT, control="fixed:depth=4,nodes=4"), view)
    output = done[0]
    shown = screen.file.getvalue()
    for number, each in enumerate(output.rounds, 1):
        assert f"round {number}: {each.drafts} drafts verified, {each.accepted} accepted" in shown
    assert "accepted from the draft" in shown


def test_a_batch_is_drawn_once_a_round(pair, screen):
    prompts = [PROMPT, "Copy the list: fig, kiwi, plum"]
    options = {"control": "fixed:depth=0,nodes=0", "sources": (), "max_new_tokens": 4}
    with dllm.cli.spec_view.SpecView(SpecFollower.of(pair), prompts, delay=0) as view:
        drive(pair.stream(prompts, **options), view)
    shown = screen.file.getvalue()
    assert shown.count("round 3: 0 drafts verified, 0 accepted") == 2
    assert all(f"› {prompt}" in shown for prompt in prompts)


class TestRecording:
    OPTIONS = ("--control", "fixed:depth=4,nodes=4")

    def test_a_replay_ends_as_the_run_did(self, run, speculate, tmp_path):
        file = tmp_path / "run.jsonl"
        before = speculate(PROMPT, *self.OPTIONS, "--record", file)
        after = run("replay", file)
        assert (after.exit_code, after.stdout) == (0, ANSWER + "\n")
        assert after.stderr == before.stderr

    def test_a_replay_shows_the_same_rounds(self, speculate, pair, tmp_path):
        file, prompts = tmp_path / "run.jsonl", tmp_path / "in.txt"
        prompts.write_text(f"{PROMPT}\nCopy the list: 世界, fig\n")
        speculate("--input", prompts, *self.OPTIONS, "--record", file)
        recording = read_recording(file)
        assert (recording.verb, recording.model) == ("speculate", "tiny-ar")
        assert recording.config["control"] == "fixed:depth=4,nodes=4"
        live, again = SpecFollower.of(pair), recording.follower()
        texts = prompts.read_text().splitlines()
        events = pair.stream(texts, control="fixed:depth=4,nodes=4")
        for event, (recorded, _, pieces) in zip(events, recording.events, strict=True):
            live.apply(event)
            again.apply(recorded, pieces=pieces)
            assert again.rows[event.row].pieces == live.rows[event.row].pieces
            assert again.rows[event.row].rounds == live.rows[event.row].rounds
        outputs = [row.output for row in again.rows.values()]
        assert [output.text for output in outputs] == [
            row.output.text for row in live.rows.values()
        ]
        assert [output.emitted for output in outputs] == [
            row.output.emitted for row in live.rows.values()
        ]

    def test_it_takes_one_batch(self, run, tmp_path):
        prompts = tmp_path / "in.txt"
        prompts.write_text("a\nb\n")
        arguments = ("--input", prompts, "--batch-size", 1, "--record", tmp_path / "run.jsonl")
        fails(
            run("speculate", *arguments),
            "--record takes one batch: there are 2 prompts, --batch-size 1",
        )

    def test_a_broken_line_is_told(self, run, speculate, tmp_path):
        file = tmp_path / "run.jsonl"
        speculate(PROMPT, *self.OPTIONS, "--record", file)
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([lines[0], *lines[2:]]))
        fails(run("replay", file), "line 2: no event of this run")
        file.write_text(
            "".join([*lines[:-1], lines[-1].replace('"seconds": ', '"seconds": "x", "y": ')])
        )
        fails(run("replay", file), f"line {len(lines)}: no event of this run")
        file.write_text(lines[0].replace('"speculate"', '"chat"'))
        fails(run("replay", file), "verb 'chat'", "expected one of generate, speculate")
        file.write_text(lines[0].replace('"speculate"', '["speculate"]'))
        fails(run("replay", file), "line 1: verb is ['speculate']")


def test_help_is_light():
    heavy = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}
    assert modules_after("speculate", "--help") & heavy == set()
