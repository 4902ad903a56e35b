"""Learn2PD on the bundled model: its filter beside the threshold and the oracle EGP.

Rules: the prompts of benchmarks.samplers (19 held-out ones a task, 128 masked positions), blocks of
32. Ends: the first few of each task with two engines: ours, whose rows stop at an end of text with
no masked position before it, and one that no token ends, as the paper's: it is given the mask,
which is never committed, for its end token, and fills every position. There, answers are cut at
their first end of text, and forwards are counted in all and up to the one behind which ours stops.
EoTP, which drops what stands behind an end, is run with both. Logits are remembered per canvas
(dllm.tuning.memo): that changes the time, not the counts.

    python -m benchmarks.learn2pd DIR/*.safetensors   # after benchmarks.learn2pd_filter DIR
    python -m benchmarks.learn2pd --report            # the tables of docs/training.md
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import dllm
from benchmarks.common import DOCS, arguments, is_right, markdown, read_result, unseen, write_result
from benchmarks.samplers import BUDGET, SEED, decode, fingerprint, oracle
from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.eval.tasks import Sample
from dllm.eval.tasks.datasets import DATASETS
from dllm.intervals import wilson
from dllm.models.protocol import Model
from dllm.models.spec import ModelSpec
from dllm.output import Output
from dllm.samplers.candidates import Candidates
from dllm.samplers.learn2pd import EndOfText
from dllm.samplers.protocols import State, Verdict, Vocabulary
from dllm.tuning.memo import MemoModel

Row = dict[str, Any]
Key = tuple[str, str, str]  # table, method, value
STOPS, FILLS = "stops", "fills all"
THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
ACCEPTED = (0.99, 0.96, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)  # of a filter
USUAL = (("one by one", ""), ("threshold", "0.9"))  # and each filter at the paper's
CUTS = (0.96, 0.0)  # EoTP as the paper has it, and as released
COUNTS = ("count", "right", "same_as_one_by_one", "nfe", "nfe_to_end", "answer_tokens")
SLACK = 0.01  # "equal" accuracy


class Endless:
    """A model whose end token never comes."""

    def __init__(self, model: Model) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        assert isinstance(model.spec, ModelSpec)
        self.spec = replace(model.spec, eos_id=model.spec.mask_id, eot_id=None)

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        return self.model.new_kv(batch, length, limit)

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        return self.model(ids, plan, kv)


@dataclass(frozen=True)
class Cut(EndOfText):
    """EoTP that is told the end tokens, which `Endless` hides."""

    def bind(self, vocabulary: Vocabulary) -> Cut:
        return self

    def check(self, view: Candidates, canvas: Canvas, state: State) -> Verdict:
        ends = torch.isin(view.token, view.token.new_tensor(self.stop_ids))
        return super().check(replace(view, ends=ends), canvas, state)


@dataclass(frozen=True)
class Rule:
    """A commit rule at one value of its option."""

    method: str
    value: str
    spec: str


def rules(filters: Sequence[Path]) -> list[Rule]:
    """One by one, every threshold, and every filter, named as its file."""
    learned = [
        Rule(file.stem, f"{bar:g}", f"learn2pd:filter={file},threshold={bar}")
        for file in filters
        for bar in ACCEPTED
    ]
    swept = [Rule("threshold", f"{b:g}", f"threshold:threshold={b}") for b in THRESHOLDS]
    return [Rule("one by one", "", "quota"), *swept, *learned]


def by_rule(
    engine: Engine, task: str, chosen: list[Sample], filters: Sequence[Path]
) -> Iterator[Row]:
    """Counts of every rule, and of EGP."""
    prompts = [e.prompt for e in chosen]
    one: list[Output] = []
    for rule in rules(filters):
        outputs = decode(engine, prompts, {"history": True, "sampler": rule.spec})
        one = one or outputs
        yield counts(engine, task, ("rules", rule.method, rule.value), chosen, outputs, one)
    egp = decode(engine, prompts, {"history": True, "sampler": oracle(engine, one)})
    yield counts(engine, task, ("rules", "egp", "oracle"), chosen, egp, one)


def by_end(
    engine: Engine, task: str, chosen: list[Sample], filters: Sequence[Path]
) -> Iterator[Row]:
    """Counts of the usual rules with both engines, and with EoTP."""
    prompts = [e.prompt for e in chosen]
    engines = {STOPS: engine, FILLS: Engine(Endless(engine.model), engine.text)}
    one: list[Output] = []
    for rule in rules(filters):
        if (rule.method, rule.value) in (*USUAL, *((file.stem, "0.96") for file in filters)):
            for name, cut in itertools.product(engines, (None, *CUTS)):
                eotp = None if cut is None else Cut(cut, engine.model.spec.stop_ids)
                options = {"history": True, "sampler": rule.spec, "stop_rule": eotp}
                outputs = decode(engines[name], prompts, options)
                one = one or outputs
                value = f"{rule.method} {rule.value}".strip()
                yield counts(engine, task, (name, value, eotp_name(cut)), chosen, outputs, one)


def eotp_name(cut: float | None) -> str:
    return "" if cut is None else f"at {cut:g}"


def measure(name: str, count: int, ends: int, filters: Sequence[Path]) -> list[Row]:
    """Counts of every setting on one task."""
    plain = dllm.load("tiny")
    engine = Engine(MemoModel(plain.model, 2**31), plain.text)
    chosen = unseen(name, count, SEED)
    found = [
        *by_rule(engine, name, chosen, filters),
        *by_end(engine, name, chosen[:ends], filters),
    ]
    return [{"task": name, "group": DATASETS[name].group, **each} for each in found]


def counts(
    engine: Engine,
    task: str,
    key: Key,
    chosen: list[Sample],
    outputs: list[Output],
    one: list[Output],
) -> Row:
    """Totals of one setting over the prompts of a task; `one` are the answers one by one."""
    assert engine.text is not None
    totals = dict.fromkeys(COUNTS, 0)
    for example, output, reference in zip(chosen, outputs, one, strict=True):
        answer = until_end(output.token_ids, engine.model.spec.stop_ids)
        reply = engine.text.decode(answer)
        end = len(engine.encode(example.prompt)) + len(answer)
        totals["count"] += 1
        totals["right"] += is_right(task, example, reply)
        totals["same_as_one_by_one"] += answer == reference.token_ids
        totals["nfe"] += output.nfe
        totals["nfe_to_end"] += max(c.nfe for c in output.history or () if min(c.positions) <= end)
        totals["answer_tokens"] += min(len(answer) + 1, BUDGET)
    return {**dict(zip(("table", "method", "knob"), key, strict=True)), **totals}


def until_end(ids: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """The tokens before the first end token."""
    return ids[: min((i for i, token in enumerate(ids) if token in stop_ids), default=len(ids))]


# --- the tables ----------------------------------------------------------------------------------


def summed(rows: list[Row]) -> dict[Key, Row]:
    """Counts of every setting over all tasks."""
    found: dict[Key, Row] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for each in rows:
        total = found[each["table"], each["method"], each["knob"]]
        for name in COUNTS:
            total[name] += each[name]
    return dict(found)


def rules_table(totals: dict[Key, Row]) -> str:
    """Every rule at every threshold."""
    lines = []
    found = {k: t for k, t in totals.items() if k[0] == "rules"}
    for (_, method, value), t in sorted(found.items(), key=lambda item: item[1]["nfe"]):
        low, high = wilson(t["right"], t["count"])
        cells = [method, value, f"{share(t, 'right'):.1%}", f"{low:.1%} – {high:.1%}"]
        cells += [f"{share(t, 'same_as_one_by_one'):.1%}", f"{share(t, 'nfe'):.3f}"]
        lines.append(cells)
    return markdown(["rule", "at", "right", "95%", "same as one by one", "forwards"], lines)


def ends_table(totals: dict[Key, Row]) -> str:
    """Forwards of the engines with and without a stop, and with EoTP."""
    columns = ["rule", "engine", "EoTP", "right", "same as one by one", "forwards"]
    lines = []
    usual = dict.fromkeys(rule for engine, rule, _ in totals if engine == STOPS)
    for rule, engine, cut in itertools.product(usual, (FILLS, STOPS), (None, *CUTS)):
        t = totals[engine, rule, eotp_name(cut)]
        shares = [f"{share(t, each):.1%}" for each in ("right", "same_as_one_by_one")]
        forwards = [f"{share(t, each):.2f}" for each in ("nfe", "nfe_to_end")]
        lines.append([rule, engine, eotp_name(cut), *shares, *forwards])
    return markdown([*columns, "up to the end"], lines)


def gap_table(totals: dict[Key, Row]) -> str:
    """The share of the way from the threshold's forwards to EGP's that each filter goes."""
    one, floor = totals["rules", "one by one", ""], totals["rules", "egp", "oracle"]
    least = share(one, "right") - SLACK
    best, name = fewest(totals, "threshold", least), "fewest forwards within a point of one by one"
    columns = ["filter", "compared", "threshold: right, forwards", "filter: right, forwards"]
    lines = []
    methods = dict.fromkeys(key[1] for key in totals if key[0] == "rules")
    for method in [m for m in methods if m.startswith("learn2pd")]:
        same = [(f"both at {bar:g}", f"{bar:g}", f"{bar:g}") for bar in (0.9, 0.7, 0.5)]
        equal = fewest(totals, method, least)
        if equal is None:
            lines.append([method, name, str(best), "at no bar", "none"])
        for compared, a, b in [*([(name, best, equal)] if equal else []), *same]:
            plain, learned = totals["rules", "threshold", a], totals["rules", method, b]
            cells = [
                f"{value}: {share(t, 'right'):.1%}, {share(t, 'nfe'):.3f}"
                for value, t in ((a, plain), (b, learned))
            ]
            closed = (plain["nfe"] - learned["nfe"]) / (plain["nfe"] - floor["nfe"])
            lines.append([method, compared, *cells, f"{closed:.0%}"])
    return markdown([*columns, "of the gap"], lines)


def fewest(totals: dict[Key, Row], method: str, least: float) -> str | None:
    """The value of `method` with the fewest forwards among those at least that often right."""
    values = [
        k for k in totals if k[:2] == ("rules", method) and share(totals[k], "right") >= least
    ]
    return min(values, key=lambda k: totals[k]["nfe"])[2] if values else None


def share(total: Row, name: str) -> float:
    return float(total[name] / total["count"])


def tables() -> dict[str, str]:
    totals = summed(read_result("learn2pd")["rows"])
    return {
        "learn2pd": rules_table(totals),
        "learn2pd gap": gap_table(totals),
        "learn2pd ends": ends_table(totals),
    }


def main() -> None:
    options = {
        "filters": {"type": Path, "nargs": "*", "help": "learn2pd-*.safetensors"},
        "--count": (19, "prompts per task, of 18 tasks"),
        "--ends": (5, "of these, with both engines"),
    }
    args = arguments(__doc__, options, page=DOCS / "training.md", tables=tables)
    if not args.filters:
        raise SystemExit("expected filters, or --report")
    torch.set_num_threads(1)
    rows = [
        r
        for name in track(DATASETS, "decoding")
        for r in measure(name, args.count, args.ends, args.filters)
    ]
    header = {
        "holes": BUDGET,
        "seed": SEED,
        "block_length": 32,
        "count_per_task": args.count,
        "ends_per_task": args.ends,
        "weights": fingerprint(),
        "filters": {f.stem: hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in args.filters},
    }
    print(write_result("learn2pd", {**header, "rows": rows}))


if __name__ == "__main__":
    main()
