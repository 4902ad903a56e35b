"""Drafts for vLLM: a class that its V1 runner makes where `model` names one by a dotted path.

    speculative_config={"model": "dllm.integrations.vllm.Proposer", "num_speculative_tokens": 8}
    additional_config={"dllm": {"drafter": "org/dllm-checkpoint", "sources": ["ngram"]}}

Written for the hook of vLLM 0.33.0 (`custom_class` proposers), which refuses any other key of
`speculative_config`: so options travel in `additional_config`. Tested with arrays as the hook
passes them; no release was run with it, and vLLM is not imported. It checks drafts as tokens
without probabilities, the right rule for tokens that were searched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dllm.checks import ConfigError, replaced
from dllm.errors import DllmError
from dllm.verify.config import ChainOptions
from dllm.verify.draft.chain import Chain
from dllm.verify.draft.rows import SpeculationComponents
from dllm.verify.protocol import Drafter

LOADING = ("drafter", "drafter_options")  # a checkpoint or none; options of `load_drafter` by name
IDLE = 64  # calls that a text may be missing from before it is forgotten


class Proposer:
    """Drafts a chain for each request; options: `additional_config["dllm"]`, those of
    `ChainOptions`, `drafter` and `drafter_options`.

    Without a drafter there are model-free drafts only. A drafter runs once for each request, since
    requests come and go, and keeps keys and values for each. A control decides for each request
    as if it were alone, and takes the time between two calls for the target's.
    """

    def __init__(self, vllm_config: Any, drafter: Drafter | None = None) -> None:
        """drafter: used instead of loading the one that the options name."""
        self._config = vllm_config
        self._loading, self._options = checked(vllm_config)
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._limit = int(vllm_config.model_config.max_model_len)
        self._vocab_size = int(vllm_config.model_config.get_vocab_size())
        self._drafter = drafter
        self._components: SpeculationComponents | None = None  # of all requests
        self._open: dict[int, tuple[Chain, int]] = {}  # number -> text, call it was last in
        self._calls = self._numbers = 0

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the drafter, if the options name one, and make the components."""
        name = self._loading.get("drafter")
        if self._drafter is None and name is not None:
            options = self._loading.get("drafter_options", {})
            self._drafter = load(name, self._config.model_config, self._vocab_size, options)
        self._components = self._options.components()

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Draft tokens of every request, none where nothing was sampled (a part of a prompt).

        sampled_token_ids: of each of B requests in this step.  num_tokens_no_spec [B]: lengths of
        their texts, these tokens included.  token_ids_cpu [B, >= length]: the texts.
        """
        if self._components is None:
            self.load_model()
        self._calls += 1
        drafts: list[list[int]] = []
        used: set[int] = set()
        for i, sampled in enumerate(sampled_token_ids):
            length = int(num_tokens_no_spec[i])
            if not len(sampled) or length < 1:
                drafts.append([])
                continue
            context = np.asarray(token_ids_cpu[i][:length]).tolist()
            number = self._find(context, used)
            used.add(number)
            chain = self._open[number][0]
            self._open[number] = chain, self._calls
            drafts.append(chain.propose(context, self._most))
        self._open = {
            number: (chain, call)
            for number, (chain, call) in self._open.items()
            if self._calls - call < IDLE
        }
        return drafts

    def _find(self, context: list[int], used: set[int]) -> int:
        """The longest open text that `context` goes on with, or a new one. Requests have no names
        here; of two with the same tokens either will do, since all that is known is these."""
        found = [
            (len(chain.context), number)
            for number, (chain, _) in self._open.items()
            if number not in used and chain.continues(context)
        ]
        if found:
            return max(found)[1]
        assert self._components is not None
        chain = Chain(self._components, self._drafter, self._vocab_size, self._limit)
        self._numbers += 1
        self._open[self._numbers] = chain, self._calls
        return self._numbers


def checked(vllm_config: Any) -> tuple[Mapping[str, Any], ChainOptions]:
    """Our options in vLLM's configuration: those of LOADING and the others; DllmError names one
    that is not known."""
    if getattr(vllm_config, "speculative_config", None) is None:
        raise DllmError("speculative_config=None: expected one with num_speculative_tokens")
    additional = getattr(vllm_config, "additional_config", None) or {}
    options = additional.get("dllm", {}) if isinstance(additional, Mapping) else additional
    if not isinstance(options, Mapping):
        raise DllmError(f"additional_config['dllm']={options!r}: expected a mapping of options")
    ours = {name: value for name, value in options.items() if name in LOADING}
    drafting = {name: value for name, value in options.items() if name not in LOADING}
    try:
        return ours, replaced(ChainOptions(), drafting, LOADING)
    except ConfigError as error:
        raise ConfigError(f"additional_config['dllm']: {error}") from error


def load(name: str, model_config: Any, vocab_size: int, options: Mapping[str, Any]) -> Drafter:
    """The drafter of that checkpoint for the target that vLLM runs, with its tokenizer."""
    from transformers import AutoTokenizer

    from dllm.verify.api import load_drafter

    tokenizer = AutoTokenizer.from_pretrained(model_config.tokenizer)
    return load_drafter(name, tokenizer, vocab_size=vocab_size, **options)
