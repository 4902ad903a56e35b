"""Options made of a dataclass's fields: names, types, help and what a verb is given."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from dllm.cli.app import Commands, verb
from dllm.cli.fields import Given, OptionsOf, described_fields
from dllm.cli.options import AnswerOptions, LoadOptions
from dllm.cli.speculate import PairOptions
from dllm.config import DecodeConfig
from dllm.train.asked import Asked
from dllm.verify.config import SpecConfig
from tests.cli.common import fails


@dataclass(frozen=True)
class Cooking:
    """Options of a dish. Of what is no section:
        salt: Nothing is read here.

    Heat:
        oven_heat: Degrees; a
            second line belongs to the first.
        rate (SPEC): A number.
    Dish:
        herbs: One of them; may be repeated.
        hot: Serve it hot.
        cold: Or cold.
        book: Where it is written.
    """

    oven_heat: int | None = field(default=180, metadata={"min": 0, "max": 300})
    rate: float = field(default=0.5, metadata={"min": 0, "max": 1})
    herbs: tuple[str, ...] = ("sage", "thyme")
    hot: bool = False
    cold: bool = field(default=True, metadata={"flags": "--cold/--warm"})
    book: Path | None = None
    salt: Unknown | str | None = None  # noqa: F821 (as a component's type, which is not imported)


@pytest.fixture
def cook():
    """Runs a verb with these options; `given`: what it got, as a dictionary and as an object."""
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    got = []

    @verb(app)
    def cook(
        size: int = 1,
        *,
        dish: Annotated[Cooking, OptionsOf(Cooking, only=["hot", "herbs", "cold"])],
        rest: Annotated[Given, OptionsOf(Cooking, but=["hot", "herbs", "cold"])],
    ) -> None:
        """Cook."""
        got.append((size, dish, rest))

    def run(*arguments):
        return CliRunner(env={"COLUMNS": "150"}).invoke(app, ["cook", *arguments])

    run.got = got
    return run


def test_only_what_was_given_is_passed_on(cook):
    assert cook().exit_code == 0
    words = "--size 2 --herb a --herb b --hot --warm --oven-heat 0 --book x --salt low --rate 1"
    assert cook(*words.split()).exit_code == 0
    rest = {"oven_heat": 0, "rate": 1.0, "book": Path("x"), "salt": "low"}
    assert cook.got == [
        (1, Cooking(), {}),
        (2, Cooking(herbs=["a", "b"], hot=True, cold=False), rest),
    ]


def test_help_is_the_docstring(cook):
    text = " ".join(cook("--help").stdout.split())
    assert "─ Heat ─" in text
    assert "─ Dish ─" in text
    assert "Degrees; a second line belongs to the first. [default: 180]" in text
    assert "--rate SPEC" in text
    assert "--herb <list[str]> One of them; may be repeated. [default: sage, thyme]" in text
    assert "[default: cold]" in text
    assert "Nothing is read here" not in text
    assert cook().exit_code == 0
    assert cook.got == [(1, Cooking(), {})]  # what help has shown was not given


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--oven-heat 301", "301"),
        ("--oven-heat x", "--oven-heat 'x': expected a whole number of at least 0"),
        ("--rate nan", "--rate 'nan': expected a number of at least 0"),
        ("--cool", "No such option: --cool"),
    ],
)
def test_a_wrong_value_is_told(cook, words, told):
    fails(cook(*words.split()), told)


def test_options_may_be_repeated_and_explained_otherwise():
    group = OptionsOf(Cooking, only=["rate"], panel="All", repeated=True, texts={"rate": "Rates."})
    (parameter,) = group.parameters()
    kind, option = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
    assert kind == list[float] | None
    assert (option.help, option.rich_help_panel, option.metavar) == ("Rates.", "All", "SPEC")


@pytest.mark.parametrize(
    "config", [DecodeConfig, SpecConfig, Asked, LoadOptions, PairOptions, AnswerOptions]
)
def test_every_field_is_described_and_no_other(config):
    names = {each.name for each in fields(config)} - ({"recipe"} if config is Asked else set())
    told = described_fields(config)
    assert told.keys() == names
    assert all(each.panel and each.text for each in told.values())
