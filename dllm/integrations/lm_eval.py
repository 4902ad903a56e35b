"""Any model of this package in lm-evaluation-harness 0.4.13, as `--model dllm`.

Importing this module registers the class. Forwards and tokens reach the results file, under
config.dllm, by lm-eval's own way for facts about a model; `record` writes them for every answer.
An answer is a function of its request and the seed: order, batch size and number of processes do
not matter, but for rounding.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor

import dllm
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.likelihood import LikelihoodRequest, forwards, is_greedy, log_likelihoods
from dllm.eval.run import batches
from dllm.integrations.lm_eval_options import Options, generation, stable_id
from dllm.jsonlog import JsonLog
from dllm.processes import Ranks
from dllm.text.tokenizer import ChatTokenizer

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise DllmError(
        f"lm-evaluation-harness cannot be imported ({error}): pip install 'dllm-engine[lm-eval]'"
    ) from error

log = logging.getLogger(__name__)
UNSAID = "cuda:0"  # lm-eval's --device where a user gave none
SCORED_TOGETHER = 64  # requests between two entries in lm-eval's cache


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The cost of one request. tokens: answer_tokens of the Output; committed: its tokens with the
    padding behind the end; of a likelihood both are the answer's length. finish: why decoding
    ended, None for a likelihood.
    """

    task: str
    doc: int
    index: int
    repeat: int
    kind: str
    nfe: int
    tokens: int
    committed: int
    prompt_tokens: int
    finish: str | None = None


@register_model("dllm")
class DiffusionLM(LM):
    """See `lmeval_options.Options` for the arguments."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.options = options = Options.of(given)
        self.ranks = Ranks.here()
        self._rank, self._world_size = self.ranks.rank, self.ranks.count
        self.engine = options.model if isinstance(options.model, Engine) else self._load()
        if self.engine.text is None:
            raise DllmError("lm-eval gives text: load the engine with a tokenizer")
        self.text = cast(ChatTokenizer, self.engine.text)
        self.config = self.engine.config(preset=options.preset, **options.decoding)
        self.config.check_components()
        self._device = self.engine.model.device
        self.costs: list[RequestCost] = []
        self.record: JsonLog | None = None
        if options.record and self._rank == 0:
            with suppress(OSError):  # told of by the log
                Path(options.record).parent.mkdir(parents=True, exist_ok=True)
            self.record = JsonLog(options.record, fresh=True)

    def _load(self) -> Engine:
        loading = dict(self.options.loading)
        if loading.get("device") == UNSAID:
            loading["device"] = self.ranks.device or "auto"
        return dllm.load(cast(str, self.options.model), **loading)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each (context, generation arguments), cut where a stop string begins."""
        repeats = occurrences(requests)
        found, costs = [""] * len(requests), list[RequestCost]()
        for config, rows in self._tracked(self._batches(requests), "generate", disable_tqdm):
            contexts = [requests[i].args[0] for i in rows]
            prompts = [self._cut(self.text.encode(c), config.max_new_tokens) for c in contexts]
            ids = [stable_id(c, repeats[i]) for c, i in zip(contexts, rows, strict=True)]
            outputs = self.engine.generate(prompts, config, row_ids=ids)
            for i, prompt, output in zip(rows, prompts, outputs, strict=True):
                if output.finish_reason == "interrupted":
                    raise KeyboardInterrupt
                found[i] = output.text
                self.cache_hook.add_partial("generate_until", requests[i].args, output.text)
                sizes = output.nfe, output.answer_tokens, output.slots, len(prompt)
                costs += cost(requests[i], repeats[i], *sizes, output.finish_reason)
        self._keep(costs)
        return found

    def _batches(self, requests: Sequence[Any]) -> list[tuple[DecodeConfig, Sequence[int]]]:
        """Requests (indices) with equal generation arguments, those of like length together."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        found = []
        for rows in groups.values():
            changes = generation(self.config, requests[rows[0]].args[1])
            config = self.engine.config(self.config, **changes)
            rows.sort(key=lambda i: len(requests[i].args[0]))
            found += [(config, part) for part in batches(rows, self.options.batch_size)]
        return found

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(bound of the log-likelihood in nats, is greedy) of each (context, continuation).

        Continuations of one context are masked alike where they are equally long. "Is greedy" is
        False unless check_greedy is set.
        """
        pairs = [self._pair(*request.args) for request in requests]
        return self._score(requests, pairs, disable_tqdm, check_greedy=self.options.check_greedy)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The bound for each whole text, given nothing; DllmError for one longer than the model."""
        pairs = []
        for request in requests:
            (text,) = request.args
            pairs.append(
                LikelihoodRequest([], self.text.encode(text), stable_id(self.config.seed, text))
            )
        return [value for value, _ in self._score(requests, pairs, disable_tqdm)]

    def _score(
        self,
        requests: Sequence[Any],
        pairs: Sequence[LikelihoodRequest],
        silent: bool,
        check_greedy: bool = False,
    ) -> list[tuple[float, bool]]:
        draws, scale = self.options.mc_num, self.config.cfg_scale
        repeats = occurrences(requests)
        found, costs = [(0.0, False)] * len(requests), list[RequestCost]()
        order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)
        for rows in self._tracked(list(batches(order, SCORED_TOGETHER)), "score", silent):
            values = log_likelihoods(
                self.engine.model,
                [pairs[i] for i in rows],
                draws=draws,
                batch_size=self.options.batch_size,
                cfg_scale=scale,
            )
            for i, value in zip(rows, values, strict=True):
                greedy = check_greedy and is_greedy(self.engine, pairs[i], scale)
                found[i] = value, greedy
                kind = requests[i].request_type
                result = value if kind == "loglikelihood_rolling" else found[i]
                self.cache_hook.add_partial(kind, requests[i].args, result)
                length = len(pairs[i].answer)
                nfe = forwards(length, draws) + length * check_greedy
                nfe *= 2 if scale else 1
                sizes = nfe, length, length, len(pairs[i].prompt)
                costs += cost(requests[i], repeats[i], *sizes)
        self._keep(costs)
        return found

    def _pair(self, context: str, continuation: str) -> LikelihoodRequest:
        """The two as ids, split as lm-eval does: spaces at the end go to the continuation."""
        seed = stable_id(self.config.seed, context)
        prompt = self.text.encode(context.rstrip())
        answer = self.text.encode(context + continuation)[len(prompt) :]
        return LikelihoodRequest(self._cut(prompt, len(answer)), answer, seed)

    def _cut(self, prompt: list[int], budget: int) -> list[int]:
        """The end of `prompt` that fits the model beside `budget` tokens."""
        most = getattr(self.engine.model.spec, "max_positions", None)
        over = 0 if most is None else len(prompt) + budget - most
        if over <= 0:
            return prompt
        log.warning("a context of %d tokens loses its first %d", len(prompt), over)
        return prompt[over:]

    def _tracked(self, work: Sequence[Any], kind: str, silent: bool) -> Iterable[Any]:
        """`work` with a progress bar on stderr."""
        off = silent or self._rank > 0
        return track(work, kind, console=Console(stderr=True), disable=off)

    def _keep(self, costs: list[RequestCost]) -> None:
        """Remember what the requests of all processes took, in the first one."""
        gathered = [cost for part in self.gather_object(costs) or () for cost in part]
        self.costs += gathered
        if self.record is not None:
            gathered.sort(key=lambda c: (c.task, c.doc, c.index, c.repeat))
            self.record.append(*map(asdict, gathered))

    def get_model_info(self) -> dict[str, Any]:
        """For config in lm-eval's results: how it was decoded, and what the requests took since
        this was last asked, which lm-eval does once, at the end.
        """
        info = {
            "version": dllm.__version__,
            "dtype": str(self.engine.model.dtype),
            "family": self.engine.model.spec.family,
            "options": {f.name: getattr(self.config, f.name) for f in fields(self.config)},
            "mc_num": self.options.mc_num,
            "tasks": summed(self.costs),
        }
        self.costs = []
        return {"dllm": info}

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text; without generation prompt its last message is gone on with."""
        if add_generation_prompt:
            return self.text.render(chat_history)
        *turns, begun = chat_history
        return self.text.render(turns) + begun["content"]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's identity in lm-eval's log; it has one, whatever its name."""
        own = self.text.tokenizer.chat_template
        return own if isinstance(own, str) else f"the format of {self.text.family}"

    @property
    def tokenizer_name(self) -> str:
        return str(self.text.tokenizer.name_or_path).replace("/", "__")

    def all_gather(self, tensor: Tensor) -> Tensor:
        if self._world_size == 1:
            return tensor
        found = [torch.empty_like(tensor, device="cpu") for _ in range(self._world_size)]
        dist.all_gather(found, tensor.cpu())
        return torch.stack(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self._world_size == 1:
            return [obj]
        found = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, found, dst)
        return found

    def barrier(self) -> None:
        self.ranks.wait()


def run(arguments: Sequence[str]) -> None:
    """lm-eval's own command line, in a process where the model is registered."""
    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()


def occurrences(requests: Sequence[Any]) -> list[int]:
    """The number of times that each request stands before itself: lm-eval repeats the object."""
    seen: Counter[int] = Counter()
    found = []
    for request in requests:
        found.append(seen[id(request)])
        seen[id(request)] += 1
    return found


def cost(request: Any, repeat: int, *sizes: Any) -> Iterator[RequestCost]:
    """The entry of a request; none for the copies that even out processes."""
    if request.repeats is None or repeat < request.repeats:
        place = request.task_name, request.doc_id, request.idx, repeat, request.request_type
        yield RequestCost(*place, *sizes)


def summed(costs: Sequence[RequestCost]) -> list[dict[str, Any]]:
    """Sums by task and kind of request."""
    found = []
    for task, kind in sorted({(c.task, c.kind) for c in costs}):
        own = [c for c in costs if (c.task, c.kind) == (task, kind)]
        nfe, tokens, committed = (
            sum(getattr(c, n) for c in own) for n in ("nfe", "tokens", "committed")
        )
        sums = {"task": task, "kind": kind, "requests": len(own), "forwards": nfe, "tokens": tokens}
        if kind == "generate_until":
            sums |= {"committed": committed, "tokens_per_forward": tokens / nfe}
            sums |= {"committed_per_forward": committed / nfe}
        found.append(sums)
    return found
