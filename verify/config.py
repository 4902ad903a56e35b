"""Options of speculation, frozen and checked: each is declared here, with its only default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from dllm.checks import (
    LARGEST,
    ConfigError,
    check_number,
    check_positive,
    check_switches,
    check_whole,
    checked_stop,
    replaced,
)

if TYPE_CHECKING:  # they need torch, which `--help` does without
    from dllm.verify.draft.rows import SpeculationComponents
    from dllm.verify.output import Round

OF_TARGET = ("temperature", "top_p", "top_k")  # None: as the target's checkpoint says

# options that ask for another mode than greedy decoding or sampling -> the values that do not
MODES: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
}
# options that are kept where transformers calls the loop, but not by an engine
NOT_OURS: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "num_return_sequences": (None, 1),
    "token_healing": (None, False),
}

# further options of the target's own decoding, by the names they have in transformers
GENERATION = (
    "do_sample",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "renormalize_logits",
    "watermarking_config",
    "prefix_allowed_tokens_fn",
    "eos_token_id",
    # refused where they change anything: here to be put back to what changes nothing
    *MODES,
    *NOT_OURS,
    "cache_implementation",
)

COLDEST = 1e-6  # below it logits by temperature leave what floating-point numbers hold
# control of a single drafted text, in the command line: too short to learn costs from
ONE_TEXT = "fixed:depth=16,nodes=16"


@dataclass(frozen=True)
class DraftOptions:
    """How to draft. Components are specs ("name:key=value").

    search: lattice to tree.  control: how much to draft and to verify.  sources: model-free drafts,
    in addition to the drafter's.  reuse: the rest of a draft is used again while it has that many
    columns (0: never).
    """

    search: str = "product"
    control: str = "cost"
    sources: tuple[str, ...] = ("ngram", "suffix")
    reuse: int = 0

    def __post_init__(self) -> None:
        check_whole("reuse", self.reuse, 0)
        check_specs(self, "search", "control")
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", (self.sources,))
        if not isinstance(self.sources, Sequence) or not all(
            isinstance(source, str) for source in self.sources
        ):
            raise ConfigError(f"sources={self.sources!r:.99}: expected specs, name:key=value")
        object.__setattr__(self, "sources", tuple(self.sources))


def check_specs(options: object, *names: str) -> None:
    """ConfigError for an option that is no string."""
    for name in names:
        if not isinstance(value := getattr(options, name), str):
            raise ConfigError(f"{name}={value!r}: expected a spec, name:key=value")


@dataclass(frozen=True)
class ChainOptions(DraftOptions):
    """How to draft for a loop of others, which verifies one path of tokens (transformers, vLLM).

    Nodes beside the path would be wasted, hence argmax. A pass serves texts that are not seen here,
    so that the clock says little about one of them: hence no control by cost.
    """

    search: str = "argmax"
    control: str = "threshold"

    def components(self) -> SpeculationComponents:
        """The components that the specs name; SpecError says what is wrong with one."""
        return components_of(self, "match", temperature=1.0, lossless=True)


@dataclass(frozen=True)
class SpecConfig(DraftOptions):
    """Options of one speculative generation; components are specs ("name:key=value").

    The command line has an option for every field, and takes its help from here (cli/fields.py).
    Those of the target's own decoding are its checkpoint's where they are None; where its
    `generation_config` says nothing, they are those of transformers.

    Decoding:
        search (SPEC): From a lattice to a tree of drafts.
        accept (SPEC): The acceptance rule; auto: the search's usual one.
        control (SPEC): How much to draft and to verify.
        sources (SPEC): A model-free source of drafts, or none; may be repeated.
        reuse: Use the rest of a draft again while it has so many columns; 0: never.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the most likely token; default: the checkpoint's.
        top_p: Draw from the fewest tokens with this probability; default: the checkpoint's.
        top_k: Draw from this many tokens; 0: from all; default: the checkpoint's.
        seed: Of all random draws.
        stop: Text that ends an answer; may be repeated.
        lossless: False lets a rule change the target's output.
        generation: Further options of the target's own decoding, by the names of `GENERATION`;
            `replace` takes them as options like all others.
        logits_processor: Further processors, put where transformers puts them.
    """

    accept: str = "auto"
    lossless: bool = True
    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    logits_processor: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        DraftOptions.__post_init__(self)
        check_whole("max_new_tokens", self.max_new_tokens, 1, 2**20)
        check_number("temperature", self.temperature, 0, LARGEST, none=True)
        if self.top_p is not None:
            check_positive("top_p", self.top_p, 1)
        check_whole("top_k", self.top_k, 0, none=True)
        check_whole("seed", self.seed, 0)
        check_specs(self, "accept")
        check_switches(self, "lossless")
        self._check_generation()
        object.__setattr__(self, "stop", checked_stop(self.stop))
        if self.temperature and self.temperature < COLDEST:
            raise ConfigError(
                f"temperature={self.temperature}: expected 0, or a number of at least {COLDEST}"
            )

    def _check_generation(self) -> None:
        if not isinstance(self.generation, Mapping):
            raise ConfigError(f"generation={self.generation!r:.99}: expected options by name")
        for name in self.generation:
            if name not in GENERATION:
                raise ConfigError(
                    f"generation option {name!r}: expected one of {', '.join(GENERATION)}"
                )
        object.__setattr__(self, "generation", dict(self.generation))
        given: Any = self.logits_processor or ()
        given = tuple(given) if isinstance(given, Sequence) else (given,)
        if not all(map(callable, given)):
            raise ConfigError(f"logits_processor={given!r}: expected functions of (ids, scores)")
        object.__setattr__(self, "logits_processor", given)
        sampled = self.generation.get("do_sample")
        if None not in (sampled, self.temperature) and bool(sampled) != (self.temperature != 0):
            raise ConfigError(
                f"do_sample={sampled} contradicts temperature={self.temperature}: leave one out"
            )

    def replace(self, **changes: Any) -> SpecConfig:
        """A copy with some options changed; ConfigError lists the known ones for an unknown."""
        own = {name: changes.pop(name) for name in GENERATION if name in changes}
        if own:
            changes["generation"] = {**changes.get("generation", self.generation), **own}
        return replaced(self, changes, GENERATION)

    def generate_options(self) -> dict[str, Any]:
        """What the target's `generate` is told in addition to its checkpoint's config."""
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["do_sample"] = self.temperature > 0
        if self.temperature:
            options["temperature"] = float(self.temperature)
        if self.top_p is not None:
            options["top_p"] = float(self.top_p)
        if self.top_k is not None:
            options["top_k"] = self.top_k
        return {**options, **self.generation}

    def components(self) -> SpeculationComponents:
        """The components that the specs name, greedy ones if the temperature is left open;
        SpecError says what is wrong with one.
        """
        warm = self.temperature or 0.0
        return components_of(self, self.accept, temperature=warm, lossless=self.lossless)


# options that say which components are used: the others are of one text or of the target
OF_COMPONENTS = (*(each.name for each in fields(DraftOptions)), "accept", "lossless")


def components_of(
    options: DraftOptions, accept: str, *, temperature: float, lossless: bool
) -> SpeculationComponents:
    """The components that specs name, with the rule `accept` that fits them."""
    from dllm.verify.components import CONTROLS, SEARCHES, rule_of, sources_of
    from dllm.verify.draft.rows import SpeculationComponents

    search = SEARCHES.build(options.search)
    rule = rule_of(accept, search, temperature=temperature, lossless=lossless)
    control, sources = CONTROLS.build(options.control), sources_of(options.sources)
    return SpeculationComponents(search, rule, control, sources, options.reuse)


class ComponentsCache:
    """The components of configurations, each made once: a datastore stays open, and a controller
    and the sources' rates go on learning how these components do. Seeds and lengths make no
    difference.
    """

    def __init__(self) -> None:
        self._made: dict[SpecConfig, SpeculationComponents] = {}

    def of(self, config: SpecConfig, sampled: bool) -> SpeculationComponents:
        """The components of a configuration; SpecError says what is wrong with one.

        sampled: whether the target decodes so; it decides between greedy and drawing rules.
        """
        chosen = {name: getattr(config, name) for name in OF_COMPONENTS}
        key = SpecConfig(temperature=float(sampled), **chosen)
        if key not in self._made:
            self._made[key] = key.components()
        return self._made[key]

    def watched(self, made: SpeculationComponents, rounds: Iterator[Round]) -> Iterator[Round]:
        """`rounds` with components that were `made` here. After one that Ctrl-C or an error cut
        these are made anew: what they were learning then may be half written.
        """
        try:
            yield from rounds
        except GeneratorExit:  # between two rounds
            raise
        except BaseException:
            self._made = {key: each for key, each in self._made.items() if each is not made}
            raise
