"""The live view and recordings: what a terminal shows while a run goes on, and in its replay."""

import io
import os
import re
import threading
import time

import pytest
from rich.console import Console

from dllm.cli.view import LONGEST, LiveView
from dllm.config import DecodeConfig
from dllm.decoding.driving import drive
from dllm.output import Commit, Finished
from dllm.recording import Recorder, RecordingError, read_recording, replay
from dllm.text.following import Follower
from tests.echo import echo, write_tiny

SEVEN = "one two three four five six seven"
BYTES = "naïve 日本 🙂👍🏽 x"  # characters of two to four bytes, each byte a token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(folder):
    return echo(folder)


class Screen:
    """A terminal of a fixed size; keeps what was written."""

    def __init__(self, width=60, height=20):
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=True, width=width, height=height, color_system=None
        )

    def lines(self, renderable):
        console = Console(file=io.StringIO(), width=self.console.width)
        console.print(renderable)
        return [line.strip() for line in console.file.getvalue().splitlines()]

    def final(self):
        """What is left when the view is gone."""
        last = re.split(r"\x1b\[2K", self.file.getvalue())[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)


def watch(engine, prompts, screen, **options):
    """Frames after every step, and the screen at the end."""
    frames = []

    class Camera:
        def show(self, event, seconds):
            if isinstance(event, Commit) and view.follower.step_is_complete():
                frames.append(screen.lines(view.render()))

    titles = [prompts] if isinstance(prompts, str) else prompts
    with LiveView(Follower.of(engine), titles, delay=0, console=screen.console) as view:
        drive(engine.stream(prompts, **options), view, Camera())
    return frames


class TestLiveView:
    def test_shows_holes_new_tokens_and_the_end(self, engine):
        frames = watch(engine, SEVEN, Screen())
        assert [frame[1] for frame in frames] == [f"› {SEVEN}"] * 3
        assert [frame[2] for frame in frames] == [
            "· two · · five · · ■",
            "· two three · five six · ■",
            f"{SEVEN} ■",
        ]
        assert frames[0][0].startswith("─ forwards 1 · tokens 3 · tokens/forward 3.0 · tokens/s ")
        assert frames[0][3].startswith("─ · undecided  new in this forward  ■ end")

    def test_styles_fade(self, engine):
        follower = Follower.of(engine)
        view = LiveView(follower, console=Screen().console)
        for event in engine.stream(SEVEN):
            if isinstance(event, Finished):
                break
            follower.apply(event)
        shown = view.answer(follower.rows[0])
        styles = {shown.plain[s.start : s.end]: s.style for s in shown.spans}
        assert styles["one"] == "black on bright_green"
        assert styles["three"] == "bright_green"
        assert styles["two"] == styles["■"] == "green"

    def test_leaves_the_whole_answer_on_the_screen(self, engine):
        screen = Screen(width=40, height=6)
        answer = " ".join([SEVEN] * 8)
        watch(engine, answer, screen)
        shown = " ".join(line.strip() for line in screen.final().splitlines()[2:-1])
        assert shown == answer
        assert "eos: the model ended its answer" in screen.final()

    def test_is_cut_to_the_screen_around_the_newest_tokens(self, engine):
        screen = Screen(width=40, height=10)
        answer = " ".join([SEVEN] * 16)
        frames = watch(engine, answer, screen, max_new_tokens=200, block_length=8)
        assert max(map(len, frames)) <= 9
        assert frames[0][2].startswith("· two · · five")
        assert frames[-1][-3].endswith("six seven")
        assert frames[-1][-2] == "■"

    def test_rows_that_do_not_fit_are_counted(self, engine):
        frames = watch(engine, [SEVEN] * 5, Screen(height=14))
        assert len(frames[0]) <= 13
        assert frames[0][-1] == "… and 2 more"

    def test_a_model_cannot_steer_the_terminal(self, engine):
        screen = Screen()
        watch(engine, "one\x1b[2Jtwo", screen)
        assert "\x1b[2J" not in screen.file.getvalue()
        assert "one\ufffd[2Jtwo" in screen.final()

    def test_a_step_stays_for_its_time(self, engine):
        began = time.perf_counter()
        with LiveView(Follower.of(engine), delay=0.1, console=Screen().console) as view:
            drive(engine.stream(SEVEN), view)
        assert 0.4 <= time.perf_counter() - began < 9  # holes and three steps

    @pytest.mark.parametrize("terminal", [True, False])
    def test_a_dumb_terminal_is_not_steered_and_a_pipe_gets_what_was_written(
        self, engine, terminal
    ):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, _environ={"TERM": "dumb"})
        with LiveView(Follower.of(engine), delay=0, console=console) as view:
            drive(engine.stream("one\x1b[2Jtwo"), view)
        assert file.getvalue() == ("one\ufffd[2Jtwo\n" if terminal else "one\x1b[2Jtwo\n")

    def test_no_recorded_step_takes_forever(self, engine, monkeypatch):
        waits: list[float] = []
        monkeypatch.setattr("dllm.cli.view.time.sleep", waits.append)
        with LiveView(Follower.of(engine), delay=0, console=Screen().console) as view:
            for i, event in enumerate(engine.stream(SEVEN)):
                view.show(event, 1e9 * i)
        assert LONGEST - 1 < max(waits) <= LONGEST

    @pytest.mark.parametrize("live", [True, False])
    def test_elsewhere_only_the_text(self, engine, capsys, live):
        began = time.perf_counter()
        console = None if live else Screen().console
        with LiveView(Follower.of(engine), [SEVEN], delay=9, live=live, console=console) as view:
            drive(engine.stream(SEVEN), view)
        assert time.perf_counter() - began < 5
        out, err = capsys.readouterr()
        assert (out if live else console.file.getvalue()) == f"{SEVEN}\n"
        assert re.fullmatch(
            r"forwards 3 · tokens 8 · tokens/forward 2.7 · tokens/s \d+ · finished: eos\n", err
        )


def record(engine, path, prompt, **options):
    config = DecodeConfig().replace(**options)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    screen = Screen()
    view = LiveView(Follower.of(engine), prompts, delay=0, console=screen.console)
    with (
        view,
        Recorder(path, Follower.of(engine), config, model="echo", prompts=prompts) as recorder,
    ):
        drive(engine.stream(prompt, config), recorder, view)
    return screen.final()


class TestRecording:
    @pytest.mark.parametrize("prompt", [SEVEN, BYTES, ["one two", BYTES, SEVEN]])
    def test_replay_ends_on_the_same_screen(self, engine, tmp_path, prompt):
        before = record(engine, tmp_path / "run.jsonl", prompt)
        run = read_recording(tmp_path / "run.jsonl")
        screen = Screen()
        with LiveView(
            run.follower(), run.prompts, delay=0, speed=100, console=screen.console
        ) as view:
            replay(run, view)
        assert screen.final() == before
        assert SEVEN in before or BYTES in before

    def test_replay_sees_the_same_frames(self, engine, tmp_path):
        record(engine, tmp_path / "run.jsonl", BYTES)
        live, again = Follower.of(engine), Follower([])
        run = read_recording(tmp_path / "run.jsonl")
        for event, (recorded, _, pieces) in zip(engine.stream(BYTES), run.events, strict=True):
            live.apply(event)
            again.apply(recorded, pieces=pieces)
            assert live.rows[0].pieces == again.rows[0].pieces
            if not isinstance(event, Finished):
                assert event == recorded

    def test_describes_the_run(self, engine, tmp_path):
        record(engine, tmp_path / "run.jsonl", SEVEN, sampler="quota:steps=9", history=True)
        run = read_recording(tmp_path / "run.jsonl")
        assert (run.model, run.prompts, run.truncated) == ("echo", [SEVEN], False)
        assert run.config["sampler"] == "quota:steps=9"
        assert run.stop_ids == list(engine.model.spec.stop_ids)
        output = run.events[-1].event.output
        assert (output.text, output.history) == (SEVEN, None)

    def test_a_cut_last_line_is_left_out(self, engine, tmp_path):
        file = tmp_path / "run.jsonl"
        record(engine, file, SEVEN)
        whole = read_recording(file)
        file.write_text(file.read_text()[:-20])
        cut = read_recording(file)
        assert cut.truncated
        assert cut.events == whole.events[:-1]

    def test_a_cut_inside_a_character_is_no_other_cut(self, engine, tmp_path):
        file = tmp_path / "run.jsonl"
        record(engine, file, BYTES)
        content = file.read_bytes()
        file.write_bytes(content[: content.rindex("🙂".encode()) + 2])
        assert read_recording(file).truncated

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda lines: [], "expected a recording.* found version None"),
            (lambda lines: ["[]\n"], "line 1: expected a JSON object"),
            (lambda lines: ['{"dllm_recording": 99}\n'], "version 2, found version 99"),
            (lambda lines: ['{"dllm_recording": 2}\n'], "line 1: verb is None"),
            (lambda lines: [lines[0], "no json\n", *lines[2:]], "line 2: expected JSON"),
            (lambda lines: [lines[0], *lines[2:]], "line 2: no event of this run"),
            (lambda lines: [*lines[:2], '{"event": "x", "seconds": 0}\n'], "line 3: no event"),
            (lambda lines: [*lines[:2], "7\n"], "line 3: expected a JSON object"),
        ],
    )
    def test_a_broken_file_is_told(self, engine, tmp_path, change, message):
        file = tmp_path / "run.jsonl"
        record(engine, file, SEVEN)
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(change(lines)))
        with pytest.raises(RecordingError, match=message):
            read_recording(file)

    def test_a_missing_file_is_told(self, tmp_path):
        with pytest.raises(RecordingError, match=r"none\.jsonl: No such file"):
            read_recording(tmp_path / "none.jsonl")

    def test_a_pipe_is_recorded_to_and_stays_and_is_none_to_replay(self, engine, tmp_path):
        pipe, found = tmp_path / "pipe", []
        os.mkfifo(pipe)
        reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
        reader.start()
        record(engine, pipe, SEVEN)
        reader.join(10)
        (tmp_path / "copy").write_bytes(found[0])
        assert read_recording(tmp_path / "copy").prompts == [SEVEN]
        with pytest.raises(RecordingError, match="found a pipe or a device"):
            read_recording(pipe)

    def test_every_line_is_on_disk_at_once(self, engine, tmp_path):
        file = tmp_path / "run.jsonl"
        with Recorder(file, Follower.of(engine), DecodeConfig(), model="echo") as recorder:
            for count, event in enumerate(engine.stream(SEVEN), 2):
                recorder.show(event, 0.0)
                assert len(file.read_text().splitlines()) == count
