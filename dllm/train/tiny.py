"""The recipe of the bundled model `tiny`: a LLaDA-architecture model of 3 M parameters.

Mixed from the start, such a model stays at chance on list items for long (nothing points at the
source item); five operations on lists of 3 and 4 first, and the copying circuit is there within
minutes. Every later stage adds lengths, operations and families.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Tokenizer

from dllm.eval.tasks import TASKS, examples
from dllm.models.spec import ModelSpec
from dllm.train.data import Mixture
from dllm.train.mdlm import Stage, TrainConfig, Trainer
from dllm.train.tokenizer import EOS, MASK, build_tokenizer

VOCAB_SIZE = 1024  # words so far plus room for more, so that ids stay when generators grow
EXAMPLES_PER_TASK = 2000

CONFIG = TrainConfig(batch_size=64, lr=3e-3, muon_lr=0.004, decay=2500, save_every=200)

_INDEXED = ("copy", "reverse", "replace_index", "insert_index", "remove_index")
_LISTS = (*_INDEXED, "sort", "shuffle", "replace_random", "insert_random", "remove_random")
_STRUCTURED = ("json", "records", "table", "function")
_PUZZLES = ("latin", "sudoku")

STAGES: tuple[Stage, ...] = (
    Stage(600, Mixture(dict.fromkeys(_INDEXED, 1.0), dict.fromkeys(_INDEXED, (3, 4)))),
    Stage(
        1400,
        Mixture(
            {**dict.fromkeys(_LISTS, 1.0), "sort": 3.0, "word_problem": 3.0},
            {**dict.fromkeys(_LISTS, (3, 4, 5, 6)), "word_problem": (1, 2)},
        ),
    ),
    Stage(
        3000,
        Mixture(
            {
                **dict.fromkeys(_LISTS, 1.0),
                "sort": 2.5,
                "word_problem": 4.5,
                **dict.fromkeys(_STRUCTURED, 1.0),
                **dict.fromkeys(_PUZZLES, 0.6),
            },
            tail=24,
            tail_share=0.3,
        ),
    ),
)


def tokenizer() -> Tokenizer:
    """The tokenizer of all task families; a word's id depends only on the tasks before its own."""
    draws = (
        itertools.islice(examples(task, 0, held_out=False), EXAMPLES_PER_TASK)
        for task in TASKS.values()
    )
    return build_tokenizer(
        text
        for example in itertools.chain.from_iterable(draws)
        for text in (example.prompt, example.answer)
    )


def spec(tok: Tokenizer) -> ModelSpec:
    """LLaDA's architecture at width 192 with 6 layers."""
    eos, mask = tok.token_to_id(EOS), tok.token_to_id(MASK)
    return ModelSpec(
        family="llada",
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        mlp_size=512,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_fp32=True,
        mask_id=mask,
        eos_id=eos,
        pad_id=eos,
        max_positions=512,
    )


def trainer(out: Path) -> Trainer:
    """A trainer at step 0, or where the run in `out` stopped."""
    tok = tokenizer()
    return Trainer(spec(tok), tok, STAGES, CONFIG, out)
