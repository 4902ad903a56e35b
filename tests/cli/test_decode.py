"""generate, chat and replay, as a user types them."""

import io
import json
import re

import pytest

import dllm
import dllm.api
import dllm.registry
import dllm.train.tiny
from dllm.cli import app
from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.recording import read_recording
from tests.cli.common import FIELDS, PROMPT, SUMMARY, fails, modules_after
from tests.echo import echo


def partial(target):
    """The answers of an unfinished run that writes `target`."""
    lines = target.with_name(target.name + ".partial").read_text().splitlines()[1:]
    return [json.loads(line)["answer"] for line in lines]


class TestGenerate:
    def test_text_on_stdout_and_a_summary_on_stderr(self, run):
        result = run("generate", PROMPT)
        assert (result.exit_code, result.stdout) == (0, PROMPT + "\n")
        assert re.fullmatch(SUMMARY.format("eos"), result.stderr)

    def test_json(self, run):
        result = run("generate", PROMPT, "--json")
        found = json.loads(result.stdout)
        assert set(found) == FIELDS
        assert (found["text"], found["nfe"], found["finish_reason"]) == (PROMPT, 3, "eos")
        assert set(found["timings"]) == {"total", "forward", "prompt"}
        assert result.stderr == ""

    def test_history(self, run):
        found = json.loads(run("generate", PROMPT, "--json", "--history").stdout)
        assert set(found) == FIELDS | {"history"}
        assert [commit["nfe"] for commit in found["history"]] == [1, 2, 3]

    def test_a_real_checkpoint(self, run, folder):
        arguments = ("generate", PROMPT, "--model", folder, "--max-new-tokens", 6, "--json")
        result = run(*arguments, "--dtype", "float64", "--device", "cpu")
        found = json.loads(result.stdout)
        assert found["slots"] == 6
        engine = dllm.load(folder, dtype="float64")
        assert found["token_ids"] == engine.generate(PROMPT, max_new_tokens=6).token_ids
        assert run.asked["dtype"] == "float64"

    def test_options_reach_the_configuration(self, run, monkeypatch):
        seen = []
        engine = run.asked["engine"]
        steps = engine.stream_steps

        def spy(prompts, config, **more):
            seen.append(config)
            return steps(prompts, config, **more)

        monkeypatch.setattr(engine, "stream_steps", spy)
        options = "--max-new-tokens 9 --block-length 0 --temperature 0.5 --top-p 0.9 --top-k 7"
        more = "--seed 3 --stop b --stop c --cfg-scale 0 --sampler quota:steps=3 --history"
        run("generate", PROMPT, *options.split(), *more.split())
        run("generate", PROMPT)
        assert seen == [
            DecodeConfig(
                max_new_tokens=9,
                block_length=None,
                temperature=0.5,
                top_p=0.9,
                top_k=7,
                seed=3,
                stop=("b", "c"),
                sampler="quota:steps=3",
                history=True,
            ),
            DecodeConfig(),
        ]

    def test_no_chat_template(self, run):
        assert run("generate", PROMPT, "--no-chat").stdout == "\n"  # the echo sees no user turn

    def test_a_prompt_on_stdin(self, run):
        assert run("generate", input=PROMPT + "\n").stdout == PROMPT + "\n"

    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    def test_lines_of_stdin(self, run, batch_size):
        options = ("generate", "--input", "-", "--json", "--batch-size", batch_size)
        result = run(*options, input="one\n\ntwo three\r\nfour")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [f["text"] for f in found] == ["one", "two three", "four"]
        assert [f["prompt"] for f in found] == ["one", "two three", "four"]
        assert re.fullmatch(r"3 prompts · 7 tokens · \d\.\d tokens/forward\n", result.stderr)

    def test_texts_of_a_batch(self, run):
        assert run("generate", input="one\ntwo three\n").stdout == "one\ntwo three\n"

    def test_json_lines_keep_their_fields(self, run, tmp_path):
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        messages = [{"role": "user", "content": "five\nsix"}]
        records = [{"id": 7, "prompt": "one two"}, {"prompt": messages, "id": 8}]
        source.write_text("".join(json.dumps(r) + "\n" for r in records))
        result = run("generate", "--input", source, "--output", target)
        assert (result.exit_code, result.stdout) == (0, "")
        found = [json.loads(line) for line in target.read_text().splitlines()]
        assert [(f["id"], f["text"]) for f in found] == [(7, "one two"), (8, "five\nsix")]
        assert set(found[0]) == FIELDS | {"id"}
        assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]

    def test_draws_do_not_depend_on_the_batch_size(self, run, folder):
        options = "--json --temperature 1 --max-new-tokens 5 --sampler quota".split()
        lines = "one\ntwo three\nfour\n"
        texts = [
            [
                json.loads(line)["token_ids"]
                for line in run(
                    "generate", *options, "--model", folder, "--batch-size", size, input=lines
                ).stdout.splitlines()
            ]
            for size in (1, 3)
        ]
        assert texts[0] == texts[1]
        assert len(texts[0]) == 3

    def test_watch_elsewhere_is_plain(self, run):
        result = run("generate", "--watch", "--delay", 9, input="one\ntwo three\n")
        assert result.stdout == "one\ntwo three\n"
        assert re.fullmatch(SUMMARY.format("eos"), result.stderr)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--sampler", "thrshold"), ("unknown sampler 'thrshold'", "quota", "threshold")),
            (("--sampler", "quota:stepz=3"), ("no option 'stepz'", "steps", "remasking")),
            (("--planner", "x"), ("unknown planner 'x'", "fixed")),
            (("--cache", "x"), ("unknown cache policy 'x'", "none")),
            (("--model", "no-model"), ("no model 'no-model'", "tiny", "directory", "hub id")),
            (("--smpler", "x"), ("No such option: --smpler", "--sampler", "--max-new-tokens")),
            (("--top-k", "x"), ("--top-k",)),
            (("--max-new-tokens", "0"), ("max_new_tokens=0", "at least 1")),
            (("--top-p", "2"), ("top_p=2.0",)),
            (("--batch-size", "0"), ("--batch-size",)),
            (("--input", "x"), ("not both",)),
            (("--watch", "--json"), ("--watch",)),
            (("--max-new-tokens", "999"), ("999", "positions")),
        ],
    )
    def test_a_wrong_option_is_one_line(self, run, arguments, words):
        fails(run("generate", PROMPT, *arguments), *words)

    def test_a_wrong_part_is_told_before_the_model_is_loaded(self, run):
        fails(
            run("generate", PROMPT, "--model", "no-model", "--cache", "x"),
            "unknown cache policy 'x'",
        )

    def test_wrong_input_is_one_line(self, run, tmp_path):
        fails(run("generate"), "stdin: no prompts")
        fails(run("generate", "--input", tmp_path / "none.txt"), "none.txt", "No such file")
        file = tmp_path / "in.jsonl"
        file.write_text('{"prompt": "one"}\n{"text": "two"}\n')
        fails(run("generate", "--input", file), "in.jsonl, line 2", '"prompt"')
        many = ("generate", "--batch-size", 1, "--record", tmp_path / "r.jsonl")
        fails(run(*many, input="one\ntwo\n"), "--record", "2 prompts")

    @pytest.mark.parametrize("prompt", ["", " ", "\t\n"])
    def test_a_blank_prompt_is_an_error(self, run, prompt, tmp_path):
        fails(run("generate", prompt), "expected text", repr(prompt))
        fails(run("speculate", prompt), "expected text", repr(prompt))
        file = tmp_path / "in.jsonl"
        for blank in (prompt, [], [1]):
            file.write_text(f'{{"prompt": "one"}}\n{json.dumps({"prompt": blank})}\n')
            for verb in (("generate", "--input"), ("speculate", "--input"), ("tune", "--prompts")):
                fails(run(*verb, file), "in.jsonl, line 2", "not empty")
        with pytest.raises(DllmError, match="expected text"):
            run.asked["engine"].generate(prompt)
        with pytest.raises(DllmError, match="expected text"):
            run.asked["engine"].generate(["one", prompt])

    def test_a_file_as_a_prompt_asks_for_input(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "one two").write_text("three")
        for verb in ("generate", "speculate"):
            fails(run(verb, "one two"), "'one two' is a file", "--input 'one two'", "stdin")
        assert run("generate", input="one two").stdout == "one two\n"
        assert (
            run("generate", "one " * 5000).exit_code == 2
        )  # too long for a name, and for the model
        (tmp_path / "six").mkdir()
        assert run("generate", "six").stdout == "six\n"

    def test_no_prompt_at_a_terminal(self, monkeypatch, capsys):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(SystemExit) as stop:
            app(["generate"])
        assert stop.value.code == 2
        assert "--input" in capsys.readouterr().err

    def test_a_failed_run_leaves_its_answers_in_a_partial_file(self, run, tmp_path):
        target = tmp_path / "out.jsonl"
        lines = "one\n" + " ".join(["two"] * 600) + "\n"
        result = run("generate", "--batch-size", 1, "--output", target, input=lines)
        assert result.exit_code == 2
        assert "out.jsonl.partial" in result.stderr
        assert "error: prompts 2 to 2: " in result.stderr
        assert not target.exists()
        assert [each["text"] for each in partial(target)] == ["one"]


class TestInterrupt:
    @pytest.fixture
    def cut(self, run, folder):
        run.asked["engine"] = echo(folder, interrupt_at=3)
        return run

    def test_prints_what_is_committed(self, cut):
        result = cut("generate", PROMPT)
        assert (result.exit_code, result.stdout) == (130, "two three five six\n")
        assert re.fullmatch(SUMMARY.format("interrupted"), result.stderr)

    def test_json(self, cut):
        result = cut("generate", PROMPT, "--json")
        assert result.exit_code == 130
        found = json.loads(result.stdout)
        assert (found["text"], found["finish_reason"]) == ("two three five six", "interrupted")

    def test_a_batch_stops(self, cut, tmp_path):
        target = tmp_path / "out.jsonl"
        lines = "one\n" * 3 + f"{PROMPT}\n"
        result = cut("generate", "--batch-size", 1, "--output", target, input=lines)
        assert result.exit_code == 130
        assert not target.exists()
        reasons = [each["finish_reason"] for each in partial(target)]
        assert reasons[-1] == "interrupted"
        assert "interrupted" not in reasons[:-1]
        assert len(reasons) < 4

    def test_while_loading(self, run, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("dllm.api.load", interrupted)
        result = run("generate", PROMPT)
        assert (result.exit_code, result.stdout) == (130, "")


class TestReplay:
    def test_ends_as_the_run_did(self, run, tmp_path):
        file = tmp_path / "run.jsonl"
        live = run("generate", PROMPT, "--record", file)
        again = run("replay", file, "--speed", 3)
        assert again.exit_code == 0
        assert (again.stdout, again.stderr) == (live.stdout, live.stderr)
        assert read_recording(file).model == "tiny"

    def test_needs_no_torch(self, run, tmp_path):
        file = tmp_path / "run.jsonl"
        run("generate", PROMPT, "--record", file)
        assert modules_after("replay", str(file)) & {"torch", "transformers"} == set()

    def test_a_cut_file_warns(self, run, tmp_path):
        file = tmp_path / "run.jsonl"
        run("generate", PROMPT, "--record", file)
        file.write_text(file.read_text()[:-9])
        result = run("replay", file)
        assert result.stdout == f"{PROMPT}\n"
        assert "cut off" in result.stderr

    def test_errors(self, run, tmp_path):
        file = tmp_path / "run.jsonl"
        fails(run("replay", file), "run.jsonl")
        file.write_text("{}\n")
        fails(run("replay", file), "expected a recording")
        fails(run("replay", file, "--speed", 0), "--speed 0")


class TestChat:
    def test_sends_the_whole_conversation(self, run, monkeypatch):
        seen = []
        engine = run.asked["engine"]
        encode = engine.encode
        monkeypatch.setattr(
            engine, "encode", lambda prompt, chat: seen.append(list(prompt)) or encode(prompt, chat)
        )
        result = run("chat", input="one two\n\nthree\n/reset\nfour\n/exit\nfive\n")
        assert (result.exit_code, result.stdout) == (0, "one two\nthree\nfour\n")
        first = {"role": "user", "content": "one two"}
        answer = {"role": "assistant", "content": "one two"}
        assert seen == [
            [first],
            [first, answer, {"role": "user", "content": "three"}],
            [{"role": "user", "content": "four"}],
        ]

    def test_commands_are_not_sent(self, run):
        result = run("chat", input="/help\n/hlp\n/help me\n/etc/hosts two\n /one\n/exit\n")
        assert result.stdout == "/etc/hosts two\n/one\n"
        assert result.stderr.count("/reset forgets the conversation") == 3
        assert "no command '/hlp'" in result.stderr
        assert "no command '/help me'" in result.stderr

    def test_a_later_turn_without_an_answer_is_told(self, run, monkeypatch):
        seen = []
        engine = run.asked["engine"]
        encode = engine.encode

        def silent_from_the_second(prompt, chat):
            seen.append([m["content"] for m in prompt])
            return encode(prompt[:1] if len(prompt) == 1 else [{"role": "user", "content": ""}])

        monkeypatch.setattr(engine, "encode", silent_from_the_second)
        result = run("chat", input="one\ntwo\nthree\n/reset\nfour\n")
        assert result.stdout == "one\n\n\nfour\n"
        assert result.stderr.count("said nothing") == 2
        assert "/reset starts anew" in result.stderr
        assert seen == [["one"], ["one", "one", "two"], ["one", "one", "three"], ["four"]]

    def test_the_end_of_input_ends_it(self, run):
        result = run("chat", input="one")
        assert (result.exit_code, result.stdout) == (0, "one\n")

    def test_ctrl_c_cuts_an_answer_only(self, run, folder):
        run.asked["engine"] = echo(folder, interrupt_at=3)
        result = run("chat", input=f"{PROMPT}\none\n")
        assert (result.exit_code, result.stdout) == (0, "two three five six\none\n")

    def test_a_conversation_that_is_too_long_goes_on(self, run):
        result = run("chat", input=" ".join(["two"] * 600) + "\none\n")
        assert (result.exit_code, result.stdout) == (0, "one\n")
        assert "/reset" in result.stderr
