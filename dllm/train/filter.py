"""Learn2PD's filter, trained: which proposals are final, told from confidences (2509.25188).

Roll-outs of the oracle EGP say what was seen and what was right at every step; a network of two
layers learns to tell one from the other. The model itself stays as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.accuracy import batches
from dllm.output import Output
from dllm.prompts import Prompt
from dllm.samplers.candidates import Candidates
from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.learn2pd import by_offset, confidences, save_filter
from dllm.samplers.rule import Selection, at_least


@dataclass(frozen=True, slots=True)
class Traces:
    """What the filter would have seen at N steps of roll-outs, W offsets of a window each.

    seen [N, W] fp32: see `confidences`;  right [N, W] bool: the proposal is the reference's token;
    counted [N, W] bool: the candidates, on which alone the filter is asked;  row [N]: the prompt.
    """

    seen: Tensor
    right: Tensor
    counted: Tensor
    row: Tensor

    def pick(self, index: Tensor) -> Traces:
        """The steps `index`, by number or as a mask [N]."""
        return Traces(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Traces]) -> Traces:
        """All steps of `parts`, by row; those of a row stay in order."""
        columns = [[getattr(part, f.name) for part in parts] for f in fields(cls)]
        every = cls(*map(torch.cat, columns))
        return every.pick(every.row.argsort(stable=True))


@dataclass(frozen=True)
class Recorder(ExtremelyGreedy):
    """EGP that keeps what the filter of a `block_length` sees at every step, in `steps`."""

    block_length: int
    steps: list[Traces] = field(init=False, repr=False, compare=False, default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "decoded"})

    def select(self, view: Candidates) -> Selection:
        selection = super().select(view)
        assert selection.token is not None  # the reference's
        seen = confidences(view, self.block_length)
        none = torch.zeros_like(seen, dtype=torch.bool)
        right, counted = (
            by_offset(view, none, view.pos, view.valid, value)
            for value in (view.token == selection.token, view.valid)
        )
        self.steps.append(Traces(*(t.cpu() for t in (seen, right, counted, view.row))))
        return selection


class FilterMLP(nn.Sequential):
    """Logits [N, W] of "this proposal is final" for confidences [N, W]; W -> hidden -> W, ReLU.

    Its state has the names that `save_filter` writes.
    """

    def __init__(self, block_length: int, hidden: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(block_length, hidden), nn.Linear(hidden, block_length)
        super().__init__(OrderedDict({"in": first, "relu": nn.ReLU(), "out": last}))


@dataclass(frozen=True)
class Filter:
    """The recipe of a Learn2PD filter for windows of `block_length` tokens (2509.25188).

    References are decoded one token a forward, `max_new_tokens` behind each prompt, `batch_size`
    prompts at once, with the `cache` that the filter is meant for. Then `steps` updates of AdamW
    with `lr`, all recorded steps at once; a candidate that was right counts `positive_weight`.
    Widths, `lr` and `steps` are the paper's.
    """

    paper = "Learn2PD, arXiv 2509.25188"
    block_length: int = 32
    hidden: int = 32
    steps: int = 40_000
    lr: float = 3e-3
    positive_weight: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 32
    cache: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_length", "hidden", "steps", "max_new_tokens", "batch_size"):
            at_least(name, getattr(self, name), 1, "a whole number")
        for name in ("lr", "positive_weight"):
            if not 0 < (value := getattr(self, name)) < torch.inf:
                raise ValueError(f"{name}={value}: expected a number above 0")
        if self.block_length > self.max_new_tokens:
            raise ValueError(
                f"block_length={self.block_length}: expected at most max_new_tokens="
                f"{self.max_new_tokens}, no window is longer"
            )

    @property
    def config(self) -> DecodeConfig:
        """Decoding of the references; greedy."""
        return DecodeConfig(
            max_new_tokens=self.max_new_tokens,
            block_length=self.block_length,
            sampler="quota",
            cache=self.cache,
            history=True,
        )

    def train(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        path: str | Path,
        on_log: Callable[[dict[str, float]], None] | None = None,
    ) -> FilterMLP:
        """Roll out, fit, and write the filter to `path`; DllmError without prompts."""
        ids = [engine.encode(prompt) for prompt in prompts]
        traces = self.roll_outs(engine, ids, self.references(engine, ids))
        model = self.fit(traces, on_log)
        save_filter(path, model.state_dict())
        return model

    def references(self, engine: Engine, ids: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """`max_new_tokens` ids behind each prompt `ids`, as decoded one token a forward; places
        that were still open when the answer had ended hold the end of text.
        """
        outputs = self._decode(engine, ids, self.config)
        end = engine.model.spec.eos_id
        return [self._answer(len(prompt), o, end) for prompt, o in zip(ids, outputs, strict=True)]

    def _answer(self, start: int, output: Output, end: int) -> tuple[int, ...]:
        answer = [end] * self.max_new_tokens
        for commit in output.history or ():
            for pos, token in zip(commit.positions, commit.token_ids, strict=True):
                answer[pos - start] = token
        return tuple(answer)

    def roll_outs(
        self, engine: Engine, ids: Sequence[Sequence[int]], references: Sequence[tuple[int, ...]]
    ) -> Traces:
        """What the oracle that knows the `references` of all prompts saw, by prompt and step."""
        oracle = Recorder(tuple(references), self.block_length)
        self._decode(engine, ids, self.config.replace(sampler=oracle))
        return Traces.joined(oracle.steps)

    def _decode(
        self, engine: Engine, ids: Sequence[Sequence[int]], config: DecodeConfig
    ) -> list[Output]:
        """Outputs in the order of `ids`; prompts of like length are decoded together."""
        if not ids:
            raise DllmError("filter: got no prompts, expected those its roll-outs begin with")
        found: dict[int, Output] = {}
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for rows in batches(order, self.batch_size):
            outputs = engine.generate([list(ids[i]) for i in rows], config, row_ids=rows)
            found |= zip(rows, outputs, strict=True)
        return [found[i] for i in range(len(ids))]

    def fit(
        self, traces: Traces, on_log: Callable[[dict[str, float]], None] | None = None
    ) -> FilterMLP:
        """A filter fitted to `traces`; `on_log` gets step and loss a hundred times a run."""
        model = FilterMLP(self.block_length, self.hidden, self.seed)
        adam = torch.optim.AdamW(model.parameters(), self.lr, fused=True)
        generator, every = torch.Generator().manual_seed(self.seed), slice(None)
        for step in range(1, self.steps + 1):
            loss = self.loss(model, traces, generator, every)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if on_log is not None and step % max(1, self.steps // 100) == 0:
                on_log({"step": step, "loss": loss.item()})
        return model

    def loss(
        self, model: nn.Module, traces: Traces, generator: torch.Generator, part: slice
    ) -> Tensor:
        """Binary cross-entropy (nats a candidate) of the steps `part`, divided by the candidates of
        all; `generator` is not drawn from.
        """
        nll = F.binary_cross_entropy_with_logits(
            model(traces.seen[part]),
            traces.right[part].float(),
            weight=traces.counted[part].float(),
            pos_weight=torch.tensor(self.positive_weight),
            reduction="sum",
        )
        return nll / traces.counted.sum()
