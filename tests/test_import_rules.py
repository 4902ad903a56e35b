"""Who may import whom: the table of the house, checked on the syntax tree of every module.

Imports inside functions and under TYPE_CHECKING count too. A module is named by its file, so a
package's own file is `<package>.__init__`; `dllm.__init__` is the front door: `import dllm`, or a
name taken from it.
"""

import ast
import sys
from typing import NamedTuple

import pytest

GROUND = (
    "dllm.cache.plan",
    "dllm.cache.store",
    "dllm.canvas",
    "dllm.driving",
    "dllm.errors",
    "dllm.files",
    "dllm.jsonlog",
    "dllm.models.spec",
    "dllm.options",
    "dllm.output",
    "dllm.prompts",
    "dllm.spelling",
)
TENSORS = ("torch", "numpy", "einops")
BELOW_ENGINE = (*GROUND, "dllm.config", "dllm.specs", "dllm.models", "dllm.samplers", "dllm.cache")
LOOP = (
    "dllm.answers",
    "dllm.binding",
    "dllm.decoding",
    "dllm.forward",
    "dllm.pages",
    "dllm.presets",
    "dllm.standing",
)
ENGINE = (*BELOW_ENGINE, *LOOP, "dllm.engine")
BESIDE_ENGINE = (*ENGINE, "dllm.text", "dllm.streaming")
CONSOLE = (
    "dllm.view",
    "dllm.recording",
    "dllm.batch",
    "dllm.saving",
    "dllm.spec_streaming",
    "dllm.listing",
    "dllm.memo",
    "dllm.spec_view",
    "dllm.tune",
    "dllm.trials",
)
NUMBERS = (
    "dllm.errors",
    "dllm.intervals",
    "dllm.eval.records",
    "dllm.eval.frontier",
    "dllm.eval.curves",
)
LAWS = ("dllm.eval.closed_forms", "dllm.eval.ceiling")
PURE = (  # of verify
    *("tree", "queries", "lattice", "rng", "accept", "sampled", "lossy"),
    *("conditional", "search", "heap", "couple", "construct"),
    *("sources", "ngram", "recycling", "suffix"),
    *("control", "costs", "goodput", "protocol", "chain"),
)
SPEC_OUTPUT = "dllm.verify.output"
LIBRARY = (*BESIDE_ENGINE, "dllm.__init__", "dllm.api", "dllm.eval", "dllm.train", "dllm.verify")


class May(NamedTuple):
    """What a module may import: of dllm, and of other distributions (None: anything)."""

    dllm: tuple[str, ...]
    others: tuple[str, ...] | None = None


# The longest matching name decides, so a single file can be stricter or freer than its folder.
RULES: dict[str, May] = {
    # ground floor: tensors and dataclasses only
    **dict.fromkeys(GROUND, May(GROUND, TENSORS)),
    # no model, no tokenizer, no cache
    "dllm.samplers": May(("dllm.samplers", "dllm.canvas", "dllm.options"), TENSORS),
    "dllm.samplers.pc": May(("dllm.samplers", "dllm.tensors"), TENSORS),
    "dllm.samplers.learn2pd": May(
        ("dllm.samplers", "dllm.canvas", "dllm.files", "dllm.options", "dllm.tensors"),
        (*TENSORS, "safetensors"),
    ),
    "dllm.samplers.scheduler": May(("dllm.samplers", "dllm.options", "dllm.specs"), TENSORS),
    "dllm.cache": May((*GROUND, "dllm.cache.policy"), TENSORS),  # a policy
    "dllm.cache.__init__": May(("dllm.cache",), TENSORS),
    "dllm.models": May((*GROUND, "dllm.models", "dllm.tensors")),
    **dict.fromkeys(("dllm.models.decoder", "dllm.models.lora"), May(GROUND, TENSORS)),
    "dllm.specs": May(("dllm.errors",), ()),
    "dllm.tensors": May(("dllm.errors", "dllm.files"), ("safetensors",)),
    "dllm.template_worker": May((), ("jinja2",)),
    "dllm.templates": May(("dllm.errors",), ()),
    "dllm.api": May((*ENGINE, "dllm.text")),
    "dllm.config": May(BELOW_ENGINE, TENSORS),
    **dict.fromkeys(LOOP, May((*BELOW_ENGINE, *LOOP), TENSORS)),
    "dllm.engine": May((*BELOW_ENGINE, *LOOP), TENSORS),
    "dllm.files": May(("dllm.errors",), ("safetensors",)),
    "dllm.jsonlog": May(("dllm.errors", "dllm.files"), ()),
    "dllm.intervals": May((), ()),
    "dllm.environment": May(("dllm.__init__",), ("torch", "transformers")),
    "dllm.trials": May((*ENGINE, "dllm.intervals")),
    "dllm.tune": May((*ENGINE, "dllm.memo", "dllm.trials")),
    "dllm.memo": May(BELOW_ENGINE, TENSORS),
    "dllm.listing": May((*ENGINE, "dllm.verify.config", "dllm.verify.parts")),
    "dllm.verify": May((*GROUND, "dllm.models", "dllm.specs", "dllm.text", "dllm.verify")),
    **dict.fromkeys(
        (f"dllm.verify.{name}" for name in PURE),
        May(("dllm.verify",), TENSORS),
    ),
    SPEC_OUTPUT: May(("dllm.output",), ()),
    "dllm.verify.datastore": May(
        ("dllm.errors", "dllm.files", "dllm.tensors", "dllm.verify"), (*TENSORS, "safetensors")
    ),
    "dllm.text": May((*BESIDE_ENGINE, "dllm.templates")),
    "dllm.streaming": May(BESIDE_ENGINE),
    "dllm.view": May(("dllm.output", "dllm.streaming")),
    "dllm.recording": May(
        (*ENGINE, "dllm.spec_streaming", "dllm.streaming", "dllm.verify.config", SPEC_OUTPUT)
    ),
    "dllm.spec_streaming": May((SPEC_OUTPUT, "dllm.output", "dllm.verify.engine")),
    "dllm.spec_view": May((SPEC_OUTPUT, "dllm.spec_streaming", "dllm.view")),
    "dllm.batch": May((*GROUND, "dllm.streaming")),
    "dllm.saving": May((*GROUND, "dllm.batch", "dllm.streaming")),
    "dllm.eval": May(
        (
            *BESIDE_ENGINE,
            "dllm.__init__",
            "dllm.environment",
            "dllm.eval",
            "dllm.intervals",
        )
    ),
    # the numbers, tables and figures of runs need no torch
    "dllm.eval.records": May(("dllm.eval.shapes",), ()),
    "dllm.eval.shapes": May((), ()),
    "dllm.eval.packed": May(("dllm.files",), ()),
    "dllm.eval.frontier": May((), ("numpy",)),
    **dict.fromkeys(("dllm.eval.curves", "dllm.eval.compare"), May(NUMBERS, ())),
    "dllm.eval.tables": May((), ("rich",)),
    "dllm.eval.laws": May((*NUMBERS, *LAWS, "dllm.eval.tables", "dllm.eval.suite"), ()),
    "dllm.eval.report": May(
        (
            *NUMBERS,
            "dllm.eval.compare",
            "dllm.eval.packed",
            "dllm.eval.suite.base",
            "dllm.eval.tables",
            "dllm.files",
        ),
        (),
    ),
    "dllm.eval.figures": May((*NUMBERS, "dllm.files"), ("matplotlib",)),
    # the questions and graders need no torch
    "dllm.eval.suite": May(
        (
            "dllm.errors",
            "dllm.eval.__init__",
            "dllm.eval.packed",
            "dllm.eval.shapes",
            "dllm.eval.suite",
            "dllm.eval.tasks",
            "dllm.files",
            "dllm.specs",
        ),
        (),
    ),
    **dict.fromkeys(LAWS, May(LAWS, ())),
    "dllm.eval.tasks": May(("dllm.eval.tasks",), ()),
    "dllm.train": May(
        (
            *BESIDE_ENGINE,
            "dllm.__init__",
            "dllm.batch",
            "dllm.eval",
            "dllm.files",
            "dllm.jsonlog",
            "dllm.train",
            "dllm.verify.target",
        )
    ),
    "dllm.__init__": May(LIBRARY, ()),  # lazily: see test_layout
    "dllm.cli": May((*LIBRARY, *CONSOLE, "dllm.cli")),
    "dllm.__main__": May(("dllm.cli",), ()),  # the only one that may
}


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(module: str, source: str, known: set[str]) -> set[tuple[int, str]]:
    """(line, module) of every import in `source`; a package counts as its own `__init__`."""

    def own_file(name: str) -> str:
        return f"{name}.__init__" if f"{name}.__init__" in known else name

    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(node.lineno, own_file(alias.name)) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*here, *filter(None, [node.module])])
            for alias in node.names:
                target = own_file(f"{base}.{alias.name}")  # a submodule, or else a name in `base`
                found.add((node.lineno, target if target in known else own_file(base)))
    return found


def violations(module: str, source: str, known: set[str]) -> list[str]:
    rules = [prefix for prefix in RULES if covers(prefix, module)]
    if not rules:
        return [f"{module}: has no rule yet, give it one in RULES"]
    may = RULES[max(rules, key=len)]
    found = []
    for line, target in sorted(imports(module, source, known)):
        top = target.partition(".")[0]
        if top == "dllm":
            allowed = any(covers(prefix, target) for prefix in may.dllm)
        else:
            allowed = may.others is None or top in may.others or top in sys.stdlib_module_names
        if not allowed:
            found.append(f"{module}:{line} may not import {target}")
    return found


def test_every_module_keeps_the_rules(modules):
    known = set(modules)
    found = [v for name, file in modules.items() for v in violations(name, file.read_text(), known)]
    assert found == []


KNOWN = {
    "dllm.__init__",
    "dllm.cache.__init__",
    "dllm.cache.plan",
    "dllm.cache.prefix",
    "dllm.canvas",
    "dllm.cli",
    "dllm.engine",
    "dllm.models.__init__",
    "dllm.models.decoder",
    "dllm.samplers.__init__",
}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dllm.samplers.quota", "from dllm.models.decoder import Decoder"),
        ("dllm.samplers.quota", "from ..cache import plan"),
        ("dllm.samplers.quota", "from transformers import AutoTokenizer"),
        ("dllm.samplers.quota", "def late():\n    import tokenizers"),
        ("dllm.samplers.quota", "import dllm"),
        ("dllm.samplers.quota", "from .. import engine"),
        ("dllm.cache.prefix", "from . import other_policy"),
        ("dllm.cache.prefix", "from dllm.cache import KVStore"),
        ("dllm.cache.plan", "import dllm.models.decoder"),
        ("dllm.canvas", "from . import engine"),
        ("dllm.models.decoder", "import safetensors"),
        ("dllm.engine", "from .text import Text"),
        ("dllm.verify.search", "import dllm.engine"),
        ("dllm.eval.sweep", "from dllm.train import recipe"),
        ("dllm.streaming", "from . import cli"),
        ("dllm.__init__", "import torch"),
        ("dllm.newcomer", ""),
    ],
)
def test_a_violation_is_found(module, source):
    assert len(violations(module, source, KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "dllm.samplers.quota",
            "import math\nimport torch.nn.functional as F\nfrom ..canvas import Canvas",
        ),
        ("dllm.samplers.quota", "from . import __doc__\nfrom dllm.samplers import base"),
        (
            "dllm.cache.prefix",
            "from .plan import Plan\nfrom ..cache import plan\nfrom . import plan",
        ),
        ("dllm.verify.target", "import transformers\nfrom ..models import decoder"),
        ("dllm.train.recipe", "from ..eval.tasks import lists\nimport dllm"),
        ("dllm.__main__", "from dllm.cli import main"),
    ],
)
def test_what_the_table_allows_passes(module, source):
    assert violations(module, source, KNOWN) == []
