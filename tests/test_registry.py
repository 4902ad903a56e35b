"""Parts by name: what a spec may look like, how values are read, and what errors say."""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dllm.registry
from dllm.cache import POLICIES
from dllm.registry import Registry, SpecError, convert, split_spec
from dllm.samplers import PLANNERS, SAMPLERS, SPECULATORS, STOP_RULES, TRANSFORMS
from dllm.samplers.dream import Dream
from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.planner import FixedBlocks
from dllm.samplers.quota import Quota
from dllm.samplers.rule import CommitRuleBase


@dataclasses.dataclass(frozen=True)
class Custom(CommitRuleBase):
    must: int
    flag: bool = False
    ratio: float | None = 0.5
    kind: Literal["one", "two"] = "one"
    name: str = ""


class NotAPart:
    pass


@pytest.fixture(autouse=True)
def third_party(monkeypatch):
    """A module of somebody else, `third`, with Custom and NotAPart."""
    module = ModuleType("third")
    module.Custom, module.NotAPart = Custom, NotAPart  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third", module)


def sampler(spec: str):
    return SAMPLERS.build(spec)


def test_the_working_directory_is_searched_for_what_is_typed_alone(tmp_path, monkeypatch):
    part = "from dllm.samplers.quota import Quota as Base\nclass Here(Base):\n    pass\n"
    (tmp_path / "here_alone.py").write_text(part)
    (tmp_path / "hijacked.py").write_text("raise SystemExit('this ran')")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    ours = Registry("sampler", "dllm.samplers", {"mine": "hijacked:Part"})
    with pytest.raises(SpecError, match="No module named 'hijacked'"):
        ours.build("mine")
    points = EntryPoints([EntryPoint("theirs", "hijacked:Part", "dllm.samplers")])
    monkeypatch.setattr(dllm.registry, "entry_points", lambda group: points.select(group=group))
    with pytest.raises(SpecError, match="No module named 'hijacked'"):
        sampler("theirs")
    assert sampler("here_alone:Here:steps=3").steps == 3
    sys.modules.pop("here_alone")
    with pytest.raises(SpecError, match="expected an object with a method step"):
        sampler("scheduler:scheduler=here_alone.Here")
    sys.modules.pop("here_alone")
    assert sys.path == before
    with pytest.raises(ModuleNotFoundError):
        import hijacked  # noqa: F401
    with pytest.raises(SpecError, match="No module named 'no_such'"):
        sampler("no_such:Part")
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("threshold", ThresholdRule()),
        ("threshold:threshold=0.7", ThresholdRule(0.7)),
        (" quota: steps = 3 , remasking=random ", Quota(3, "random")),
        ("quota:steps=none", Quota()),
        ("quota:steps=None,logits_eos_inf=True", Quota(logits_eos_inf=True)),
        ("quota:confidence_eos_eot_inf=false,", Quota()),
        ("dream:alg=entropy,eps=1e-2", Dream("entropy", eps=0.01)),
        ("dllm.samplers.quota:Quota", Quota()),
        ("dllm.samplers.quota:Quota:steps=5", Quota(5)),
        (
            "third:Custom:must=3,flag=true,ratio=none,kind=two,name=x y",
            Custom(3, True, None, "two", "x y"),
        ),
    ],
)
def test_a_spec_is_its_part(spec, part):
    assert sampler(spec) == part


@pytest.mark.parametrize(
    "registry",
    [SAMPLERS, PLANNERS, TRANSFORMS, STOP_RULES, SPECULATORS, POLICIES],
    ids=lambda registry: registry.kind,
)
def test_every_name_in_a_table_is_a_component_and_names_its_paper(registry):
    for name in registry:
        assert registry.find(name).paper
        if name not in ("learn2pd", "scheduler"):  # a file, an object: theirs is no default
            options = ":at=3" if name == "prophet" else ""
            registry.build(name + options)


@given(
    st.none() | st.integers(1, 99),
    st.sampled_from(["low_confidence", "random"]),
    st.booleans(),
    st.booleans(),
)
def test_written_out_options_come_back(steps, remasking, a, b):
    rule = Quota(steps, remasking, a, b)
    text = ",".join(f"{key}={value}" for key, value in dataclasses.asdict(rule).items())
    assert sampler(f"quota:{text}") == rule


def test_defaults_fill_what_the_spec_leaves_open():
    planner = PLANNERS.build
    assert planner("fixed", block_length=8) == FixedBlocks(8)
    assert planner("fixed:block_length=4", block_length=8) == FixedBlocks(4)
    assert planner("fixed:block_length=none", block_length=8) == FixedBlocks(None)
    assert planner("fixed", other=1) == FixedBlocks()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "nope",
            "unknown sampler 'nope': expected one of dream, .*quota, .*threshold, or module:Class",
        ),
        ("", "unknown sampler ''"),
        ("quota:step=3", "'quota' has no option 'step'; its options: steps, remasking, logits"),
        ("quota:steps=many", "quota:steps='many': expected a whole number or none"),
        ("quota:steps=1.5", "quota:steps='1.5': expected a whole number or none"),
        ("quota:steps=0", "steps=0: expected a whole number of at least 1"),
        ("quota:steps=1,steps=2", "the option 'steps' is given twice"),
        ("quota:remasking=all", r"remasking='all': expected low_confidence \| random"),
        ("quota:logits_eos_inf=yes", "logits_eos_inf='yes': expected true or false"),
        ("quota:logits_eos_inf=none", "logits_eos_inf='none': expected true or false"),
        ("quota:steps=3,x", "expected key=value, found 'x'"),
        ("quota:steps=", "quota:steps='': expected a whole number or none"),
        ("threshold:0.9", "sampler 'threshold:0.9': expected name:key=value, or module:Class"),
        ("threshold:", "sampler 'threshold:': expected name:key=value"),
        ("threshold:threshold=nan", "threshold=nan: expected a probability"),
        ("threshold:threshold=-0.1", "threshold=-0.1: expected a probability"),
        ("dream:eps=0", "eps=0.0: expected a number between 0 and 1"),
        ("dream:alg_temp=nan", "alg_temp=nan: expected a number of at least 0"),
        ("dream:alg_temp=-1", "alg_temp=-1.0: expected a number of at least 0"),
        ("dream:steps=0", "steps=0: expected a whole number of at least 1"),
        ("third:Missing", "cannot load sampler 'third:Missing'.*Missing"),
        ("no_such_module:Class", "cannot load sampler 'no_such_module:Class'"),
        (":Class", "sampler ':Class': expected name:key=value, or module:Class"),
        (".third:Custom", "cannot load sampler '.third:Custom'"),
        ("third:NotAPart", "third:NotAPart'.*expected a dataclass"),
        ("third:Custom", "'third:Custom': must is missing: expected third:Custom:must="),
    ],
)
def test_an_error_names_the_value_and_the_choices(spec, message):
    with pytest.raises(SpecError, match=message):
        sampler(spec)


def test_a_planner_checks_its_block():
    with pytest.raises(SpecError, match="block_length=0: expected a whole number of at least 1"):
        PLANNERS.build("fixed:block_length=0")


def test_entry_points_add_parts(monkeypatch):
    def entry_points(group):
        mine = EntryPoint("mine", "third:Custom", "dllm.samplers")
        return EntryPoints([mine] if group == "dllm.samplers" else [])

    monkeypatch.setattr(dllm.registry, "entry_points", entry_points)
    assert sampler("mine:must=2") == Custom(2)
    assert sampler("quota") == Quota()
    with pytest.raises(SpecError, match=r"expected one of dream, .*mine, .*quota"):
        sampler("my")
    with pytest.raises(SpecError, match="unknown planner 'mine'"):
        PLANNERS.build("mine")


def test_split():
    assert split_spec("a") == ("a", {})
    assert split_spec("a:b") == ("a:b", {})
    assert split_spec("a:b=c=d") == ("a", {"b": "c=d"})
    assert split_spec("a.b:C:x=1, y=2") == ("a.b:C", {"x": "1", "y": "2"})


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("-3", int | None, -3),
        ("3", float, 3.0),
        ("none", float | None, None),
        ("TRUE", bool, True),
        ("3", str, "3"),
        ("two", Literal["one", "two"] | None, "two"),
        ("none", Literal["one", "two"] | None, None),
    ],
)
def test_convert(text, hint, value):
    found = convert(text, hint, "x")
    assert (found, type(found)) == (value, type(value))


def test_convert_says_what_it_expected():
    with pytest.raises(SpecError, match=r"x='y': expected one \| two or none"):
        convert("y", Literal["one", "two"] | None, "x")


def test_a_part_of_our_tables_is_found_without_looking_for_others(monkeypatch):
    """Looking for entry points reads the metadata of every installed package."""

    def looked(group):
        raise AssertionError(f"looked for {group}")

    monkeypatch.setattr(dllm.registry, "entry_points", looked)
    assert SAMPLERS.find("quota") is Quota
