"""The verbs that decode: generate, chat, replay."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from dllm.cli.answering import AnsweringEngine, Template, answer, checked_prompts
from dllm.cli.app import told, verb
from dllm.cli.fields import Given, OptionsOf, real
from dllm.cli.options import (
    DELAY,
    Answering,
    AnswerOptions,
    Chat,
    Decoding,
    Load,
    Model,
    Preset,
    Prompt,
    prepare,
)
from dllm.cli.spec_view import SpecView
from dllm.cli.terminal import unechoed
from dllm.cli.view import LiveView
from dllm.config import DecodeConfig
from dllm.decoding.driving import Stream, drive
from dllm.errors import DllmError
from dllm.output import Output
from dllm.text.following import Follower
from dllm.text.prompt_files import Record

SLOWEST = 1e-3  # of a replay
HELP = (
    "/reset forgets the conversation, /exit ends it, /help says this; Ctrl-C cuts an answer. "
    "Behind a blank, a line that begins with / goes to the model."
)
COMMAND = re.compile(r"/\w*(\s.*)?")
SILENT = (
    "The model said nothing and the question is forgotten. Many models, the bundled ones among "
    "them, know single questions only: /reset starts anew."
)


@verb()
def generate(
    prompt: Prompt = None,
    model: Model = "tiny",
    *,
    load: Load,
    preset: Preset = None,
    decoding: Decoding,
    chat: Chat = None,
    options: Answering,
) -> None:
    """Decode a prompt, or many, and print the answers.

    `dllm samplers` lists samplers, planners, caches and presets; `dllm samplers NAME` shows one.
    """
    records = checked_prompts(prompt, options)
    config, engine = prepare(model, load, preset, decoding)
    template: Template = "auto" if chat is None else chat

    def stream(batch: Sequence[Record], rows: range) -> Stream:
        prompts = [engine.encode(each["prompt"], template) for each in batch]
        return engine.stream_steps(prompts, config, row_ids=rows)

    def belongs() -> dict[str, Any]:
        from dllm.models.fingerprint import fingerprint

        own = {f.name: getattr(config, f.name) for f in fields(config)}
        return {"model": model, "weights": fingerprint(engine.model), "chat": template, **own}

    run = AnsweringEngine(
        model,
        config,
        stream,
        follower=lambda: Follower.of(engine),
        view=LiveView,
        belongs=belongs,
        to_dict=Output.as_dict,
        cost=lambda output: (output.answer_tokens, output.nfe),
    )
    answer(records, run, options)


@verb(name="chat")
def chat_(
    model: Model = "tiny",
    *,
    load: Load,
    preset: Preset = None,
    decoding: Annotated[Given, OptionsOf(DecodeConfig, but=["history"])],
    shown: Annotated[Given, OptionsOf(AnswerOptions, only=["watch", "delay"])],
) -> None:
    """Talk to a model; /reset forgets the conversation, /exit ends it. Ctrl-C cuts an answer."""
    with unechoed():
        config, engine = prepare(model, load, preset, decoding)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() its arrow keys)
    in_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):  # a line that is no text is refused, not the session
        sys.stdin.reconfigure(
            encoding=None if in_terminal else "utf-8-sig", errors="surrogateescape"
        )
    if in_terminal:
        print(HELP, file=sys.stderr)
    messages: list[Mapping[str, str]] = []
    while True:
        try:
            line = input("› " if in_terminal else "")
        except EOFError:
            return
        command, line = COMMAND.fullmatch(line.rstrip()), line.strip()
        if line == "/exit":
            return
        if line == "/reset":
            messages = []
        elif command:
            print(HELP if line == "/help" else f"no command {line!r}; {HELP}", file=sys.stderr)
        if command or not line:
            continue
        turn = [*messages, {"role": "user", "content": line}]
        try:
            live = shown.get("watch") is not False
            view = LiveView(Follower.of(engine), delay=shown.get("delay", DELAY), live=live)
            with unechoed(), view:
                done, _ = drive(engine.stream(turn, config), view)
        except DllmError as error:
            told(f"{error} (/reset starts again)")
            continue
        if done and done[0].text:
            messages = [*turn, {"role": "assistant", "content": done[0].text}]
        elif done and messages and done[0].finish_reason == "eos":
            print(SILENT, file=sys.stderr)


@verb()
def replay(
    recording: Annotated[Path, typer.Argument(help="A file that --record has written.")],
    speed: Annotated[float, Option(help="2 is twice as fast.", max=1e6, callback=real)] = 1.0,
    *,
    shown: Annotated[Given, OptionsOf(AnswerOptions, only=["delay"])],
) -> None:
    """Show a recorded run again, without its model."""
    import dllm.recording as recordings

    if speed < SLOWEST:
        raise DllmError(f"--speed {speed}: expected a number of at least {SLOWEST}")
    run = recordings.read_recording(recording)
    if run.truncated:
        print(f"warning: the last line of {recording} is cut off and left out", file=sys.stderr)
    follower: Any = run.follower()
    kind: Any = LiveView if run.verb == "generate" else SpecView
    with kind(follower, run.prompts, speed=speed, **shown) as view:
        recordings.replay(run, view)
