"""Candidates: what a commit rule sees, scored in one pass over the logits of masked positions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm.decoding.canvas import Canvas, Windows
from dllm.samplers.noise import uniform

TOKEN_STREAM, RULE_STREAM = 0, 1  # independent random streams of one step
CHUNK = 2**21  # logits scored at a time: temporaries stay small and in the cache of a CPU


@dataclass(frozen=True, slots=True)
class Proposal:
    """Options of proposing tokens from logits (temperature 0: argmax, ties to the lower id).

    `tempered` says which distribution confidences come from: the tempered and truncated one (Dream)
    or the model's own (LLaDA, Fast-dLLM).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    tempered: bool = False
    banned: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """The committed answer positions inside each row's window, for rules that look back.

    pos, valid [B, D];  conf [B, D] fp32: the probability of what the model would now put there.
    """

    pos: Tensor
    valid: Tensor
    conf: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """The masked positions of each row's window, as a rule sees them. K is the largest number of a
    row.

    With several windows a row, every (row, window) is a row of its own here: a rule need not know.

    pos, token [B, K] int64, pos ascending;  valid [B, K] bool: a candidate, or padding, which may
    stand anywhere;  conf [B, K] fp32 probability of the token, log1m [B, K] log(1 - conf), exact
    also where conf rounds to 1;  ends [B, K] the token would end the answer.

    Per row [B]: window start, end and masked positions it began with (`window_masked`), forwards
    spent in the window and in all (`window_step`, `step`), `prompt` and `length` of the row, its
    index `row`, the share of its answer known before this step (`filled`).

    `state`: tensors [B, ...] that a rule may keep from one step to the next by assigning to a key;
    the engine drops the rows that finish.

    None unless the rule `needs` them: margin [B, K] gap of the two best probabilities;  entropy [B,
    K] nats;  gap [B, K] gap of the two best logits;  best [B, K] the most likely token, best_conf
    [B, K] its probability (they differ from token and conf where tokens are drawn);  kl [B, K] nats
    from the distribution at the previous forward to the present one, infinite where the position
    was not scored then;  logits [B, K, V] as scored;  decoded: see `Decoded`.
    """

    pos: Tensor
    valid: Tensor
    token: Tensor
    conf: Tensor
    log1m: Tensor
    ends: Tensor
    start: Tensor
    end: Tensor
    window_masked: Tensor
    window_step: Tensor
    step: Tensor
    prompt: Tensor
    length: Tensor
    row: Tensor
    filled: Tensor
    seed: int = 0
    margin: Tensor | None = None
    entropy: Tensor | None = None
    gap: Tensor | None = None
    best: Tensor | None = None
    best_conf: Tensor | None = None
    kl: Tensor | None = None
    logits: Tensor | None = None
    decoded: Decoded | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

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
        keys = scores or self.certainty
        if len(keys) == 2 and all(key.dtype == torch.float32 for key in keys):
            keys = ((sortable(keys[0]) << 32) + sortable(keys[1]) + 2**31,)  # one sort, not three
        every = torch.arange(self.pos.shape[1], device=self.pos.device).expand_as(self.pos)
        order = every
        # Stable sorts, least significant key first: positions ascend, so ties go to the lower one.
        for key in reversed(keys):
            whole = key if key.dtype == torch.int64 else sortable(key)
            whole = whole.masked_fill(~self.valid, torch.iinfo(torch.int64).min).gather(1, order)
            order = order.gather(1, whole.argsort(dim=1, descending=True, stable=True))
        return torch.empty_like(order).scatter_(1, order, every)


def sortable(x: Tensor) -> Tensor:
    """int64 with the order of the floats x (fp32 or fp64), -0 like 0."""
    bits, rest = (31, 2**31 - 1) if x.dtype == torch.float32 else (63, 2**63 - 1)
    i = (x + 0.0).view(torch.int32 if bits == 31 else torch.int64)
    return (i ^ ((i >> bits) & rest)).long()  # below zero the bits of a float count downwards


class Transform(Protocol):
    """Changes logits before tokens are proposed and scored."""

    def apply(
        self, logits: Tensor, pos: Tensor, valid: Tensor, canvas: Canvas, state: dict[str, Tensor]
    ) -> Tensor:
        """New logits for logits [B, K, V] of the positions `pos` [B, K], perhaps in place; banned
        tokens are -inf already. Called for a few positions at a time, for each once a step.

        Entries that are not `valid` [B, K] are padding: whatever logits, anywhere in the row. The
        memory of `logits` is used again: keep copies of what is needed later.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of each row [B] and of each of its windows [B, N]; see `Candidates`."""

    step: Tensor
    window_step: Tensor
    window_masked: Tensor
    window_start: Tensor


def propose(
    z: Tensor,
    how: Proposal,
    needs: frozenset[str],
    keys: tuple[Tensor, ...],
    spare: Tensor | None = None,
) -> dict[str, Tensor]:
    """Tokens and scores of logits z [B, K, V], which are used up; `keys` count the token draws.

    The result holds the fields of `Candidates` by name, the optional ones only if in `needs`.
    spare [B, K, V]: memory that entropies may be worked out in (None: their own).
    """
    distribution = z / how.temperature if how.temperature > 0 else z
    if how.temperature > 0 or how.tempered:
        distribution = truncate(distribution, how.top_p, how.top_k)
    best = z.argmax(-1, keepdim=True)
    token = draw(distribution, uniform(how.seed, *keys))[..., None] if how.temperature > 0 else best
    extra = {}
    if "gap" in needs:
        extra["gap"] = (z.gather(-1, best) - second(z, best))[..., 0]
    scores = distribution if how.tempered else z
    first = best if scores is z else scores.argmax(-1, keepdim=True)
    top = scores.gather(-1, first)
    gap = scores.sub_(top)  # in place: allocating a tensor of this size costs as much as a pass
    mass = torch.exp(gap, out=spare) if "entropy" in needs else gap.exp_()
    if "margin" in needs:
        extra["margin"] = (1 - second(mass, first))[..., 0]
    if "best" in needs:
        extra["best_conf"] = mass.gather(-1, best)[..., 0]
    if "entropy" in needs:
        # H = log S - sum(mass * (z - top)) / S; a banned token has mass 0, and 0 * inf is no number
        extra["entropy"] = torch.linalg.vecdot(mass, gap.clamp_(min=-1e30))
    # p and 1 - p each from its own sum of exp(z - max): 1 - p of a rounded p is 0 from a gap of 17
    # on in fp32, and saturated positions could not be ordered any more.
    own = mass.gather(-1, token)[..., 0]
    rest = mass.scatter_(-1, token, 0.0).sum(-1)
    total = own + rest
    for name in extra.keys() & {"margin", "best_conf", "entropy"}:
        extra[name] = extra[name] / total
    if "entropy" in needs:
        extra["entropy"] = total.log() - extra["entropy"]
    found = {name: value.float() for name, value in extra.items()}
    return {
        "token": token[..., 0],
        "conf": (own / total).float(),
        "log1m": (rest.log() - total.log()).float(),
        "ends": torch.isin(token[..., 0], token.new_tensor(how.stop_ids)),
        **found,
        **({"best": best[..., 0]} if "best" in needs else {}),
    }


def second(t: Tensor, best: Tensor) -> Tensor:
    """[B, K, 1] the largest value of t [B, K, V] but for the one at `best` [B, K, 1]."""
    kept = t.gather(-1, best)
    value = t.scatter_(-1, best, -torch.inf).amax(-1, keepdim=True)
    t.scatter_(-1, best, kept)  # cheaper than a copy, and much cheaper than topk
    return value


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
    """Tokens [B, K] drawn from softmax(z): the inverse of the cumulative mass at `u`, in float64.

    One uniform a position where Gumbel noise needs one a logit (V times as many), and no tail cut
    off at the largest Gumbel that 52 random bits give.
    """
    mass = (z - z.amax(-1, keepdim=True)).double().exp_().cumsum_(-1)
    total = mass[..., -1:]
    goal = torch.minimum(u[..., None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(mass, goal, right=True)[..., 0]
    return token.clamp(max=z.shape[-1] - 1)  # NaN logits end up behind the last token


def score(
    logits: Tensor,
    pos: Tensor,
    valid: Tensor,
    step: Tensor,
    canvas: Canvas,
    how: Proposal,
    needs: frozenset[str],
    transform: Transform | None = None,
    state: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`propose` for logits [B, K, V] that predict `pos` [B, K], in pieces; step [B] keys the draws.

    transform changes the logits first, with its `state`. "logits" or "kl" in `needs` adds the
    logits as they were scored.
    """
    stream = torch.full_like(canvas.row, TOKEN_STREAM)[:, None]
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    pieces = []
    batch, count, vocabulary = logits.shape
    size = min(count, max(1, CHUNK // (batch * vocabulary)))
    # The same memory for every piece: new one for each costs its page faults, more than a pass.
    budget = logits.new_empty(1 + ("entropy" in needs), batch, size, vocabulary, dtype=kind)
    for at in range(0, count, size):
        cut = slice(at, at + size)
        z, *spare = budget[:, :, : count - at]  # [B, size, V] each, the last piece perhaps shorter
        z.copy_(logits[:, cut])
        z[..., list(how.banned)] = -torch.inf
        if transform is not None:
            z = transform.apply(
                z, pos[:, cut], valid[:, cut], canvas, {} if state is None else state
            )
        kept = {"logits": z.clone()} if needs & {"logits", "kl"} else {}
        keys = (canvas.row[:, None], step[:, None], pos[:, cut], stream)
        pieces.append(propose(z, how, needs, keys, *spare) | kept)
    return {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}


def divergence(logits: Tensor, pos: Tensor, valid: Tensor, state: dict[str, Tensor]) -> Tensor:
    """[B, K] KL of the distributions of `logits` [B, K, V] from those kept in `state` by the last
    call.

    Infinite where a position was not scored then. Keeps the present ones.
    """
    distribution = logits.float().log_softmax(-1)
    kl = torch.full(pos.shape, torch.inf, device=pos.device)
    if "distribution" in state:
        same = (pos[:, :, None] == state["pos"][:, None]) & state["valid"][:, None]  # [B, K, K']
        before = state["distribution"].gather(
            1, same.float().argmax(2)[..., None].expand(-1, -1, distribution.shape[2])
        )
        terms = distribution.exp() * (distribution - before)
        kl = torch.where(same.any(2), terms.nan_to_num(0.0).sum(-1).clamp(min=0), kl)
    state |= {"distribution": distribution, "pos": pos, "valid": valid}
    return kl


def per_window(view: Candidates, windows: Windows, progress: Progress) -> Candidates:
    """`view` with a row for every (row, window): B rows of N windows become B * N rows."""
    count = windows.start.shape[1]
    inside = windows.each(view.pos).flatten(0, 1)  # [B * N, K]

    def spread(t: Tensor) -> Tensor:
        return t if count == 1 else t.repeat_interleave(count, dim=0)

    tensors: dict[str, Any] = {
        f.name: spread(value)
        for f in fields(view)
        if isinstance(value := getattr(view, f.name), Tensor)
    }
    tensors |= {
        "valid": tensors["valid"] & inside,
        "start": windows.start.flatten(),
        "end": windows.end.flatten(),
        "window_masked": progress.window_masked.flatten(),
        "window_step": progress.window_step.flatten(),
    }
    if (d := view.decoded) is not None:
        decoded = Decoded(spread(d.pos), spread(d.valid) & inside, spread(d.conf))
        return replace(view, **tensors, decoded=decoded)
    return replace(view, **tensors)
