"""Likelihood of an answer under a masked-diffusion model: a lower bound of its logarithm.

LLaDA's estimator (arXiv 2502.09992, section 2.4): mask exactly l of the L answer tokens, l uniform
on 1 .. L, and weight the log-probability of these by L / l. What is masked is a function of a seed
alone, so a value depends neither on the batch nor on the order of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dllm.cache.plan import ForwardPlan
from dllm.config import DecodeConfig
from dllm.decoding.canvas import positions
from dllm.decoding.forward import guided
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.models.protocol import Model
from dllm.samplers.noise import seed_key, uniform

DRAWS = 128  # LLaDA's
CHUNK = 2**21  # logits normalised at a time


@dataclass(frozen=True, slots=True)
class LikelihoodRequest:
    """Token ids of a prompt, which may be empty, and of an answer. seed: of what is masked."""

    prompt: Sequence[int]
    answer: Sequence[int]
    seed: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def log_likelihoods(
    model: Model,
    pairs: Sequence[LikelihoodRequest],
    *,
    draws: int = DRAWS,
    batch_size: int = 32,
    cfg_scale: float = 0.0,
) -> list[float]:
    """Estimated bounds in nats, one for each pair, from at most `draws` masked copies of it.

    Exact where all ways to mask the answer are no more than `draws`. cfg_scale: as in DecodeConfig.
    Raises DllmError for a pair that does not fit the model, or a model that answers with NaN.
    """
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise DllmError(f"{name}={value}: expected a whole number of at least 1")
    for row, pair in enumerate(pairs):
        _check(model, row, pair)
    totals = [0.0] * len(pairs)
    rows = _rows(pairs, draws)
    while batch := list(islice(rows, batch_size)):
        copies = [pairs[row] for row, _, _ in batch]
        found = masked_log_likelihoods(model, copies, [mask for _, mask, _ in batch], cfg_scale)
        for (row, _, weight), value in zip(batch, found.tolist(), strict=True):
            totals[row] += weight * value
    if any(map(math.isnan, totals)):
        raise DllmError(
            f"pair {[*map(math.isnan, totals)].index(True)}: the model's logits hold NaN or "
            "infinity: expected finite numbers"
        )
    return totals


def forwards(answer_length: int, draws: int = DRAWS) -> int:
    """The number of masked copies that `log_likelihoods` computes of a pair."""
    return min(draws, (1 << answer_length) - 1)


def _rows(pairs: Sequence[LikelihoodRequest], draws: int) -> Iterator[tuple[int, Tensor, float]]:
    """(index of the pair, mask [L], weight) of all copies, those of like length together."""
    for row in sorted(range(len(pairs)), key=lambda row: pairs[row].length):
        masks, weights = mask_sets(len(pairs[row].answer), draws, pairs[row].seed)
        for mask, weight in zip(masks, weights.tolist(), strict=True):
            yield row, mask, weight


def mask_sets(length: int, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Masks over `length` tokens: sets [n, length] bool, and the weight [n] of each.

    All sets where these are at most `draws`. Else as many as that, their sizes in equal strata from
    a random start. That is LLaDA's way, but for two things that would bias or bind it: its code
    rounds halves to even sizes, and its strata are those of one batch.
    """
    place = torch.arange(length)
    if 2**length - 1 <= draws:
        masks = (torch.arange(1, 2**length)[:, None] >> place & 1).bool()
        sizes = masks.sum(1)
        weights = [1 / (size * math.comb(length, size)) for size in sizes.tolist()]
        return masks, torch.tensor(weights, dtype=torch.float64)
    draw = torch.arange(draws)
    key = seed_key(seed)
    start = int(uniform(key, torch.tensor(-1)) * length)
    sizes = (start + draw * length // draws) % length + 1
    shuffled = uniform(key, draw[:, None], place).argsort(1)
    return shuffled < sizes[:, None], length / sizes.double() / draws


@torch.no_grad()
def masked_log_likelihoods(
    model: Model,
    pairs: Sequence[LikelihoodRequest],
    masks: Sequence[Tensor],
    cfg_scale: float = 0.0,
) -> Tensor:
    """[B] float64 log-probability in nats of the answer tokens in `masks` (each [L] bool), given
    the prompt and the others, every masked token on its own.
    """
    device, mask_id = model.device, model.spec.mask_id
    size = max(pair.length for pair in pairs)
    ids = torch.full((len(pairs), size), mask_id)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    for row, (pair, mask) in enumerate(zip(pairs, masks, strict=True)):
        ids[row, : pair.length] = torch.tensor([*pair.prompt, *pair.answer])
        masked[row, len(pair.prompt) : pair.length] = mask
    where, real = (torch.from_numpy(a).to(device) for a in positions(masked.numpy(), fill=0))
    ids, masked = ids.to(device), masked.to(device)
    length = torch.tensor([pair.length for pair in pairs], device=device)
    prompt = torch.tensor([len(pair.prompt) for pair in pairs], device=device)
    pos = torch.arange(size, device=device).expand_as(ids)
    inside = pos < length[:, None]
    head = (where - model.spec.shift).clamp(min=0)
    plan = ForwardPlan(pos=pos, head=head, valid=None if bool(inside.all()) else inside)
    seen = ids.masked_fill(masked, mask_id)
    logits = model(seen, plan)
    if cfg_scale:
        without = model(seen.masked_fill(pos < prompt[:, None], mask_id), plan)
        logits = guided(logits, without, cfg_scale)
    found = torch.zeros_like(where, dtype=torch.float64)
    found[real] = _log_probability(logits[real], ids.gather(1, where)[real])
    return found.sum(1)


def _log_probability(logits: Tensor, token: Tensor) -> Tensor:
    """[N] float64 of `token` [N] under logits [N, V], in at least fp32."""
    parts = []
    size = max(1, CHUNK // logits.shape[1])
    for part, own in zip(torch.split(logits, size), torch.split(token, size), strict=True):
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        parts.append(wide.gather(1, own[:, None])[:, 0] - wide.logsumexp(1))
    return torch.cat(parts).double()


def is_greedy(engine: Engine, pair: LikelihoodRequest, cfg_scale: float = 0.0) -> bool:
    """Whether taking the most confident token, one at a time, decodes exactly this answer.

    An answer that holds an end token is never decoded: it would be cut there.
    """
    config = DecodeConfig(
        max_new_tokens=len(pair.answer), block_length=None, sampler="quota", cfg_scale=cfg_scale
    )
    outputs = engine.generate([list(pair.prompt)], config)
    return bool(outputs[0].token_ids == list(pair.answer))


def _check(model: Model, row: int, pair: LikelihoodRequest) -> None:
    vocab, most = model.spec.vocab_size, getattr(model.spec, "max_positions", None)
    for token in (*pair.prompt, *pair.answer):
        if not 0 <= token < vocab:
            raise DllmError(f"pair {row}: token id {token} is outside the vocabulary [0, {vocab})")
    if not pair.answer:
        raise DllmError(f"pair {row}: the answer is empty, expected at least one token")
    if most is not None and pair.length > most:
        raise DllmError(f"pair {row}: {pair.length} tokens; the model has {most} positions")
