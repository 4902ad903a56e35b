"""Answers to train on that a model gave itself: a dLLM with its decoding order, or an AR target.

They are written to a file as they come; a run that was interrupted, or another one with the same
question, reads them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.run import batches
from dllm.jsonlog import JsonLog, check_header, read_records
from dllm.output import Commit, Finished
from dllm.train.data import TrainingPair

FORMAT = "dllm-rollouts-1"
REMEDY = "give another --rollouts file, or delete it"
Report = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
Make = Callable[
    [Sequence[Sequence[int]]], Iterable[TrainingPair]
]  # prompts -> their answers, in order


def own(
    engine: Engine, prompts: Sequence[Sequence[int]], config: DecodeConfig, together: int
) -> Iterator[TrainingPair]:
    """Answers of `engine` to each prompt, with the forward that committed each token.

    KeyboardInterrupt where Ctrl-C cut an answer short.
    """
    for batch in batches(prompts, together):
        orders: list[dict[int, int]] = [{} for _ in batch]
        found: dict[int, TrainingPair] = {}
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
                found[event.row] = TrainingPair(list(prompt), out.token_ids, order, whole)
        yield from (found[row] for row in range(len(batch)))


def target(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, together: int
) -> Iterator[TrainingPair]:
    """Greedy answers of an autoregressive transformers model to each prompt."""
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
            yield TrainingPair(list(prompt), answer[:length].tolist(), (), bool(is_end.any()))


@dataclass(frozen=True)
class Rollouts:
    """A file of answers: a line that says whose they are, then one line for each prompt, in order.

    question: whatever decides about the answers; a file of another one is refused.
    """

    path: Path
    question: dict[str, Any]

    def read(self) -> list[TrainingPair]:
        """The answers so far."""
        if not self.path.exists():
            return []
        (_, header), *lines = [*read_records(self.path)] or [(0, {})]
        check_header(header, self.header, str(self.path), REMEDY)
        return [self.pair(number, record) for number, record in lines]

    @property
    def header(self) -> dict[str, Any]:
        """The content of the file's first line."""
        return {"format": FORMAT, **self.question}

    def pair(self, number: int, record: dict[str, Any]) -> TrainingPair:
        """The answer in a line; DllmError if there is none in it."""
        ids, whole = [record.get(key) for key in ("prompt", "answer", "order")], record.get("whole")
        numbers = all(isinstance(of, list) and all(type(n) is int for n in of) for of in ids)
        if not numbers or not isinstance(whole, bool) or len(record) != len(TrainingPair._fields):
            raise DllmError(f"{self.path}, line {number}: expected an answer of {FORMAT}: {REMEDY}")
        return TrainingPair(**record)

    def complete(self, prompts: Sequence[Sequence[int]], make: Make, report: Report) -> None:
        """Add the answers that the file lacks, one by one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with JsonLog(self.path, self.header, remedy=REMEDY) as log:
            done = len(self.read())
            if done < len(prompts):
                for number, pair in enumerate(make(prompts[done:]), done + 1):
                    log.append(pair._asdict())
                    report("answers", number, len(prompts))
