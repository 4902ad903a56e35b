"""The preset that `dllm tune` finds for the bundled model, judged on other prompts.

Tunes on 19 held-out prompts of every task, seed 21, with the tasks' graders as the score and a loss
of at most 0.5%; then decodes the prompts of benchmarks.samplers with the preset and compares it
with the paper presets measured there (results/samplers.json, block 32). Writes results/tuned.json
and the bundled model's preset.json, which --sampler auto reads.
Run after benchmarks.samplers: python -m benchmarks.tuned
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import dllm
from benchmarks.common import arguments, is_right, read_result, unseen, write_result
from benchmarks.samplers import BUDGET
from benchmarks.samplers import SEED as JUDGED_SEED
from benchmarks.samplers_report import summed
from dllm.config import DecodeConfig
from dllm.eval.tasks import Sample
from dllm.eval.tasks.datasets import DATASETS
from dllm.intervals import wilson
from dllm.output import Output
from dllm.presets import TUNED, preset_options
from dllm.tuning.results import Report
from dllm.tuning.tune import tune

COUNT, SEED, MAX_LOSS = 19, 21, 0.005


def tuned(engine: dllm.Engine, chosen: list[tuple[str, Sample]], log: Path | None) -> Report:
    def right(row: int, output: Output) -> bool:
        return is_right(*chosen[row], output.text)

    with Progress() as bar:
        task = bar.add_task("tuning", total=None)
        return tune(
            engine,
            [sample.prompt for _, sample in chosen],
            config=DecodeConfig(max_new_tokens=BUDGET),
            max_loss=MAX_LOSS,
            log=log,
            score=right,
            model="tiny",
            on_progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )


def main() -> None:
    log = arguments(__doc__, {"--log": {"type": Path, "help": "file to go on from"}}).log
    torch.set_num_threads(1)
    engine = dllm.load("tiny")
    judged = [(name, each) for name in DATASETS for each in unseen(name, COUNT, JUDGED_SEED)]
    taken = {sample.prompt for _, sample in judged}
    chosen = [(name, each) for name in DATASETS for each in unseen(name, COUNT, SEED, taken)]
    report = tuned(engine, chosen, log)
    assets = Path(dllm.__file__).parent / "assets" / "tiny"
    report.write(assets / TUNED)
    options = preset_options(str(assets / TUNED))
    right = nfe = 0
    for at in range(0, len(judged), COUNT):
        batch = judged[at : at + COUNT]
        outputs: list[Output] = engine.generate([each.prompt for _, each in batch], **options)
        nfe += sum(output.nfe for output in outputs)
        right += sum(is_right(*asked, o.text) for asked, o in zip(batch, outputs, strict=True))
    mine = {"right": right, "count": len(judged), "nfe": nfe}
    others = read_result("samplers")["rows"]
    papers = [
        {"preset": f"{method} {value}".strip(), **{k: t[k] for k in ("right", "count", "nfe")}}
        for (block, method, value), t in summed(others).items()
        if block == "block 32" and t["paper"] and method != "egp"
    ]
    show(report, mine, papers)
    content: dict[str, Any] = {
        "tuning": {"prompts": report.reference.count, "seed": SEED, "max_loss": MAX_LOSS},
        "chosen": report.chosen.as_dict(),
        "reference": report.reference.as_dict(),
        "frontier": [trial.as_dict() for trial in report.frontier],
        "canvases": {"asked": report.rows, "remembered": report.reused},
        "judged": {"tuned": mine, "papers": papers},
    }
    print(write_result("tuned", content))


def show(report: Report, mine: dict[str, int], papers: list[dict[str, Any]]) -> None:
    """The tuned preset among the papers', on prompts it was not tuned on."""
    table = Table("preset", "right", "95%", "forwards per prompt")
    name = f"tuned: {report.chosen.setting.name}"
    for row in sorted([{"preset": name, **mine}, *papers], key=lambda row: int(row["nfe"])):
        low, high = wilson(row["right"], row["count"])
        table.add_row(
            row["preset"],
            f"{row['right'] / row['count']:.1%}",
            f"{low:.1%} – {high:.1%}",
            f"{row['nfe'] / row['count']:.2f}",
            style="bold" if row["preset"] == name else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
