"""Every dataset draws what its seed says, and something else for another seed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks.datasets import DATASETS

each_task = pytest.mark.parametrize("task", DATASETS.values(), ids=DATASETS)


def draws(task, count=300, seed=0):
    rng = random.Random(seed)
    return [task.make(rng, task.sizes[i % len(task.sizes)]) for i in range(count)]


@each_task
@given(seed=st.integers(0, 2**32))
def test_a_seed_fixes_the_draw(task, seed):
    assert draws(task, 6, seed) == draws(task, 6, seed)


@each_task
def test_different_seeds_differ(task):
    assert draws(task, 20, 0) != draws(task, 20, 1)
