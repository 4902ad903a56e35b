"""Logits processors of a transformers model, for rows that are at different places.

transformers calls processors once a step, with a rectangle of all rows. A pass over drafts asks for
the scores behind several continuations of a row, each row for itself and some of them in vain. So a
processor has to be a function of its arguments wherever there are drafts; `OPTIONS` lists those of
transformers that are. Without drafts every processor sees what plain generation shows it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as made

from dllm.errors import DllmError

# processors whose scores of a row depend on its tokens and logits alone -> the option of `generate`
# that makes one
OPTIONS: dict[type, str] = {
    made.SequenceBiasLogitsProcessor: "sequence_bias",
    made.EncoderRepetitionPenaltyLogitsProcessor: "encoder_repetition_penalty",
    made.RepetitionPenaltyLogitsProcessor: "repetition_penalty",
    made.NoRepeatNGramLogitsProcessor: "no_repeat_ngram_size",
    made.EncoderNoRepeatNGramLogitsProcessor: "encoder_no_repeat_ngram_size",
    made.NoBadWordsLogitsProcessor: "bad_words_ids",
    made.MinLengthLogitsProcessor: "min_length",
    made.MinNewTokensLengthLogitsProcessor: "min_new_tokens",
    made.PrefixConstrainedLogitsProcessor: "prefix_allowed_tokens_fn",
    made.ForcedBOSTokenLogitsProcessor: "forced_bos_token_id",
    made.ForcedEOSTokenLogitsProcessor: "forced_eos_token_id",
    made.InfNanRemoveLogitsProcessor: "remove_invalid_values",
    made.ExponentialDecayLengthPenalty: "exponential_decay_length_penalty",
    made.SuppressTokensLogitsProcessor: "suppress_tokens",
    made.SuppressTokensAtBeginLogitsProcessor: "begin_suppress_tokens",
    made.TemperatureLogitsWarper: "temperature",
    made.TopHLogitsWarper: "top_h",
    made.TopKLogitsWarper: "top_k",
    made.TopPLogitsWarper: "top_p",
    made.MinPLogitsWarper: "min_p",
    made.TypicalLogitsWarper: "typical_p",
    made.EpsilonLogitsWarper: "epsilon_cutoff",
    made.EtaLogitsWarper: "eta_cutoff",
    made.WatermarkLogitsProcessor: "watermarking_config",
    made.LogitNormalization: "renormalize_logits",
}


def stateless(processor: Any) -> bool:
    """Whether a processor may be asked about drafts: one of `OPTIONS`, or one of another class that
    says so of itself by an attribute `stateless = True`.
    """
    return type(processor) in OPTIONS or bool(getattr(processor, "stateless", False))


class Processors:
    """What processors make of the logits behind a batch of texts.

    prompts: of each row, as processors see it (with its padding).  lists: the processors of each
    row, which see it alone.  together: those that see all rows at once, where there are no drafts
    and the prompts are equally long.  pad: fills up the texts of rows that have ended, for these.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        lists: Sequence[LogitsProcessorList],
        together: LogitsProcessorList | None = None,
        pad: int | None = None,
    ) -> None:
        self.prompts, self.lists, self.together, self.pad = prompts, lists, together, pad or 0
        self.emitted: list[list[int]] = [[] for _ in prompts]  # as last seen, together

    @classmethod
    def of_batch(cls, ids: Tensor, processors: LogitsProcessorList, pad: int | None) -> Processors:
        """For prompts [B, T] that share their processors, as `generate` prepares them."""
        alone = [
            LogitsProcessorList(one_row(each, row, len(ids)) for each in processors)
            for row in range(len(ids))
        ]
        return cls(list(ids), alone, processors, pad)

    def check(self, drafts: bool) -> None:
        """DllmError for a processor that may have a state, where rows have drafts or do not share
        their processors.
        """
        if self.together is not None and not drafts:
            return
        for each in (each for processors in self.lists for each in processors):
            if stateless(each):
                continue
            name = type(each).__name__
            why, instead = "prompts side by side", "give one prompt"
            if drafts:
                why, instead = "drafts that are rejected", "give no drafter and sources=()"
            raise DllmError(
                f"logits processor {name} may keep a state, which {why} would spoil: {instead}, or "
                f"set {name}.stateless = True if a row's scores depend on its arguments alone"
            )

    def row(self, row: int, emitted: Sequence[int], logits: Tensor) -> Tensor:
        """Logits [V] behind the prompt of a row and these new tokens, processed."""
        ids: Any = self._text(row, emitted)[None]
        scores: Tensor = self.lists[row](ids, logits.clone()[None])  # some work in place
        return scores[0]

    def batch(self, emitted: Mapping[int, Sequence[int]], logits: Tensor) -> Tensor:
        """Logits [n, V] behind the texts of n rows, which have no drafts: processed."""
        lengths = set(map(len, emitted.values()))
        ended = len(emitted) < len(self.prompts)
        if (
            self.together is None
            or len(lengths) > 1
            or (ended and all(stateless(each) for each in self.together))
        ):
            texts = zip(emitted.items(), logits, strict=True)
            return torch.stack([self.row(row, new, scores) for (row, new), scores in texts])
        for row, new in emitted.items():
            self.emitted[row] = list(new)
        [length] = lengths
        ids: Any = torch.stack(
            [
                self._text(row, [*new, *[self.pad] * (length - len(new))])
                for row, new in enumerate(self.emitted)
            ]
        )
        rows = list(emitted)
        whole = logits.new_zeros(len(self.prompts), logits.shape[-1])
        whole[rows] = logits
        scores: Tensor = self.together(ids, whole)
        return scores[rows]

    def _text(self, row: int, emitted: Sequence[int]) -> Tensor:
        prompt = self.prompts[row]
        return torch.cat([prompt, prompt.new_tensor(list(emitted))])


def one_row(processor: Any, row: int, rows: int) -> Any:
    """What a processor of a batch of `rows` does to one of them, for batches of that row alone."""
    changes: dict[str, Any] = {}
    if type(processor) is made.RepetitionPenaltyLogitsProcessor:
        if isinstance(processor.prompt_ignore_length, Tensor):
            changes["prompt_ignore_length"] = processor.prompt_ignore_length[row : row + 1]
    elif type(processor) is made.PrefixConstrainedLogitsProcessor:
        changes["_prefix_allowed_tokens_fn"] = partial(
            _for_row, processor._prefix_allowed_tokens_fn, row
        )
    elif type(processor) is made.EncoderRepetitionPenaltyLogitsProcessor:
        prompt = row * len(processor.encoder_input_ids) // rows
        changes["encoder_input_ids"] = processor.encoder_input_ids[prompt : prompt + 1]
    elif type(processor) is made.EncoderNoRepeatNGramLogitsProcessor:
        prompt = row * processor.batch_size // rows
        changes |= {"generated_ngrams": [processor.generated_ngrams[prompt]], "batch_size": 1}
    if not changes:
        return processor
    alone = copy.copy(processor)
    vars(alone).update(changes)
    return alone


def _for_row(allowed: Any, row: int, batch_id: int, ids: Tensor) -> list[int]:
    """The allowed tokens of a row that is alone in its batch, by its number in the whole one."""
    tokens: list[int] = allowed(row, ids)
    return tokens
