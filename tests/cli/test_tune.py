"""tune, as a user types it."""

import json

from tests.cli.common import PROMPT, fails


def write(folder, lines):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_writes_a_preset_that_generate_takes(run, tmp_path):
    prompts, preset = write(tmp_path, [{"prompt": PROMPT}] * 3), tmp_path / "fast.json"
    result = run("tune", "--prompts", prompts, "--output", preset, "--max-new-tokens", 8)
    assert result.exit_code == 0, result.output
    assert "chosen: " in result.stdout
    assert "not a single answer may differ" in result.stdout
    content = json.loads(preset.read_text())
    assert content["model"] == "tiny"
    assert content["measured"]["loss"] == 0
    answer = run("generate", PROMPT, "--preset", preset)
    assert (answer.exit_code, answer.stdout) == (0, PROMPT + "\n")


def test_goes_on_from_its_log(run, tmp_path, monkeypatch):
    prompts, preset = write(tmp_path, [{"prompt": PROMPT}]), tmp_path / "fast.json"
    arguments = ("tune", "--prompts", prompts, "--output", preset, "--max-new-tokens", 8)
    run(*arguments)
    before = preset.with_suffix(".jsonl").read_bytes()
    # no forward is needed
    monkeypatch.setattr(type(run.asked["engine"].model), "__call__", None)
    assert run(*arguments).exit_code == 0
    assert preset.with_suffix(".jsonl").read_bytes() == before


def test_an_answer_field_is_what_counts(run, tmp_path):
    wrong = [{"prompt": PROMPT, "answer": "something else"}] * 2
    result = run("tune", "--prompts", write(tmp_path, wrong), "--output", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "p.json").read_text())["measured"]["loss"] == 0
    assert "may differ" not in result.stdout


def test_bad_values_are_one_line(run, tmp_path):
    prompts = write(tmp_path, [{"prompt": PROMPT}])
    for value in ("-1", "2", "x", "101%"):
        fails(run("tune", "--prompts", prompts, f"--max-loss={value}"), "--max-loss", value)
    fails(run("tune", "--prompts", tmp_path / "none.jsonl"), "none.jsonl")
    fails(run("generate", PROMPT, "--preset", "leap"), "unknown preset 'leap'", "localleap")
