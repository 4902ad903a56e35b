"""samplers and env, and the program itself."""

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

import dllm
import dllm.api
import dllm.specs
from dllm.cache import POLICIES
from dllm.samplers import PLANNERS, SAMPLERS
from dllm.verify.parts import CONTROLS, RULES, SEARCHES, SOURCES
from tests.cli.common import fails, modules_after


class TestSamplers:
    def test_lists_every_part_with_options_and_papers(self, run):
        result = run("samplers")
        assert result.exit_code == 0
        shown = " ".join(result.stdout.split())
        for name in (*SAMPLERS, *PLANNERS, *POLICIES, *SEARCHES, *RULES, *CONTROLS, *SOURCES):
            assert re.search(rf"^ *{name}\b", result.stdout, re.MULTILINE)
        assert "threshold=0.9 (a number)" in shown
        assert "2505.22618" in shown
        assert "--max-new-tokens 128" in shown

    def test_third_party_parts(self, run, monkeypatch):
        points = {
            "dllm.samplers": [
                EntryPoint("mine", "dllm.samplers.quota:Quota", "dllm.samplers"),
                EntryPoint("broken", "no_such_module:Rule", "dllm.samplers"),
            ]
        }
        monkeypatch.setattr(dllm.specs, "entry_points", lambda group: points.get(group, []))
        result = run("samplers")
        assert result.exit_code == 0
        assert re.search(r"^\s*mine\s+Commit the k best", result.stdout, re.MULTILINE)
        assert re.search(r"^\s*broken\s+cannot load", result.stdout, re.MULTILINE)


class TestEnv:
    def test_text(self, run):
        shown = run("env").stdout
        assert re.search(rf"^torch +{re.escape(torch.__version__)}$", shown, re.MULTILINE)

    def test_json(self, run):
        found = json.loads(run("env", "--json").stdout)
        assert found["dllm"] == dllm.__version__
        assert found["torch_threads"] == torch.get_num_threads()
        assert isinstance(found["devices"], list)


class TestCommand:
    @pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help")])
    def test_help_is_light(self, arguments):
        heavy = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}
        assert modules_after(*arguments) & heavy == set()

    def test_help_lists_the_verbs(self, run):
        shown = run("--help").stdout
        for verb in ("generate", "chat", "samplers", "env", "train", "replay"):
            assert re.search(rf"\b{verb}\b", shown)

    def test_an_unknown_verb_is_one_line(self, run):
        fails(run("generat"), "No such command 'generat'", "generate", "chat")

    def test_python_m(self, root):
        done = subprocess.run(
            [sys.executable, "-m", "dllm", "replay", "none"],
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: none: cannot be read")
