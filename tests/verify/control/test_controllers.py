"""Controls without a clock: the published rule, followed literally, and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.registry import SpecError
from dllm.verify.components import CONTROLS
from dllm.verify.control.controllers import (
    FixedController,
    Observed,
    Spent,
    ThresholdController,
)
from dllm.verify.research.cps import AdlController


def seen(depth: int, end: int, accepted: int, drafts: int | None = None) -> Observed:
    drafts = depth if drafts is None else drafts
    weights = 0.5 ** np.arange(1, drafts + 1)
    return Observed(depth, end, drafts, accepted, weights, np.arange(drafts) < accepted)


def test_a_round_without_the_drafter_says_nothing_about_its_length():
    for controller in (AdlController(), ThresholdController(step=5)):
        control = controller.open(1)
        before = control.depth(0)
        control.observe(0, seen(0, 0, 0, drafts=4))
        control.observe(0, seen(before, before, before))
        once = controller.open(1)
        once.observe(0, seen(before, before, before))
        assert control.depth(0) == once.depth(0)


def test_fixed_never_changes():
    control = FixedController(depth=5, nodes=12).open(2)
    control.observe(0, seen(5, 2, 5))
    control.spent(Spent(2, 13, 5, 1.0, 1.0, 1.0))
    assert [control.depth(0), control.drafts(1)] == [5, 12]
    assert control.sizes([np.full(12, 0.1), np.zeros(0)]) == [12, 0]
    assert FixedController(depth=5).open(1).drafts(0) == 5
    assert FixedController(depth=5, nodes=0).open(1).drafts(0) == 0


weight_lists = st.lists(st.floats(0, 1), max_size=20)


@given(weight_lists, st.floats(0, 1))
def test_threshold_stops_at_the_first_node_that_is_too_likely_lost(weights, reject):
    count = 0
    for weight in weights:
        if 1 - weight > reject:
            break
        count += 1
    sizes = ThresholdController(reject).open(2).sizes([np.array(weights), np.ones(3)])
    assert sizes == [count, 3]


def test_threshold_grows_after_a_full_accept_and_falls_back():
    control = ThresholdController(depth=10, step=10, most=25).open(2)
    depths = []
    for accepted in (10, 20, 25, 25, 24, 10):
        control.observe(0, seen(control.depth(0), control.depth(0), accepted))
        depths.append(control.depth(0))
    assert depths == [20, 25, 25, 25, 10, 20]
    assert control.depth(1) == 10
    assert control.drafts(0) == 20
    assert ThresholdController(nodes=7).open(1).drafts(0) == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fixed:depth=-1", "depth=-1: expected a whole number of at least 0"),
        ("fixed:nodes=-2", "nodes=-2: expected a whole number of at least 0"),
        ("adl:k_min=0", "k_min=0: expected a whole number of at least 1"),
        ("adl:k_max=5", "k_max=5: expected a whole number of at least 20"),
        ("adl:rho=1.5", "rho=1.5: expected a number from 0 to 1"),
        ("adl:delta=nan", "delta=nan: expected a number of tokens of at least 0"),
        ("threshold:reject=-1", "reject=-1.0: expected a number from 0 to 1"),
        ("threshold:depth=0", "depth=0: expected a whole number of at least 1"),
        ("threshold:step=-1", "step=-1: expected a whole number of at least 0"),
        ("threshold:most=5", "most=5: expected a whole number of at least 10"),
        ("threshold:nodes=-1", "nodes=-1: expected a whole number of at least 0"),
        ("cost:depth=2", "depth=2: expected a whole number of at least 4"),
        ("cost:least=0", "least=0: expected a whole number of at least 1"),
        ("cost:most=4", "most=4: expected a whole number of at least 8"),
        ("cost:nodes=0", "nodes=0: expected a whole number of at least 1"),
        ("cost:memory=3", "memory=3: expected a whole number of at least 16"),
        ("cost:waste=0", "waste=0.0: expected a number above 0"),
        ("cost:waste=2", "waste=2.0: expected a number above 0 and at most 1"),
        ("cost:threshold=0", "threshold=0.0: expected a number above 0"),
        ("cost:learned=1", "'cost' has no option 'learned'"),
        ("slow", "unknown control 'slow': expected one of adl, cost, fixed, threshold"),
    ],
)
def test_a_bad_option_is_named(spec, message):
    with pytest.raises(SpecError) as error:
        CONTROLS.build(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("name", list(CONTROLS))
def test_every_control_opens(name):
    control = CONTROLS.build(name).open(2)
    assert len(control.sizes([np.array([0.5]), np.zeros(0)])) == 2
