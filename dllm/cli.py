"""The command line: every verb reads its options, asks the library, and prints.

Defaults live in the library: only options that the user gave are passed on. What imports torch is
imported inside the verbs, so that `dllm --help` answers at once.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast, get_type_hints

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer import Option
from typer.core import TyperGroup

from dllm.batch import Bar, Record, answers_to, located, read_prompts, title
from dllm.errors import DllmError
from dllm.streaming import Follower, drive
from dllm.view import DELAY, LiveView

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.engine import Engine

INTERRUPTED = 130  # exit status: 128 + SIGINT
RECIPES = {"mdlm": "dllm.train.tiny"}  # name -> module with trainer(directory) and export
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])  # typer exports no name for it


class Commands(TyperGroup):
    """The verbs; whatever a user did wrong becomes one line on stderr and exit status 2."""

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        try:
            status = super().main(*args, **{**settings, "standalone_mode": False})
        except UsageError as error:
            fail(usage_message(error))
        except DllmError as error:
            fail(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}")
        except typer.Abort:
            status = INTERRUPTED
        sys.exit(status)


def fail(message: str) -> NoReturn:
    print("error:", message.replace("\n", " "), file=sys.stderr)
    sys.exit(2)


def usage_message(error: Any) -> str:
    """What is wrong with the command line, with the known choices."""
    message: str = error.format_message()
    command = getattr(error.ctx, "command", None)
    if command is not None and message.startswith("No such option"):
        names = (
            name for p in command.get_params(error.ctx) for name in [*p.opts, *p.secondary_opts]
        )
        return f"{message}; known: {', '.join(name for name in names if name.startswith('--'))}"
    if command is not None and message.startswith("No such command"):
        return f"{message} Known: {', '.join(command.commands)}"
    return message


app = typer.Typer(
    cls=Commands,
    help="Parallel decoding of masked-diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="dllm")


def option(text: str, *names: str, panel: str = "Decoding", **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=panel, **more)


MODEL, FILES, PART = "Model", "Input and output", "SPEC"
Model = Annotated[str, option("tiny (bundled), a directory, or a hub id.", panel=MODEL)]
Dtype = Annotated[str | None, option("auto, float32, bfloat16 or float16.", panel=MODEL)]
Device = Annotated[str | None, option("auto, cpu, cuda or cuda:N.", panel=MODEL)]
Revision = Annotated[str | None, option("Branch, tag or commit on the hub.", panel=MODEL)]
Sampler = Annotated[
    str | None, option("Which tokens a step keeps; threshold:threshold=0.9, say.", metavar=PART)
]
Planner = Annotated[str | None, option("In which window it may keep them.", metavar=PART)]
Cache = Annotated[str | None, option("Which positions are computed anew.", metavar=PART)]
MaxNewTokens = Annotated[int | None, option("Holes behind the prompt.")]
BlockLength = Annotated[int | None, option("Tokens of a window; 0: all holes at once.")]
Temperature = Annotated[float | None, option("0 takes the most likely token.")]
TopP = Annotated[float | None, option("Draw from the fewest tokens with this probability.")]
TopK = Annotated[int | None, option("Draw from this many tokens; 0: from all.")]
Seed = Annotated[int | None, option("Of all random draws.")]
Stop = Annotated[list[str] | None, option("Text that ends an answer; may be repeated.")]
CfgScale = Annotated[float | None, option("Classifier-free guidance, by a second forward.")]
History = Annotated[bool | None, option("Keep the tokens of every step in the JSON.", "--history")]
Chat = Annotated[
    bool | None, option("Use the chat template; by default where there is one.", "--chat/--no-chat")
]
Input = Annotated[
    str | None,
    option("Prompts: one a line, or JSON lines with a field prompt; - is stdin.", panel=FILES),
]
OutputFile = Annotated[Path | None, option("Write JSON lines to this file.", panel=FILES)]
BatchSize = Annotated[int, option("Prompts decoded together.", panel=FILES, min=1)]
AsJson = Annotated[bool, option("Print a JSON line per prompt.", "--json", panel=FILES)]
Watch = Annotated[
    bool | None,
    option("Show every step; by default a single prompt's, in a terminal.", panel=FILES),
]
Delay = Annotated[float, option("Least seconds per step while watching.", panel=FILES, min=0)]
Record_ = Annotated[Path | None, option("Write every step to this file, for replay.", panel=FILES)]


@app.command()
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="Left out: --input, or stdin.")] = None,
    model: Model = "tiny",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    sampler: Sampler = None,
    planner: Planner = None,
    cache: Cache = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    cfg_scale: CfgScale = None,
    history: History = None,
    chat: Chat = None,
    input: Input = None,
    output: OutputFile = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
    watch: Watch = None,
    delay: Delay = DELAY,
    record: Record_ = None,
) -> None:
    """Decode a prompt, or many, and print the answers.

    `dllm samplers` lists samplers, planners and caches, and the defaults of what is left out here.
    """
    records = read_prompts(prompt, input)
    as_text = not (as_json or output)
    if watch and not as_text:
        raise DllmError("--watch shows text: leave it out, or leave out --json and --output")
    if record and len(records) > batch_size:
        raise DllmError(f"--record takes one batch: {len(records)} prompts, {batch_size=}")
    with_view = as_text and (watch or len(records) == 1)
    config, engine = prepare(ctx.params)

    def consumers(part: Sequence[Record]) -> Iterator[Any]:
        titles = [title(item) for item in part]
        if record:  # first, since Ctrl-C mostly hits the view while it waits
            from dllm.recording import Recorder

            yield Recorder(record, engine, config, model=model, prompts=titles)
        if with_view:
            live = watch is not False
            yield LiveView(Follower.of(engine), titles, delay=delay, live=live)

    template: bool | Literal["auto"] = "auto" if chat is None else chat
    with answers_to(output, as_json, silent=with_view) as put, Bar(len(records), with_view) as bar:
        for at in range(0, len(records), batch_size):
            part = records[at : at + batch_size]
            with ExitStack() as stack, located(at, len(part), len(records)):
                prompts = [engine.encode(item["prompt"], template) for item in part]
                # the rows' own numbers, so that a draw does not depend on the size of a batch
                events = engine.stream_steps(prompts, config, row_ids=range(at, at + len(part)))
                done = drive(events, bar, *map(stack.enter_context, consumers(part)))
            for row, answer in sorted(done.items()):
                put(part[row], answer)
            reasons = {answer.finish_reason for answer in done.values()}
            if "interrupted" in reasons or len(done) < len(part):
                raise typer.Exit(INTERRUPTED)


@app.command(name="chat")
def chat_(
    ctx: typer.Context,
    model: Model = "tiny",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    sampler: Sampler = None,
    planner: Planner = None,
    cache: Cache = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    cfg_scale: CfgScale = None,
    watch: Watch = None,
    delay: Delay = DELAY,
) -> None:
    """Talk to a model; /reset forgets the conversation, /exit ends it. Ctrl-C cuts an answer."""
    config, engine = prepare(ctx.params)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() its arrow keys)
    in_terminal = sys.stdin.isatty()
    if in_terminal:
        print("/reset forgets the conversation, /exit ends it; Ctrl-C cuts an answer")
    messages: list[Mapping[str, str]] = []
    while True:
        try:
            line = input("› " if in_terminal else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/reset":
            messages = []
        if not line or line == "/reset":
            continue
        turn = [*messages, {"role": "user", "content": line}]
        try:
            with LiveView(Follower.of(engine), delay=delay, live=watch is not False) as view:
                done = drive(engine.stream(turn, config), view)
        except DllmError as error:
            print(f"error: {error} (/reset starts again)", file=sys.stderr)
            continue
        if done:
            messages = [*turn, {"role": "assistant", "content": done[0].text}]


@app.command()
def samplers() -> None:
    """List samplers, planners and cache policies: options with their defaults, and papers."""
    from dllm.cache import POLICIES
    from dllm.config import DecodeConfig
    from dllm.samplers import PLANNERS, SAMPLERS
    from dllm.specs import known_parts

    console = Console(highlight=False)
    tables = {"samplers": SAMPLERS, "planners": PLANNERS, "cache": POLICIES}
    for kind, table in tables.items():
        columns = (f"--{kind.removesuffix('s')}", "what it does", "options and their defaults")
        listing = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for name in sorted(known_parts(table, f"dllm.{kind}")):
            listing.add_row(Text(name, "bold"), *describe_part(name, table, f"dllm.{kind}"))
        console.print(listing)
    defaults = (f"--{f.name.replace('_', '-')} {shown(f.default)}" for f in fields(DecodeConfig))
    console.print(Text("defaults of generate: " + "  ".join(defaults)))


def describe_part(name: str, table: Mapping[str, str], group: str) -> tuple[Text, Text]:
    """What a part does and its paper; its options. A part that cannot be loaded says why."""
    from dllm.specs import describe, part_class

    try:
        part = part_class(name, table, group)
        hints = get_type_hints(part)
    except (DllmError, NameError) as error:
        return Text(str(error), "red"), Text()
    lines = (part.__doc__ or "").strip().splitlines()[:1]
    about = Text("\n").join([Text(line) for line in lines] + [Text(part.paper, "dim")])
    options = [
        Text.assemble(f"{f.name}={shown(f.default)} ", (f"({describe(hints[f.name])})", "dim"))
        for f in fields(part)
        if f.init
    ]
    return about, Text("\n").join(options)


def shown(value: object) -> str:
    """A default as a user would type it."""
    words = {None: "none", True: "true", False: "false", (): "none"}
    if value is MISSING:
        return "(required)"
    return words[value] if isinstance(value, (bool, NoneType, tuple)) else str(value)


@app.command()
def env(as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices and threads."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import dllm

    found: dict[str, Any] = {"dllm": dllm.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found |= {
        "platform": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        value = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<14}{value or 'none'}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES)}.")],
    out: Annotated[Path, Option(help="Directory of the run; a run in it is resumed.")],
) -> None:
    """Run a training recipe; interrupted, the same command goes on from its last checkpoint."""
    if recipe not in RECIPES:
        raise DllmError(f"no recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
    module = importlib.import_module(RECIPES[recipe])
    trainer = module.trainer(out)
    if trainer.rank > 0:  # of a run under torchrun; the first process shows and writes
        trainer.run()
        return
    columns = ("{task.description}", "loss {task.fields[loss]}", "{task.fields[rate]} tokens/s")
    show, *numbers = (TextColumn(column) for column in columns)
    bar = Progress(show, BarColumn(), MofNCompleteColumn(), *numbers, TimeRemainingColumn())
    with bar:
        task = bar.add_task("training", total=trainer.total_steps, loss="–", rate="–")
        bar.update(task, completed=trainer.step)

        def report(numbers: Mapping[str, float]) -> None:
            loss, rate = f"{numbers['loss']:.3f}", f"{numbers['tokens_per_second']:.0f}"
            bar.update(task, completed=numbers["step"], loss=loss, rate=rate)

        trainer.run(on_log=report)
        bar.update(task, completed=trainer.step)
    module.export(trainer, out / "checkpoint")
    print(f"written: {out / 'checkpoint'}; try: dllm generate --model {out / 'checkpoint'} PROMPT")


@app.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="A file that --record has written.")],
    speed: Annotated[float, Option(help="2 is twice as fast.")] = 1.0,
    delay: Delay = DELAY,
) -> None:
    """Show a recorded run again, without its model."""
    import dllm.recording as recordings

    if speed <= 0:
        raise DllmError(f"{speed=}: expected a number above 0")
    run = recordings.read_recording(recording)
    if run.truncated:
        print(f"warning: the last line of {recording} is cut off and left out", file=sys.stderr)
    with LiveView(Follower(run.stop_ids), run.prompts, delay=delay, speed=speed) as view:
        recordings.replay(run, view)


def prepare(params: Mapping[str, Any]) -> tuple[DecodeConfig, Engine]:
    """What the options of a verb ask for, the library's defaults for what they leave out."""
    with Console(stderr=True).status(f"loading {params['model']}"):
        from dllm.api import load
        from dllm.config import DecodeConfig

        def given(names: Iterable[str]) -> dict[str, Any]:
            return {n: params[n] for n in names if params.get(n) not in (None, [], ())}

        options = given(f.name for f in fields(DecodeConfig))
        if options.get("block_length") == 0:
            options["block_length"] = None
        config = DecodeConfig().replace(**options)
        for make in (config.make_sampler, config.make_planner, config.make_cache):
            make()  # a wrong spec is told at once, not after a long download
        return config, load(params["model"], **given(("dtype", "device", "revision")))
