"""What rows are counted as."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.records import EvalSetting, RunPlan, SampleRecord
from dllm.eval.summary import kendall, summarize

PLAN = RunPlan(
    suite="test",
    model={},
    tasks=("shuffle:n=3", "words_to_sentence:n=3"),
    settings=(
        EvalSetting("threshold", "0.9", {"sampler": "threshold:threshold=0.9"}),
        EvalSetting("threshold", "0.5", {"sampler": "threshold:threshold=0.5"}),
        EvalSetting("dus", "", {"sampler": "dus", "temperature": 1.0}),
    ),
    seeds=(0,),
    count=2,
    batch_size=1,
    memo=True,
    environment={},
)


def row(setting=0, i=0, task=0, score=True, nfe=3, tokens=6, steps=(1, 2, 3), places=(0, 1, 2)):
    return SampleRecord(
        setting=setting,
        task=task,
        n=3,
        seed=0,
        i=i,
        score=score,
        strict=False,
        reason="ok" if score else "order",
        nfe=nfe,
        canvases=nfe + 1,
        tokens=tokens,
        filled=tokens + 2,
        budget=16,
        prompt_tokens=5,
        finish="eos",
        text="",
        ids=[7] * len(steps),
        steps=list(steps),
        places=None if places is None else list(places),
        seconds=[1.0, 2.0, 3.0, 4.0],
    )


def test_cells_add_up():
    [one, two] = summarize(PLAN, [row(), row(i=1, score=False, nfe=5), row(setting=1)]).cells
    assert (one.count, one.right, one.strict, one.nfe, one.canvases) == (2, 1, 0, 8, 10)
    assert (one.tokens, one.filled, one.seconds) == (12, 16, [2.0, 4.0, 6.0, 8.0])
    assert one.reasons == {"ok": 1, "order": 1}
    assert (two.setting, two.count) == (1, 1)


@pytest.mark.parametrize(
    ("steps", "chance"),
    [
        ((1, 2, 3), 5 / 6),  # the order has to change: 5 of 6
        ((2, 1, 2), 5 / 6 / 2),  # two of two left go together
        ((1, 1, 1), 5 / 6 * 6 / 27),
    ],
)
def test_the_ceiling_is_that_of_the_commits(steps, chance):
    [cell] = summarize(PLAN, [row(steps=steps), row(i=1, steps=steps, score=False)]).cells
    assert cell.ceiling == pytest.approx(2 * chance)
    assert (cell.ceiled, cell.ceiled_right) == (2, 1)


@pytest.mark.parametrize("places", [None, (0, 1), (0, 1, 2, 0)])
def test_answers_without_their_items_have_no_ceiling(places):
    [cell] = summarize(PLAN, [row(places=places), row(i=1)]).cells
    assert (cell.count, cell.ceiled, cell.ceiled_right) == (2, 1, 1)


def test_a_task_of_unknown_law_has_no_ceiling():
    [cell] = summarize(PLAN, [row(task=1)]).cells
    assert (cell.ceiled, cell.ceiling) == (0, 0.0)


def test_the_oracle_takes_the_best_setting_of_a_method_for_every_sample():
    rows = [
        row(0, 0, score=True, nfe=9),
        row(1, 0, score=False, nfe=1),  # faster, but wrong
        row(0, 1, score=True, nfe=9),
        row(1, 1, score=True, nfe=4, tokens=5),
        row(2, 1, score=True, nfe=1),  # of another method
        row(0, 2, score=False, nfe=9),
        row(1, 2, score=False, nfe=2, tokens=4),
    ]
    for order in itertools.permutations(rows[:4]):
        dus, threshold = summarize(PLAN, [*order, *rows[4:]]).oracles
        assert (threshold.method, threshold.count, threshold.right) == ("threshold", 3, 2)
        assert (threshold.nfe, threshold.tokens) == (9 + 4 + 2, 6 + 5 + 4)
        assert (dus.method, dus.count, dus.nfe) == ("dus", 1, 1)


@pytest.mark.parametrize(
    ("steps", "tau"),
    [
        ([1, 2, 3], 1.0),
        ([3, 2, 1], -1.0),
        ([1, 1, 1], 0.0),
        ([1, 1, 2], 2 / 3),
        ([0, 2, 0, 1], -1.0),  # given tokens do not count
        ([0, 1, 0], None),
        ([], None),
    ],
)
def test_kendall(steps, tau):
    assert kendall(steps) == (tau if tau is None else pytest.approx(tau))


@given(st.lists(st.integers(0, 5), max_size=8))
def test_kendall_is_its_definition(steps):
    order = [step for step in steps if step]
    pairs = list(itertools.combinations(order, 2))
    if not pairs:
        assert kendall(steps) is None
    else:
        score = sum((b > a) - (b < a) for a, b in pairs)
        assert kendall(steps) == pytest.approx(score / len(pairs))
