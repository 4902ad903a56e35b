"""Run folders that something has gone over: one clear error or success, never another exception."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import os
import random
import resource
import shutil

import pytest

from dllm.errors import DllmError
from dllm.eval.figures import draw
from dllm.eval.models import OracleModel
from dllm.eval.records import EvalSetting
from dllm.eval.regrade import regrade
from dllm.eval.report import read_summary, report
from dllm.eval.run import Sweep, run
from dllm.eval.store import Store

FILES = ("run.json", "samples.jsonl", "results.jsonl", "summary.json")
SWEEP = Sweep(
    ("copy:n=3", "shuffle:n=3"),
    (
        EvalSetting("quota", "count=1", {"sampler": "quota:count=1", "temperature": 1.0}),
        EvalSetting("quota", "count=3", {"sampler": "quota:count=3"}),
    ),
    count=2,
)
DEEP = "[" * 10**5 + "]" * 10**5
VALUES = (
    None,
    True,
    -1,
    7,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "copy",
    "\ud800",
    "x" * 10**5,
    [],
    [[]],
    [None],
    [-1, 2**64],
    {},
    {"a": {}},
    {"a": [1e400]},
    json.loads("[" * 200 + "]" * 200),
    "os:abort",
    "latin_square:n=1000000000000",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    out = tmp_path_factory.mktemp("good") / "run"
    run(OracleModel(), SWEEP, out)
    return out


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "run")


def verbs(folder, target=None):
    """What every verb that reads the folder says: None, or its error. target: of a figure."""

    def shown():
        summary = read_summary(folder)
        report([("run", summary)], against=("old", summary))
        if target is not None:
            draw([("run", summary)], target)

    for verb in (shown, lambda: regrade(folder), lambda: run(OracleModel(), SWEEP, folder)):
        try:
            verb()
        except DllmError as error:
            yield str(error)
        else:
            yield None


def nodes(value, path=()):
    """The places of all values in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def changed(rng, value):
    """`value` with one place replaced, removed, repeated or renamed."""
    value = copy.deepcopy(value)
    *path, last = rng.choice([path for path in nodes(value) if path])
    parent = value
    for key in path:
        parent = parent[key]
    match rng.randrange(6):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[f"{last}x"] = parent.pop(last)
        case 2 if isinstance(parent, list):
            parent += parent[:1] * 3
        case _:
            parent[last] = rng.choice(VALUES)
    return value


def spoil(rng, path):
    """Change one thing in a file; what it was, in a word."""
    text = path.read_text()
    lines = path.suffix == ".jsonl"
    kind = rng.choice(["value"] * 8 + ["byte", "cut", "line"])
    if kind == "value":
        rows = [json.loads(line) for line in text.splitlines()] if lines else [json.loads(text)]
        at = rng.randrange(len(rows))
        rows[at] = changed(rng, rows[at])
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif kind == "byte":
        data = bytearray(text.encode())
        data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
    elif kind == "cut":
        data = text.encode()
        path.write_bytes(data[: rng.randrange(len(data))] + rng.choice([b"", b"\xe4\xb8"]))
    else:
        extra = rng.choice(["null", "[]", "3", '"x"', "{}", "", "NaN", DEEP, "9" * 5000])
        path.write_text(text + extra + "\n")
    return kind


@pytest.mark.parametrize("seed", range(2))
def test_a_changed_file_is_an_error_or_none(good, tmp_path, seed):
    rng = random.Random(seed)
    pytest.importorskip("matplotlib")
    said, target = 0, tmp_path / "figure.png"
    for case in range(40):
        folder = shutil.copytree(good, tmp_path / str(case))
        name = rng.choice(FILES)
        try:
            kind = spoil(rng, folder / name)
            said += any(list(verbs(folder, target if case % 10 == 0 else None)))
        except Exception as error:
            error.add_note(f"seed {seed}, case {case}, {name}: {kind}")
            raise
    assert said > 10


CONTENTS = {
    "empty": b"",
    "spaces": b" \n\n",
    "null": b"null\n",
    "list": b"[]\n",
    "object": b"{}\n",
    "deep": DEEP.encode() + b"\n",
    "number": b"9" * 5000 + b"\n",
    "bytes": bytes(range(256)) * 4,
    "latin1": '{"caf\xe9": 1}\n'.encode("latin-1"),
    "utf16": '{"a": 1}\n'.encode("utf-16"),
    "zeros": bytes(10**5),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_other_content_is_an_error_that_names_the_file(folder, name, content):
    (folder / name).write_bytes(content)
    errors = [error for error in verbs(folder) if error]
    assert all(name in error or "not finished" in error for error in errors)
    if name in ("run.json", "summary.json"):
        assert errors
        assert all(len(error) < 400 for error in errors)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_changes_nothing(folder, name):
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(verbs(folder)) == [None, None, None]


@pytest.mark.parametrize("name", FILES)
def test_a_directory_or_a_pipe_is_refused_at_once(folder, name):
    (folder / name).unlink()
    for make in (os.mkdir, os.mkfifo):
        make(folder / name)
        errors = [error for error in verbs(folder) if error]
        assert errors
        assert all(name in error or "no run of" in error for error in errors)
        (os.rmdir if make is os.mkdir else os.unlink)(folder / name)


def test_a_last_line_torn_inside_a_character_is_decoded_again(folder):
    before = (folder / "results.jsonl").read_text().splitlines()
    row = json.loads(before[-1]) | {"text": "\u4e16\u754c"}
    whole = "\n".join([*before[:-1], json.dumps(row, ensure_ascii=False)]).encode()
    (folder / "results.jsonl").unlink()
    (folder / "results.0.jsonl").write_bytes(whole[: whole.index("\u754c".encode()) + 1])
    run(OracleModel(), SWEEP, folder)
    after = (folder / "results.jsonl").read_text().splitlines()
    without = [{**json.loads(line), "seconds": 0} for line in after]
    assert without == [{**json.loads(line), "seconds": 0} for line in before]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"setting": 2}, "line 3: row.setting=2: expected one of the run's 2"),
        ({"task": 2}, "line 3: row.task=2: expected one of the run's 2"),
        ({"nfe": -1}, "nfe: expected a whole number of at least 0, below 2^63, found -1"),
        ({"nfe": 2**63}, "nfe: expected a whole number of at least 0, below 2^63"),
        ({"nfe": True}, "nfe: expected a whole number of at least 0, below 2^63, found True"),
        ({"score": 1}, "score: expected true or false, found 1"),
        ({"text": None}, "text: expected text, found None"),
        ({"ids": [1, "2"]}, "ids[1]: expected a whole number of at least 0, below 2^63, found '2'"),
        ({"steps": []}, "steps: expected one for each of"),
        ({"places": [99]}, "places: expected numbers below"),
        ({"seconds": [0.0]}, "seconds: expected 4, for prompt, forward, sampler, other"),
        ({"seconds": [float("nan")] * 4}, "seconds[0]: expected a finite number, found nan"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(folder, change, said):
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines) + "\n")
    for verb in (regrade, lambda at: run(OracleModel(), SWEEP, at)):
        with pytest.raises(DllmError, match=r"results\.jsonl") as error:
            verb(folder)
        assert said in str(error.value)
    assert path.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": 5}, "cells[0].right=5: expected at most count=2"),
        ({"strict": 3}, "cells[0].strict=3: expected at most right=2"),
        ({"ceiled": 9}, "cells[0].ceiled=9: expected at most count=2"),
        ({"ceiling": 5.0}, "cells[0].ceiling=5.0: expected at most"),
        ({"tau": -9.0}, "cells[0].tau=-9.0: expected at most"),
        ({"reasons": {"ok": 2, "parse": 1}}, "cells[0].reasons=3: expected at most count=2"),
        ({"seconds": [0.0, 0.0, 0.0, -1.0]}, "cells[0].seconds: expected 4 of at least 0"),
        ({"setting": 7}, "cells[0].setting=7: expected one of the run's 2"),
    ],
)
def test_what_is_wrong_with_a_summary_is_said(folder, change, said):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["cells"][0] |= change
    path.write_text(json.dumps(summary))
    with pytest.raises(DllmError) as error:
        read_summary(folder)
    assert said in str(error.value)


def test_a_packed_summary_is_bounded_and_whole(folder, tmp_path, monkeypatch):
    packed = tmp_path / "summary.json.gz"
    data = gzip.compress((folder / "summary.json").read_bytes())
    packed.write_bytes(data)
    assert read_summary(packed) == read_summary(folder)
    for broken in (data[:-9], data[:30] + b"xx" + data[32:], b"{}"):
        packed.write_bytes(broken)
        with pytest.raises(DllmError, match="expected a whole gzip file"):
            read_summary(packed)
    monkeypatch.setattr("dllm.eval.packed.LIMIT", 10**4)
    packed.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DllmError, match="when unpacked"):
        read_summary(packed)


def test_a_sample_of_another_task_cannot_be_graded(folder):
    path = folder / "samples.jsonl"
    rows = [json.loads(line) | {"facts": {}} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(DllmError, match=r"sample .*: expected a question of copy"):
        regrade(folder)


def test_an_answer_may_be_long(folder):
    """Its order is counted in memory that grows with its length, not with the square."""
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"ids": [1] * 10**5, "steps": list(range(1, 10**5 + 1)), "places": None}
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    regrade(folder)
    cell = next(c for c in read_summary(folder).cells if (c.setting, c.task) == (0, 0))
    assert cell.tau <= cell.ordered


def test_another_process_with_the_same_directory_is_refused(folder):
    with Store(folder), pytest.raises(DllmError, match="another process is writing it"):
        run(OracleModel(), SWEEP, folder)
    with Store(folder), pytest.raises(DllmError, match="another process is writing it"):
        regrade(folder)
    with Store(folder, rank=1):  # one of the same run
        assert run(OracleModel(), SWEEP, folder) is not None


@pytest.fixture
def largest_file():
    """Sets the largest size of a file, which stands for the disk."""
    _, hard = old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_one_error_and_a_rerun_goes_on(tmp_path, largest_file):
    sweep = dataclasses.replace(SWEEP, count=8, batch_size=2)
    out, kept = tmp_path / "run", 0
    for size in (3000, 6000):
        largest_file(size)
        with pytest.raises(DllmError, match=r"results\.0\.jsonl: File too large; what is in it"):
            run(OracleModel(), sweep, out)
        largest_file(resource.RLIM_INFINITY)
        rows = list(Store(out).rows())
        assert len(rows) > kept
        kept = len(rows)
    largest_file((out / "results.0.jsonl").stat().st_size + 2000)
    with pytest.raises(DllmError, match="File too large"):
        run(OracleModel(), sweep, out)  # now or as the files are merged
    largest_file(resource.RLIM_INFINITY)
    assert len(list(Store(out).rows())) >= kept
    run(OracleModel(), sweep, out)
    assert len(list(Store(out).rows())) == 2 * 2 * 8
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
