"""The tables of docs/caches.md and its figure, from benchmarks/results/caches.json.

Run after benchmarks.caches: python -m benchmarks.caches_report (needs the extra `plot`). Sections
that have no numbers yet are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import DOCS, fill, markdown, read_result
from dllm.intervals import wilson

Section = dict[str, Any]


def name(row: dict[str, Any]) -> str:
    """A policy as it was called; the two references by their models."""
    if row["cache"] == "none" and row.get("block_causal"):
        return "none, block-causal"
    return str(row["cache"])


def wide(head: str, rows: list[list[str]]) -> str:
    return markdown(head.split(" | "), rows, rule="| --- ")


def speed_table(section: Section, generated: int, batch: int) -> str:
    head = "cache | tokens/s | time | FLOPs | FLOP saving realised | forwards | rows × layers | MiB"
    rows = []
    for r in section["rows"]:
        if (r["generated"], r["batch"]) != (generated, batch):
            continue
        kept = "" if r["achieved"] is None else f"{r['achieved']:.0%}"
        rows.append(
            [
                name(r),
                f"{generated * batch / r['seconds']:.1f}",
                f"{r['time_ratio']:.1%}",
                f"{r['flop_ratio']:.1%}",
                kept,
                f"{r['forwards'] / batch:.0f}",
                f"{r['rows'] / batch / 1e3:,.0f} k",
                f"{r['bytes'] / 2**20:.0f}",
            ]
        )
    return wide(head, rows)


def quality_table(section: Section, sampler: str) -> str:
    head = (
        "cache | right | 95% | same as uncached | forwards | mean KL | other token "
        "| read from cache | age | worst age"
    )
    totals: dict[str, dict[str, Any]] = {}
    for r in section["rows"]:
        if r["sampler"] == sampler:
            total = totals.setdefault(r["cache"], {})
            for key, value in r.items():
                if isinstance(value, (int, float)):
                    worst = key.startswith("worst")
                    old = total.get(key, 0)
                    total[key] = max(old, value) if worst else old + value
    rows = []
    for cache, t in totals.items():
        low, high = wilson(t["right"], t["count"])
        rows.append(
            [
                cache,
                f"{t['right'] / t['count']:.1%}",
                f"{low:.1%} – {high:.1%}",
                f"{t['same'] / t['count']:.1%}",
                f"{t['nfe'] / t['count']:.1f}",
                f"{t['kl_sum'] / max(t['predictions'], 1):.1e}" if t["reads"] else "",
                f"{t['flipped'] / max(t['predictions'], 1):.2%}" if t["reads"] else "",
                f"{t['reused'] / t['reads']:.0%}" if t["reads"] else "",
                f"{t['age_sum'] / t['reused']:.1f}" if t["reused"] else "",
                str(t["worst_age"]) if t["reused"] else "",
            ]
        )
    return wide(head, rows)


def long_table(section: Section) -> str:
    sizes = sorted({r["generated"] for r in section["rows"]})
    found: dict[str, list[str]] = {}
    for size in sizes:
        for r in section["rows"]:
            if r["generated"] == size:
                found.setdefault(name(r), []).append(f"{1e3 * r['seconds'] / size:.1f}")
    head = " | ".join(["cache", *(f"{size:,} tokens" for size in sizes), "exponent"])
    slopes = {key.partition(":")[0]: value for key, value in section["slopes"].items()}
    rows = [[k, *cells, f"{slopes[k.partition(':')[0]]:.2f}"] for k, cells in found.items()]
    return wide(head, rows)


def small_table(section: Section) -> str:
    rows = [
        [str(r["holes"]), f"{1e3 * r['none']:.0f}", f"{1e3 * r['dual']:.0f}"]
        for r in section["rows"]
    ]
    prompt, least = section["prompt"], section["pays_from"]
    found = (
        f"With a prompt of {prompt} tokens the dual cache is faster from {least} tokens on."
        if least is not None
        else f"With a prompt of {prompt} tokens the dual cache is not faster at these lengths."
    )
    return wide("answer tokens | none, ms | dual, ms", rows) + f"\n\n{found}"


def machine(section: Section) -> str:
    e = section["environment"]
    return f"Measured on {e['device']}, {e['threads']} threads, torch {e['torch']}."


def parts(result: dict[str, Section]) -> dict[str, Callable[[], str]]:
    """The text between each pair of marks, for the sections that were measured."""
    found: dict[str, Callable[[], str]] = {}
    if speed := result.get("speed"):
        found["machine"] = lambda: machine(speed)
        for generated, batch in {(r["generated"], r["batch"]): 0 for r in speed["rows"]}:
            key = f"speed {generated} tokens, batch {batch}"
            found[key] = lambda g=generated, b=batch: speed_table(speed, g, b)  # type: ignore[misc]
    if quality := result.get("quality"):
        for sampler in dict.fromkeys(r["sampler"] for r in quality["rows"]):
            found[f"quality {sampler}"] = lambda s=sampler: quality_table(quality, s)  # type: ignore[misc]
    if long := result.get("long"):
        found["long"] = lambda: long_table(long)
    if small := result.get("small"):
        found["small"] = lambda: small_table(small)
    return found


def draw(speed: Section, long: Section, target: Path) -> None:
    """Time kept against FLOPs kept, and the time of a token against the answer's length."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dllm"  # the same file from the same numbers
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.4, 4.8))
    policies = [p for p in dict.fromkeys(r["cache"] for r in speed["rows"]) if p != "none"]
    for i, policy in enumerate(policies):
        mine = [r for r in speed["rows"] if r["cache"] == policy]
        xy = [(100 * r["flop_ratio"], 100 * r["time_ratio"]) for r in mine]
        left.scatter(*zip(*xy, strict=True), color=f"C{i}", marker="os^Dv"[i // 10], label=policy)
    left.plot([0, 100], [0, 100], linestyle="--", color="0.4", linewidth=1)
    left.set(xlabel="FLOPs, % of no cache", ylabel="time, % of no cache", ylim=(0, None))
    left.legend(fontsize=7)
    for i, key in enumerate(dict.fromkeys(name(r) for r in long["rows"])):
        mine = [r for r in long["rows"] if name(r) == key]
        xy = [(r["generated"], 1e3 * r["seconds"] / r["generated"]) for r in mine]
        right.plot(*zip(*xy, strict=True), color=f"C{i}", marker="o", label=key)
    sizes = sorted({r["generated"] for r in long["rows"]})
    right.set(xlabel="answer, tokens", ylabel="ms per token", xscale="log", yscale="log")
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.minorticks_off()
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    result = read_result("caches")
    fill(DOCS / "caches.md", {key: make() for key, make in parts(result).items()})
    if "speed" in result and "long" in result:
        draw(result["speed"], result["long"], DOCS / "caches.svg")
    print(f"written: caches.md: {', '.join(parts(result))}")


if __name__ == "__main__":
    main()
