"""From logits to what a commit rule sees: one pass over the vocabulary, for the holes only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.canvas import Canvas, Windows
from dllm.samplers.noise import uniform

TOKEN_STREAM, RULE_STREAM = 0, 1  # independent random streams of one step
CHUNK = 2**22  # logits scored at a time: temporaries stay small and in the cache of a CPU


@dataclass(frozen=True, slots=True)
class Proposal:
    """How tokens are proposed from logits (temperature 0: argmax, ties to the lower id).

    `tempered` says which law confidences come from: the tempered and truncated one (Dream) or the
    model's own (LLaDA, Fast-dLLM).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    tempered: bool = False
    banned: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """The holes of each row's window, in ascending position; K is the largest number of a row.

    pos, token [B, K] int64;  valid [B, K] bool (real or padding);  conf [B, K] fp32 probability of
    the token, log1m [B, K] log(1 - conf), exact also where conf rounds to 1;  margin [B, K] gap of
    the two best probabilities, entropy [B, K] nats, both None unless the rule needs them;
    ends [B, K] the token would end the answer.
    Per row [B]: window start, end and holes it began with (`window_holes`), forwards spent in the
    window and in all (`window_step`, `step`), `prompt` and `length` of the row, its index `row`.
    """

    pos: Tensor
    valid: Tensor
    token: Tensor
    conf: Tensor
    log1m: Tensor
    ends: Tensor
    start: Tensor
    end: Tensor
    window_holes: Tensor
    window_step: Tensor
    step: Tensor
    prompt: Tensor
    length: Tensor
    row: Tensor
    seed: int
    margin: Tensor | None = None
    entropy: Tensor | None = None

    def uniform(self) -> Tensor:
        """[B, K] float64 uniforms of this step for the rule's own draws."""
        stream = torch.full_like(self.row, RULE_STREAM)[:, None]
        return uniform(self.seed, self.row[:, None], self.step[:, None], self.pos, stream)

    @property
    def certainty(self) -> tuple[Tensor, Tensor]:
        """Scores for `rank`: confidence, then log(1 - p) to tell saturated values apart."""
        return self.conf, -self.log1m

    def rank(self, *scores: Tensor) -> Tensor:
        """[B, K] rank of each candidate: higher first score first, ties by the next score, then
        lower position first; padding last. Without scores: by `certainty`.
        """
        order = torch.arange(self.pos.shape[1], device=self.pos.device).expand_as(self.pos)
        # stable sorts, least significant key first
        for key in (*reversed(scores or self.certainty), self.valid.float()):
            by_key = key.gather(1, order).argsort(dim=1, descending=True, stable=True)
            order = order.gather(1, by_key)
        return torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far each row has come; all [B]. See `Candidates` for the fields."""

    step: Tensor
    window_step: Tensor
    window_holes: Tensor


def hole_positions(canvas: Canvas, windows: Windows) -> tuple[Tensor, Tensor]:
    """Holes inside the windows: positions [B, K] ascending and which of them are real."""
    holes = canvas.holes & windows.contains(canvas.pos)
    most = int(holes.sum(1).max())
    pos = (~holes).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return pos, holes.gather(1, pos)


def propose(
    logits: Tensor, how: Proposal, needs: frozenset[str], keys: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Tokens and scores of logits [B, K, V]; `keys` are the counters of the token draws.

    The result holds the fields of `Candidates` by name, the optional ones only if in `needs`.
    """
    z = logits.float() if logits.dtype != torch.float64 else logits
    z = z.clone() if z is logits else z
    z[..., list(how.banned)] = -torch.inf
    law = z / how.temperature if how.temperature > 0 else z
    if how.temperature > 0 or how.tempered:
        law = truncate(law, how.top_p, how.top_k)
    token = draw(law, uniform(how.seed, *keys)) if how.temperature > 0 else z.argmax(-1)
    scores = law if how.tempered else z

    top = scores.amax(-1, keepdim=True)
    mass = (scores - top).exp_()
    extra = {}
    if "entropy" in needs:
        # H = log S - sum(e * (z - top)) / S; a banned token has e = 0 and must not give 0 * inf
        gap = (scores - top).masked_fill_(mass == 0, 0.0)
        total = mass.sum(-1)
        extra["entropy"] = (total.log() - (mass * gap).sum(-1) / total).float()
    if "margin" in needs:
        best = mass.topk(2, dim=-1).values
        extra["margin"] = ((best[..., 0] - best[..., 1]) / mass.sum(-1)).float()
    own = mass.gather(-1, token[..., None])
    rest = mass.scatter_(-1, token[..., None], 0.0).sum(-1)
    own = own[..., 0]
    conf = own / (own + rest)
    return {
        "token": token,
        "conf": conf.float(),
        "log1m": (rest.log() - (own + rest).log()).float(),
        "ends": torch.isin(token, token.new_tensor(how.stop_ids)),
        **extra,
    }


def truncate(z: Tensor, top_p: float, top_k: int) -> Tensor:
    """Keep the smallest set of tokens with mass `top_p`, of those the `top_k` best (0: all)."""
    if top_p < 1.0:
        best, index = z.sort(dim=-1, descending=True, stable=True)
        before = best.softmax(-1).cumsum(-1) - best.softmax(-1)
        outside = torch.zeros_like(before, dtype=torch.bool)
        outside.scatter_(-1, index, before >= top_p)
        z = z.masked_fill(outside, -torch.inf)
    if 0 < top_k < z.shape[-1]:
        kth = z.topk(top_k, dim=-1).values[..., -1:]
        z = z.masked_fill(z < kth, -torch.inf)
    return z


def draw(z: Tensor, u: Tensor) -> Tensor:
    """Tokens [B, K] with law softmax(z): the inverse of the cumulative mass at `u`, in float64.

    One uniform a position instead of one Gumbel a logit, and no truncated tail.
    """
    mass = (z - z.amax(-1, keepdim=True)).double().exp_().cumsum_(-1)
    total = mass[..., -1:]
    goal = torch.minimum(u[..., None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(mass, goal, right=True)[..., 0]
    return token.clamp(max=z.shape[-1] - 1)  # NaN logits end up behind the last token


def make_candidates(
    logits: Tensor,
    pos: Tensor,
    valid: Tensor,
    canvas: Canvas,
    windows: Windows,
    progress: Progress,
    how: Proposal,
    needs: frozenset[str],
) -> Candidates:
    """The view of one step; logits [B, K, V] predict the tokens at `pos` [B, K]."""
    stream = torch.full_like(canvas.row, TOKEN_STREAM)[:, None]
    parts = []
    size = max(1, CHUNK // (logits.shape[0] * logits.shape[2]))
    for at in range(0, logits.shape[1], size):
        cut = slice(at, at + size)
        keys = (canvas.row[:, None], progress.step[:, None], pos[:, cut], stream)
        parts.append(propose(logits[:, cut], how, needs, keys))
    return Candidates(
        pos=pos,
        valid=valid,
        **{field: torch.cat([part[field] for part in parts], 1) for field in parts[0]},
        start=windows.start,
        end=windows.end,
        window_holes=progress.window_holes,
        window_step=progress.window_step,
        step=progress.step,
        prompt=canvas.prompt,
        length=canvas.length,
        row=canvas.row,
        seed=how.seed,
    )
