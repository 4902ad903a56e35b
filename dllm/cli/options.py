"""Options that several verbs share, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from typer import Argument, Option

from dllm.cli.fields import Given, OptionsOf
from dllm.config import DecodeConfig

if TYPE_CHECKING:
    from dllm.engine import Engine

MOST_ROWS = 2**16  # of a batch
MOST_SECONDS = 3600  # of a step on the screen
MOST_GB = 2**20  # of memory
MOST_SEED = 2**63 - 1
DELAY = 0.15  # least seconds of a step on the screen: a tiny model takes ten milliseconds for one
SPEC = "SPEC"
MODEL = "Model"  # panels
DECODING = "Decoding"


def option(text: str, *flags: str, panel: str | None = None, **more: Any) -> Any:
    """An option of one verb alone."""
    return Option(*flags, help=text, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class LoadOptions:
    """Options of `dllm.load`, whose module needs torch.

    Model:
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:N or mps.
        revision: Branch, tag or commit on the hub.
    """

    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class AnswerOptions:
    """Options of the verbs that answer prompts.

    Input and output:
        input: Prompts: one a line, or JSON lines with a field prompt; - is stdin.
        output: Write JSON lines to this file; after an interruption the same command goes on.
        overwrite: Start anew, and replace the files to be written if they exist.
        batch_size: Prompts decoded together.
        json: Print a JSON line per prompt.
        watch: Show every step; by default a single prompt's, in a terminal.
        delay: Least seconds per step while watching.
        record: Write every step to this file, for replay.
    """

    input: str | None = None
    output: Path | None = None
    overwrite: bool = False
    batch_size: int = field(default=16, metadata={"min": 1, "max": MOST_ROWS})
    json: bool = False
    watch: bool | None = None
    delay: float = field(default=DELAY, metadata={"min": 0, "max": MOST_SECONDS})
    record: Path | None = None


Prompt = Annotated[str | None, Argument(help="Left out: --input, or stdin.")]
Model = Annotated[str, option("tiny (bundled), a directory, or a hub id.", panel=MODEL)]
Preset = Annotated[
    str | None,
    option("A paper's components and defaults, or a file that dllm tune wrote.", panel=DECODING),
]
Chat = Annotated[
    bool | None,
    option("Use the chat template; by default where there is one.", panel=DECODING),
]
Load = Annotated[Given, OptionsOf(LoadOptions)]
Decoding = Annotated[Given, OptionsOf(DecodeConfig)]
Answering = Annotated[AnswerOptions, OptionsOf(AnswerOptions)]


def prepare(
    model: str, load: Given, preset: str | None, given: Mapping[str, Any]
) -> tuple[DecodeConfig, Engine]:
    """What the options of a verb ask for, the library's defaults for what they leave out."""
    with Console(stderr=True).status(f"loading {model}"):
        import dllm.api
        from dllm.presets import preset_options

        options = dict(given)
        if options.get("block_length") == 0:
            options["block_length"] = None
        if preset:
            preset_options(preset)
        # told at once, not after a long download
        DecodeConfig().replace(**options).check_components()
    engine = dllm.api.load(model, **load)  # has a bar of its own
    return engine.config(preset=preset, **options), engine
