"""Who may import whom: the table of the house, checked on the syntax tree of every module.

Imports inside functions and under TYPE_CHECKING count too. A module is named by its file, so a
package's own file is `<package>.__init__`; `dllm.__init__` is the front door: `import dllm`, or a
name taken from it.
"""

import ast
import sys
from typing import NamedTuple

import pytest

TENSORS = ("torch", "numpy")
GROUND = (  # tensors, dataclasses and files
    *("dllm.errors", "dllm.checks", "dllm.output", "dllm.files", "dllm.jsonlog"),
    *("dllm.decoding.__init__", "dllm.decoding.canvas", "dllm.decoding.state"),
    "dllm.decoding.driving",
    *("dllm.cache.plan", "dllm.cache.kv", "dllm.models.spec"),
    *("dllm.text.__init__", "dllm.text.codec", "dllm.text.prompts", "dllm.text.spelling"),
)
CANVAS = ("dllm.decoding.canvas", "dllm.decoding.state")
BELOW_LOOP = (
    *GROUND,
    *("dllm.config", "dllm.presets", "dllm.registry"),
    *("dllm.cache", "dllm.models", "dllm.samplers"),
)
ENGINE = (*BELOW_LOOP, "dllm.decoding", "dllm.engine")
BESIDE_ENGINE = (*ENGINE, "dllm.text")
TARGET = (  # the part of verify that knows a model
    *("dllm.verify.api", "dllm.verify.engine", "dllm.verify.loop"),
    *("dllm.verify.draft.drafter", "dllm.verify.draft.vocab", "dllm.verify.target"),
)
SPEC_OUTPUT = "dllm.verify.output"
LIBRARY = (
    *(*BESIDE_ENGINE, "dllm.__init__", "dllm.api", "dllm.eval", "dllm.integrations"),
    *("dllm.train", "dllm.tuning", "dllm.verify"),
)
NUMBERS = (
    *("dllm.errors", "dllm.intervals"),
    *("dllm.eval.records", "dllm.eval.frontier", "dllm.eval.curves"),
)
LAWS = ("dllm.eval.closed_forms", "dllm.eval.ceiling")


class May(NamedTuple):
    """What a module may import: of dllm, and of other distributions (None: anything)."""

    dllm: tuple[str, ...]
    others: tuple[str, ...] | None = None


# The longest matching name decides, so a single file can be stricter or freer than its folder.
RULES: dict[str, May] = {
    **dict.fromkeys(GROUND, May(GROUND, TENSORS)),
    "dllm.files": May(("dllm.errors",), ("safetensors",)),
    "dllm.jsonlog": May(("dllm.errors", "dllm.files"), ()),
    "dllm.intervals": May((), ()),
    "dllm.progress": May((), ("rich",)),
    "dllm.registry": May(("dllm.errors",), ()),
    "dllm.tensors": May(("dllm.errors", "dllm.files"), ("safetensors",)),
    "dllm.processes": May(("dllm.errors",), ("torch",)),
    "dllm.environment": May(("dllm.__init__",), ("torch", "transformers")),
    # no model, no tokenizer, no cache
    "dllm.samplers": May(("dllm.samplers", *CANVAS, "dllm.checks"), TENSORS),
    "dllm.samplers.__init__": May(("dllm.registry", "dllm.samplers"), ()),
    "dllm.samplers.pc": May(("dllm.checks", "dllm.samplers", "dllm.tensors"), TENSORS),
    "dllm.samplers.learn2pd": May(
        ("dllm.samplers", *CANVAS, "dllm.checks", "dllm.tensors"), TENSORS
    ),
    "dllm.samplers.scheduler": May(("dllm.samplers", "dllm.checks", "dllm.registry"), TENSORS),
    "dllm.cache": May((*GROUND, "dllm.cache.policy"), TENSORS),  # a policy
    "dllm.cache.__init__": May(("dllm.cache", "dllm.registry"), ()),
    "dllm.models": May((*GROUND, "dllm.models", "dllm.progress", "dllm.tensors")),
    "dllm.models.decoder": May(GROUND, TENSORS),
    "dllm.models.lora": May(GROUND, (*TENSORS, "peft")),
    # the loop
    "dllm.config": May(BELOW_LOOP, TENSORS),
    "dllm.presets": May(BELOW_LOOP, TENSORS),
    "dllm.decoding": May((*BELOW_LOOP, "dllm.decoding"), TENSORS),
    "dllm.engine": May(ENGINE, TENSORS),
    "dllm.api": May((*ENGINE, "dllm.text.tokenizer")),
    # text
    "dllm.text": May((*BESIDE_ENGINE, "dllm.tensors")),
    "dllm.text.templates": May(("dllm.errors",), ()),
    "dllm.text.template_worker": May((), ("jinja2",)),
    "dllm.text.following": May((*BESIDE_ENGINE, SPEC_OUTPUT, "dllm.verify.engine")),
    "dllm.recording": May((*(*ENGINE, "dllm.text.following", "dllm.verify.config", SPEC_OUTPUT),)),
    "dllm.tuning": May((*ENGINE, "dllm.intervals", "dllm.tuning")),
    # drafting and verifying
    "dllm.verify": May(("dllm.checks", "dllm.verify"), TENSORS),
    "dllm.verify.__init__": May(("dllm.verify", "dllm.integrations"), ()),  # lazily
    "dllm.verify.components": May(("dllm.registry", "dllm.verify"), TENSORS),
    "dllm.verify.config": May((*GROUND, "dllm.registry", "dllm.verify"), TENSORS),
    SPEC_OUTPUT: May(("dllm.output",), ()),
    **dict.fromkeys(
        TARGET, May((*GROUND, "dllm.models", "dllm.registry", "dllm.text", "dllm.verify"))
    ),
    "dllm.verify.target.queries": May(("dllm.verify",), TENSORS),
    "dllm.verify.sources.datastore": May(
        ("dllm.checks", "dllm.errors", "dllm.files", "dllm.tensors", "dllm.verify"),
        (*TENSORS, "safetensors"),
    ),
    "dllm.integrations": May((*BESIDE_ENGINE, "dllm.__init__", "dllm.integrations", "dllm.verify")),
    **dict.fromkeys(
        ("dllm.integrations.lm_eval", "dllm.integrations.lm_eval_options"),
        May((*BESIDE_ENGINE, "dllm.__init__", "dllm.eval", "dllm.integrations", "dllm.processes")),
    ),
    "dllm.eval": May(
        (
            *(*BESIDE_ENGINE, "dllm.__init__", "dllm.environment", "dllm.eval", "dllm.intervals"),
            *("dllm.processes",),
        )
    ),
    # the numbers, tables and figures of runs need no torch
    "dllm.eval.records": May(("dllm.eval.shapes",), ()),
    "dllm.eval.shapes": May((), ()),
    "dllm.eval.packed": May(("dllm.files",), ()),
    "dllm.eval.frontier": May((), ("numpy",)),
    **dict.fromkeys(("dllm.eval.curves", "dllm.eval.compare"), May(NUMBERS, ())),
    "dllm.eval.tables": May((), ("rich",)),
    "dllm.eval.distributions": May((*NUMBERS, *LAWS, "dllm.eval.tables", "dllm.eval.tasks"), ()),
    "dllm.eval.report": May(
        (
            *(*NUMBERS, "dllm.eval.compare", "dllm.eval.packed", "dllm.eval.tasks.base"),
            *("dllm.eval.tables", "dllm.files"),
        ),
        (),
    ),
    "dllm.eval.figures": May((*NUMBERS, "dllm.files"), ("matplotlib",)),
    # the questions and graders need no torch
    "dllm.eval.tasks": May(
        (
            *("dllm.errors", "dllm.eval.__init__", "dllm.eval.packed", "dllm.eval.shapes"),
            *("dllm.eval.sandbox", "dllm.eval.tasks", "dllm.files", "dllm.registry"),
        ),
        (),
    ),
    **dict.fromkeys(LAWS, May(LAWS, ())),
    "dllm.eval.tasks.datasets": May(("dllm.eval.closed_forms", "dllm.eval.tasks"), ()),
    "dllm.eval.sandbox": May(("dllm.errors", "dllm.eval.sandbox"), ()),
    "dllm.train": May(
        (
            *(*BESIDE_ENGINE, "dllm.__init__", "dllm.eval", "dllm.processes"),
            *("dllm.tensors", "dllm.train", "dllm.verify.target"),
        )
    ),
    "dllm.__init__": May(LIBRARY, ()),  # lazily: see test_layout
    "dllm.cli": May((*LIBRARY, "dllm.cli", "dllm.processes", "dllm.progress", "dllm.recording")),
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
    "dllm.cli",
    "dllm.decoding.canvas",
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
        ("dllm.decoding.canvas", "from .. import engine"),
        ("dllm.models.decoder", "import safetensors"),
        ("dllm.engine", "from .text import Text"),
        ("dllm.verify.draft.search", "import dllm.engine"),
        ("dllm.eval.sweep", "from dllm.train import recipe"),
        ("dllm.text.following", "from .. import cli"),
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
            "import math\nimport torch.nn.functional as F\nfrom ..decoding.canvas import Canvas",
        ),
        ("dllm.samplers.quota", "from . import __doc__\nfrom dllm.samplers import base"),
        (
            "dllm.cache.prefix",
            "from .plan import Plan\nfrom ..cache import plan\nfrom . import plan",
        ),
        ("dllm.verify.target.model", "import transformers\nfrom ..models import decoder"),
        ("dllm.train.recipe", "from ..eval.tasks.datasets import lists\nimport dllm"),
        ("dllm.__main__", "from dllm.cli import main"),
    ],
)
def test_what_the_table_allows_passes(module, source):
    assert violations(module, source, KNOWN) == []
