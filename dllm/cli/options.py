"""The options that several verbs share, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from typer import BadParameter, Option

from dllm.registry import shown

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.engine import Engine


MOST_ROWS = 2**16  # of a batch
MOST_SECONDS = 3600  # of a step on the screen
MOST_GB = 2**20  # of memory
MOST_SEED = 2**63 - 1


def option(text: str, *names: str, panel: str = "Decoding", **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=panel, **more)


def real(value: float | None) -> float | None:
    """A number from the command line; NaN compares with nothing, so that bounds let it through."""
    if value is not None and value != value:
        raise BadParameter("nan is no number.")
    return value


MODEL, FILES, PART = "Model", "Input and output", "SPEC"
Model = Annotated[str, option("tiny (bundled), a directory, or a hub id.", panel=MODEL)]
Dtype = Annotated[str | None, option("auto, float32, bfloat16 or float16.", panel=MODEL)]
Device = Annotated[str | None, option("auto, cpu, cuda, cuda:N or mps.", panel=MODEL)]
Revision = Annotated[str | None, option("Branch, tag or commit on the hub.", panel=MODEL)]
Sampler = Annotated[
    str | None, option("Which tokens a step keeps; threshold:threshold=0.9, say.", metavar=PART)
]
Preset = Annotated[
    str | None, option("A paper's parts and defaults, or a file that dllm tune wrote.")
]
Planner = Annotated[str | None, option("In which window it may keep them.", metavar=PART)]
Transform = Annotated[str | None, option("A change of the logits.", metavar=PART)]
StopRule = Annotated[str | None, option("What may end an answer early.", metavar=PART)]
Speculator = Annotated[
    str | None, option("Guesses canvases ahead; the answer stays the same.", metavar=PART)
]
Prefilled = Annotated[
    list[str] | None,
    option("OFFSET:TEXT that stands in the answer from the start; may be repeated."),
]
Cache = Annotated[str | None, option("Which positions are computed anew.", metavar=PART)]
CacheMib = Annotated[
    float | None, option("MiB that the keys and values of a batch may take at most.")
]
Buckets = Annotated[
    bool | None, option("Pad a cached forward's queries to 8, 16, 32, ...", "--buckets")
]
MaxNewTokens = Annotated[int | None, option("Most tokens of an answer.")]
BlockLength = Annotated[int | None, option("Tokens of a window; 0: the whole answer.")]
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
OutputFile = Annotated[
    Path | None,
    option(
        "Write JSON lines to this file; after an interruption the same command goes on.",
        panel=FILES,
    ),
]
Overwrite = Annotated[
    bool,
    option(
        "Start anew, and replace the files to be written if they exist.", "--overwrite", panel=FILES
    ),
]
BatchSize = Annotated[int, option("Prompts decoded together.", panel=FILES, min=1, max=MOST_ROWS)]
AsJson = Annotated[bool, option("Print a JSON line per prompt.", "--json", panel=FILES)]
Watch = Annotated[
    bool | None,
    option("Show every step; by default a single prompt's, in a terminal.", panel=FILES),
]
Delay = Annotated[
    float,
    option(
        "Least seconds per step while watching.",
        panel=FILES,
        min=0,
        max=MOST_SECONDS,
        callback=real,
    ),
]
Record_ = Annotated[Path | None, option("Write every step to this file, for replay.", panel=FILES)]


LOADING = {"dtype": "auto", "device": "auto"}  # of dllm.load, whose module needs torch


def defaults_of(config: type) -> dict[str, str]:
    """The defaults of a configuration as a user types them; those of a tuple one by one."""
    return {
        f.name: ", ".join(f.default) or "none" if isinstance(f.default, tuple) else shown(f.default)
        for f in fields(config)
        if f.default is not MISSING
    }


def decoding() -> dict[str, str]:
    """The defaults of the options around `prepare`."""
    from dllm.config import DecodeConfig

    return LOADING | defaults_of(DecodeConfig)


def prepare(params: Mapping[str, Any]) -> tuple[DecodeConfig, Engine]:
    """What the options of a verb ask for, the library's defaults for what they leave out."""
    with Console(stderr=True).status(f"loading {params['model']}"):
        from dllm.api import load
        from dllm.config import DecodeConfig
        from dllm.presets import preset_options

        def given(names: Iterable[str]) -> dict[str, Any]:
            return {n: params[n] for n in names if params.get(n) not in (None, [], ())}

        options = given(f.name for f in fields(DecodeConfig))
        if options.get("block_length") == 0:
            options["block_length"] = None
        if preset := params.get("preset"):
            preset_options(preset)
        DecodeConfig().replace(
            **options
        ).check_components()  # told at once, not after a long download
    engine = load(params["model"], **given(("dtype", "device", "revision")))  # has a bar of its own
    return engine.config(preset=preset, **options), engine
