"""Frame of every benchmark: command line, held-out prompts, result file, tables of a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm.config import DecodeConfig
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.step import RowBatch
from dllm.environment import environment
from dllm.eval.tasks import Sample, scorer_of
from dllm.eval.tasks.datasets import DATASETS, GeneratedDataset, held_out
from dllm.files import read_text, write_json, write_text
from dllm.models.protocol import Model

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
LIST_SIZES = (3, 4, 5, 6)  # what is promised: lists of up to 6 items
WATCHED = (1, 2, 5, 7, 8)  # seeds whose prompts were decoded while the model was being trained
DTYPE = {"default": "float32", "choices": ("float32", "bfloat16")}

# name of an argument -> its default and help, or all that argparse takes
Arguments = Mapping[str, tuple[Any, str] | dict[str, Any]]


def arguments(
    doc: str | None,
    named: Arguments | None = None,
    *,
    page: Path | None = None,
    tables: Callable[[], Mapping[str, str]] | None = None,
) -> argparse.Namespace:
    """The command line of a benchmark. With `tables`, --report puts them into `page` (see `fill`),
    which takes no measuring, and ends the program.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=formatter)
    for name, given in (named or {}).items():
        if isinstance(given, dict):
            parser.add_argument(name, **given)
        elif isinstance(given[0], bool):
            parser.add_argument(name, action="store_true", help=given[1])
        else:
            parser.add_argument(name, type=type(given[0]), default=given[0], help=given[1])
    if page is not None and tables is not None:
        parser.add_argument("--report", action="store_true", help=f"only write into {page.name}")
    found = parser.parse_args()
    if page is not None and tables is not None and found.report:
        fill(page, tables())
        parser.exit()
    return found


def opened(model: Model, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> RowBatch:
    """A batch of `prompts` before its first step, to be stepped by hand."""
    longest = max(map(len, prompts)) + config.max_new_tokens
    batch = RowBatch(model, None, config, len(prompts), longest)
    batch.join([DecodeRequest(prompt, config) for prompt in prompts])
    return batch


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


def unseen_of_all(count: int, seed: int) -> list[tuple[str, Sample]]:
    """(dataset, question): about `count` in all, the same number of every dataset."""
    each = -(-count // len(DATASETS))
    return [(name, sample) for name in DATASETS for sample in unseen(name, each, seed)]


def by_length() -> list[str]:
    """The datasets, those with long answers first, so that parallel workers end together."""
    return sorted(DATASETS, key=lambda name: DATASETS[name].group == "structured", reverse=True)


def is_right(dataset: str, sample: Sample, reply: str) -> bool:
    """Whether a reply is right, in exactly the form that the bundled models were trained on."""
    return scorer_of(dataset).grade(sample, reply).strict


def read_result(name: str) -> dict[str, Any]:
    """benchmarks/results/NAME.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def write_result(name: str, content: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json, whole or not at all, with the machine, the versions and
    the revision.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_json(path, {"environment": environment(), **content}, indent=2)
    return path


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "|---") -> str:
    """A table; rule: the line below the headings, as of one column."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], f"{rule * len(columns)}|", *lines[1:]])


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
