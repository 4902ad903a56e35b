"""The cases of a search, each tried in a process that can be spawned.

They stand apart from `__main__`, which a spawned process does not import.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from tests.search.check import check
from tests.search.draw import draw

PATIENCE = 100  # seconds of a processor that a case may take: every run ends


def prepare() -> None:
    """What every process of a search has: one thread, a checked store, a clock."""
    os.environ["DLLM_CHECK_CACHE"] = "1"
    torch.set_num_threads(1)


def attempt(seed: int, number: int) -> dict[str, Any]:
    """What came of one case, as a line of the state file."""
    case, began = draw(seed, number), time.perf_counter()
    result, what = "kept", ""
    signal.signal(signal.SIGPROF, _too_long)  # its own time: a busy machine breaks no guarantee
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        if not check(case):
            result = "refused"
    except Exception as error:
        result, what = "broken", _where(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = round(time.perf_counter() - began, 3)
    parts = case.parts()
    return {"case": number, "result": result, "what": what, "parts": parts, "took": seconds}


def _too_long(*_: Any) -> None:
    raise AssertionError(f"every run ends: not in {PATIENCE} seconds")


def _where(error: Exception) -> str:
    """The guarantee, or what the engine raised and where."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError):
        checks = [f.name for f in frames if f.filename.endswith("check.py")]
        return f"{checks[1] if len(checks) > 1 else 'check_run'}: {error}"
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
    return f"{type(error).__name__} at {place}: {str(error)[:300]}"


def results(seed: int, numbers: Sequence[int], workers: int) -> Iterator[dict[str, Any]]:
    """What came of each case, in the order in which they end."""
    one = partial(attempt, seed)
    if workers == 1:
        prepare()
        yield from map(one, numbers)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare) as pool:
        yield from pool.map(one, numbers, chunksize=4)
