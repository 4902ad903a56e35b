"""Calls of transformers' `generate`, its own loop and ours in its place."""

import warnings
from functools import cache

import torch

import dllm.verify
from tests.verify.tiny_targets import tiny_target

target_model = cache(tiny_target)  # the same object: what was learned of it is kept


def padded(rows):
    """Rows with padding on the left, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def plain(model, rows, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(**padded(rows), do_sample=False, pad_token_id=0, **options)


def ours(model, rows, **options):
    return plain(model, rows, custom_generate=dllm.verify.generate, **options)
