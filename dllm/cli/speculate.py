"""The verb that drafts with a dLLM and verifies with an autoregressive target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from dllm.cli.app import INTERRUPTED, app, verb
from dllm.cli.batch import Record, located, read_prompts, title
from dllm.cli.options import (
    LOADING,
    MODEL,
    PART,
    AsJson,
    BatchSize,
    Chat,
    Delay,
    Device,
    Dtype,
    Input,
    MaxNewTokens,
    OutputFile,
    Overwrite,
    Record_,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    Watch,
    defaults_of,
    option,
)
from dllm.cli.saving import answers_to, check_files
from dllm.cli.view import DELAY
from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.files import parse_json
from dllm.verify.config import ONE_TEXT

if TYPE_CHECKING:
    from dllm.verify.config import SpecConfig
    from dllm.verify.engine import SpecEngine

PAIR = {"tiny-ar": "tiny"}  # bundled target -> its drafter

Target = Annotated[str, option("The AR model: tiny-ar, a directory, or a hub id.", panel=MODEL)]
DraftModel = Annotated[
    str | None,
    option(
        "The dLLM: tiny, a directory or a hub id; none: model-free drafts only. By default tiny "
        "for tiny-ar, else none.",
        panel=MODEL,
    ),
]
Markov = Annotated[
    bool, option("Use the drafter's Markov head, if it has one.", "--markov/--no-markov")
]
Search = Annotated[str | None, option("From a lattice to a tree of drafts.", metavar=PART)]
Accept = Annotated[str | None, option("The acceptance rule.", metavar=PART)]
Control = Annotated[
    str | None,
    option(
        f"How much to draft and to verify; by default cost, or with a drafter and one prompt "
        f"{ONE_TEXT}.",
        metavar=PART,
    ),
]
Sources = Annotated[
    list[str] | None,
    option("A model-free source of drafts, or none; may be repeated.", "--source", metavar=PART),
]
Reuse = Annotated[
    int | None, option("Use the rest of a draft again while it has so many columns; 0: never.")
]
Lossy = Annotated[
    bool, option("Let --accept change the target's output.", "--lossy", panel="Decoding")
]
Generation = Annotated[
    list[str] | None,
    option(
        "An option of the target's own decoding in place of its checkpoint's, as transformers "
        "names it, with a JSON value; repetition_penalty=1.1, say; may be repeated.",
        "--generation",
        metavar="NAME=VALUE",
    ),
]


def speculating() -> dict[str, str]:
    """The defaults of the options of `prepare`."""
    from dllm.verify.config import OF_TARGET, SpecConfig

    return LOADING | defaults_of(SpecConfig) | dict.fromkeys(OF_TARGET, "the checkpoint's")


@app.command(cls=verb(speculating))
def speculate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="Left out: --input, or stdin.")] = None,
    target: Target = "tiny-ar",
    drafter: DraftModel = None,
    markov: Markov = True,
    dtype: Dtype = None,
    device: Device = None,
    search: Search = None,
    accept: Accept = None,
    control: Control = None,
    sources: Sources = None,
    reuse: Reuse = None,
    lossy: Lossy = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    generation: Generation = None,
    seed: Seed = None,
    stop: Stop = None,
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
    """Draft with a diffusion model, verify with an autoregressive one: its own output, sooner.

    `dllm samplers` lists the parts. Tokens accepted from drafts are green in a terminal.
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
    config, engine = prepare(ctx.params, single=len(records) == 1)
    from dllm.cli.spec_view import SpecView, as_dict
    from dllm.text.following import SpecFollower

    def consumers(part: Sequence[Record]) -> Iterator[Any]:
        titles = [title(item) for item in part]
        if record:
            from dllm.recording import Recorder

            follower = SpecFollower.of(engine)
            yield Recorder(record, follower, config, model=target, prompts=titles)
        if with_view:
            live = watch is not False
            yield SpecView(SpecFollower.of(engine), titles, delay=delay, live=live)

    template: bool | Literal["auto"] = "auto" if chat is None else chat
    how: Any = {"as_json": as_json, "silent": with_view, "overwrite": overwrite, "to_dict": as_dict}
    belongs = answers_of(engine, ctx.params, config, template) if output else {}
    with answers_to(output, records, batch_size, belongs, **how) as answers:
        for at in answers.batches:
            part = records[at : at + batch_size]
            with ExitStack() as stack, located(at, len(part), len(records)):
                prompts = [record["prompt"] for record in part]
                # the rows' own numbers, so that a draw does not depend on the size of a batch
                rows = range(at, at + len(part))
                events = engine.stream(prompts, config, chat=template, row_ids=rows)
                done, cut = drive(events, *map(stack.enter_context, consumers(part)))
            answers.put({at + row: answer for row, answer in done.items()})
            if cut:
                raise typer.Exit(INTERRUPTED)


def answers_of(
    engine: SpecEngine,
    params: Mapping[str, Any],
    config: SpecConfig,
    chat: bool | Literal["auto"],
) -> dict[str, Any]:
    """What the answers to a prompt depend on, by the words a user has for it."""
    from dllm.models.fingerprint import fingerprint

    options = {f.name: getattr(config, f.name) for f in fields(config)}
    drafter = getattr(engine.drafter, "drafter", engine.drafter)  # behind its translation
    return {
        "target": params["target"],
        "drafter": params["drafter"],
        "markov": params["markov"],
        "weights": fingerprint(engine.target),
        "generation_config": engine.target.model.generation_config.to_json_string(),
        "drafter's weights": drafter and fingerprint(drafter),
        "chat": chat,
        **options,
    }


def prepare(params: Mapping[str, Any], single: bool) -> tuple[SpecConfig, SpecEngine]:
    """What the options ask for, the library's defaults for what they leave out."""
    with Console(stderr=True).status(f"loading {params['target']}"):
        import dllm.verify.api
        from dllm.verify.config import SpecConfig

        ours = ("lossless", "generation", "logits_processor")
        names = [f.name for f in fields(SpecConfig) if f.name not in ours]
        given = {n: params[n] for n in names if params.get(n) not in (None, [], ())}
        drafter = params["drafter"] or PAIR.get(params["target"])
        drafter = None if drafter == "none" else drafter
        if single and drafter:
            given = {"control": ONE_TEXT, **given}
        generation = dict(map(named_value, params["generation"] or []))
        config = SpecConfig(lossless=not params["lossy"], generation=generation).replace(**given)
        config.components()  # told at once, not after a long download
        options = {n: params[n] for n in ("dtype", "device") if params[n] is not None}
        if not params["markov"]:
            options["markov"] = False
    return config, dllm.verify.api.load(params["target"], drafter, **options)  # has its own bar


def named_value(given: str) -> tuple[str, Any]:
    """What --generation was given: a name, and its value in JSON."""
    name, _, value = given.partition("=")
    return name, parse_json(value, f"--generation {given}")
