"""Closed forms that decoding is checked against."""

from __future__ import annotations

from collections.abc import Sequence

from dllm.eval.closed_forms import ONE_ANSWER, accuracy


def quota_groups(positions: int, steps: int) -> tuple[int, ...]:
    """LLaDA's groups (arXiv 2502.09992): equal shares, the earlier steps take the remainder."""
    share, more = divmod(positions, steps)
    return tuple(share + (step < more) for step in range(steps) if share + (step < more))


def greedy_accuracy(task: str, n: int, groups: Sequence[int]) -> float:
    """Probability that argmax gives a right answer when ties are broken at random at every position
    (ParallelBench, arXiv 2510.04767, appendix A).
    """
    assert task in (*ONE_ANSWER, "shuffle", "replace_random")
    if task != "replace_random":
        return accuracy(task, n, groups)
    # the new item is never the likeliest before two positions are left
    return {1: 1.0, 2: 0.5}.get(groups[-1], 0.0)
