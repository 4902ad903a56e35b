"""Candidates: what a commit rule sees, scored in one pass over the logits of masked positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from dllm.samplers.noise import uniform
from dllm.samplers.transforming import State, Transforming

TOKEN_STREAM, RULE_STREAM = 0, 1  # independent random streams of one step
Asked = dict[tuple[int, ...], tuple[tuple[Tensor, ...], Tensor]]
CHUNK = 2**21  # logits scored at a time: temporaries stay small and in the cache of a CPU


@dataclass(frozen=True, slots=True)
class Proposal:
    """Options of proposing tokens from logits, for all rows or, as tensors [B, 1, 1], by row.

    temperature 0: argmax, ties to the lower id. top_p 1, top_k 0: all tokens. `tempered` says which
    distribution confidences come from: the tempered and truncated one (Dream) or the model's own
    (LLaDA, Fast-dLLM). banned: ids that are never proposed; banned_too: one more id, in the rows
    where the tensor holds. stop_ids [S]: ids that end an answer.
    """

    temperature: float | Tensor = 0.0
    top_p: float | Tensor = 1.0
    top_k: int | Tensor = 0
    tempered: bool | Tensor = False
    banned: tuple[int, ...] = ()
    banned_too: tuple[int, Tensor] | None = None
    stop_ids: Tensor | None = None

    @property
    def draws(self) -> bool:
        """Whether some row draws its tokens."""
        return isinstance(self.temperature, Tensor) or self.temperature > 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """The committed answer positions inside each row's window, for rules that look back.

    pos, valid [B, D];  conf [B, D] fp32: the probability of what the model would now put there,
    `Candidates.best`;  token [B, D]: what stands there (None in views made by hand).
    """

    pos: Tensor
    valid: Tensor
    conf: Tensor
    token: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The masked positions of each row's window, as a rule sees them. K is the largest number of a
    row.

    With several windows a row, every (row, window) is a row of its own here: a rule need not know.

    pos, token [B, K] int64, pos ascending;  valid [B, K] bool: a candidate, or padding, which may
    stand anywhere;  conf [B, K] fp32 probability of the token, log1m [B, K] log(1 - conf), exact
    also where conf rounds to 1;  ends [B, K] the token would end the answer.

    Per row [B]: window start, end and masked positions it began with (`window_masked`), forwards
    spent in the window and in all (`window_step`, `step`), `prompt` and `length` of the row, masked
    positions of its whole answer before this step and at the start (`masked`, `fillable`), its
    identity `row` and the `key` of its draws. width: the longest window's.

    `state`: tensors [B, ...] that a rule keeps from one step to the next by assigning to a key,
    those that its `fields` declare; the engine makes, moves and drops rows.

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
    masked: Tensor
    fillable: Tensor
    row: Tensor
    key: Tensor
    width: int
    margin: Tensor | None = None
    entropy: Tensor | None = None
    gap: Tensor | None = None
    best: Tensor | None = None
    best_conf: Tensor | None = None
    kl: Tensor | None = None
    logits: Tensor | None = None
    decoded: Decoded | None = None
    state: State = field(default_factory=dict)
    # what was asked for, by the identities of the scores, which are kept alive; never copied
    _ranks: Asked = field(default_factory=dict, init=False, repr=False, compare=False)
    _surest: Asked = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def filled(self) -> Tensor:
        """[B] share of the answer that was known before this step."""
        return (self.fillable - self.masked) / self.fillable.clamp(min=1)

    def uniform(self) -> Tensor:
        """[B, K] float64 uniforms of this step for the rule's own draws."""
        stream = torch.full_like(self.key, RULE_STREAM)[:, None]
        return uniform(self.key[:, None], self.step[:, None], self.pos, stream)

    @property
    def certainty(self) -> tuple[Tensor, Tensor]:
        """Scores for `rank`: confidence, then log(1 - p) to tell saturated values apart."""
        return self.conf, -self.log1m

    def rank(self, *scores: Tensor) -> Tensor:
        """[B, K] rank of each candidate: higher first score first, ties by the next score, then
        lower position first; padding last. Without scores: by `certainty`.
        """
        known = self._ranks.get(asked := tuple(map(id, scores)))
        if known is not None:
            return known[1]
        every = torch.arange(self.pos.shape[1], device=self.pos.device).expand_as(self.pos)
        order: Tensor | None = None
        # Stable sorts, least significant key first: positions ascend, so ties go to the lower one.
        for key in reversed(self._keys(scores)):
            key = key if order is None else key.gather(1, order)
            sort = key.argsort(dim=1, descending=True, stable=True)
            order = sort if order is None else order.gather(1, sort)
        assert order is not None
        rank = torch.empty_like(order).scatter_(1, order, every)
        self._ranks[asked] = scores, rank
        return rank

    def surest(self, *scores: Tensor) -> Tensor:
        """[B, K] bool: the candidate of rank 0 in each row that has one."""
        asked = tuple(map(id, scores))
        known = self._surest.get(asked)
        if known is not None:
            return known[1]
        if asked in self._ranks or len(keys := self._keys(scores)) > 1:
            found = self.valid & (self.rank(*scores) == 0)
        else:
            first = keys[0].argmax(1, keepdim=True)  # of equal ones the first
            found = torch.zeros_like(self.valid).scatter_(1, first, self.valid.gather(1, first))
        self._surest[asked] = scores, found
        return found

    def remembering(self, state: State) -> Candidates:
        """The same view for a rule with another `state`; ranks are shared."""
        view = replace(self, state=state)
        object.__setattr__(view, "_ranks", self._ranks)
        object.__setattr__(view, "_surest", self._surest)
        return view

    def _keys(self, scores: tuple[Tensor, ...]) -> list[Tensor]:
        """int64 keys with the order of the scores, most significant first; padding is least."""
        if not scores:  # neither is below zero, where the bits of a float count upwards
            surest = (0.0 - self.log1m).view(torch.int32).long()
            keys = [(self.conf.view(torch.int32).long() << 32) + surest]
        elif len(scores) == 2 and all(score.dtype == torch.float32 for score in scores):
            keys = [(sortable(scores[0]) << 32) + sortable(scores[1]) + 2**31]  # one sort, not two
        else:
            keys = [sortable(score) for score in scores]
        least = torch.iinfo(torch.int64).min
        return [key.masked_fill(~self.valid, least) for key in keys]


def sortable(x: Tensor) -> Tensor:
    """int64 with the order of the floats x (fp32 or fp64), -0 like 0."""
    bits, rest = (31, 2**31 - 1) if x.dtype == torch.float32 else (63, 2**63 - 1)
    i = (x + 0.0).view(torch.int32 if bits == 31 else torch.int64)
    return (i ^ ((i >> bits) & rest)).long()  # below zero the bits of a float count downwards


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
    distribution = tempered(z, how) if how.draws or how.tempered is not False else z
    best = token = z.argmax(-1, keepdim=True)
    if how.draws:
        token = draw(distribution, uniform(*keys))[..., None]
        if isinstance(how.temperature, Tensor):
            token = torch.where(how.temperature > 0, token, best)
    extra = {}
    if "gap" in needs:
        extra["gap"] = (z.gather(-1, best) - second(z, best))[..., 0]
    scores = distribution if how.tempered is not False else z
    if isinstance(how.tempered, Tensor):
        scores = torch.where(how.tempered, distribution, z)
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
        "ends": ends(token[..., 0], how.stop_ids),
        **found,
        **({"best": best[..., 0]} if "best" in needs else {}),
    }


def second(t: Tensor, best: Tensor) -> Tensor:
    """[B, K, 1] the largest value of t [B, K, V] but for the one at `best` [B, K, 1]."""
    kept = t.gather(-1, best)
    value = t.scatter_(-1, best, -torch.inf).amax(-1, keepdim=True)
    t.scatter_(-1, best, kept)  # cheaper than a copy, and much cheaper than topk
    return value


def ends(token: Tensor, stop_ids: Tensor | None) -> Tensor:
    """[B, K] bool: which of the tokens [B, K] end an answer."""
    if stop_ids is None:
        return torch.zeros_like(token, dtype=torch.bool)
    return (token[..., None] == stop_ids).any(-1)


def tempered(z: Tensor, how: Proposal) -> Tensor:
    """Logits z [B, K, V] divided by the temperature (0: by 1) and truncated."""
    t = how.temperature
    if isinstance(t, Tensor):
        z = z / torch.where(t > 0, t, 1.0).to(z.dtype)
    elif t > 0:  # a tensor, as above: CUDA divides by a number with its rounded reciprocal
        z = z / torch.full((), t, dtype=z.dtype, device=z.device)
    return truncate(z, how.top_p, how.top_k)


def truncate(z: Tensor, top_p: float | Tensor, top_k: int | Tensor) -> Tensor:
    """Keep the smallest set of tokens with mass `top_p`, of those the `top_k` best (0: all)."""
    if isinstance(top_p, Tensor) or top_p < 1.0:
        best, index = z.sort(dim=-1, descending=True, stable=True)
        before = best.softmax(-1).cumsum(-1) - best.softmax(-1)
        outside = torch.zeros_like(before, dtype=torch.bool)
        if isinstance(top_p, Tensor):  # a mass may be rounded to 1: it is not outside of all
            top_p = torch.where(top_p < 1.0, top_p, 2.0).to(before.dtype)
        outside.scatter_(-1, index, before >= top_p)
        z = z.masked_fill(outside, -torch.inf)
    if isinstance(top_k, Tensor):
        last = torch.where(top_k > 0, top_k, z.shape[-1]).clamp(max=z.shape[-1]) - 1
        kth = z.sort(dim=-1, descending=True).values.gather(-1, last.expand(*z.shape[:2], 1))
        z = z.masked_fill(z < kth, -torch.inf)
    elif 0 < top_k < z.shape[-1]:
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
    key: Tensor,
    step: Tensor,
    how: Proposal,
    needs: frozenset[str],
    transforms: Sequence[Transforming] = (),
) -> dict[str, Tensor]:
    """`propose` for logits [B, K, V] that predict `pos` [B, K], in pieces.

    valid [B, K]: masked positions. key, step [B] key the draws. transforms change the logits first.
    "logits" or "kl" in `needs` adds the logits as they were scored.
    """
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    batch, count, vocabulary = logits.shape
    keys: tuple[Tensor, ...] = ()
    if how.draws:
        stream = torch.full_like(key, TOKEN_STREAM)[:, None]
        keys = (key[:, None], step[:, None], pos, stream)

    def piece(z: Tensor, cut: slice, spare: Tensor | None = None) -> dict[str, Tensor]:
        for token in how.banned:
            z.select(-1, token).fill_(-torch.inf)
        if how.banned_too is not None:
            token, rows = how.banned_too
            z.select(-1, token).masked_fill_(rows[..., 0], -torch.inf)
        for each in transforms:
            z = each.apply(z, pos[:, cut], valid[:, cut])
        kept = {"logits": z.clone()} if needs & {"logits", "kl"} else {}
        own = keys if size == count else tuple(k[:, cut] if k is pos else k for k in keys)
        return propose(z, how, needs, own, spare) | kept

    size = min(count, max(1, CHUNK // (batch * vocabulary)))
    if size == count:
        return piece(logits.to(kind, copy=True), slice(None))
    # The same memory for every piece: new one for each costs its page faults, more than a pass.
    budget = logits.new_empty(1 + ("entropy" in needs), batch, size, vocabulary, dtype=kind)
    pieces = []
    for at in range(0, count, size):
        cut = slice(at, at + size)
        z, *spare = budget[:, :, : count - at]  # [B, size, V] each, the last piece perhaps shorter
        pieces.append(piece(z.copy_(logits[:, cut]), cut, *spare))
    return {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}


def divergence(logits: Tensor, pos: Tensor, valid: Tensor, state: State) -> Tensor:
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


def per_window(view: Candidates, window: Mapping[str, Tensor]) -> Candidates:
    """`view` with a row for every (row, window): B rows of N windows become B * N rows.

    window: start, end, window_masked and window_step [B, N], or [B] for one window a row.
    """
    count = 1 if window["start"].ndim == 1 else window["start"].shape[1]
    own: dict[str, Any] = dict(window)
    if count > 1:
        own = {name: t.flatten() for name, t in window.items()}
    elif window["start"].ndim > 1:
        own = {name: t[:, 0] for name, t in window.items()}

    def spread(t: Tensor) -> Tensor:
        return t if count == 1 else t.repeat_interleave(count, dim=0)

    tensors: dict[str, Any] = {
        f.name: spread(value)
        for f in fields(view)
        if isinstance(value := getattr(view, f.name), Tensor) and f.name not in own
    }
    start, end = own["start"][:, None], own["end"][:, None]
    tensors["valid"] = tensors["valid"] & (tensors["pos"] >= start) & (tensors["pos"] < end)
    if (d := view.decoded) is not None:
        pos, valid = spread(d.pos), spread(d.valid)
        valid = valid & (pos >= start) & (pos < end)
        token = None if d.token is None else spread(d.token)
        tensors["decoded"] = Decoded(pos, valid, spread(d.conf), token)
    return replace(view, **tensors, **own)
