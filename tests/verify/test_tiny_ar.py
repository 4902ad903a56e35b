"""The bundled target: an ordinary transformers checkpoint that knows the bundled tasks."""

from importlib.resources import files

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dllm.verify
from dllm.eval.tasks import scorer_of
from dllm.eval.tasks.datasets import DATASETS, held_out
from dllm.models.hub import resolve
from dllm.models.loading import load_model

FOLDER = files("dllm") / "assets" / "tiny-ar"


@pytest.fixture(scope="module")
def pair():
    return dllm.verify.load("tiny-ar", "tiny")


def test_it_is_small_and_two_to_four_times_the_drafter(pair):
    assert sum(len(file.read_bytes()) for file in FOLDER.iterdir()) <= 16 * 2**20
    count = sum(p.numel() for p in pair.target.model.parameters())
    drafter = sum(p.numel() for p in load_model(resolve("tiny")).parameters())
    assert 2 <= count / drafter <= 4


def test_transformers_loads_it_by_itself():
    model = AutoModelForCausalLM.from_pretrained(str(FOLDER), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(FOLDER))
    messages = [{"role": "user", "content": "Reverse the list: pear, fig, plum"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "plum, fig, pear"


def test_its_vocabulary_is_the_drafters(pair):
    assert type(pair.drafter) is dllm.verify.ModelDrafter  # nothing is translated


@pytest.mark.parametrize("name", ["copy", "sort", "word_problem", "json", "function"])
def test_what_it_knows(pair, name):
    task, dataset = scorer_of(name), DATASETS[name]
    sizes = (3, 4, 5) if dataset.group == "lists" else None
    examples = held_out(dataset, 12, seed=1, sizes=sizes)
    outputs = pair.generate([e.prompt for e in examples], control="fixed:depth=16,nodes=16")
    graded = [task.grade(e, out.text) for e, out in zip(examples, outputs, strict=True)]
    assert sum(grade.strict for grade in graded) >= 10
    passes = sum(out.target_passes for out in outputs)
    assert sum(out.emitted for out in outputs) > 2.5 * passes
