"""Numbers on the command line that nobody should give: one error before anything is loaded."""

from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from dllm.cli import app
from tests.cli.common import fails

NEEDED = {  # by verb, beside the number; none of it is there, which would be told later
    "generate": ["hi", "--model", "none-such"],
    "chat": ["--model", "none-such"],
    "speculate": ["hi", "--target", "none-such"],
    "replay": ["none-such.jsonl"],
    "tune": ["--prompts", __file__, "--model", "none-such"],
    "eval run": ["--model", "none-such", "--out", "none-such"],
    "eval report": ["none-such"],
    "train": ["mdlm", "--model", "none-such", "--out", "none-such"],
}


def numbers():
    """(verb, option, type) of every number that a verb takes."""
    group = typer.main.get_command(app)
    below = {f"eval {name}": each for name, each in group.commands["eval"].commands.items()}
    for verb in NEEDED:
        for option in {**group.commands, **below}[verb].params:
            kind = option.type_descriptor.annotation
            kind = next(iter(get_args(kind)), kind)  # of a list
            if kind in (int, float):
                yield verb, option.opts[0], kind


@pytest.mark.parametrize(("verb", "option", "kind"), list(numbers()))
def test_no_number_and_a_number_out_of_bounds(verb, option, kind):
    for value in ("", "x", "nan", "1e400x", str(2**70) if kind is int else "-1"):
        result = CliRunner().invoke(app, [*verb.split(), *NEEDED[verb], option, value])
        fails(result)
        field = option.removeprefix("--").replace("-", "_")
        assert any(word in result.stderr for word in (option, f"{field}=", f"{value!r}"))
        assert "none-such" not in result.stderr
