"""The verbs that decode: generate, chat, replay."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from dllm.cli.app import INTERRUPTED, app, verb
from dllm.cli.batch import Bar, Record, located, read_prompts, title
from dllm.cli.options import (
    AsJson,
    BatchSize,
    BlockLength,
    Buckets,
    Cache,
    CacheMib,
    CfgScale,
    Chat,
    Delay,
    Device,
    Dtype,
    History,
    Input,
    MaxNewTokens,
    Model,
    OutputFile,
    Overwrite,
    Planner,
    Prefilled,
    Preset,
    Record_,
    Revision,
    Sampler,
    Seed,
    Speculator,
    Stop,
    StopRule,
    Temperature,
    TopK,
    TopP,
    Transform,
    Watch,
    decoding,
    prepare,
    real,
)
from dllm.cli.saving import answers_to, check_files
from dllm.cli.spec_view import SpecView
from dllm.cli.terminal import unechoed
from dllm.cli.view import DELAY, LiveView
from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.text.following import Follower

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.engine import Engine

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


@app.command(cls=verb(decoding))
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="Left out: --input, or stdin.")] = None,
    model: Model = "tiny",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    sampler: Sampler = None,
    preset: Preset = None,
    planner: Planner = None,
    transform: Transform = None,
    stop_rule: StopRule = None,
    speculator: Speculator = None,
    cache: Cache = None,
    cache_mib: CacheMib = None,
    buckets: Buckets = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    prefilled: Prefilled = None,
    cfg_scale: CfgScale = None,
    history: History = None,
    chat: Chat = None,
    input: Input = None,
    output: OutputFile = None,
    overwrite: Overwrite = False,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
    watch: Watch = None,
    delay: Delay = DELAY,
    record: Record_ = None,
) -> None:
    """Decode a prompt, or many, and print the answers.

    `dllm samplers` lists samplers, planners, caches and presets; `dllm samplers NAME` shows one.
    """
    records = read_prompts(prompt, input)
    as_text = not (as_json or output)
    if watch and not as_text:
        raise DllmError("--watch shows text: leave it out, or leave out --json and --output")
    if record and len(records) > batch_size:
        raise DllmError(
            f"--record takes one batch: there are {len(records)} prompts, --batch-size {batch_size}"
        )
    check_files({"--input": input}, {"--output": output, "--record": record}, overwrite)
    with_view = as_text and (watch or len(records) == 1)
    config, engine = prepare(ctx.params)

    def consumers(part: Sequence[Record]) -> Iterator[Any]:
        titles = [title(item) for item in part]
        if record:
            from dllm.recording import Recorder

            yield Recorder(record, Follower.of(engine), config, model=model, prompts=titles)
        if with_view:
            live = watch is not False
            yield LiveView(Follower.of(engine), titles, delay=delay, live=live)

    template: bool | Literal["auto"] = "auto" if chat is None else chat
    how: Any = {"as_json": as_json, "silent": with_view, "overwrite": overwrite}
    belongs = answers_of(engine, model, config, template) if output else {}
    with (
        answers_to(output, records, batch_size, belongs, **how) as answers,
        Bar(len(records), with_view, answers.batches.start) as bar,
    ):
        for at in answers.batches:
            part = records[at : at + batch_size]
            with ExitStack() as stack, located(at, len(part), len(records)):
                prompts = [engine.encode(item["prompt"], template) for item in part]
                # the rows' own numbers, so that a draw does not depend on the size of a batch
                events = engine.stream_steps(prompts, config, row_ids=range(at, at + len(part)))
                done, cut = drive(events, bar, *map(stack.enter_context, consumers(part)))
            answers.put({at + row: answer for row, answer in done.items()})
            if cut:
                raise typer.Exit(INTERRUPTED)


def answers_of(
    engine: Engine, model: str, config: DecodeConfig, chat: bool | Literal["auto"]
) -> dict[str, Any]:
    """What the answers to a prompt depend on, by the words a user has for it."""
    from dllm.models.fingerprint import fingerprint

    options = {f.name: getattr(config, f.name) for f in fields(config)}
    return {"model": model, "weights": fingerprint(engine.model), "chat": chat, **options}


@app.command(name="chat", cls=verb(decoding))
def chat_(
    ctx: typer.Context,
    model: Model = "tiny",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    sampler: Sampler = None,
    preset: Preset = None,
    planner: Planner = None,
    transform: Transform = None,
    stop_rule: StopRule = None,
    speculator: Speculator = None,
    cache: Cache = None,
    cache_mib: CacheMib = None,
    buckets: Buckets = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    prefilled: Prefilled = None,
    cfg_scale: CfgScale = None,
    watch: Watch = None,
    delay: Delay = DELAY,
) -> None:
    """Talk to a model; /reset forgets the conversation, /exit ends it. Ctrl-C cuts an answer."""
    with unechoed():
        config, engine = prepare(ctx.params)
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
            view = LiveView(Follower.of(engine), delay=delay, live=watch is not False)
            with unechoed(), view:
                done, _ = drive(engine.stream(turn, config), view)
        except DllmError as error:
            print(f"error: {error} (/reset starts again)", file=sys.stderr)
            continue
        if done and done[0].text:
            messages = [*turn, {"role": "assistant", "content": done[0].text}]
        elif done and messages and done[0].finish_reason == "eos":
            print(SILENT, file=sys.stderr)


@app.command(cls=verb())
def replay(
    recording: Annotated[Path, typer.Argument(help="A file that --record has written.")],
    speed: Annotated[float, Option(help="2 is twice as fast.", max=1e6, callback=real)] = 1.0,
    delay: Delay = DELAY,
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
    with kind(follower, run.prompts, delay=delay, speed=speed) as view:
        recordings.replay(run, view)
