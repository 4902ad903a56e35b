"""The state of a run on disk: whole whenever it is killed, refused by name when it is broken."""

import errno
import json
import os
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dllm.errors import DllmError
from dllm.train import state
from dllm.train.state import FILE
from dllm.train.trainer import LOG, Stage
from tests.train.test_trainer import linear, points, squares

STAGES = [Stage(9, points, squares)]


@pytest.fixture
def run(tmp_path):
    """A run with a state of two steps."""
    made = linear(STAGES, tmp_path / "run")
    for _ in range(2):
        made.train_step()
    made.save()
    return made


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def changed(run, change, metadata=None):
    """Rewrite the run's state with changed tensors, or other metadata."""
    path = run.out / FILE
    tensors = load_file(path)
    change(tensors)
    told = {"format": state.FORMAT, "state": json.dumps({"step": 2})}
    save_file(tensors, path, told if metadata is None else metadata)


def killed_at(call, monkeypatch, save):
    """Whether `save` was killed, at the given one of the system calls that deal with files."""
    left = [call]

    def killing(real):
        def killed(*arguments, **settings):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return real(*arguments, **settings)

        return killed

    with monkeypatch.context() as patch:
        for name in ("replace", "open", "fsync", "chmod", "unlink", "stat", "access"):
            patch.setattr(os, name, killing(getattr(os, name)))
        with suppress(KeyboardInterrupt):
            save()
    return left[0] <= 0


def test_wherever_saving_is_killed_there_is_one_whole_step(run, monkeypatch):
    before, content = weights(run), (run.out / FILE).read_bytes()
    run.train_step()
    after, steps, call = weights(run), [], 1
    while killed_at(call, monkeypatch, run.save):
        again = linear(STAGES, run.out)
        expected = {2: before, 3: after}[again.step]
        assert all(torch.equal(a, b) for a, b in zip(weights(again), expected, strict=True))
        steps.append(again.step)
        (run.out / FILE).write_bytes(content)
        call += 1
    assert set(steps) == {2, 3}
    assert linear(STAGES, run.out).step == 3


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(run):
    resumed, whole = linear(STAGES, run.out), linear(STAGES, run.out / "whole")
    assert resumed.step == 2
    for each in (resumed, whole):
        while each.step < 6:
            each.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_a_full_disk_is_one_error_and_the_old_state_stays(run, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run.train_step()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DllmError, match="No space left on device"):
        run.save()
    assert [file.name for file in run.out.iterdir()] == [FILE]
    assert linear(STAGES, run.out).step == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("model.bias"), "'bias' is in one of file and model only"),
        (lambda t: t.update({"model.more": torch.ones(1)}), "'more' is in one of"),
        (lambda t: t.update({"model.bias": torch.ones(3)}), r"\[3\], expected torch.float32 \[2\]"),
        (lambda t: t.update({"model.bias": torch.ones(2).half()}), "float16"),
        (lambda t: t.update({"else": torch.ones(2)}), "'else' belongs to no parameter"),
        (lambda t: t.update({"optimizer.0.9.step": torch.ones(())}), "belongs to no parameter"),
        (lambda t: t.update({"optimizer.x.y.step": torch.ones(())}), "belongs to no parameter"),
        (lambda t: t.update({"optimizer.0.0.exp_avg": torch.ones(9)}), "'optimizer.0.0.exp_avg'"),
        (lambda t: t.pop("optimizer.0.1.exp_avg_sq"), "AdamW cannot go on"),
    ],
)
def test_a_state_of_something_else_fills_nothing(run, change, expected):
    changed(run, change)
    fresh = linear(STAGES, run.out / "fresh")
    before = weights(fresh)
    with pytest.raises(DllmError, match=expected) as caught:
        state.load_state(run.out, dict(fresh.model.named_parameters()), fresh.optimizers)
    assert f"{run.out / FILE}: not the state of this run" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(weights(fresh), before, strict=True))
    assert not any(opt.state_dict()["state"] for opt in fresh.optimizers)


@pytest.mark.parametrize(
    "metadata",
    [{}, {"format": "else"}]
    + [{"format": state.FORMAT, "state": text} for text in ("", "[]", "{}", "[" * 10**5)]
    + [{"format": state.FORMAT, "state": json.dumps({"step": n})} for n in (-1, "2", 0.5, True)],
)
def test_a_state_without_a_step_is_refused(run, metadata):
    changed(run, lambda _: None, metadata)
    with pytest.raises(DllmError, match=FILE):
        linear(STAGES, run.out)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_an_error_or_a_state_never_a_traceback(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("run")
    run = linear(STAGES, out)
    run.train_step()
    run.save()
    content = bytearray((out / FILE).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (out / FILE).write_bytes(content)
    with suppress(DllmError):
        assert linear(STAGES, out).step >= 0


def test_a_torn_line_of_the_log_is_cut(run):
    (run.out / LOG).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    run.run(1)
    lines = [json.loads(line) for line in (run.out / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, *range(3, 10)]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"step": "x"}', "{}"])
def test_a_broken_line_of_the_log_is_named(run, line):
    (run.out / LOG).write_text(line + "\n")
    with pytest.raises(DllmError, match=r"log.jsonl, line 1: expected"):
        run.run(1)


def test_two_runs_in_one_directory(run):
    with run.log(), pytest.raises(DllmError, match="another process is writing it"):
        linear(STAGES, run.out).run()


def test_what_a_killed_run_left_is_removed(run):
    left = run.out / f".{FILE}.1.tmp"
    left.write_text("half")
    run.run(1)
    assert not left.exists()
