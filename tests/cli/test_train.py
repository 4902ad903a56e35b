"""The verb train, from what is typed to a checkpoint that decodes."""

import json
import re
import shlex

import pytest
from safetensors import safe_open

import dllm
import dllm.train.tiny
from dllm.models.hub import resolve
from dllm.models.spec import ModelSpec
from dllm.train.data import Mixture
from dllm.train.oracle import OracleRollout
from dllm.train.recipes import RECIPES
from dllm.train.state import FILE
from dllm.train.trainer import TrainConfig, Trainer
from tests.cli.common import fails

FEW = ("--data", "generators:copy", "--examples", 6, "--max-new-tokens", 8, "--batch-size", 2)


def step_of(out):
    with safe_open(out / FILE, framework="pt") as file:
        return json.loads(file.metadata()["state"])["step"]


@pytest.fixture
def small(monkeypatch):
    """A run of three steps in place of the bundled model's."""
    spec = dllm.train.tiny.spec

    def shrunk(tok):
        whole = spec(tok)
        parts = {f: getattr(whole, f) for f in whole.__dataclass_fields__}
        size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
        return ModelSpec(**{**parts, **size, "head_dim": 16, "mlp_size": 32})

    monkeypatch.setattr(dllm.train.tiny, "EXAMPLES_PER_TASK", 20)
    monkeypatch.setattr(dllm.train.tiny, "spec", shrunk)
    monkeypatch.setattr(dllm.train.tiny, "CURRICULUM", ((3, Mixture({"copy": 1.0})),))
    monkeypatch.setattr(dllm.train.tiny, "CONFIG", TrainConfig(batch_size=4, save_every=2))


def test_lists_every_recipe_with_its_options(run):
    result = run("train")
    assert result.exit_code == 0
    for name in RECIPES:
        assert re.search(rf"^ *{name}\b", result.stdout, re.MULTILINE)
    assert "decay=1.01" in result.stdout


def test_the_bundled_model_is_made_and_resumed(run, small, tmp_path, monkeypatch):
    first = run("train", "mdlm", "--out", tmp_path / "run")
    assert first.exit_code == 0, first.output
    assert step_of(tmp_path / "run") == 3
    monkeypatch.setattr(Trainer, "train_step", None)  # no step is run again
    again = run("train", "mdlm", "--out", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert dllm.load(tmp_path / "run" / "checkpoint").model.spec.num_layers == 1


@pytest.mark.parametrize("recipe", ["mdlm:frontier=0.2", "drafter"])
def test_a_checkpoint_is_trained_and_decodes(run, folder, tmp_path, recipe):
    out = tmp_path / "run"
    result = run("train", recipe, "--model", folder, "--out", out, "--steps", 2, *FEW)
    assert result.exit_code == 0, result.output
    assert "--model" in result.stdout or "--drafter" in result.stdout
    before, after = dllm.load(folder), dllm.load(out / "checkpoint")
    assert after.model.spec == before.model.spec
    moved = [not a.equal(b) for a, b in zip(before.model.parameters(), after.model.parameters())]
    assert any(moved)
    after.generate("one two", max_new_tokens=4)


def test_a_model_learns_from_its_own_answers(run, tmp_path):
    few = ("--data", "generators:copy", "--examples", 4, "--max-new-tokens", 24)
    command = ("train", "certainty:block_length=8", "--model", "tiny", "--out", tmp_path, *few)
    result = run(*command, "--steps", 1, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all(max(line["order"]) >= 1 for line in lines[1:])


def test_interrupted_it_goes_on(run, folder, tmp_path, monkeypatch):
    command = ("train", "mdlm", "--model", folder, "--out", tmp_path, "--steps", 4, *FEW)
    step = Trainer.train_step

    def broken(self):
        if self.step == 2:
            self.save()
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", broken)
    result = run(*command)
    assert result.exit_code == 130
    assert "goes on from the last checkpoint" in result.stderr
    monkeypatch.setattr(Trainer, "train_step", step)
    assert run(*command).exit_code == 0
    assert step_of(tmp_path) == 4


def test_a_filter_is_trained_resumed_and_decodes(run, tmp_path, monkeypatch):
    few = ("--data", "generators:copy", "--examples", 3, "--max-new-tokens", 8, "--steps", 3)
    model, out = resolve("tiny"), tmp_path / "run"
    command = ("train", "filter:block_length=4,hidden=8", "--model", model, "--out", out, *few)
    first = run(*command)
    assert first.exit_code == 0, first.output
    (out / "checkpoint" / "filter.safetensors").unlink()
    for done in ((Trainer, "train_step"), (OracleRollout, "references")):
        monkeypatch.setattr(*done, lambda *_: pytest.fail("done again"))
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    words = shlex.split(again.stdout.partition("try: dllm ")[2])
    result = run(*words[:-1], "Copy the list: red, blue", "--max-new-tokens", 8, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["nfe"] <= 8
    bad = run("train", "filter:block_length=4", "--model", model, "--out", tmp_path / "b", *FEW)
    fails(bad, "--batch-size 2")


def test_errors(run, folder, tmp_path):
    fails(run("train", "x", "--out", tmp_path), "unknown recipe 'x'", "mdlm", "drafter")
    fails(run("train", "mdlm"), "--out")
    fails(run("train", "drafter:dekay=2", "--out", tmp_path), "dekay", "decay")
    fails(run("train", "drafter:decay=0.5", "--out", tmp_path), "decay=0.5")
    fails(run("train", "filter:hidden=0", "--out", tmp_path), "hidden=0")
    fails(run("train", "certainty", "--out", tmp_path / "a"), "--model is missing")
    fails(run("train", "mdlm", "--steps", 3, "--out", tmp_path / "b"), "--steps 3")
    missing = ("--model", "nowhere", "--out", tmp_path / "c")
    fails(run("train", "certainty", *missing), "nowhere")
    assert not (tmp_path / "c").exists()
    cut = ("--data", "generators:copy", "--examples", 2, "--max-new-tokens", 2)
    ends = ("train", "certainty", "--model", "tiny", "--out", tmp_path / "e", *cut)
    assert "some that end within max_new_tokens=2" in run(*ends).stderr
    separator = ("train", "drafter:separator=<sep>", "--model", folder, "--out", tmp_path / "d")
    fails(run(*separator, *FEW), "no token '<sep>'", "<|mask|>")


def test_what_cannot_be_written_is_told_before_a_model_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr("dllm.train.student.load_model", None)
    file = tmp_path / "prompts.txt"
    file.write_text("one\n")
    command = ("train", "mdlm", "--model", "tiny", "--data", file, "--out")
    fails(run(*command, file), "--out", "expected a directory")
    rollouts = ("--rollouts", file)
    fails(run(*command, tmp_path / "run", *rollouts), "--rollouts", "that of --data")
    fails(run(*command, tmp_path / "run", "--rollouts", tmp_path), "found a directory")
    assert file.read_text() == "one\n"


def test_a_broken_state_is_one_line(run, folder, tmp_path):
    command = ("train", "mdlm", "--model", folder, "--out", tmp_path, "--steps", 1, *FEW)
    assert run(*command).exit_code == 0
    state = tmp_path / FILE
    state.write_bytes(state.read_bytes()[:-9])
    result = run(*command)
    assert result.exit_code == 2
    assert f"{state}: not the state of this run" in result.stderr
    state.unlink()
    assert run(*command).exit_code == 0
