"""DecodeConfig: values that make no sense are refused by name when the config is made."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from dllm.config import ConfigError, DecodeConfig
from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.planner import FixedBlocks
from dllm.samplers.quota import Quota


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        ("max_new_tokens", [2**20 + 1], "a whole number of at least 1 and at most 1048576$"),
        ("temperature", [10**400], "a number of at least 0"),
        ("history", [1, None, "no"], "True or False$"),
        ("prefilled", [5, None], "texts like OFFSET:TEXT$"),
        ("max_new_tokens", [0, -1, 2.5, "8", None, True], "a whole number of at least 1$"),
        ("block_length", [0, -4, 1.5, "none", False], "a whole number of at least 1, or none"),
        ("temperature", [-0.1, math.nan, math.inf, "hot", None, 1j], "a number of at least 0"),
        ("cfg_scale", [-1, math.nan, math.inf, "x"], "a number of at least 0"),
        ("top_k", [-1, 0.5, None], "a whole number of at least 0"),
        ("top_p", [0, 1.01, -0.1, math.nan, "x"], "a number above 0 and at most 1"),
        ("seed", [1.5, None, "x", -1], "a whole number of at least 0$"),
        ("seed", [2**63, 10**30], "a whole number of at least 0 and at most 9223372036854775807$"),
        ("stop", [[""], ["a", ""], "", [1], None, 3], "non-empty strings"),
    ],
)
def test_bad_values_are_named(option, values, expected):
    for value in values:
        with pytest.raises(ConfigError, match=f"^{option}=.*expected {expected}"):
            DecodeConfig(**{option: value})
        with pytest.raises(ConfigError, match=f"^{option}="):
            DecodeConfig().replace(**{option: value})


def test_good_values():
    config = DecodeConfig(
        max_new_tokens=np.int64(3),
        temperature=np.float32(0.5),
        top_p=1,
        seed=2**63 - 1,
        block_length=None,
    )
    assert (config.max_new_tokens, config.top_p) == (3, 1)
    assert DecodeConfig(stop="ab").stop == ("ab",)
    assert DecodeConfig(stop=["a", "b"]).stop == ("a", "b")


def test_replace_copies_and_lists_the_options():
    config = DecodeConfig()
    assert config.replace(seed=4) == DecodeConfig(seed=4)
    assert config.replace() == config == DecodeConfig()
    with pytest.raises(ConfigError) as error:
        config.replace(temprature=1)
    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    assert str(error.value) == f"unknown option 'temprature'; known: {', '.join(names)}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_parts_are_given_by_name_or_as_objects():
    assert DecodeConfig(sampler="quota:steps=3").make("sampler") == Quota(3)
    rule = ThresholdRule(0.5)
    assert DecodeConfig(sampler=rule).make("sampler") is rule
    assert DecodeConfig(block_length=7).make("planner") == FixedBlocks(7)
    assert DecodeConfig(planner="fixed:block_length=2").make("planner") == FixedBlocks(2)
    assert DecodeConfig(planner=FixedBlocks(9)).make("planner") == FixedBlocks(9)
    assert not DecodeConfig().make("cache").uses_kv


@pytest.mark.parametrize(
    "sampler", [None, 3, ThresholdRule, FixedBlocks(3), "dllm.samplers.planner:FixedBlocks"]
)
def test_what_is_no_rule_is_refused(sampler):
    with pytest.raises(ConfigError, match=r"^sampler=.*expected a spec, or an object with select"):
        DecodeConfig(sampler=sampler).make("sampler")
