"""The table of docs/samplers.md and its figure, from benchmarks/results/samplers.json.

Run after benchmarks.samplers: python -m benchmarks.samplers_report (needs the extra `plot`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import DOCS, fill, markdown, read_result
from dllm.intervals import wilson

COUNTS = ("count", "right", "same_as_one_by_one", "nfe", "canvases", "answer_tokens")
Key = tuple[str, str, str]  # block setting, method, value


def summed(rows: list[dict[str, Any]], groups: tuple[str, ...] = ()) -> dict[Key, dict[str, Any]]:
    """Counts of every setting over all tasks (of `groups`)."""
    found: dict[Key, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for row in rows:
        if not groups or row["group"] in groups:
            total = found[row["block"], row["method"], row["knob"]]
            for name in COUNTS:
                total[name] += row[name]
            total["paper"] = row["paper"]
    return dict(found)


def check_whole(rows: list[dict[str, Any]]) -> None:
    """SystemExit where a setting lacks prompts that others have: totals would not compare."""
    totals = summed(rows)
    most = max(t["count"] for t in totals.values())
    short = [", ".join(key) for key, t in totals.items() if t["count"] != most]
    if short:
        raise SystemExit(
            f"samplers.json: expected {most} prompts of every setting, fewer of {short[0]} and "
            f"{len(short) - 1} others; run benchmarks.samplers --missing"
        )


def table(rows: list[dict[str, Any]], block: str) -> str:
    """The Markdown table of one block setting: every method at its paper's defaults."""
    columns = ["method", "at", "right", "95%", "same as one by one", "forwards"]
    lines = []
    settings = [(k, t) for k, t in summed(rows).items() if k[0] == block and t["paper"]]
    for (_, method, value), t in sorted(settings, key=lambda item: item[1]["nfe"]):
        low, high = wilson(t["right"], t["count"])
        canvases = f" ({t['canvases'] / t['count']:.1f} canvases)" * (t["canvases"] != t["nfe"])
        cells = [method, value, f"{t['right'] / t['count']:.1%}", f"{low:.1%} – {high:.1%}"]
        cells += [f"{t['same_as_one_by_one'] / t['count']:.1%}"]
        cells += [f"{t['nfe'] / t['count']:.1f}{canvases}", f"{t['answer_tokens'] / t['nfe']:.2f}"]
        lines.append(cells)
    return markdown([*columns, "tokens / forward"], lines)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Accuracy against tokens per forward, one line per method, one panel per block setting."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dllm"  # the same file from the same numbers
    from matplotlib import pyplot as plt

    totals = summed(rows)
    blocks = list(dict.fromkeys(key[0] for key in totals))
    figure, axes = plt.subplots(1, len(blocks), figsize=(6.2 * len(blocks), 5), sharey=True)
    methods = list(dict.fromkeys(key[1] for key in totals if key[1] not in ("egp", "fhs")))
    for axis, block in zip(axes, blocks, strict=True):
        for i, method in enumerate(methods):
            points = [t for key, t in totals.items() if key[:2] == (block, method)]
            if not points:
                continue
            xy = sorted(
                (p["answer_tokens"] / p["nfe"], 100 * p["right"] / p["count"]) for p in points
            )
            style = {"color": f"C{i % 10}", "marker": "os^Dv"[i // 10 * 2 + i % 2], "markersize": 4}
            axis.plot(*zip(*xy, strict=True), linewidth=1, label=method, **style)
        floor = totals[block, "egp", "oracle"]
        best = floor["answer_tokens"] / floor["nfe"]
        axis.axvline(best, linestyle="--", color="0.4", linewidth=1, label="oracle (EGP)")
        axis.set(title=block, xlabel="tokens per forward", xscale="log")
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="right answers, %", ylim=(40, 101))
    axes[-1].legend(fontsize=7, ncols=2, loc="lower left")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    result = read_result("samplers")
    check_whole(result["rows"])
    fill(DOCS / "samplers.md", {b: table(result["rows"], b) for b in result["blocks"]})
    draw(result["rows"], DOCS / "samplers.svg")
    print("written: samplers.md, samplers.svg")


if __name__ == "__main__":
    main()
