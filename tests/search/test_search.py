"""The random search itself: a short one finds nothing, and a broken guarantee is found."""

import sys
from pathlib import Path
from subprocess import run

import pytest
import torch

from dllm.decoding.step import RowBatch
from dllm.files import FileError
from dllm.jsonlog import JsonLog
from tests.search.__main__ import main
from tests.search.attempt import attempt
from tests.search.draw import draw


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """What a search sets for its process ends with the test."""
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def results(path, seed=5):
    with JsonLog(path, {"format": "dllm-search-1", "seed": seed}) as log:
        return list(log)


def test_a_short_search_finds_nothing_and_goes_on(tmp_path, capsys):
    state = tmp_path / "state.jsonl"
    options = ["--seed", "5", "--state", str(state)]
    assert main([*options, "--cases", "8"]) == 0
    first = results(state)
    assert main([*options, "--cases", "10"]) == 0
    assert results(state)[:8] == first
    assert sorted(record["case"] for record in results(state)) == list(range(10))
    assert "10 cases: " in capsys.readouterr().out
    with pytest.raises(FileError, match="another seed"):
        main(["--seed", "6", "--state", str(state), "--cases", "1"])


def test_several_processes_find_what_one_finds(tmp_path):
    state, alone = tmp_path / "several.jsonl", [attempt(5, number) for number in range(3)]
    command = [sys.executable, "-m", "tests.search", "--seed", "5", "--cases", "3"]
    ran = run(
        [*command, "--workers", "2", "--state", str(state)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = {record["case"]: record["result"] for record in results(state)}
    assert found == {record["case"]: record["result"] for record in alone}


def test_a_case_is_the_same_whenever_it_is_drawn():
    for number in range(30):
        one, two = (draw(3, number) for _ in range(2))
        assert repr(one.request.prompts) == repr(two.request.prompts)
        assert (one.source, one.order, one.cuts) == (two.source, two.order, two.cuts)
        assert one.parts() == two.parts()
    assert draw(3, 0).source != draw(4, 0).source


def unsent_lost(monkeypatch):
    """The mutant that an interrupt drops what waits to be told."""
    interrupt = RowBatch.interrupt

    def forgets(self):
        list(self.events)
        interrupt(self)

    monkeypatch.setattr(RowBatch, "interrupt", forgets)
    return "interrupted: Ctrl-C at line"


def stop_strings_overlooked(monkeypatch):
    """The mutant that no stop string ends."""
    monkeypatch.setattr("dllm.decoding.answers.Answers.stop_index", lambda *_: None)
    return "no stop string in the text"


def rows_see_each_other(monkeypatch):
    """The mutant whose draws change with the size of the batch."""
    step = RowBatch.step

    def beside(self):
        step(self)
        if len(self.active) > 1:
            self.decider.methods.key[:] += 1

    monkeypatch.setattr(RowBatch, "step", beside)
    return "rows_alone"


@pytest.mark.parametrize(  # seeds that need few cases
    ("mutant", "seed"), [(unsent_lost, 24), (stop_strings_overlooked, 47), (rows_see_each_other, 1)]
)
def test_a_broken_guarantee_is_found(monkeypatch, mutant, seed):
    expected = mutant(monkeypatch)
    found = (attempt(seed, number) for number in range(150))
    broken = next(record for record in found if record["result"] == "broken")
    assert expected in broken["what"]


def test_a_broken_case_is_told_with_the_command_that_shows_it(monkeypatch, capsys):
    stop_strings_overlooked(monkeypatch)
    assert main(["--seed", "47", "--cases", "5"]) == 1
    line = next(x for x in capsys.readouterr().out.splitlines() if "--case " in x)
    arguments = line.split("tests.search ")[1].split()
    assert main(arguments) == 1
    assert "no stop string in the text" in capsys.readouterr().err
