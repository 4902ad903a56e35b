"""The bundled models: small, really trained, decoded in parallel without losing answers."""

import json
from importlib.resources import files

import pytest

import dllm
from dllm.config import DecodeConfig
from dllm.eval.run import evaluate
from dllm.eval.tasks import scorer_of
from dllm.eval.tasks.datasets import DATASETS, held_out

CANVAS = {"function": 32}  # masked positions behind a prompt; 16 elsewhere


@pytest.fixture(scope="module")
def engine():
    return dllm.load("tiny")


@pytest.mark.parametrize("name", ["tiny", "tiny-sure"])
def test_it_is_small_and_ours(name):
    folder = files("dllm") / "assets" / name
    size = sum(len(file.read_bytes()) for file in folder.iterdir())
    assert size <= 8 * 2**20
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llada"


@pytest.mark.parametrize("name", ["copy", "reverse", "replace_index", "function"])
def test_held_out_prompts_are_answered_in_few_forwards(engine, name):
    """The full table is benchmarks/results/tiny_accuracy.json; here a sample with some slack."""
    dataset, task = DATASETS[name], scorer_of(name)
    sizes = (3, 4, 5, 6) if dataset.group == "lists" else None
    examples = held_out(dataset, 14, seed=1, sizes=sizes)
    masked = CANVAS.get(name, 16)
    scores = {
        sampler: evaluate(
            engine, task, examples, DecodeConfig(max_new_tokens=masked, sampler=sampler)
        )
        for sampler in ("quota", "threshold:threshold=0.9")
    }
    one, many = scores.values()
    assert one.strict >= 0.85 * one.count
    assert many.strict >= 0.85 * many.count
    assert many.nfe <= 0.4 * one.nfe


def test_words_it_has_never_seen_do_not_break_it(engine):
    out = engine.generate("Übersetze: naïve 漢字 <|mask|>", max_new_tokens=16)
    assert out.finish_reason in ("eos", "length")


def test_the_distilled_one_answers_in_fewer_forwards(engine):
    """The full table is benchmarks/results/certainty.json."""
    config = DecodeConfig(max_new_tokens=32, sampler="threshold:threshold=0.9")
    engines, forwards = (engine, dllm.load("tiny-sure")), [0, 0]
    for name in ("shuffle", "insert_random", "remove_random"):
        examples = held_out(DATASETS[name], 10, seed=1, sizes=(3, 4, 5))
        for i, each in enumerate(engines):
            score = evaluate(each, scorer_of(name), examples, config)
            assert score.strict >= 0.85 * score.count
            forwards[i] += score.nfe
    base, distilled = forwards
    assert distilled < 0.5 * base
