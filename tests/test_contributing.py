"""The worked examples of CONTRIBUTING.md, run as a reader would run them."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch

import dllm
from dllm.config import DecodeConfig
from dllm.decoding.step import RowBatch
from dllm.engine import Engine
from dllm.eval.models import OracleModel
from dllm.eval.records import EvalSetting
from dllm.eval.run import Sweep, run
from dllm.eval.tasks import Grade, draw, task_of
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.families import BLOCK, read_spec
from dllm.models.spec import ModelSpec
from dllm.recording import read_recording
from dllm.train.job import Job
from dllm.train.recipes import RECIPES
from dllm.verify import HFTarget, SpecEngine
from tests.echo import write_tiny
from tests.verify.tiny_targets import tiny_target

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
PROMPTS = [[4, 5, 6], [7, 8, 9, 10, 11, 4]]


# What the console script does, in a process without the working directory on its path (-P), for
# several command lines: each would import torch anew.
SCRIPT = r"""
import pkgutil, sys
script, *lines = sys.argv[1:]
for line in lines:
    sys.argv = ["dllm", *line.split("\x1f")]
    try:
        pkgutil.resolve_name(script)()
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{sys.argv}: {stop.code}")
"""


def blocks(language):
    """File name and content of every code block of the page; its first line names the file."""
    for block in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL):
        name = re.match(r"# ([\w/]+\.py)\n", block)
        assert name, "a code block must begin with its file name"
        yield name[1], block


@pytest.fixture(autouse=True)
def example_files(tmp_path, monkeypatch):
    """The page's components, each in its file."""
    names = [name for name, block in blocks("python") if "/" not in name]
    for name, block in blocks("python"):
        if name in names:
            (tmp_path / name).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def house(tmp_path, root):
    """A copy of the package in which everything is added that the page adds to it."""
    house = tmp_path / "house"
    shutil.copytree(root / "dllm", house / "dllm", symlinks=True)
    for link in ("cache", "samplers", "verify"):
        (house / link).symlink_to(root / link)
    for name, block in blocks("python"):
        if "/" in name:
            (house / name).write_text(block)
    for name, block in blocks("diff"):
        file = house / name
        for hunk in block.partition("\n")[2].split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] == " ")
            text = file.read_text()
            assert text.count(before) == 1, f"{name} has not once:\n{before}"
            file.write_text(text.replace(before, "".join(line[1:] for line in lines)))
    return house


def plain_checkpoint(folder):
    """A checkpoint of the family that the page adds: another of its layout under its name."""
    config = json.loads((write_tiny(folder) / "config.json").read_text())
    ids = {name: config[name] for name in ("mask_token_id", "eos_token_id", "pad_token_id")}
    layout = {
        "vocab_size": config["vocab_size"],
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 32,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
        "attention_bias": False,
        "qk_norm": True,
        "bd_size": None,
        "model_type": BLOCK,
    }
    write_checkpoint(Decoder(read_spec(layout | ids)), folder, layout | ids)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "plain"}))


def test_the_commands_run_as_printed_where_the_files_are(tmp_path, house, root):
    commands = re.findall(r"`(dllm [^`]*)`", PAGE.read_text())
    verbs = [command.split()[1] for command in commands]
    assert verbs == "generate generate generate eval speculate train generate tokens".split()
    plain_checkpoint(tmp_path / "plain")
    table = tomllib.loads((root / "pyproject.toml").read_text())
    script = table["project"]["scripts"]["dllm"]
    lines = ["\x1f".join(shlex.split(command)[1:]) for command in commands]
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, script, *lines],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {"doubling", "next"} == {path.name for path in (tmp_path / "runs").iterdir()}
    assert "fig, kiwi, plum" in done.stdout
    assert done.stdout.endswith("f|i|g|,|plum\n")
    assert read_recording(tmp_path / "run.jsonl").config["note"] == "first try"


def engine(shift):
    spec = ModelSpec("llada", 23, 16, 2, 2, 2, 8, 24, 1e-5, 1e4, mask_id=1, eos_id=0, pad_id=0)
    spec = ModelSpec(**{**{f: getattr(spec, f) for f in spec.__dataclass_fields__}, "shift": shift})
    torch.manual_seed(0)
    return Engine(Decoder(spec).double())


def test_the_sampler_commits_its_share():
    config = DecodeConfig(
        max_new_tokens=16, block_length=None, sampler="halving:Halving:share=0.25", history=True
    )
    out = engine(0).generate([PROMPTS[0]], config)[0]
    assert [len(c.positions) for c in out.history][:4] == [4, 3, 2, 1]


@pytest.mark.parametrize("shift", [0, 1])
def test_the_policy_refreshed_at_every_step_is_exact(shift):
    tiny = engine(shift)
    exact = tiny.generate(PROMPTS, max_new_tokens=12, sampler="quota")
    cached = tiny.generate(
        PROMPTS, max_new_tokens=12, sampler="quota", cache="frozen_prompt:FrozenPrompt:refresh=1"
    )
    assert [o.token_ids for o in cached] == [o.token_ids for o in exact]


@pytest.mark.parametrize("shift", [0, 1])
def test_the_policy_reads_the_prompt_from_the_cache(shift):
    tiny, sizes = engine(shift), []
    forward = tiny.model.forward
    tiny.model.forward = lambda ids, plan, kv: (
        sizes.append(plan.pos.shape[1]) or forward(ids, plan, kv)
    )
    out = tiny.generate(
        PROMPTS[:1], max_new_tokens=12, sampler="quota", cache="frozen_prompt:FrozenPrompt"
    )[0]
    first, *others = sizes
    assert first == 15
    assert len(others) == out.nfe - 1
    # the prompt's last row is computed as long as it predicts the first masked position
    assert set(others) <= {12, 12 + shift}


def test_the_task_grades_its_answers_and_the_oracle_knows_them(tmp_path):
    task = task_of("doubling:Doubling:n=4")
    sample = draw(task, 4, 0, 0)
    assert task.grade(sample, sample.answer) == Grade(True, True, "ok")
    assert task.grade(sample, f"It is {sample.answer}.") == Grade(True, False, "ok")
    assert task.grade(sample, sample.answer[:-2]).reason == "arithmetic"
    assert task.grade(sample, "no idea").reason == "parse"
    setting = EvalSetting("all at once", "", {"sampler": "quota:count=4"})
    sweep = Sweep(["doubling:Doubling:n=4"], [setting], count=9)
    [cell] = run(OracleModel(), sweep, tmp_path / "run").cells
    assert (cell.strict, cell.nfe, cell.ceiling) == (9, 9, 9.0)


def test_the_source_drafts_and_changes_nothing():
    model = tiny_target("llama")
    ids = [9, 4, 9, 4, 9, 4]
    plain = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    output = SpecEngine(HFTarget(model)).generate(
        ids, sources=["parrot:Parrot:length=2"], control="fixed:depth=0,nodes=4", max_new_tokens=20
    )
    assert output.token_ids == plain[0, len(ids) :].tolist()
    assert sum(each.drafts for each in output.rounds) > 0


def test_the_recipe_trains_in_parts_as_in_one(tmp_path):
    losses = []
    for parts in (1, 3):
        asked = {"data": "generators:copy", "examples": 8, "batch_size": 6, "parts": parts}
        job = Job("next_token", tmp_path / str(parts), model="tiny", steps=2, **asked)
        run = RECIPES.build("next_token:NextToken:count=2").prepare(job, lambda *_: None)
        losses.append([run.trainer.train_step() for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # products in bf16
    run.export(tmp_path / "made")
    assert dllm.load(tmp_path / "made").model.spec == run.trainer.model.spec


def test_the_tour_shows_the_step_as_it_is():
    code = textwrap.dedent(inspect.getsource(RowBatch._advance))
    assert textwrap.indent(code, "    ") in PAGE.read_text()
