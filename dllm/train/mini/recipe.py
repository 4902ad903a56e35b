"""The recipe of `mini`: a LLaDA-architecture model of 7 M parameters with an open vocabulary.

Copying is learned as copying: words are made up anew in every example. Five list operations come
first, as in `tiny`; everything else follows once something points at the source item.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tokenizers import Tokenizer

from dllm.eval.tasks.datasets import DATASETS
from dllm.models.decoder import Decoder
from dllm.train.data import Drawn, TrainingPair
from dllm.train.job import GENERATE, Job, TrainingRun
from dllm.train.mdlm import Mdlm
from dllm.train.mini import facts, lists, sums, talk
from dllm.train.mini.dialogue import Dialogue
from dllm.train.mini.tokenizer import letter_pair_tokenizer
from dllm.train.mini.words import WordSource
from dllm.train.tiny import export, spec
from dllm.train.tokenizer import ASSISTANT, USER
from dllm.train.trainer import Stage, TrainConfig, Trainer, init_weights

VOCAB_SIZE = 4416
LONGEST = 320  # tokens of a conversation
CONFIG = TrainConfig(batch_size=48, lr=2e-3, muon_lr=0.004, decay=3000, save_every=100)
OBJECTIVE = Mdlm(blockwise=0.2, frontier=0.3)
FROM_TINY = ("latin", "sudoku", "function")


@dataclass(frozen=True)
class Menu:
    """What a stage draws from.

    weights: kind of example -> share.  sizes: items of a list.  most: the largest operand.
    turns: chances of one, two, ... turns where a kind has several.  tail, tail_share: padding.
    records: facts that are told at once.
    """

    weights: Mapping[str, float]
    sizes: Sequence[int] = tuple(range(2, 13))
    most: int = 999
    turns: Sequence[float] = (1.0,)
    tail: int = 0
    tail_share: float = 0.0
    records: Sequence[int] = (1, 2, 3)


INDEXED = ("copy", "reverse", "replace", "insert", "remove")
FORMS = tuple(facts.FORMS)
EVERYTHING = {
    **dict.fromkeys(lists.OPERATIONS, 1.0),
    "sort": 5.0, "reverse": 1.6, "replace": 1.6, "insert": 1.3, "count": 1.2, "unique": 1.5,
    "shuffle": 0.7, "random": 1.2, "sum": 7.0, "story": 3.5, "json": 2.5, "table": 2.5, "csv": 1.6,
    "pairs": 0.8, "question": 2.5, "extract": 1.6, "template": 1.2, "talk": 1.2, "refuse": 3.0,
    "latin": 0.4, "sudoku": 0.5, "function": 0.8,
}  # fmt: skip
STAGES: tuple[tuple[int, Menu], ...] = (
    (1500, Menu(dict.fromkeys(INDEXED, 1.0), sizes=(2, 3, 4))),
    (
        3000,
        Menu(
            {**dict.fromkeys(lists.OPERATIONS, 1.0), "sort": 3.0, "sum": 4.0, "json": 1.0,
             "extract": 1.0, "template": 0.5, "question": 1.0},
            sizes=(2, 3, 4, 5, 6), most=99, records=(1, 2),
        ),
    ),
    (11_000, Menu(EVERYTHING, turns=(0.7, 0.18, 0.08, 0.04), tail=40, tail_share=0.3)),
)  # fmt: skip


def draw(words: WordSource, menu: Menu) -> Dialogue:
    """One conversation of a menu."""
    rng = words.rng
    kind = rng.choices(list(menu.weights), weights=list(menu.weights.values()))[0]
    turns = rng.choices(range(1, len(menu.turns) + 1), weights=menu.turns)[0]
    if kind in lists.OPERATIONS:
        return lists.make(words, (kind,), menu.sizes, turns)
    if kind in FORMS:
        return facts.make(words, (kind,), menu.records, turns)
    if kind in FROM_TINY:
        task = DATASETS[kind]
        example = task.make(rng, rng.choice(task.sizes))
        return Dialogue(kind, ((example.prompt, example.answer),))
    if kind == "sum":
        return sums.make(words, menu.most)
    makers = {
        "story": sums.make_story, "question": facts.make_question, "talk": talk.make,
        "extract": facts.make_extraction, "template": facts.make_template,
        "refuse": talk.make_foreign,
    }  # fmt: skip
    return makers[kind](words)


def encode(tokenizer: Tokenizer, dialogue: Dialogue) -> TrainingPair:
    """Token ids as the chat template lays them out; the last answer is the answer."""
    *before, (last, answer) = dialogue.turns
    head = "".join(f"{USER} {said.strip()}{ASSISTANT} {reply}" for said, reply in before)
    prompt = tokenizer.encode(f"{head}{USER} {last.strip()}{ASSISTANT}").ids
    return TrainingPair(prompt, tokenizer.encode(f" {answer}").ids)


def conversations(tokenizer: Tokenizer, menu: Menu, eos_id: int) -> Drawn:
    """Endless fresh conversations of a menu."""

    def drawn(rng: random.Random, count: int) -> list[TrainingPair]:
        words, found = WordSource(rng), list[TrainingPair]()
        while len(found) < count:
            pair = encode(tokenizer, draw(words, menu))
            if len(pair.prompt) + len(pair.answer) <= LONGEST:
                found.append(pair)
        return found

    ends = (eos_id, eos_id)
    return Drawn(drawn, ends, CONFIG.batch_size, CONFIG.seed, menu.tail, menu.tail_share)


@dataclass(frozen=True)
class Mini:
    """A model with an open vocabulary, from nothing."""

    def prepare(self, job: Job, report: object) -> TrainingRun:
        job.refuse_options()
        tok = letter_pair_tokenizer()
        model = Decoder(spec(tok, VOCAB_SIZE, hidden_size=256, num_heads=8, mlp_size=704))
        init_weights(model, CONFIG.seed)
        stages = [
            Stage(steps, conversations(tok, menu, model.spec.eos_id), OBJECTIVE.loss)
            for steps, menu in STAGES
        ]
        trainer = Trainer(model, stages, CONFIG, job.out)
        return TrainingRun(trainer, partial(export, model, tok), GENERATE)
