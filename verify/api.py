"""Loading by name: a target that transformers reads, a drafter that this engine reads."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from dllm.errors import DllmError
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.models.markov import load_markov
from dllm.text.tokenizer import ChatTokenizer, load_text
from dllm.verify.draft.drafter import ModelDrafter
from dllm.verify.draft.vocab import Translated, id_map, same_ids
from dllm.verify.engine import SpecEngine
from dllm.verify.protocol import Drafter
from dllm.verify.target.model import load_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROM_CHECKPOINT = ("model", "eos", "markov")  # of a drafter: no options of a user's


def load(
    target: str | os.PathLike[str],
    drafter: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    **options: Any,
) -> SpecEngine:
    """An engine from the names of two checkpoints: "tiny-ar" and "tiny" (bundled), directories, or
    hub ids. drafter: None drafts from model-free sources alone. options: those of `load_drafter`.

    The target decodes as its checkpoint's `generation_config` says where no option says otherwise.
    The drafter computes in the target's dtype and on its device. Raises LoadError naming the file,
    tensor or key at fault.
    """
    found, tokenizer = load_target(target, dtype, device)
    text = ChatTokenizer(tokenizer, getattr(found.model.config, "model_type", "hf"))
    drafting = None
    if drafter is not None:
        same: Any = {"dtype": found.model.dtype, "device": found.model.device}
        drafting = load_drafter(drafter, tokenizer, vocab_size=found.vocab_size, **same, **options)
    elif options:
        raise DllmError(f"{next(iter(options))}=...: an option of a drafter, but there is none")
    return SpecEngine(found, text, drafting)


def load_drafter(
    id_or_dir: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    markov: bool = True,
    **options: Any,
) -> Drafter:
    """A masked-diffusion checkpoint as a drafter for a target with this tokenizer.

    vocab_size: the target's, if that is not the tokenizer's. Where the two vocabularies differ,
    drafts are translated. markov: use the Markov head that lies beside the checkpoint, if there is
    one. options: `ModelDrafter`'s; DllmError names one that it has not.
    """
    known = [each.name for each in fields(ModelDrafter) if each.name not in FROM_CHECKPOINT]
    for name in options:
        if name not in known:
            listed = ", ".join(["markov", *known])
            raise DllmError(f"unknown option {name!r} of a drafter; known: {listed}")
    text = ChatTokenizer(tokenizer, "hf")
    path = resolve(id_or_dir)
    model = load_model(path, dtype=dtype, device=device)
    size, kind, place = model.spec.vocab_size, model.dtype, model.device
    head = load_markov(path, size, dtype=kind, device=place) if markov else None
    drafter = ModelDrafter(model, eos=model.spec.stop_ids, markov=head, **options)
    own = load_text(path, model.spec)
    ids = id_map(own, text, model.spec.vocab_size, vocab_size or len(tokenizer))
    if same_ids(ids):
        return drafter
    return Translated(drafter, ids, own, text)
