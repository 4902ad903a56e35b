"""Check that a transformers model can verify trees: by its configuration, then by a trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dllm.errors import DllmError
from dllm.verify.protocol import TargetSession
from dllm.verify.tree import Tree

DENSE = ("sdpa", "eager")  # attention implementations that take a mask of any shape
NEEDED = ("input_ids", "attention_mask", "position_ids", "past_key_values")
# kinds of layer -> whether they attend; mlp and moe are layers of hybrid models that do not
LAYERS = {"full_attention": True, "sliding_attention": True, "mlp": False, "moe": False}
# root mean square of the error of a tree's logits over their spread: far above rounding, far
# below what a wrong mask or position makes of them
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


def check_config(model: Any) -> None:
    """DllmError that says why a model cannot be a target, if its configuration tells."""
    if not isinstance(model, PreTrainedModel):
        raise DllmError(f"target {type(model).__name__}: expected a transformers causal LM")
    wrong = next(_reasons(model), None)
    if wrong is not None:
        raise DllmError(f"{type(model).__name__} cannot verify trees: {wrong}")


def _reasons(model: Any) -> Iterator[str]:
    config = model.config
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder; expected a decoder-only causal LM"
    if model.training:
        yield "it is in training mode; call model.eval()"
    if model.dtype not in TOLERANCE:
        yield f"its dtype is {model.dtype}; expected one of {', '.join(map(str, TOLERANCE))}"
    chosen = config._attn_implementation
    if chosen not in DENSE:
        yield (
            f"attention {chosen!r} takes no mask [B, 1, Q, K]; load it with attn_implementation="
            + " or ".join(map(repr, DENSE))
        )
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    odd = sorted(set(kinds) - set(LAYERS))
    if odd or getattr(model, "_is_stateful", False):
        yield (
            f"layers of kind {', '.join(odd) or 'recurrent'} cannot forget a rejected draft; "
            f"known kinds: {', '.join(LAYERS)}"
        )
    if hasattr(config, "attention_layers"):  # GPT-Neo
        yield "its attention counts slots, not positions"
    absent = [name for name in NEEDED if name not in inspect.signature(model.forward).parameters]
    if absent:
        yield f"its forward takes no {', '.join(absent)}"


def attention_spans(config: Any) -> dict[str, int | None]:
    """How many positions back each kind of attention layer sees, itself included (None: all)."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    return {k: window if k == "sliding_attention" else None for k in kinds if LAYERS[k]}


def position_limit(config: Any) -> int | None:
    """How many positions a model has; None where its configuration does not say."""
    text = config.get_text_config()
    limit: int | None = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    stretched = (
        int((rope.get("original_max_position_embeddings") or limit) * (rope.get("factor") or 1))
        for rope in _ropes(text)
        if rope.get("rope_type") in ("linear", "yarn")  # Qwen's configurations keep the old length
    )
    return max([limit, *stretched])


def length_limit(config: Any) -> int | None:
    """Positions up to which logits are right, and do not depend on what else is in the pass (None:
    no limit).

    Frequencies that follow the longest position of a pass (dynamic NTK, LongRoPE) would change with
    drafts that are never accepted.
    """
    text = config.get_text_config()
    moving = [rope for rope in _ropes(text) if rope.get("rope_type") in ("dynamic", "longrope")]
    whole = getattr(text, "max_position_embeddings", None)
    limits = [rope.get("original_max_position_embeddings") or whole for rope in moving]
    return min((limit for limit in (*limits, position_limit(config)) if limit), default=None)


def _ropes(text: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a text model, of each kind of layer where they differ."""
    ropes = getattr(text, "rope_parameters", None) or {}
    return [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]


@torch.inference_mode()
def probe(
    model: Any, vocab_size: int, begin: Callable[[Sequence[Sequence[int]]], TargetSession]
) -> None:
    """Compare two rounds over ragged trees, with gaps between them, with plain passes.

    begin: opens a session. Raises DllmError where the logits differ, or the model fails.
    """
    texts = [[token % vocab_size for token in text] for text in ([3, 14, 15, 92, 65], [35, 89])]
    try:
        session = begin(texts)
        session.score([_bush(text[-1], vocab_size) for text in texts])
        session.commit([[0, 2, 4], [0]])  # leaves gaps in both rows
        texts[0] += [(texts[0][-1] + step) % vocab_size for step in (2, 6, 9)]
        texts[1] += [(texts[1][-1] + 7) % vocab_size]
        trees = [_bush(text[-1], vocab_size) for text in texts]
        scored = session.score(trees)
        errors = [
            _distance(scored.row(row, node), _plain(model, text, tree, node))
            for row, (text, tree) in enumerate(zip(texts, trees, strict=True))
            for node in range(len(tree))
        ]
    except Exception as error:  # a model may fail in any way over a mask it does not expect
        raise DllmError(
            f"{type(model).__name__} cannot verify trees: a pass with a mask, positions and a "
            f"cache of ours failed ({type(error).__name__}: {error})"
        ) from error
    worst = max(errors, key=lambda error: float("inf") if error != error else error)
    if not worst <= TOLERANCE[model.dtype]:
        raise DllmError(
            f"{type(model).__name__} cannot verify trees: its logits differ from plain passes by "
            f"{worst:.2g} of their spread, expected at most {TOLERANCE[model.dtype]:g}; it ignores "
            "position_ids or a mask [B, 1, Q, K]"
        )


def _bush(token: int, vocab_size: int) -> Tree:
    """Two children behind the root and one behind each: 0 - 1 - 3 and 0 - 2 - 4."""
    tree = Tree.root(token)
    for parent, step in ((0, 1), (0, 2), (1, 3), (2, 4)):
        tree.add(parent, (tree.tokens[parent] + step) % vocab_size, 1.0, "probe")
    return tree


def _plain(model: Any, text: Sequence[int], tree: Tree, node: int) -> Tensor:
    """Logits [V] behind a text and the path to a node, by the model alone."""
    ids = [*text, *(tree.tokens[step] for step in tree.path(node))]
    output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    logits: Tensor = output.logits[0, -1].float()
    return logits


def _distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square error over the spread of the expected logits, both [V]."""
    if found.shape != expected.shape:
        raise DllmError(f"logits of shape {list(found.shape)}, expected {list(expected.shape)}")
    spread = (expected - expected.mean()).square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / spread)
