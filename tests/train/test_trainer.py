import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dllm.train.trainer import Stage, TrainConfig, Trainer
from tests.train.test_mdlm import trainer


@dataclass
class Points:
    """Rows of numbers."""

    x: torch.Tensor

    @property
    def size(self):
        return self.x.numel()


def points(index):
    return Points(torch.randn(12, 3, generator=torch.Generator().manual_seed(index)))


def squares(model, batch, generator, part):
    noise = torch.randn(batch.x.shape, generator=generator)
    return (model((batch.x + noise)[part]) ** 2).sum() / len(batch.x)


def cubes(model, batch, generator, part):
    return (model(batch.x[part]).abs() ** 3).sum() / len(batch.x)


def linear(stages, out, **knobs):
    torch.manual_seed(0)
    return Trainer(nn.Linear(3, 2), stages, TrainConfig(warmup=1, decay=1, **knobs), out)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    def run(folder, steps):
        config = TrainConfig(batch_size=4, warmup=2, decay=3, save_every=2)
        made = trainer(6, config, folder)
        while made.step < steps:
            made.train_step()
        made.save()
        return made

    run(tmp_path / "broken", 3)
    broken, whole = run(tmp_path / "broken", 6), run(tmp_path / "whole", 6)
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, broken.model.state_dict()[name]), name


def test_stages_follow_each_other_and_rates_rise_and_fall(tmp_path):
    stages = [Stage(3, points, squares), Stage(7, points, cubes, rate=0.5)]
    config = TrainConfig(warmup=4, decay=5)
    run = Trainer(nn.Linear(3, 2), stages, config, tmp_path)
    assert [run.stage(step) is stages[0] for step in range(5)] == [True] * 3 + [False] * 2
    assert [run.lr_factor(step) for step in (0, 3, 5, 9)] == [0.25, 0.5, 0.5, 0.1]
    assert run.total_steps == 10


def test_each_stage_has_its_batches_and_loss(tmp_path):
    run = linear([Stage(1, points, squares), Stage(1, points, cubes)], tmp_path)
    first, expected = run.train_step(), None
    with torch.no_grad():
        expected = cubes(run.model, points(1), None, slice(None)).item()
    assert run.train_step() == pytest.approx(expected)
    assert first != expected


@pytest.mark.parametrize("parts", [2, 5, 20])
def test_a_batch_in_parts_is_the_same_batch(tmp_path, parts):
    """Also with more parts than rows: an empty part adds nothing."""
    whole = linear([Stage(9, points, squares)], tmp_path / "whole")
    split = linear([Stage(9, points, squares)], tmp_path / "split", parts=parts)
    for _ in range(3):
        assert split.train_step() == pytest.approx(whole.train_step(), rel=1e-5)
    for a, b in zip(whole.model.parameters(), split.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_what_is_frozen_stays_and_is_not_saved(tmp_path):
    run = linear([Stage(4, points, squares)], tmp_path)
    frozen = linear([Stage(4, points, squares)], tmp_path / "frozen")
    frozen.model.bias.requires_grad_(False)
    frozen = Trainer(frozen.model, frozen.stages, frozen.config, tmp_path / "frozen")
    before = frozen.model.bias.clone()
    frozen.train_step()
    frozen.save()
    run.train_step()
    assert torch.equal(frozen.model.bias, before)
    assert not torch.equal(run.model.bias, before)
    again = nn.Linear(3, 2)
    again.bias.requires_grad_(False)
    kept = again.bias.clone()
    loaded = Trainer(again, frozen.stages, frozen.config, tmp_path / "frozen")
    assert loaded.step == 1
    assert torch.equal(again.weight, frozen.model.weight)
    assert torch.equal(again.bias, kept)


@pytest.mark.parametrize(("muon_lr", "kinds"), [(0.01, ["Muon", "AdamW"]), (None, ["AdamW"])])
def test_matrices_of_layers_may_have_their_own_optimizer(tmp_path, muon_lr, kinds):
    config = TrainConfig(batch_size=2, muon_lr=muon_lr)
    run = trainer(3, config, tmp_path)
    assert [type(opt).__name__ for opt in run.optimizers] == kinds
    counted = sum(p.numel() for group in run.groups for p in group["params"])
    assert counted == sum(p.numel() for p in run.model.parameters())


def test_adamw_has_the_knobs_of_the_config(tmp_path):
    knobs = {"betas": (0.5, 0.6), "weight_decay": 0.3}
    (group,) = linear([Stage(1, points, squares)], tmp_path, **knobs).groups
    assert {name: group[name] for name in knobs} == knobs


def test_the_log_is_jsonl(tmp_path):
    seen = []
    config = TrainConfig(batch_size=2, save_every=100)
    trainer(4, config, tmp_path).run(2, seen.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [n["step"] for n in seen] == [2, 4]


def test_lines_of_steps_that_are_run_again_leave_the_log(tmp_path):
    stages = [Stage(9, points, squares)]
    run = linear(stages, tmp_path, save_every=4)

    def interrupt(numbers):
        if numbers["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(1, interrupt)
    again = linear(stages, tmp_path, save_every=4)
    assert again.step == 4
    again.run(1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
