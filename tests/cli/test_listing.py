"""What is told about components: options are explained, examples and presets can be typed."""

import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

import dllm.cli.decode
from dllm.cli import app
from dllm.cli.listing import ALL, as_json, components_called, options_as_typed, summary
from dllm.config import DecodeConfig
from dllm.presets import PRESETS
from dllm.train.recipes import RECIPES
from dllm.verify.config import SpecConfig

COMPONENTS = list(components_called(None))
NAMES = [f"{component.kind.option} {component.name}" for component in COMPONENTS]


@pytest.fixture
def typed(monkeypatch):
    """The options that a command line of generate comes to; nothing is loaded."""
    found = {}

    def prepare(model, load, preset, given):
        found.update(given)
        raise typer.Exit

    def of(words):
        found.clear()
        assert CliRunner().invoke(app, words).exit_code == 0
        return dict(found)

    monkeypatch.setattr(dllm.cli.decode, "prepare", prepare)
    return of


@pytest.mark.parametrize("component", COMPONENTS, ids=NAMES)
def test_every_option_is_explained_where_the_part_is(component):
    assert not component.wrong
    assert summary(component.about).endswith((".", ":"))
    for option, _, _ in component.options:
        assert re.search(rf"\b{option}\b", component.about), option


def test_those_of_recipes_too():
    from dllm.cli.listing import ListedOption, described

    for name in RECIPES:
        component = described(ListedOption("train", "recipe", RECIPES), name)
        for option, _, _ in component.options:
            assert re.search(rf"\b{option}\b", component.about), (name, option)


@pytest.mark.parametrize("component", COMPONENTS, ids=NAMES)
def test_the_example_can_be_typed(component, typed):
    words = shlex.split(component.example)
    assert words[:2] == ["dllm", component.kind.verb]
    spec = words[words.index(component.kind.flag) + 1]
    assert spec.partition(":")[0] == component.name
    if re.search(r"=[A-Z]", spec):
        return  # a file, which the reader has
    if component.kind.verb == "generate":
        options = typed(words[1:])
        assert options == {component.kind.option: spec}
        DecodeConfig(**options).check_components()
        return
    given = dict(zip(words[3::2], words[4::2]))
    given = {key.lstrip("-").replace("source", "sources"): value for key, value in given.items()}
    lossy = "lossy" in words[-1]
    given["temperature"] = float(given.get("temperature", 0))
    SpecConfig(**{k: v for k, v in given.items() if k != "lossy"}, lossless=not lossy).components()


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_stands_for_can_be_typed(name, typed):
    for options in (PRESETS[name].options, PRESETS[name].dream):
        words = shlex.split(options_as_typed(options))
        found = typed(["generate", "one", *words])
        if found.get("block_length") == 0:
            found["block_length"] = None
        assert DecodeConfig(**found) == DecodeConfig(**options)


def test_json_tells_all_and_holds_no_more():
    assert (
        len(as_json()["components"]) == len(COMPONENTS) >= sum(len(kind.registry) for kind in ALL)
    )
    assert as_json("no such")["components"] == as_json("no such")["presets"] == []
