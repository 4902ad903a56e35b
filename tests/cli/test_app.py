"""The program around the verbs: help, defaults, exit statuses, wrong command lines."""

import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import dllm
from dllm.cli import app
from dllm.cli.options import LoadOptions
from dllm.cli.speculate import PairOptions
from dllm.config import DecodeConfig
from dllm.verify.config import SpecConfig
from tests.cli.common import fails

GROUP = get_command(app)
VERBS = [(name,) for name in GROUP.commands if name != "eval"]
VERBS += [("eval", name) for name in GROUP.commands["eval"].commands]


def shown(*arguments, columns="200"):
    result = CliRunner(env={"COLUMNS": columns}).invoke(app, [*arguments])
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("verb", [(), ("eval",), *VERBS], ids=" ".join)
def test_h_is_help(verb):
    assert shown(*verb, "-h") == shown(*verb, "--help")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_option_tells_its_default(verb):
    text = shown(*verb, "--help")
    rows = re.findall(r"^│ [*]? *--.*(?:\n│ {9,}\S.*)*", text, re.MULTILINE)
    assert any("--help" in row for row in rows)
    for row in rows:
        assert re.search(r"\bdefault\b|\[required\]|--help", row), row


def test_the_defaults_are_those_of_the_library():
    for verb, config in (("generate", DecodeConfig), ("speculate", SpecConfig)):
        text = shown(verb, "--help")
        for field in fields(config):
            row = re.search(rf"^│ --{field.name.replace('_', '-')} .*", text, re.MULTILINE)
            if row is None or isinstance(field.default, (tuple, bool, type(None), type(MISSING))):
                continue
            if field.name != "control":  # it has two
                assert f"[default: {field.default}]" in row[0]
    assert "[default: ngram, suffix]" in shown("speculate", "--help")
    for load, options in ((dllm.load, LoadOptions), (dllm.verify.load, PairOptions)):
        parameters = inspect.signature(load).parameters
        for field in fields(options):
            if field.name in parameters and field.name != "target":
                assert parameters[field.name].default == field.default


def test_a_shown_default_is_not_a_given_option(run):
    run("generate", "one")
    assert "dtype" not in run.asked


def test_version(run):
    assert run("--version").stdout == f"dllm {dllm.__version__}\n"


@pytest.mark.parametrize("verb", [(), ("eval",)])
def test_nothing_asked_is_the_help_and_no_error(run, verb):
    result = run(*verb)
    assert (result.exit_code, result.stderr) == (2, "")
    assert "Usage: dllm" in result.stdout.replace("root", "dllm")


LIGHT = """
import sys
from dllm.__main__ import main
for verb in ["", *sys.argv[1:]]:
    sys.argv = ["dllm", *verb.split(), "--help"]
    try:
        main()
    except SystemExit as stop:
        heavy = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}
        if stop.code or heavy & {*sys.modules}:
            sys.exit(f"{verb}: {stop.code} {heavy & {*sys.modules}}")
"""


def test_help_is_light():
    verbs = [" ".join(verb) for verb in VERBS]
    done = subprocess.run([sys.executable, "-c", LIGHT, *verbs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: dllm") == 1 + len(verbs)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate x --max-new-tokens abc", "--max-new-tokens 'abc': expected a whole number"),
        ("generate x --top-k 1.5", "--top-k '1.5': expected a whole number"),
        ("generate x --temperature hot", "--temperature 'hot': expected a number"),
        ("generate x --batch-size 0", "--batch-size '0': expected a whole number of at least 1"),
        ("replay x --delay -1", "--delay '-1': expected a number of at least 0"),
        ("eval run --out x --seed 1 --seed b", "--seed 'b': expected a whole number"),
        (f"tune --prompts x --batch-size {'9' * 5000}", "--batch-size '9999"),
    ],
)
def test_a_wrong_value_is_named(run, arguments, told):
    result = run(*arguments.split())
    fails(result, told)
    assert len(result.stderr) < 200


def test_completion(monkeypatch):
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("COMP_WORDS", "dllm generate --max-new")
    monkeypatch.setenv("_DLLM_COMPLETE", "complete_bash")
    result = CliRunner().invoke(app, [], prog_name="dllm")
    assert result.stdout.split() == ["--max-new-tokens"]


class TestStatus:
    """The exit statuses that the help names, of the console script itself."""

    def test_are_told(self):
        words = " ".join(shown("--help").split())
        for status in ("0 done", "2 what was asked", "130 interrupted", "1 all else"):
            assert status in words

    def test_done(self, run):
        assert run("generate", "one").exit_code == 0

    def test_asked_wrongly(self, run):
        for arguments in (("generat",), ("generate", "one", "--sampler", "x"), ("replay", "none")):
            fails(run(*arguments))

    def test_interrupted(self, run, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("dllm.api.load", interrupted)
        for verb in (("generate", "one"), ("chat",)):
            assert run(*verb).exit_code == 130

    def test_a_fault_of_its_own(self):
        code = (
            "import sys; from dllm.cli.app import main, verb\n"
            "verb(name='broken')(lambda: None())\n"
            "sys.argv = ['dllm', 'broken']; sys.exit(main())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.endswith("TypeError: 'NoneType' object is not callable\n")
