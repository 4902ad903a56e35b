"""The verb that drafts with a dLLM and verifies with an autoregressive target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from dllm.cli.answering import AnsweringEngine, Template, answer, checked_prompts
from dllm.cli.app import verb
from dllm.cli.fields import Given, OptionsOf
from dllm.cli.options import DECODING, Answering, Chat, Prompt, option
from dllm.decoding.driving import Stream
from dllm.files import parse_json
from dllm.text.prompt_files import Record
from dllm.verify.config import ONE_TEXT, SpecConfig

if TYPE_CHECKING:
    from dllm.verify.engine import SpecEngine
    from dllm.verify.output import SpecOutput

PAIR = {"tiny-ar": "tiny"}  # bundled target -> its drafter

CONTROL = (
    f"How much to draft and to verify; by default cost, or with a drafter and one prompt {ONE_TEXT}"
    "."
)


@dataclass(frozen=True)
class PairOptions:
    """Options of what is loaded.

    Model:
        target: The AR model: tiny-ar, a directory, or a hub id.
        drafter: The dLLM: tiny, a directory or a hub id; none: model-free drafts only. By default
            tiny for tiny-ar, else none.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:N or mps.
    Decoding:
        markov: Use the drafter's Markov head, if it has one.
    """

    target: str = "tiny-ar"
    drafter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    markov: bool = True

    @property
    def drafting(self) -> str | None:
        """The checkpoint of the drafter, if there is one."""
        drafter = self.drafter or PAIR.get(self.target)
        return None if drafter == "none" else drafter


Decoding = Annotated[
    Given,
    OptionsOf(
        SpecConfig, but=["lossless", "generation", "logits_processor"], texts={"control": CONTROL}
    ),
]
Lossy = Annotated[
    bool, option("Let --accept change the target's output.", "--lossy", panel=DECODING)
]
Generation = Annotated[
    list[str] | None,
    option(
        "An option of the target's own decoding in place of its checkpoint's, as transformers "
        "names it, with a JSON value; repetition_penalty=1.1, say; may be repeated.",
        panel=DECODING,
        metavar="NAME=VALUE",
    ),
]


@verb()
def speculate(
    prompt: Prompt = None,
    *,
    pair: Annotated[PairOptions, OptionsOf(PairOptions)],
    decoding: Decoding,
    lossy: Lossy = False,
    generation: Generation = None,
    chat: Chat = None,
    options: Answering,
) -> None:
    """Draft with a diffusion model, verify with an autoregressive one: its own output, sooner.

    `dllm samplers` lists the components. Tokens accepted from drafts are green in a terminal.
    """
    records = checked_prompts(prompt, options)
    given = {
        "lossless": not lossy,
        "generation": dict(map(named_value, generation or ())),
        **decoding,
    }
    config, engine = prepare(pair, given, single=len(records) == 1)
    from dllm.cli.spec_view import SpecView
    from dllm.text.following import SpecFollower

    template: Template = "auto" if chat is None else chat

    def stream(batch: Sequence[Record], rows: range) -> Stream:
        prompts = [each["prompt"] for each in batch]
        return engine.stream(prompts, config, chat=template, row_ids=rows)

    run = AnsweringEngine(
        pair.target,
        config,
        stream,
        follower=lambda: SpecFollower.of(engine),
        view=SpecView,
        belongs=lambda: {**identity(engine, pair), "chat": template, **as_options(config)},
        to_dict=as_dict,
        cost=lambda output: (output.emitted, output.target_passes),
        rate="tokens/pass",
    )
    answer(records, run, options)


def as_options(config: SpecConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def identity(engine: SpecEngine, pair: PairOptions) -> dict[str, Any]:
    """What is loaded, by the words a user has for it."""
    from dllm.models.fingerprint import fingerprint

    drafter = getattr(engine.drafter, "drafter", engine.drafter)  # behind its translation
    return {
        "target": pair.target,
        "drafter": pair.drafter,
        "markov": pair.markov,
        "weights": fingerprint(engine.target),
        "generation_config": engine.target.model.generation_config.to_json_string(),
        "drafter's weights": drafter and fingerprint(drafter),
    }


def prepare(
    pair: PairOptions, given: Mapping[str, Any], single: bool
) -> tuple[SpecConfig, SpecEngine]:
    """What the options ask for, the library's defaults for what they leave out."""
    with Console(stderr=True).status(f"loading {pair.target}"):
        import dllm.verify.api

        usual = {"control": ONE_TEXT} if single and pair.drafting else {}
        config = SpecConfig().replace(**{**usual, **given})
        config.components()  # told at once, not after a long download
        default = PairOptions()
        options = {
            name: getattr(pair, name)
            for name in ("dtype", "device", "markov")
            if getattr(pair, name) != getattr(default, name)
        }
    return config, dllm.verify.api.load(pair.target, pair.drafting, **options)  # has its own bar


def as_dict(output: SpecOutput) -> dict[str, Any]:
    """The fields of a JSON line, rounds included."""
    return {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "target_passes": output.target_passes,
        "drafter_passes": output.drafter_passes,
        "tokens_per_pass": round(output.tokens_per_pass, 3),
        "accepted_per_round": round(output.accepted_per_round, 3),
        "rule": output.rule,
        "lossless": output.lossless,
        "decoding": output.decoding,
        "seconds": round(output.seconds, 6),
        "rounds": [
            {k: v for k, v in asdict(each).items() if k not in ("row", "finish_reason")}
            | {"accepted": each.accepted}
            for each in output.rounds
        ],
    }


def named_value(given: str) -> tuple[str, Any]:
    """What --generation was given: a name, and its value in JSON."""
    name, _, value = given.partition("=")
    return name, parse_json(value, f"--generation {given}")
