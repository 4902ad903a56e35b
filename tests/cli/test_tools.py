"""samplers and env, and the program itself."""

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import torch

import dllm
import dllm.api
import dllm.registry
from dllm.cache import POLICIES
from dllm.presets import PRESETS
from dllm.samplers import PLANNERS, SAMPLERS
from dllm.verify.components import CONTROLS, RULES, SEARCHES, SOURCES
from tests.cli.common import fails


class TestSamplers:
    def test_lists_every_part_with_options_and_papers(self, run):
        result = run("samplers")
        assert result.exit_code == 0
        shown = " ".join(result.stdout.split())
        for name in (*SAMPLERS, *PLANNERS, *POLICIES, *SEARCHES, *RULES, *CONTROLS, *SOURCES):
            assert re.search(rf"^ *{name}\b", result.stdout, re.MULTILINE)
        assert "threshold=0.9 (a number)" in shown
        assert "2505.22618" in shown

    def test_third_party_parts(self, run, monkeypatch):
        points = {
            "dllm.samplers": [
                EntryPoint("mine", "dllm.samplers.quota:Quota", "dllm.samplers"),
                EntryPoint("broken", "no_such_module:Rule", "dllm.samplers"),
            ]
        }
        monkeypatch.setattr(dllm.registry, "entry_points", lambda group: points.get(group, []))
        result = run("samplers")
        assert result.exit_code == 0
        assert re.search(r"^\s*mine\s+Commit the k best", result.stdout, re.MULTILINE)
        assert re.search(r"^\s*broken\s+cannot load", result.stdout, re.MULTILINE)

    def test_one_in_full(self, run):
        result = run("samplers", "klass")
        assert result.exit_code == 0
        shown = " ".join(result.stdout.split())
        for words in (
            "--sampler klass KLASS, arXiv 2511.05664",
            "Both tests are strict, as in the paper.",
            "history 2 a whole number",
            "--sampler klass:threshold=0.6,kl_threshold=0.015",
            "--preset klass",
            "on Dream: --sampler klass:threshold=0.9,kl_threshold=0.001 --block-length 0",
        ):
            assert words in shown

    def test_json(self, run):
        found = json.loads(run("samplers", "--json").stdout)
        names = {(component["option"], component["name"]) for component in found["components"]}
        assert names >= {("sampler", n) for n in SAMPLERS} | {("accept", n) for n in RULES}
        assert {preset["name"] for preset in found["presets"]} == {*PRESETS}
        assert found["defaults"]["generate"]["max_new_tokens"] == 128
        assert found["defaults"]["speculate"]["sources"] == ["ngram", "suffix"]
        [component] = json.loads(run("samplers", "quota", "--json").stdout)["components"]
        assert component["options"][:2] == [
            {"name": "steps", "expected": "a whole number or none", "default": None},
            {
                "name": "remasking",
                "expected": "low_confidence | random",
                "default": "low_confidence",
            },
        ]

    def test_an_unknown_name_lists_the_known(self, run):
        fails(run("samplers", "thrshold"), "'thrshold'", "threshold", "fast-dllm", "ngram")
        fails(run("samplers", "thrshold", "--json"), "'thrshold'")


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
        assert done.stderr.startswith("error: none: No such file")
