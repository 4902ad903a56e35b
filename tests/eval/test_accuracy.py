from collections import Counter

import pytest

from dllm.eval.accuracy import Score, held_out
from dllm.eval.tasks.datasets import TASKS, is_held_out


@pytest.mark.parametrize(
    ("ok", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (485, 500, 0.9511, 0.9817)],
)
def test_wilson_interval(ok, count, low, high):
    """Against published values of the Wilson score interval."""
    score = Score(Counter(ok=ok, order=count - ok))
    assert score.interval() == pytest.approx((low, high), abs=2e-4)


def test_held_out_prompts_are_different_and_held_out():
    found = held_out(TASKS["json"], 60, seed=1, sizes=None)
    assert len({e.prompt for e in found}) == len(found) == 60
    assert all(is_held_out(e.prompt) for e in found)
