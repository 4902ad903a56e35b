"""Recordings that somebody else wrote: an error or a replay, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import random
import time
from typing import Any

import pytest
from rich.console import Console

from dllm.cli.view import LiveView
from dllm.errors import DllmError
from dllm.recording import RecordingError, read_recording, replay
from dllm.text.following import Follower

HEAD = {
    "dllm_recording": 2,
    "verb": "generate",
    "model": "m",
    "config": {},
    "prompts": ["p"],
    "stop_ids": [2],
}
BEGUN = {"event": "started", "seconds": 0, "row": 0, "prompt_ids": [3, 4], "max_new_tokens": 3}
COMMIT = {
    "event": "commit",
    "seconds": 0.5,
    "row": 0,
    "nfe": 1,
    "positions": [2, 3],
    "token_ids": [7, 2],
    "confidences": [0.5, 1],
    "remasked": [],
    "pieces": {"0": "seven", "1": ""},
}
OUTPUT = {
    "text": "seven",
    "token_ids": [7],
    "finish_reason": "eos",
    "nfe": 1,
    "canvases": 1,
    "slots": 3,
    "answer_tokens": 2,
    "timings": {"total": 0.5, "forward": 0.4, "prompt": 0.1},
    "history": None,
}
ENDED = {"event": "finished", "seconds": 0.6, "row": 0, "output": OUTPUT}
LINES = [HEAD, BEGUN, COMMIT, ENDED]
VALUES = [
    *(-1, 0, 1, 2**31, 2**63, 10**12, 10**400, 0.5, float("nan"), float("inf"), -1e308),
    *("", "x", "\x1b[2J", "\ud800", None, True, [], [-1], [10**12], ["x"], [[]], {}, {"x": 1}),
]


def play(path: Any) -> str:
    """What a terminal gets to see of a recording."""
    run = read_recording(path)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=20, _environ={})
    follower = Follower(run.stop_ids)
    with LiveView(follower, run.prompts, delay=0, speed=1e9, console=console) as view:
        replay(run, view)
    return file.getvalue()


def write(path: Any, lines: list[Any]) -> Any:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_lines_here_are_a_recording(tmp_path):
    assert "seven" in play(write(tmp_path / "run", LINES))


@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        (1, {"max_new_tokens": 10**12}, "max_new_tokens=1000000000000: expected a whole number"),
        (1, {"max_new_tokens": 2**22 + 1}, "max_new_tokens=4194305: expected at most 4194304"),
        (1, {"max_new_tokens": -1}, "max_new_tokens=-1"),
        (1, {"row": -1}, "row -1 begins"),
        (1, {"row": 4096}, "row 4096 begins"),
        (1, {"prompt_ids": None}, "prompt_ids=None"),
        (1, {"more": 1}, "unexpected keyword"),
        (2, {"row": 1}, "line 3: no event of this run"),
        (2, {"positions": [2, 10**9]}, "place 999999998 of 3"),
        (2, {"positions": [2, 1]}, "place -1 of 3"),
        (2, {"positions": [2, 2**70]}, "positions="),
        (2, {"positions": [2]}, "no event of this run"),
        (2, {"remasked": [0]}, "place -2 of 3"),
        (2, {"pieces": {"-1": "x"}}, "place -1 of 3"),
        (2, {"pieces": {"0": 5}}, "pieces that are no texts"),
        (2, {"pieces": {"0": "\ud800"}}, "surrogates"),
        (2, {"seconds": float("inf")}, "seconds=inf"),
        (2, {"seconds": float("nan")}, "seconds=nan"),
        (2, {"event": "Commit"}, "no 'Commit'"),
        (2, {"nfe": 10**400}, "nfe=1000"),
        (3, {"output": {**OUTPUT, "finish_reason": "bored"}}, "finish_reason='bored'"),
        (3, {"output": {**OUTPUT, "text": "\ud800"}}, "surrogates"),
        (3, {"output": {**OUTPUT, "timings": {}}}, "no event of this run"),
        (3, {"output": 5}, "no event of this run"),
        (0, {"prompts": "p"}, "line 1: prompts is 'p'"),
        (0, {"prompts": ["\ud800"]}, "line 1: prompts that are no texts"),
        (0, {"stop_ids": ["x"]}, "line 1: stop_ids is"),
        (0, {"config": []}, "line 1: config is"),
    ],
)
def test_what_does_not_fit_is_one_error_with_its_line(tmp_path, line, changes, message):
    lines = [dict(each) for each in LINES]
    lines[line] |= changes
    with pytest.raises(RecordingError, match=message):
        read_recording(write(tmp_path / "run", lines))


def test_a_row_begins_and_ends_once(tmp_path):
    with pytest.raises(RecordingError, match=r"line 3.*row 0 begins"):
        read_recording(write(tmp_path / "run", [HEAD, BEGUN, BEGUN]))
    with pytest.raises(RecordingError, match=r"line 4.*row 0 has ended"):
        read_recording(write(tmp_path / "run", [HEAD, BEGUN, ENDED, COMMIT]))


def test_many_rows_share_the_room(tmp_path):
    rows = [{**BEGUN, "row": row, "max_new_tokens": 2**20} for row in range(4096)]
    with pytest.raises(RecordingError, match=r"line 6.*expected at most 0"):
        read_recording(write(tmp_path / "run", [HEAD, *rows]))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(RecordingError, match=r"a pipe or a device|Is a directory"):
            read_recording(path)
    (tmp_path / "deep").write_text("[" * 10**5 + "\n")
    with pytest.raises(RecordingError, match="nested too deep"):
        read_recording(tmp_path / "deep")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RecordingError, match="expected at most 256 MiB"):
        read_recording(tmp_path / "sparse")


def test_no_text_steers_the_terminal(tmp_path):
    steering = "\x1b[2J\x1b]0;x\x07\x9b5A\r\x08"
    lines = [
        {**HEAD, "prompts": [steering]},
        BEGUN,
        {**COMMIT, "pieces": {"0": steering}},
        {**ENDED, "output": {**OUTPUT, "text": steering}},
    ]
    shown = play(write(tmp_path / "run", lines))
    for control in ("\x1b[2J", "\x1b]0", "\x9b", "\x07", "\x08"):
        assert control not in shown


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_recording_is_an_error_or_a_replay(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "run"
    began = time.perf_counter()
    outcomes = set()
    for _ in range(60):
        if rng.random() < 0.5:
            path.write_text("".join(json.dumps(mutated(rng, line)) + "\n" for line in LINES))
        else:
            write(path, LINES)
            data = bytearray(path.read_bytes())
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(data))
                data[at : at + rng.choice((0, 1, 1, 9))] = rng.randbytes(rng.choice((0, 1, 3)))
            path.write_bytes(data)
        try:
            assert "\x1b[2J" not in play(path)
            outcomes.add("played")
        except DllmError:
            outcomes.add("refused")
    assert outcomes == {"played", "refused"}
    assert time.perf_counter() - began < 60


def mutated(rng: random.Random, value: Any) -> Any:
    """A JSON value with something in it that is another, missing or there twice; mostly itself."""
    if rng.random() < 0.02:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        items = [(key, mutated(rng, each)) for key, each in value.items() if rng.random() > 0.01]
        return dict(items)
    if isinstance(value, list):
        return [mutated(rng, each) for each in value for _ in range(rng.choice((1,) * 30 + (0, 2)))]
    return value
