"""The bundled model: small, really trained, and decoded in parallel without losing its answers."""

import json
from importlib.resources import files

import pytest

import dllm
from dllm.config import DecodeConfig
from dllm.eval.accuracy import evaluate, held_out
from dllm.eval.tasks import TASKS

CANVAS = {"function": 32}  # holes behind a prompt; 16 elsewhere


@pytest.fixture(scope="module")
def engine():
    return dllm.load("tiny")


def test_it_is_small_and_ours():
    folder = files("dllm") / "assets" / "tiny"
    size = sum(len(file.read_bytes()) for file in folder.iterdir())
    assert size <= 16 * 2**20
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llada"


@pytest.mark.parametrize("name", ["copy", "reverse", "replace_index", "function"])
def test_held_out_prompts_are_answered_in_few_forwards(engine, name):
    """The full table is benchmarks/results/tiny_accuracy.json; here a sample with some slack."""
    task = TASKS[name]
    sizes = (3, 4, 5, 6) if task.group == "lists" else None
    examples = held_out(task, 24, seed=1, sizes=sizes)
    holes = CANVAS.get(name, 16)
    scores = {
        sampler: evaluate(
            engine, task, examples, DecodeConfig(max_new_tokens=holes, sampler=sampler)
        )
        for sampler in ("quota", "threshold:threshold=0.9")
    }
    one, many = scores.values()
    assert one.accuracy >= 0.85
    assert many.accuracy >= 0.85
    assert many.nfe <= 0.4 * one.nfe


def test_words_it_has_never_seen_do_not_break_it(engine):
    out = engine.generate("Übersetze: naïve 漢字 <|mask|>", max_new_tokens=16)
    assert out.finish_reason in ("eos", "length")
