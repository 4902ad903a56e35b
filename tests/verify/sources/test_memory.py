from collections import defaultdict

import numpy as np
import pytest

from dllm.verify.draft.lattice import Branch
from dllm.verify.sources.memory import Memory, Rate
from dllm.verify.sources.ngram import NGram
from dllm.verify.sources.recycling import Recycling
from dllm.verify.sources.suffix import Suffix
from tests.verify.drafts import Say


def weights(memory, depth=9):
    return [branch.weights for branch in memory.branches(depth)]


def test_a_weight_moves_to_how_often_its_like_came():
    """By source and tenth of the raw weight: (hits + 4 raw) / (seen + 4) at first."""
    memory = Memory([Say([Branch((1, 2), (0.52, 0.9), "a"), Branch((3,), (0.55,), "b")])])
    assert weights(memory) == [(0.52, 0.9), (0.55,)]
    memory.extend([1, 5])
    assert weights(memory) == [
        (pytest.approx((1 + 4 * 0.52) / 5), pytest.approx(4 * 0.9 / 5)),
        (pytest.approx(4 * 0.55 / 5),),
    ]
    memory.extend([3])
    new = (0.98 * 1 + 0 + 4 * 0.52) / (0.98 + 1 + 4)
    assert weights(memory)[0] == (pytest.approx(new), pytest.approx(4 * 0.9 / 5))
    assert weights(memory)[1] == (pytest.approx((1 + 4 * 0.55) / (0.98 + 1 + 4)),)


def test_certainty_is_in_the_last_tenth():
    memory = Memory([Say([Branch((1,), (1.0,), "a"), Branch((2,), (0.95,), "a")])])
    memory.branches(1)
    memory.extend([1])
    assert weights(memory)[1] == (pytest.approx((0.98 + 4 * 0.95) / (1.98 + 4)),)


def test_only_what_came_is_judged():
    """Nothing is known of what lies behind a miss, or behind the last token that came."""
    memory = Memory([Say([Branch((1, 2, 3), (0.15, 0.25, 0.35), "a")])])
    memory.branches(9)
    memory.extend([7, 2, 3])
    assert {key: rate.seen for key, rate in memory.rates.items() if rate.seen} == {("a", 1): 1}
    memory.branches(9)
    memory.extend([1])
    assert memory.rates["a", 1].seen == pytest.approx(1.98)
    assert memory.rates["a", 1].hits == 1
    assert ("a", 2) not in memory.rates


def test_a_token_that_two_branches_share_is_judged_once():
    memory = Memory([Say([Branch((1, 2), (0.15, 0.25), "a"), Branch((1, 3), (0.15, 0.25), "a")])])
    memory.branches(9)
    memory.extend([1, 3])
    assert memory.rates["a", 1].seen == 1
    assert (memory.rates["a", 2].seen, memory.rates["a", 2].hits) == (1.98, 1)


def test_what_was_said_is_judged_once():
    memory = Memory([Say([Branch((1,), (0.5,), "a")])])
    memory.branches(9)
    memory.extend([1])
    memory.extend([1])
    assert memory.rates["a", 5].seen == 1


@pytest.mark.parametrize("often", [0.0, 0.2, 0.7, 1.0])
def test_a_weight_is_calibrated_in_the_long_run(often):
    came = np.random.default_rng(0).random(300) < often
    memory = Memory([Say([Branch((1,), (0.45,), "a")])], decay=1.0)
    for hit in came:
        memory.branches(1)
        memory.extend([1 if hit else 2])
    ((weight,),) = weights(memory)
    assert abs(weight - came.mean()) <= 4 / 304


def test_every_source_hears_everything():
    one, two = Say(), Say()
    memory = Memory([one, two])
    memory.extend([1, 2])
    memory.extend([3])
    top = np.array([[4, 5]])
    memory.learn([3], top)
    for source in (one, two):
        assert source.came == [1, 2, 3]
        assert source.learned == ([3], top)


def test_a_memory_wants_as_many_of_the_targets_tokens_as_its_greediest_source():
    sources = [source.open() for source in (NGram(), Recycling(top=3), Suffix(), Recycling(top=5))]
    assert Memory().top == Memory([sources[0], sources[2]]).top == 0
    assert Memory(sources).top == 5


def test_the_proxy_is_the_mean_of_those_there_are():
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(4), (2, 4))
    memory = Memory([Say(), Say(table=first), Say(table=second)])
    memory.extend([2])
    np.testing.assert_allclose(
        np.exp(memory.logp([], np.array([0, 3]))), (first + second)[2, [0, 3]] / 2
    )
    np.testing.assert_allclose(
        np.exp(memory.logp([2, 1], np.array([0, 3]))), (first + second)[1, [0, 3]] / 2
    )
    left, right = np.array([[0, 1], [2, 3]]), np.array([[2, 3], [1, 0]])
    pairs = memory.pairs(left, right)
    for k, i, j in np.ndindex(2, 2, 2):
        u, v = left[k, i], right[k, j]
        assert pairs[k, i, j] == pytest.approx((first[u, v] + second[u, v]) / 2)


def test_without_a_proxy_all_candidates_are_as_likely():
    memory = Memory([Say()])
    np.testing.assert_allclose(memory.logp([1], np.arange(4)), np.log(0.25))
    assert (memory.pairs(np.zeros((2, 3), int), np.zeros((2, 3), int)) == np.ones((2, 3, 3))).all()


def test_rates_that_are_shared_tell_a_new_text_what_others_have_shown():
    rates = defaultdict(Rate)
    for _ in range(40):
        memory = Memory([Say([Branch((5,), (0.9,), "say")])], rates=rates)
        memory.branches(1)
        memory.extend([6])  # it said 5
    (fresh,) = Memory([Say([Branch((5,), (0.9,), "say")])], rates=rates).branches(1)
    (alone,) = Memory([Say([Branch((5,), (0.9,), "say")])]).branches(1)
    assert fresh.weights[0] < 0.2
    assert alone.weights == (0.9,)
