"""The command line with an echo as its bundled model."""

import pytest
from typer.testing import CliRunner

import dllm.api
from dllm.cli import app
from tests.echo import echo, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(monkeypatch, folder):
    """Run a command line whose bundled model is the echo."""
    load = dllm.api.load
    asked = {}

    def load_echo(name, **options):
        asked.update(options, model=name)
        return asked["engine"] if name == "tiny" else load(name, **options)

    asked["engine"] = echo(folder)
    monkeypatch.setattr("dllm.api.load", load_echo)

    def go(*arguments, input=""):
        return CliRunner().invoke(app, [str(a) for a in arguments], input=input)

    go.asked = asked
    return go
