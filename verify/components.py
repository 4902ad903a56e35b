"""Components of speculative decoding by name; each is a dataclass of options ("name:key=value")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllm.registry import Registry, SpecError
from dllm.verify.accept.rules import AcceptanceRule, GreedyAcceptance
from dllm.verify.control.controllers import Controller
from dllm.verify.draft.search import Search
from dllm.verify.sources.memory import Source

HERE = "dllm.verify"
SEARCHES: Registry[Search] = Registry(
    "search method",
    "dllm.search_methods",
    {
        "argmax": f"{HERE}.draft.search:Argmax",
        "cps": f"{HERE}.research.cps:Cps",
        "product": f"{HERE}.draft.search:Product",
        "coupled": f"{HERE}.research.coupled:Coupled",
        "sample": f"{HERE}.draft.construct:SampledChain",
        "rsd": f"{HERE}.research.rsd:RsdTree",
        "kseq": f"{HERE}.research.kseq:KSeqTree",
        "greedy-plus-one": f"{HERE}.draft.construct:GreedyPlusOne",
    },
)
RULES: Registry[AcceptanceRule] = Registry(
    "acceptance rule",
    "dllm.acceptance_rules",
    {
        "greedy": f"{HERE}.accept.rules:GreedyAcceptance",
        "match": f"{HERE}.accept.rules:Match",
        "ratio": f"{HERE}.accept.sampled:Ratio",
        "rsd": f"{HERE}.research.rsd:Rsd",
        "kseq": f"{HERE}.research.kseq:KSeq",
        "block": f"{HERE}.accept.sampled:BlockVerification",
        "typical": f"{HERE}.research.lossy:Typical",
        "relaxed": f"{HERE}.research.lossy:Relaxed",
    },
)
CONTROLS: Registry[Controller] = Registry(
    "control",
    "dllm.controls",
    {
        "fixed": f"{HERE}.control.controllers:FixedController",
        "adl": f"{HERE}.research.cps:AdlController",
        "threshold": f"{HERE}.control.controllers:ThresholdController",
        "cost": f"{HERE}.control.goodput:CostController",
    },
)
SOURCES: Registry[Source] = Registry(
    "draft source",
    "dllm.draft_sources",
    {
        "ngram": f"{HERE}.sources.ngram:NGram",
        "suffix": f"{HERE}.sources.suffix:Suffix",
        "recycling": f"{HERE}.sources.recycling:Recycling",
        "datastore": f"{HERE}.sources.datastore:Datastore",
    },
)


# options that name a component
COMPONENTS: dict[str, Registry[Any]] = {
    "search": SEARCHES,
    "accept": RULES,
    "control": CONTROLS,
    "source": SOURCES,
}


def rule_of(spec: str, search: Search, *, temperature: float, lossless: bool) -> AcceptanceRule:
    """The acceptance rule that a spec names, checked against the search and the temperature.

    "auto" is the search's usual rule, which at temperature 0 comes to greedy. SpecError: a rule
    that does not fit how the search draws its trees, or that would change the target's output
    although `lossless`.
    """
    spec = search.accepts[0] if spec == "auto" else spec
    rule = RULES.build(spec, greedy=temperature == 0)
    name = spec.partition(":")[0]
    if not rule.lossless:
        if lossless:
            raise SpecError(
                f"accept={spec!r} changes the target's output: it needs lossless=False (--lossy)"
            )
        return rule
    if name not in ("greedy", *search.accepts):
        fitting = [each for each in SEARCHES if name in SEARCHES.build(each).accepts]
        fits = f"it is for the searches {', '.join(fitting)}" if fitting else "no search is for it"
        lossy = [each for each in RULES if not RULES.build(each).lossless]
        raise SpecError(
            f"accept={spec!r} does not fit how this search makes its trees: {fits}; with this "
            f"search expected one of greedy (at temperature 0), {', '.join(search.accepts)}; with "
            f"lossless=False (--lossy) also {', '.join(lossy)}"
        )
    if temperature == 0:
        return GreedyAcceptance()
    if name == "greedy":
        expected = ", ".join(search.accepts)
        raise SpecError(
            f"accept='greedy' is for temperature 0, not {temperature}: expected one of {expected}"
        )
    return rule


def rule_name(rule: AcceptanceRule) -> str:
    """The name of a rule's class in the table; of one from elsewhere the class's own."""
    home = f"{type(rule).__module__}:{type(rule).__name__}"
    names = (name for name, place in RULES.items() if place == home)
    return next(names, type(rule).__name__.lower())


def sources_of(specs: Sequence[str]) -> tuple[Source, ...]:
    """The model-free sources that specs name; "none" stands for none at all."""
    return tuple(SOURCES.build(spec) for spec in specs if spec != "none")
