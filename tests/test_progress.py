"""The display of progress: on a terminal only."""

import io

import pytest
from rich.console import Console

import dllm.progress
from dllm.progress import LEAST, ProgressDisplay, loading_bar


@pytest.fixture
def stderr(monkeypatch):
    """What is shown; `terminal`: whether it is on one."""
    file = io.StringIO()
    file.terminal = True

    def console(**_):
        return Console(file=file, force_terminal=file.terminal, width=100)

    monkeypatch.setattr(dllm.progress, "Console", console)
    return file


def test_a_bar_for_everything_that_is_counted(stderr):
    with ProgressDisplay(stays=True) as display:
        display.report("answers", 1, 2)
        display.report("answers", 2, 2)
        display.report("training", 3, 10, "loss [1]")
    shown = stderr.getvalue()
    assert "answers" in shown
    assert "2/2" in shown
    assert "3/10" in shown
    assert "loss [1]" in shown


@pytest.mark.parametrize("hidden", [True, False])
def test_nothing_is_shown_where_nobody_sees_it(stderr, hidden):
    stderr.terminal = hidden
    with ProgressDisplay(hidden=hidden, stays=True) as display:
        display.report("answers", 1, 2)
    with ProgressDisplay(stays=True):
        pass
    assert stderr.getvalue() == ""


def test_bytes_of_a_checkpoint(stderr):
    with loading_bar("small", LEAST - 1) as read:
        read(LEAST - 1)
    assert stderr.getvalue() == ""
    with loading_bar("large", LEAST) as read:
        read(LEAST // 2)
        read(LEAST // 4)
    assert "loading large" in stderr.getvalue()
