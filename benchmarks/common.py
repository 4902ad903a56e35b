"""What every benchmark writes beside its numbers: the machine, the versions, the revision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dllm.environment import environment
from dllm.eval.tasks import Sample, scorer_of
from dllm.eval.tasks.datasets import DATASETS, GeneratedDataset, held_out
from dllm.files import read_text, write_json, write_text

RESULTS = Path(__file__).parent / "results"


LIST_SIZES = (3, 4, 5, 6)  # what is promised: lists of up to 6 items
WATCHED = (1, 2, 5, 7, 8)  # seeds whose prompts were decoded while the model was being trained


def sizes_of(dataset: GeneratedDataset) -> tuple[int, ...]:
    return LIST_SIZES if dataset.group in ("lists", "random") else dataset.sizes


def unseen(
    name: str,
    count: int,
    seed: int,
    taken: Collection[str] = (),
    sizes: tuple[int, ...] | None = None,
) -> list[Sample]:
    """Held-out questions of a dataset, none of them `taken` or watched during training.

    A dataset that has no more than what was watched (single calculations) gives of that.
    """
    dataset = DATASETS[name]
    sizes = sizes or sizes_of(dataset)
    watched = {e.prompt for s in WATCHED for e in held_out(dataset, 500, seed=s, sizes=sizes)}
    drawn = held_out(dataset, count + len(watched) + len(taken), seed=seed, sizes=sizes)
    free = [e for e in drawn if e.prompt not in taken]
    return ([e for e in free if e.prompt not in watched] or free)[:count]


def is_right(dataset: str, sample: Sample, reply: str) -> bool:
    """Whether a reply is right, in exactly the form that the bundled models were trained on."""
    return scorer_of(dataset).grade(sample, reply).strict


def write_result(name: str, content: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Write benchmarks/results/NAME.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    write_json(path, {"environment": environment(), **content}, indent=2)
    return path


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put each text of `parts` between the two marks "<!-- name -->" that `page` has for it."""
    text = read_text(page)
    for name, part in parts.items():
        mark = f"<!-- {name} -->"
        pieces = text.split(mark)
        if len(pieces) != 3:
            raise SystemExit(f"{page.name}: expected {mark} twice")
        text = f"{pieces[0]}{mark}\n{part}\n{mark}{pieces[2]}"
    write_text(page, text)
