"""Answers to train on that a model gave itself: a dLLM with its decoding order, or an AR target.

They are written to a file as they come; a run that was interrupted, or another one with the same
question, reads them from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.accuracy import batches
from dllm.output import Commit, Finished
from dllm.train.data import Pair

FORMAT = "dllm-rollouts-1"
Report = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
Make = Callable[[Sequence[Sequence[int]]], Iterable[Pair]]  # prompts -> their answers, in order


def own(
    engine: Engine, prompts: Sequence[Sequence[int]], config: DecodeConfig, together: int
) -> Iterator[Pair]:
    """What `engine` answers to each prompt, with the forward that committed each token.

    KeyboardInterrupt where Ctrl-C cut an answer short.
    """
    for batch in batches(prompts, together):
        orders: list[dict[int, int]] = [{} for _ in batch]
        found: dict[int, Pair] = {}
        for event in engine.stream_steps(batch, config):
            if isinstance(event, Commit):
                orders[event.row] |= dict.fromkeys(event.positions, event.nfe)
            elif isinstance(event, Finished):
                out, prompt = event.output, batch[event.row]
                if out.finish_reason == "interrupted":
                    raise KeyboardInterrupt
                whole = out.finish_reason == "eos"
                places = range(len(prompt), len(prompt) + len(out.token_ids) + whole)
                order = [orders[event.row][at] for at in places]
                found[event.row] = Pair(list(prompt), out.token_ids, order, whole)
        yield from (found[row] for row in range(len(batch)))


def target(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, together: int
) -> Iterator[Pair]:
    """What an autoregressive transformers model answers, greedily, to each prompt."""
    ends = torch.as_tensor(model.generation_config.eos_token_id).reshape(-1)
    for batch in batches(prompts, together):
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest), int(ends[0]))
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        lengths = torch.tensor([[len(prompt)] for prompt in batch])
        out = model.generate(
            ids.to(model.device),
            attention_mask=(torch.arange(longest) >= longest - lengths).long().to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=int(ends[0]),
        )[:, longest:].cpu()
        for prompt, answer in zip(batch, out):
            is_end = torch.isin(answer, ends)
            length = int(is_end.int().argmax()) if is_end.any() else len(answer)
            yield Pair(list(prompt), answer[:length].tolist(), (), bool(is_end.any()))


@dataclass(frozen=True)
class Rollouts:
    """A file of answers: a line that says whose they are, then one line for each prompt, in order.

    question: whatever decides about the answers; a file of another one is refused.
    """

    path: Path
    question: dict[str, Any]

    def read(self) -> list[Pair]:
        """The answers so far; what a crash left of a last line is dropped."""
        if not self.path.exists():
            return []
        header, *lines = self.path.read_text().splitlines(keepends=True) or [""]
        self.check(header)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self.path.write_text("".join([header, *whole]))
        return [Pair(**json.loads(line)) for line in whole]

    def check(self, header: str) -> None:
        """DllmError unless a file's first line holds the same question."""
        try:
            asked = json.loads(header)
            known = asked.pop("format") == FORMAT
        except (ValueError, KeyError, AttributeError, TypeError):
            known = False
        if not known:
            raise DllmError(f"{self.path}: expected a file of {FORMAT}, or none")
        for key in sorted({*asked, *self.question}):
            if asked.get(key) != self.question.get(key):
                raise DllmError(
                    f"{self.path}: was made with {key}={asked.get(key)!r}, but this run has "
                    f"{self.question.get(key)!r}: give another --rollouts file, or delete it"
                )

    def complete(self, prompts: Sequence[Sequence[int]], make: Make, report: Report) -> None:
        """Add the answers that the file lacks, one by one."""
        done = len(self.read())
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"format": FORMAT, **self.question}) + "\n")
        if done == len(prompts):
            return
        with self.path.open("a") as file:
            for number, pair in enumerate(make(prompts[done:]), done + 1):
                file.write(json.dumps(pair._asdict()) + "\n")
                file.flush()
                report("answers", number, len(prompts))
