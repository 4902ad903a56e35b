"""eval report: tables on stdout, files on request."""

import gzip
import json
import re

import pytest
from typer.testing import CliRunner

from dllm.cli import app
from dllm.cli.eval_report import split_words
from dllm.eval.figures import draw
from dllm.eval.report import read_summary
from tests.cli.common import fails, modules_after
from tests.eval.summaries import drawn, one_task


def run(*arguments):
    return CliRunner().invoke(app, ["eval", "report", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path):
    """Directories of two runs, new and old, of unlike skill."""
    found = []
    for name, skill in (("new", 0.99), ("old", 0.9)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(drawn(skill=skill).as_dict()))
        found.append(folder)
    return found


def test_tables(folders):
    result = run(folders[0])
    assert (result.exit_code, result.stderr) == (0, "")
    for title in ("Settings", "Losses and time", "Methods", "LPA by task", "Errors"):
        assert title in result.stdout
    assert "new: dllm-suite-1, demo float32 cpu" in result.stdout
    assert "against" not in result.stdout


@pytest.mark.parametrize("name", ["summary.json", "other.json.gz"])
def test_a_file(folders, name):
    path = folders[0] / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress((folders[0] / "summary.json").read_bytes()))
    assert run(path).stdout == run(folders[0]).stdout


def test_against(folders):
    assert "new against old: methods" in run(folders[0], "--against", folders[1]).stdout


def test_several_runs(folders):
    result = run(*folders)
    assert "new: threshold" in result.stdout
    assert "old: threshold" in result.stdout


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name / "run").mkdir(parents=True)
        text = json.dumps(one_task(("quota", "", 5, 100)).as_dict())
        (tmp_path / name / "run" / "summary.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = run("a/run", "b/run")
    assert "a/run: quota" in result.stdout
    assert "b/run: quota" in result.stdout
    assert "b/run against a/run" in run("b/run", "--against", "a/run").stdout


def test_the_directory_at_hand_has_a_name(folders, monkeypatch):
    monkeypatch.chdir(folders[0])
    assert ".: dllm-suite-1" in run(".").stdout
    assert "summary.json: dllm-suite-1" in run("summary.json").stdout


def test_a_selection(folders):
    result = run(folders[0], "--tasks", "copy,shuffle", "--n", "4, 8")
    assert "1200" not in result.stdout
    assert re.search(r" 800 answers per setting to copy:n=4\+8, shuffle:n=4\+8 *\n", result.stdout)
    assert (
        "200 answers per setting to copy" in run(folders[0], "--tasks", "copy", "--n", "8").stdout
    )


def test_reach(folders):
    assert "1 to 32.00 tokens / forward" in run(folders[0], "--reach", "32").stdout


def test_files(folders, tmp_path):
    markdown, figure = tmp_path / "report.md", tmp_path / "report.svg"
    result = run(folders[0], "--against", folders[1], "--markdown", markdown, "--figure", figure)
    assert result.exit_code == 0
    text = markdown.read_text(encoding="utf-8")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [title for title in titles if title in result.stdout]
    assert len(titles) == 9
    assert figure.read_text().startswith("<?xml")


def test_the_figure_is_of_the_selection_and_of_both_sides(folders, tmp_path):
    figure, expected = tmp_path / "figure.svg", tmp_path / "expected.svg"
    options = ("--tasks", "copy,shuffle", "--n", "8", "--figure", figure)
    assert run(folders[0], "--against", folders[1], *options).exit_code == 0
    runs = [(folder.name, read_summary(folder)) for folder in folders]
    draw(runs, expected, tasks=["copy", "shuffle"], n=[8])
    assert figure.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "sort"], ["'sort'", "copy:n=4+8"]),
        (["--n", "four"], ["--n 'four'", "whole numbers"]),
        (["--n", "5"], ["n=5", "4, 8"]),
        (["--figure", "a.pdf"], ["a.pdf", ".svg"]),
        (["--reach", "0.5"], ["--reach"]),
        (["--against", "nowhere"], ["nowhere", "No such file"]),
    ],
)
def test_what_is_wrong_is_told(folders, options, words):
    fails(run(folders[0], *options), *words)


def test_a_file_that_is_no_summary(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    fails(run(tmp_path), "summary.json", "dllm-eval-1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("copy", ["copy"]),
        ("copy, shuffle", ["copy", "shuffle"]),
        ("copy:n=4+6,surface=infill,shuffle", ["copy:n=4+6,surface=infill", "shuffle"]),
        ("copy:n=4,shuffle:n=4,surface=free", ["copy:n=4", "shuffle:n=4,surface=free"]),
    ],
)
def test_a_comma_before_an_option_belongs_to_the_spec(text, words):
    assert split_words(text) == words


def test_torch_is_not_imported(folders):
    found = modules_after("eval", "report", str(folders[0]))
    assert "numpy" in found
    assert not found & {"torch", "transformers", "matplotlib"}
