"""Summaries of runs that never were: single cells by hand, and a whole run drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dllm.eval import closed_forms as forms
from dllm.eval.records import Cell, EvalSetting, OracleCell, RunPlan, Summary
from tests.eval.references import quota_groups

LENGTH = 10  # tokens of a hand-made answer
TASKS = ("copy:n=4+8", "shuffle:n=4+8", "replace_random:n=4+8,surface=infill")


def setting(method: str, option: str = "") -> EvalSetting:
    return EvalSetting(method, option, {"sampler": f"{method}:{option}" if option else method})


def cell(setting: int, task: int, right: int, nfe: int, *, count: int = 100, n: int = 4, **more):
    """`count` answers of LENGTH tokens."""
    filled = {
        "tokens": LENGTH * count,
        "filled": 2 * LENGTH * count,
        "strict": right // 2,
        "canvases": nfe,
        "reasons": {"ok": right, "length": count - right},
        "tau": count / max(nfe, 1),
        "ordered": count,
    }
    fields = filled | {"setting": setting, "task": task, "n": n, "count": count} | more
    return Cell(right=right, nfe=nfe, **fields)


def summary(
    cells: Sequence[Cell],
    settings: Sequence[EvalSetting],
    tasks: Sequence[str] = TASKS,
    oracles: Sequence[OracleCell] = (),
    *,
    memo: bool = False,
    suite: str = "dllm-suite-1",
) -> Summary:
    model = {"name": "demo", "weights": "0a1b", "dtype": "float32", "device": "cpu", "family": "x"}
    plan = RunPlan(
        suite, model, tuple(tasks), tuple(settings), (0,), 100, 16, memo, {"python": "3"}
    )
    return Summary(plan, tuple(cells), tuple(oracles))


def one_task(*points: tuple[str, str, int, int], count: int = 100, **more) -> Summary:
    """A run on one task; points: (method, option, right, forwards in all)."""
    cells = [cell(i, 0, right, nfe, count=count) for i, (_, _, right, nfe) in enumerate(points)]
    made = [setting(method, option) for method, option, *_ in points]
    return summary(cells, made, TASKS[:1], **more)


def drawn(seed: int = 0, *, count: int = 200, skill: float = 0.985, memo: bool = False) -> Summary:
    """A run of two methods on three tasks at two sizes. A right commit has the perfect model's
    chance times `skill` for each token that goes with others; the adaptive method has more swept
    and loses half as much.
    """
    rng = random.Random(seed)
    swept = [("confidence", f"k={k}", float(k), 1.0) for k in (1, 2, 4, 8)]
    swept += [("threshold", f"threshold={t}", 1 / t**3, 0.5) for t in (0.95, 0.8, 0.7, 0.6, 0.5)]
    cells, oracles = [], []
    for task, spec in enumerate(TASKS):
        for n in (4, 8):
            made = []
            for i, (_, _, rate, loss) in enumerate(swept):
                made.append(
                    _drawn(rng, (i, task, n), spec.partition(":")[0], rate, loss, skill, count)
                )
            cells += made
            for method in ("confidence", "threshold"):
                own = [c for c, option in zip(made, swept, strict=True) if option[0] == method]
                best = max(c.right for c in own)
                nfe = min(c.nfe for c in own) + count // 4
                oracles.append(OracleCell(method, task, n, count, best, nfe, own[0].tokens))
    settings = [setting(method, option) for method, option, *_ in swept]
    return summary(cells, settings, TASKS, oracles, memo=memo)


def _drawn(rng, key, name, rate, loss, skill, count) -> Cell:
    n = key[2]
    steps = max(1, round(n / rate))
    ceiling = forms.accuracy(name, n, quota_groups(n, steps))
    chance = ceiling * skill ** (loss * (n - steps) + 0.2)
    right = sum(rng.random() < chance for _ in range(count))
    kinds = rng.choices(("length", "duplicate", "missing"), k=count - right)
    reasons = {kind: kinds.count(kind) for kind in sorted(set(kinds))} | {"ok": right}
    nfe = sum(max(1, round(n / rate + rng.gauss(0, 0.2))) for _ in range(count))
    return cell(
        key[0],
        key[1],
        right,
        nfe,
        count=count,
        n=n,
        tokens=(n + 1) * count,
        filled=16 * count,
        reasons=reasons,
        strict=right - min(right, 3),
        ceiling=ceiling * count,
        ceiled=count,
        ceiled_right=right,
        seconds=[0.001 * count, 0.004 * nfe, 0.001 * nfe, 0.0005 * nfe],
    )
