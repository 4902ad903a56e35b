"""Option values and combinations of them."""

import pytest

from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.eval.grid import GRIDS, grid, rules, sweep
from dllm.presets import PRESETS


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("dus", [("dus", "", "dus")]),
        ("eb:bound=0.1", [("eb:bound=0.1", "", "eb:bound=0.1")]),
        (
            "quota:remasking=random,count=1/4",
            [
                ("quota:remasking=random", "count=1", "quota:remasking=random,count=1"),
                ("quota:remasking=random", "count=4", "quota:remasking=random,count=4"),
            ],
        ),
        (
            "factor:factor=1/1e3",
            [
                ("factor", "factor=1", "factor:factor=1"),
                ("factor", "factor=1e3", "factor:factor=1e3"),
            ],
        ),
        ("pc:table=a/b/c", [("pc:table=a/b/c", "", "pc:table=a/b/c")]),
        ("pc:table=/tmp/1", [("pc:table=/tmp/1", "", "pc:table=/tmp/1")]),
    ],
)
def test_a_list_of_numbers_is_one_setting_each(spec, expected):
    assert sweep(spec) == expected


def test_one_spec_sweeps_one_knob():
    with pytest.raises(DllmError, match="one swept option, found low, high"):
        sweep("hierarchical:low=0.1/0.2,high=0.8/0.9")


def test_all_combinations_each_under_its_own_name():
    parts = {
        "sampler": ["threshold:threshold=0.5/0.9", "dus"],
        "cache": ["none", "dual"],
        "block_length": [32, None],
    }
    settings = grid(parts, presets=["fast-dllm-cache"])
    assert len(settings) == len({s.key for s in settings}) + 4 == 16  # of preset and threshold 0.9
    assert [s.name for s in settings[:4]] == [
        "threshold threshold=0.5",
        "threshold threshold=0.9",
        "dus",
        "preset fast-dllm-cache + none",
    ]
    assert (settings[3].options["cache"], settings[-1].options["cache"]) == ("none", "dual")
    assert settings[-2].name == "dus + dual + block_length=None"
    assert settings[-1].options == {
        "sampler": "threshold:threshold=0.9",
        "cache": "dual",
        "block_length": None,
    }
    assert settings[-1].name == "preset fast-dllm-cache + block_length=None"


def test_a_preset_is_the_family_s():
    options = {s.method: s.options for s in grid({}, presets=["localleap"], family="dream")}
    assert "relaxed=0.8," in options["preset localleap"]["sampler"]


def test_nothing_to_decode_with_is_an_error():
    with pytest.raises(DllmError, match="expected a sampler, a preset or a grid"):
        grid({"cache": ["none"]})


@pytest.mark.parametrize("name", GRIDS)
def test_every_named_grid_can_be_built(name):
    samplers, presets = rules([name])
    for setting in grid({"sampler": samplers}, presets=presets):
        DecodeConfig().replace(**setting.options).check_components()


def test_the_presets_are_all_there_and_unknown_grids_are_told():
    assert rules(["presets"]) == ([], list(PRESETS))
    with pytest.raises(
        DllmError, match="unknown grid 'all': expected one of quick, rules, presets"
    ):
        rules(["all"])
