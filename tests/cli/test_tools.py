"""samplers, env and train, and the program itself."""

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
import dllm.train.tiny
from dllm.cache import POLICIES
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.samplers import PLANNERS, SAMPLERS
from dllm.train.data import Mixture
from dllm.train.mdlm import loss
from dllm.train.trainer import Stage, TrainConfig, Trainer, init_weights
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


class TestTrain:
    @pytest.fixture
    def recipe(self, monkeypatch, folder):
        """A run of three steps in place of the recipe's."""
        tokenizer = dllm.train.tiny.tokenizer
        made = []

        def trainer(out):
            words = tokenizer()
            size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
            spec = dllm.train.tiny.spec(words)
            parts = {f: getattr(spec, f) for f in spec.__dataclass_fields__}
            small = ModelSpec(**{**parts, **size, "head_dim": 16, "mlp_size": 32})
            stages = (Stage(3, Mixture({"copy": 1.0})),)
            config = TrainConfig(batch_size=4, save_every=2)
            model = Decoder(small)
            init_weights(model, 0)
            made.append(Trainer(model, loss, words, small.eos_id, stages, config, out))
            return made[-1]

        monkeypatch.setattr(dllm.train.tiny, "EXAMPLES_PER_TASK", 20)
        monkeypatch.setattr(dllm.train.tiny, "trainer", trainer)
        return made

    def test_runs_and_resumes(self, run, recipe, tmp_path):
        first = run("train", "mdlm", "--out", tmp_path / "run")
        assert first.exit_code == 0, first.output
        assert json.loads((tmp_path / "run" / "state.json").read_text())["step"] == 3
        run("train", "mdlm", "--out", tmp_path / "run")
        assert recipe[1].step == 3
        assert not hasattr(recipe[1], "last_tokens")  # no step was run again

    def test_errors(self, run, tmp_path):
        fails(run("train", "x", "--out", tmp_path), "no recipe 'x'", "mdlm")
        fails(run("train", "mdlm"), "--out")


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
