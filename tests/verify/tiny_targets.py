"""Tiny random causal LMs of several families, and what they say without any cache."""

import random

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dllm.verify.tree import Tree

VOCAB, WINDOW, POSITIONS = 61, 7, 512
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,  # sharp attention: what is seen and where it stands matters
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GEMMA = {**SIZES, "sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **options}))


def qwen2():
    config = Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    )
    assert set(config.layer_types) == set(MIXED)
    return Qwen2ForCausalLM(config)


def mistral():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW, head_dim=8))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**GEMMA, attn_logit_softcapping=5.0))


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA, layer_types=MIXED))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=POSITIONS,
            n_embd=32,
            n_layer=3,
            n_head=4,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


SHALLOW = "llama-shallow"  # for tests of what is around the model: a forward costs a third
FAMILIES = {
    "llama": llama,
    "llama-eager": lambda: llama(attn_implementation="eager"),
    "qwen2": qwen2,
    "mistral": mistral,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gpt2": gpt2,
}


def tiny_target(family, dtype=torch.float64):
    """A random model; the same one at every call."""
    torch.manual_seed(0)
    if family == SHALLOW:
        return llama(num_hidden_layers=1).to(dtype).eval()
    return FAMILIES[family]().to(dtype).eval()


def random_tree(rng, root, drafts):
    """A tree of up to `drafts` nodes behind `root`, of any shape from a chain to a star."""
    tree, reach = Tree.root(root), rng.choice([1, 2, 100])
    for _ in range(drafts):
        parent = rng.randrange(max(0, len(tree) - reach), len(tree))
        tree.add(parent, rng.randrange(VOCAB), 0.5, "random")
    return tree


def random_text(seed, length):
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


@torch.inference_mode()
def plain_logits(model, texts):
    """Last logits [V] behind every text, by one pass without cache and mask per length."""
    found = {}
    for length in {len(text) for text in texts}:
        alike = [index for index, text in enumerate(texts) if len(text) == length]
        batch = torch.tensor([texts[index] for index in alike])
        logits = model(input_ids=batch, use_cache=False).logits[:, -1]
        found.update(zip(alike, logits))
    return [found[index] for index in range(len(texts))]
