"""Two processes under torchrun train the model that one process trains."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from dllm.processes import Ranks
from dllm.train.state import FILE
from dllm.train.trainer import TrainConfig
from tests.train.test_mdlm import OBJECTIVE, trainer

# The second process of a batch of one row has nothing to do, and must not keep the first waiting.
CONFIGS = {
    "even": TrainConfig(batch_size=6, warmup=2, decay=3),
    "in parts": TrainConfig(batch_size=5, warmup=2, decay=3, parts=2),
    "one row": TrainConfig(batch_size=1, warmup=2, decay=3),
}
RUN = """
from pathlib import Path
from tests.train.test_parallel import CONFIGS, train
for name in CONFIGS:
    train(name, Path(sys.argv[1]))
"""


def small(*args):
    """A loss whose gradients are below what is clipped."""
    return 0.01 * OBJECTIVE.loss(*args)


def train(name, folder):
    made = trainer(3, CONFIGS[name], folder / name)
    made.stages = [replace(made.stages[0], loss=small)]
    made.run(log_every=3)


@pytest.mark.slow
def test_two_processes_equal_one(root, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(root)!r})\n{RUN}")
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launcher, str(script), str(tmp_path / "two")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in CONFIGS:
        train(name, tmp_path / "one")
        one, two = (load_file(tmp_path / count / name / FILE) for count in ("one", "two"))
        logs = [
            json.loads((tmp_path / count / name / "log.jsonl").read_text())
            for count in ("one", "two")
        ]
        assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-3)
        # the updates do not mind the scale of gradients, so look at the moments
        scale = [
            sum(float(t.norm()) for k, t in run.items() if k.endswith(("exp_avg", "buffer")))
            for run in (one, two)
        ]
        assert scale[1] == pytest.approx(scale[0], rel=0.05), name
        # bf16 products round differently by batch shape; what began at zero is all rounding
        for key, tensor in one.items():
            if key.startswith("model.") and not key.endswith(("o.weight", "down.weight")):
                assert (tensor - two[key]).norm() < 0.02 * tensor.norm(), (name, key)


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "cpu:gloo,cuda:nccl")])
def test_processes_with_a_gpu_each_talk_over_nccl(monkeypatch, gpus, backend):
    """Two of four are on this machine; NCCL does not let two share a GPU."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert Ranks(1, 4).backend == backend
