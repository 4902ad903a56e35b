"""From a checkpoint to a student and back: whole weights, merged adapters, adapters alone."""

import json

import pytest
import torch

import dllm
import dllm.verify
from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.registry import SpecError
from dllm.train.job import Job
from dllm.train.recipes import RECIPES
from dllm.train.student import Blocks, Student
from tests.echo import write_tiny

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def run(folder, out, recipe="mdlm", **options):
    asked = {"data": "generators:copy", "examples": 8, "steps": 3, "batch_size": 4, "lr": 0.05}
    job = Job(recipe, out, model=str(folder), **asked | options)
    made = RECIPES.build(recipe).prepare(job, lambda *_: None)
    made.trainer.run()
    return made


@torch.no_grad()
def logits(model):
    return model(IDS, ForwardPlan.full(IDS.shape[1]))


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_all_that_is_trained(folder, tmp_path, merge):
    made = run(folder, tmp_path / "run", lora="rank=2,alpha=4,targets=q+v", merge=merge)
    model = made.trainer.model
    adapted = [n for n, m in model.named_modules() if hasattr(m, "lora_A")]
    assert sorted(adapted) == sorted(f"layers.{i}.attn.{p}" for i in (0, 1) for p in "qv")
    expected = logits(model)
    base = dllm.load(folder).model
    assert (expected - logits(base)).abs().max() > 1e-3
    made.export(tmp_path / "made")
    assert (tmp_path / "made" / "adapter_model.safetensors").exists() is not merge
    loaded = dllm.load(tmp_path / "made")
    assert torch.allclose(logits(loaded.model), expected, atol=1e-4)
    loaded.generate("one two", max_new_tokens=4)


def test_weights_keep_the_dtype_of_their_checkpoint(folder, tmp_path):
    half = Student.of(str(folder), "bfloat16", "cpu")
    half = Student(
        half.model, half.text, half.base, half.source, {**half.config, "dtype": "bfloat16"}
    )
    half.export(tmp_path / "half")
    run(tmp_path / "half", tmp_path / "run").export(tmp_path / "made")
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "bfloat16"
    assert dllm.load(tmp_path / "made").model.dtype == torch.bfloat16


def test_the_targets_own_weights_become_its_drafter(ar, tmp_path):
    """As an adapter; what the target emits stays what it is."""
    recipe = "drafter:block_length=4,reach=4,boundary=6"
    options = {"distill_from": str(ar), "max_new_tokens": 8, "lora": "rank=2", "merge": False}
    made = run(ar, tmp_path / "run", recipe, **options)
    assert str(ar) in made.use
    made.export(tmp_path / "made")
    alone = dllm.verify.load(ar, dtype="float32")
    drafted = dllm.verify.load(ar, tmp_path / "made", dtype="float32")
    settings = {"max_new_tokens": 12, "control": "fixed:depth=4,nodes=4", "sources": ()}
    (plain,) = alone.generate(
        ["Copy the list: pear, fig"], **settings | {"control": "fixed:depth=0,nodes=0"}
    )
    (out,) = drafted.generate(["Copy the list: pear, fig"], **settings)
    assert out.token_ids == plain.token_ids
    assert out.drafter_passes > 0


def test_a_model_of_blocks_says_how_long_they_are(ar):
    for length in (4, None):
        student = Student.of(str(ar), "float32", "cpu", Blocks(length, None))
        assert (student.model.spec.block_length, student.model.spec.shift) == (length, 1)
    with pytest.raises(DllmError, match=r"family|architecture"):
        Student.of(str(ar), "float32", "cpu")


def test_what_lora_cannot_be(folder, tmp_path):
    with pytest.raises(SpecError, match=r"no option 'rang'.*rank"):
        run(folder, tmp_path, lora="rang=2")
    with pytest.raises(DllmError, match="target 'z' names no linear layer"):
        run(folder, tmp_path, lora="targets=z")
    with pytest.raises(DllmError, match="--adapter: there is none without --lora"):
        run(folder, tmp_path, merge=False)
