"""Search for a broken guarantee: random requests over all parts, for as long as one likes.

    python -m tests.search --cases 20000 --seed 7 --state search.jsonl --workers 2

tries the cases 0 to 19999 of the search 7 that are not in the state file yet, and prints a command
for each that breaks a guarantee. `--case K` tries that one alone and says what it is.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from dllm.cache import POLICIES
from dllm.jsonlog import JsonLog
from dllm.samplers import PLANNERS, SAMPLERS, SPECULATORS, STOP_RULES, TRANSFORMS
from tests.search.attempt import prepare, results
from tests.search.check import check
from tests.search.draw import draw

FORMAT = "dllm-search-1"
TABLES = (SAMPLERS, PLANNERS, STOP_RULES, TRANSFORMS, SPECULATORS, POLICIES)


def search(arguments: argparse.Namespace) -> int:
    """Try what is missing; the number of cases that break a guarantee."""
    header = {"format": FORMAT, "seed": arguments.seed}
    log = JsonLog(arguments.state, header) if arguments.state else None
    with log or nullcontext():
        found = list(log or ())
        known = {record["case"] for record in found}
        missing = [number for number in range(arguments.cases) if number not in known]
        report(record for record in found if record["case"] < arguments.cases)
        for record in results(arguments.seed, missing, arguments.workers):
            if log is not None:
                log.append(record)
            found.append(record)
            if record["result"] == "broken":
                print(f"BROKEN {record['what']}\n    {command(arguments.seed, record)}", flush=True)
            elif len(found) % 100 == 0:
                print(f"{len(found)} cases", file=sys.stderr, flush=True)
    found = [record for record in found if record["case"] < arguments.cases]
    count = Counter(record["result"] for record in found)
    print(f"{len(found)} cases: " + ", ".join(f"{n} {name}" for name, n in sorted(count.items())))
    tried = {part for record in found if record["result"] == "kept" for part in record["parts"]}
    if left := sorted({name for table in TABLES for name in table} - tried):
        print(f"in no case that was kept: {', '.join(left)}")
    return count["broken"]


def report(records: Iterable[dict[str, Any]]) -> None:
    """What earlier runs found."""
    for record in records:
        if record["result"] == "broken":
            print(f"BROKEN before: case {record['case']}, {record['what']}")


def command(seed: int, record: dict[str, Any]) -> str:
    return f"python -m tests.search --seed {seed} --case {record['case']}"


def single(seed: int, number: int) -> int:
    """Say what a case is, and where it breaks."""
    prepare()
    case = draw(seed, number)
    for name, value in case.describe().items():
        print(f"{name:>15}  {value!r}")
    try:
        print("kept" if check(case) else "refused")
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=1000, help="how many, from number 0 on")
    parser.add_argument("--seed", type=int, default=0, help="another one is another search")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--state", help="a file of JSON lines; an earlier run is gone on with")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    chosen = parser.parse_args(arguments)
    if chosen.case is not None:
        return single(chosen.seed, chosen.case)
    try:
        return min(1, search(chosen))
    except KeyboardInterrupt:
        print("interrupted; the same command with its --state goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
