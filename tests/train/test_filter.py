"""Learn2PD's filter: its loss by hand, the fit against what it must find, the whole recipe."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.files import FileError
from dllm.models.decoder import Decoder
from dllm.samplers.learn2pd import NAMES, Learn2PD, load_filter, save_filter
from dllm.train.filter import Filter, FilterMLP, export
from dllm.train.job import Job
from dllm.train.oracle import OracleRollout, Traces
from dllm.train.trainer import Stage, Trainer
from tests.echo import write_tiny
from tests.fakes import PLAIN, FakeModel, leaning
from tests.samplers.test_learn2pd import samples, view_of


def random_traces(seed: int, steps: int = 7, block: int = 5) -> Traces:
    draw = torch.Generator().manual_seed(seed)
    coins = torch.rand(2, steps, block, generator=draw) < 0.5
    seen = torch.rand(steps, block, generator=draw)
    return Traces(seen, coins[0], coins[1], torch.arange(steps) // 2)


def total(recipe: Filter, traces: Traces, part: slice = slice(None)) -> Tensor:
    model = FilterMLP(recipe.block_length, 6, seed=3)
    return recipe.loss(model, traces, torch.Generator(), part)


@pytest.mark.parametrize("weight", [1.0, 0.25, 4.0])
def test_the_loss_is_the_mean_over_candidates_of_what_they_cost(weight):
    traces = random_traces(0)
    w1, b1, w2, b2 = (t.detach().double().numpy() for t in FilterMLP(5, 6, seed=3).parameters())
    costs = []
    for n, k in traces.counted.nonzero().tolist():
        hidden = np.maximum(w1 @ traces.seen[n].double().numpy() + b1, 0)
        p = 1 / (1 + math.exp(-(w2[k] @ hidden + b2[k])))
        costs.append(-weight * math.log(p) if traces.right[n, k] else -math.log(1 - p))
    found = total(Filter(5, positive_weight=weight), traces)
    assert found.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_the_losses_of_the_processes_add_up():
    recipe, traces = Filter(5), random_traces(1)
    parts = [total(recipe, traces, slice(i, None, 3)) for i in range(3)]
    assert sum(parts).item() == pytest.approx(total(recipe, traces).item(), rel=1e-5)


# --- the fit -------------------------------------------------------------------------------------


def trainer(
    recipe: Filter, traces: Traces, out: Path, steps: int, lr: float = 1e-2, seed: int = 0
) -> Trainer:
    config = replace(recipe.config, lr=lr, decay=steps)
    model = FilterMLP(recipe.block_length, recipe.hidden, seed)
    return Trainer(model, [Stage(steps, lambda _: traces, recipe.loss)], config, out)


def fitted(*args, **knobs) -> FilterMLP:
    run = trainer(*args, **knobs)
    run.run()
    return run.model


def test_a_fitted_filter_commits_as_its_oracle_and_minds_candidates_alone(tmp_path):
    conf, label = samples(4096, 1)
    counted = torch.rand(conf.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    traces = Traces(conf, label ^ ~counted, counted, torch.arange(len(conf)))
    path = tmp_path / "f"
    save_filter(path, fitted(Filter(16), traces, tmp_path / "run", steps=400).state_dict())
    conf, label = samples(300, 2)
    commit = Learn2PD(str(path), threshold=0.5).select(view_of(conf)).commit
    assert (commit == label).double().mean() >= 0.97


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_where_nothing_can_be_told_the_filter_says_the_share_that_is_right(weight, tmp_path):
    right = torch.tensor([[True, False], [True, False], [True, True], [False, False]])
    every = torch.ones_like(right)
    traces = Traces(torch.ones(4, 2), right, every, torch.arange(4))
    recipe = Filter(2, hidden=4, positive_weight=weight)
    said = fitted(recipe, traces, tmp_path, steps=150, lr=0.05)(traces.seen[0]).sigmoid()
    odds = torch.tensor([3.0, 1 / 3]) * weight
    torch.testing.assert_close(said, odds / (1 + odds), rtol=0, atol=2e-3)


def test_a_fit_is_a_function_of_its_seed(tmp_path):
    traces = random_traces(2)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = fitted(Filter(5), traces, tmp_path / "a", steps=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    again = fitted(Filter(5), traces, tmp_path / "b", steps=3).state_dict()
    other = fitted(Filter(5), traces, tmp_path / "c", steps=3, seed=1).state_dict()
    assert list(first) == list(NAMES)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert not any(torch.equal(first[name], other[name]) for name in NAMES)


def test_the_loss_falls_to_what_the_filter_has_in_the_end(tmp_path):
    lines: list[dict[str, float]] = []
    traces, recipe = random_traces(3), Filter(5)
    run = trainer(recipe, traces, tmp_path, steps=250, lr=3e-3)
    run.run(log_every=10, on_log=lines.append)
    losses = [line["loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    last = recipe.loss(run.model, traces, torch.Generator(), slice(None)).item()
    assert losses[-1] == pytest.approx(last, abs=1e-3)
    assert run.last_tokens == 7 * 5


def test_at_a_constant_rate_it_is_adamw_as_torch_has_it(tmp_path):
    recipe, traces = Filter(5, hidden=4), random_traces(4)
    config = replace(recipe.config, decay=1)
    run = Trainer(FilterMLP(5, 4, 0), [Stage(9, lambda _: traces, recipe.loss)], config, tmp_path)
    run.run()
    model = FilterMLP(5, 4, 0)
    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(9):
        adam.zero_grad()
        recipe.loss(model, traces, torch.Generator(), slice(None)).backward()
        adam.step()
    torch.testing.assert_close(run.model.state_dict(), model.state_dict(), rtol=1e-6, atol=1e-7)


def test_the_papers_filter_has_2112_parameters():
    recipe = Filter()
    model = FilterMLP(recipe.block_length, recipe.hidden, 0)
    assert sum(p.numel() for p in model.parameters()) == 2112
    assert recipe.config.lr == 3e-3


def test_a_trained_filter_decodes_with_fewer_forwards_where_the_model_is_sure(tmp_path):
    prompts = [[3, 4, 6], [7], [8, 9, 10, 11, 12], [6, 6], [4, 7, 3, 9]]
    engine = Engine(FakeModel(leaning(PLAIN[2])))
    oracle, recipe = OracleRollout(4, 8, 2), Filter(block_length=4, hidden=8)
    traces = oracle.roll_outs(engine, list(oracle.references(engine, prompts)))
    model = fitted(recipe, traces, tmp_path / "run", steps=300)
    export(model, tmp_path / "new" / "made")
    path = tmp_path / "new" / "made" / "filter.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    layers = load_filter(path)
    assert all(torch.equal(layers[name], t) for name, t in model.state_dict().items())
    config = oracle.config.replace(history=False)
    slow = engine.generate(prompts, config)
    fast = engine.generate(prompts, config, sampler=f"learn2pd:filter={path}")
    assert [o.token_ids for o in fast] == [o.token_ids for o in slow]
    assert {o.nfe for o in slow} == {8}
    assert {o.nfe for o in fast} == {2}


def test_a_filter_that_is_no_numbers_replaces_none(tmp_path):
    model = FilterMLP(4, 3, 0)
    export(model, tmp_path)
    with torch.no_grad():
        model.get_parameter("in.bias")[0] = math.nan
    with pytest.raises(DllmError, match=r"diverged.*a lower --lr"):
        export(model, tmp_path)
    assert load_filter(tmp_path / "filter.safetensors")["in.bias"].isfinite().all()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_filter(tmp_path, monkeypatch):
    def broken(tensors, path, metadata):
        Path(path).write_text("half a fil")
        raise OSError("no space left")

    export(FilterMLP(4, 3, 0), tmp_path)
    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(FileError, match="no space left"):
        export(FilterMLP(4, 3, 1), tmp_path)
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_filter(file)["in.bias"], FilterMLP(4, 3, 0).state_dict()["in.bias"])


# --- the whole recipe ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def ctrl_c(monkeypatch, forwards: int) -> None:
    """Ctrl-C comes after so many forwards."""
    forward, left = Decoder.forward, iter(range(forwards))

    def counted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(Decoder, "forward", counted)


def silent(*_: object) -> None:
    pass


def job(folder: Path, out: Path, **options) -> Job:
    few = {"data": "generators:copy", "examples": 5, "max_new_tokens": 10, "steps": 3}
    return Job("filter", out, **{"model": str(folder), **few, **options})


def traces_of(run) -> Traces:
    (stage,) = run.trainer.stages
    return stage.batches(0)


def same(one: Traces, other: Traces) -> bool:
    names = ("seen", "right", "counted", "row")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_it_learns_from_the_roll_outs_of_its_own_model(folder, tmp_path):
    asked = job(folder, tmp_path, seed=3, lr=0.25)
    run = Filter(block_length=4, hidden=6).prepare(asked, silent)
    student = asked.student("a model")
    engine, oracle = Engine(student.model, student.text), OracleRollout(4, 10, 64)
    prompts = sorted((q.prompt(student.text) for q in asked.questions()), key=len)
    expected = oracle.roll_outs(engine, list(oracle.references(engine, prompts)))
    assert same(traces_of(run), expected)
    first = FilterMLP(4, 6, seed=3).state_dict()
    assert all(torch.equal(t, first[name]) for name, t in run.trainer.model.state_dict().items())
    assert run.trainer.config == replace(Filter.config, seed=3, lr=0.25, warmup=1, decay=3)
    assert run.trainer.total_steps == 3
    usual = Filter(block_length=4).prepare(replace(asked, steps=None), silent)
    assert usual.trainer.total_steps == Filter.steps
    assert (
        run.use.format("D") == f"dllm generate --model {folder} "
        "--sampler learn2pd:filter=D/filter.safetensors --block-length 4 --cache none PROMPT"
    )


def test_interrupted_it_goes_on_and_shares_its_references(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dllm.train.filter.TOGETHER", 2)
    recipe = Filter(block_length=5, hidden=4)
    whole = traces_of(recipe.prepare(job(folder, tmp_path / "a"), silent))
    file = tmp_path / "b" / "rollouts.jsonl"
    with monkeypatch.context() as patch:
        ctrl_c(patch, 15)  # a batch takes ten
        with pytest.raises(KeyboardInterrupt):
            recipe.prepare(job(folder, tmp_path / "b"), silent)
    kept = file.read_text().splitlines()
    assert len(kept) == 3
    assert same(traces_of(recipe.prepare(job(folder, tmp_path / "b"), silent)), whole)
    assert file.read_text() == (tmp_path / "a" / "rollouts.jsonl").read_text()
    assert file.read_text().splitlines()[: len(kept)] == kept
    monkeypatch.setattr(OracleRollout, "references", lambda *_: pytest.fail("made again"))
    again = recipe.prepare(job(folder, tmp_path / "c", rollouts=file), silent)
    assert same(traces_of(again), whole)
    assert not (tmp_path / "c" / "rollouts.jsonl").exists()
    assert all(len(json.loads(line)["answer"]) == 10 for line in kept[1:])


def test_other_answers_are_no_references(folder, tmp_path):
    """Not even those of the same decoding that another recipe kept: they end with the answer."""
    asked = job(folder, tmp_path)
    config = OracleRollout(5, 10, 64).config
    with pytest.raises(DllmError, match="no answer can be used"):
        asked.trajectories(asked.student("a model"), config.replace(history=False), silent)
    with pytest.raises(DllmError, match="give another --rollouts file"):
        Filter(block_length=5).prepare(asked, silent)


def test_nor_are_those_of_another_model(folder, tmp_path):
    recipe, asked = Filter(block_length=10), job(folder, tmp_path / "a", examples=1)
    recipe.prepare(asked, silent)
    other = shutil.copytree(folder, tmp_path / "other")
    (weights,) = other.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    with pytest.raises(DllmError, match="give another --rollouts file"):
        recipe.prepare(replace(asked, model=str(other)), silent)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("lora", "rank=2", "--lora rank=2: the model stays as it is"),
        ("distill_from", "ar", "--distill-from ar: .*own proposals"),
        ("batch_size", 4, "--batch-size 4: .*all recorded steps"),
        ("muon_lr", 0.1, "--muon-lr 0.1: AdamW"),
        ("max_new_tokens", 16, "block_length=32: .*--max-new-tokens 16"),
    ],
)
def test_a_job_that_no_filter_does_is_refused(option, value, says, tmp_path):
    with pytest.raises(DllmError, match=says):
        Filter().prepare(Job("filter", tmp_path, **{option: value}), silent)


def test_what_is_missing_is_said_before_a_model_is_loaded(folder, tmp_path):
    with pytest.raises(DllmError, match="unknown cache policy 'x'"):
        Filter(cache="x").prepare(Job("filter", tmp_path, model="nowhere"), silent)
    with pytest.raises(DllmError, match="--model is missing"):
        Filter().prepare(Job("filter", tmp_path), silent)
    with pytest.raises(DllmError, match="no answer can be used"):
        Filter(block_length=4).prepare(job(folder, tmp_path, examples=0), silent)
    Filter(block_length=10).check(job(folder, tmp_path))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"block_length": 0}, "block_length=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"positive_weight": 0.0}, "positive_weight=0.0"),
        ({"positive_weight": -1.0}, "positive_weight=-1.0"),
        ({"positive_weight": math.nan}, "positive_weight=nan"),
        ({"positive_weight": math.inf}, "positive_weight=inf"),
    ],
)
def test_bad_knobs_name_their_value(knobs, says):
    with pytest.raises(ValueError, match=says):
        Filter(**knobs)
