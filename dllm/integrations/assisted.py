"""Drafts for the assisted generation of transformers: its own loop, one text, chains.

    assist = Assist(drafter, sources=["ngram"])
    model.generate(ids, max_new_tokens=100, custom_generate=assist)

`generate` prepares processors, criteria and cache as always; then its own assisted decoding runs,
with candidates from here. The output is the model's own: greedy text is the same token for token,
sampled text has the same distribution. Nothing is patched, but methods of transformers that begin
with an underscore are called: written for and tested with 5.23. A `streamer` does not reach any
callable.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from transformers.generation.candidate_generator import CandidateGenerator

from dllm.checks import replaced
from dllm.errors import DllmError
from dllm.verify.config import ChainOptions
from dllm.verify.draft.chain import Chain
from dllm.verify.draft.rows import SpeculationComponents
from dllm.verify.protocol import Drafter
from dllm.verify.target.capability import position_limit
from dllm.verify.target.generation import check_mode


class LatticeCandidates(CandidateGenerator):
    """A candidate generator of transformers for one text.

    Its candidates come without logits: transformers then takes tokens from the target, and keeps
    a candidate where it is the same.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def get_candidates(self, input_ids: LongTensor, **kwargs: Any) -> tuple[LongTensor, Any]:
        """input_ids [1, n], or with drafts [1, n + k]; k may be 0."""
        if len(input_ids) != 1:
            raise DllmError(f"{len(input_ids)} texts: assisted generation takes one at a time")
        context = input_ids[0].tolist()
        drafts = self._chain.propose(context, most=self._chain.limit)
        new = torch.tensor([drafts], dtype=input_ids.dtype, device=input_ids.device)
        return cast(LongTensor, torch.cat((input_ids, new), 1)), None

    def update_candidate_strategy(
        self, input_ids: LongTensor, scores: Tensor, num_matches: int
    ) -> None:
        """scores [1, k + 1, V]: the target's, behind the text and behind each draft.

        What was accepted shows in the text of the next call.
        """
        if self._chain.top:
            top = scores[0].topk(min(self._chain.top, scores.shape[-1]), -1).indices
            self._chain.learn(top.cpu().numpy())


class Assist:
    """For `generate(..., custom_generate=)`: transformers' assisted decoding with our drafts.

    drafter: what `load_drafter` gives, None for model-free sources alone.  options: those of
    `ChainOptions`; or `components` that are made already.  seed: of a search that draws. What is
    learned of sources and costs stays from one text to the next.
    """

    def __init__(
        self,
        drafter: Drafter | None = None,
        components: SpeculationComponents | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if components is None:
            components = replaced(ChainOptions(), options).components()
        elif options:
            raise DllmError(
                f"{next(iter(options))}=: components= are made already, without options"
            )
        self.components, self.drafter, self.seed = components, drafter, seed

    def __call__(
        self,
        model: Any,
        input_ids: LongTensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        check_mode(generation_config)
        length, limit = generation_config.max_length, position_limit(model.config)
        if limit is not None and length > limit:
            raise DllmError(
                f"a prompt of {input_ids.shape[1]} tokens and {length - input_ids.shape[1]} new "
                f"ones make {length} positions, but the model has {limit}"
            )
        size = model.config.get_text_config().vocab_size
        chain = Chain(self.components, self.drafter, size, length, self.seed)
        # The class's method on a stand-in, so that the model itself is never changed.
        return type(model)._assisted_decoding(
            ModelWithCandidates(model, LatticeCandidates(chain)),
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **model_kwargs,
        )


class ModelWithCandidates:
    """The model, but for the candidate generator that it makes."""

    def __init__(self, model: Any, candidates: LatticeCandidates) -> None:
        self._model = model
        self._candidates = candidates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def _get_candidate_generator(self, **kwargs: Any) -> LatticeCandidates:
        return self._candidates
