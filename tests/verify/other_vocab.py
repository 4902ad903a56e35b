"""The bundled dLLM with its vocabulary in another order."""

import json

import torch
from safetensors.torch import load_file, save_file

from dllm.models.hub import resolve


def permuted(folder):
    """A checkpoint directory: every id but the first is one lower, the second is the last."""
    source = resolve("tiny")
    config = json.loads((source / "config.json").read_text())
    size = config["vocab_size"]
    new = [0, size - 1, *range(1, size - 1)]  # old id -> new id
    for key in ("mask_token_id", "eos_token_id", "pad_token_id"):
        config[key] = new[config[key]]
    (folder / "config.json").write_text(json.dumps(config))
    order = torch.argsort(torch.tensor(new))  # new id -> old id
    tensors = load_file(source / "model.safetensors")
    moved = {
        name: t[order].contiguous() if t.shape[0] == size and t.ndim == 2 else t
        for name, t in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {piece: new[i] for piece, i in vocab.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = (source / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings)
    return folder
