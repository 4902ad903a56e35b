"""A small tokenizer for training tests, built once."""

import itertools

from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.train.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(
    text
    for name in ("copy", "calculation", "sort")
    for e in itertools.islice(examples(DATASETS[name], 0, held_out=False), 300)
    for text in (e.prompt, e.answer)
)
