"""The verb that hands over to lm-evaluation-harness."""

import sys
from types import SimpleNamespace

import pytest

from tests.cli.common import fails


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "dllm", "--model_args", "pretrained=tiny,mc_num=2", "-L", "5", "--tasks", "a"],
        ["run", "--help"],
        ["ls", "tasks"],
        ["--tasks", "a", "--help"],
        [],
    ],
)
def test_all_arguments_are_handed_over_as_they_are(run, monkeypatch, arguments):
    handed = []
    monkeypatch.setitem(
        sys.modules, "dllm.integrations.lm_eval", SimpleNamespace(run=handed.extend)
    )
    result = run("eval", "lm-eval", *arguments)
    assert (result.exit_code, handed) == (0, arguments)


def test_its_own_help_tells_the_model_arguments(run):
    result = run("eval", "lm-eval", "--help")
    assert result.exit_code == 0
    assert "mc_num" in result.stdout


def test_a_missing_lm_eval_is_told_with_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.delitem(sys.modules, "dllm.integrations.lm_eval", raising=False)
    fails(run("eval", "lm-eval", "--tasks", "a"), "pip install 'dllm-engine[lm-eval]'")
