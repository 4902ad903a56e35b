"""The proposer for vLLM, with configurations and arrays as its hook passes them."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from dllm.errors import DllmError
from dllm.integrations import vllm
from dllm.integrations.vllm import IDLE, Proposer
from tests.verify.chains import FakeDrafter

VOCAB, LENGTH = 50, 40


@dataclass
class SpeculativeConfig:
    """The keys of vLLM 0.33.0 that concern a proposer of one's own; it refuses others."""

    model: str
    num_speculative_tokens: int
    method: str | None = None


def config(most: int = 4, **options) -> SimpleNamespace:
    return SimpleNamespace(
        speculative_config=SpeculativeConfig("dllm.integrations.vllm.Proposer", most),
        model_config=SimpleNamespace(max_model_len=LENGTH, get_vocab_size=lambda: VOCAB),
        additional_config={"dllm": options},
    )


FIXED = {"search": "argmax", "control": "fixed:depth=8", "sources": []}


def count(context: Sequence[int], depth: int) -> list[int]:
    return [(context[-1] + 1 + i) % VOCAB for i in range(depth)]


@dataclass
class Server:
    """Requests in rows of one array that is used again and again, as vLLM keeps them."""

    proposer: Proposer
    texts: list[list[int]] = field(default_factory=list)

    def step(self, sampled: list[list[int]]) -> list[list[int]]:
        for text, new in zip(self.texts, sampled):
            text += new
        ids = np.full((8, LENGTH), 7, np.int32)
        for row, text in zip(ids, self.texts):
            row[: len(text)] = text
        lengths = np.array([len(text) for text in self.texts], np.int32)
        return self.proposer.propose(
            sampled_token_ids=sampled,
            num_tokens_no_spec=lengths,
            token_ids_cpu=ids,
            slot_mappings=None,
        )


def test_vllm_is_not_imported():
    assert not any(name.partition(".")[0] == "vllm" for name in sys.modules)


def documented(text: str, name: str) -> dict:
    """The dictionary behind `name=` in a documentation."""
    match = re.search(rf"\b{name}=(\{{.*?\}}+),?$", text, re.MULTILINE | re.DOTALL)
    assert match, f"{name} is not documented"
    return ast.literal_eval(match[1])


@pytest.mark.parametrize("page", ["dllm/integrations/vllm.py", "docs/verify.md"])
def test_what_is_documented_makes_a_proposer(root, monkeypatch, page):
    text = (root / page).read_text()
    settings = config()
    settings.speculative_config = SpeculativeConfig(**documented(text, "speculative_config"))
    settings.additional_config = documented(text, "additional_config")
    monkeypatch.setattr(vllm, "load", lambda *_: FakeDrafter(count))
    # as vLLM finds the class
    module, _, name = settings.speculative_config.model.rpartition(".")
    proposer = getattr(importlib.import_module(module), name)(settings)
    proposer.load_model(object())
    server = Server(proposer, [[1, 2]])
    drafts = server.step([[3]])
    assert drafts[0][:2] == [4, 5]
    assert len(drafts[0]) <= settings.speculative_config.num_speculative_tokens


def test_drafts_follow_each_text():
    server = Server(Proposer(config(**FIXED), FakeDrafter(count)), [[1, 2], [30]])
    assert server.step([[3], [31]]) == [[4, 5, 6, 7], [32, 33, 34, 35]]
    assert server.step([[4, 5, 9], [8]]) == [[10, 11, 12, 13], [9, 10, 11, 12]]


def test_a_row_that_sampled_nothing_has_no_draft_and_loses_nothing():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1, 2], [30]])
    server.step([[3], []])
    assert server.step([[], [31]]) == [[], [32, 33, 34, 35]]
    assert server.step([[4], [32]]) == [[5, 6, 7, 8], [33, 34, 35, 36]]
    assert len(drafter.limits) == 2


def test_requests_that_move_come_and_go_are_found_by_their_text():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1], [11], [21]])
    server.step([[2], [12], [22]])
    server.texts = [server.texts[2], server.texts[0], [41]]  # one went, two moved, one came
    assert [draft[0] for draft in server.step([[23], [3], [42]])] == [24, 4, 43]
    assert len(drafter.limits) == 4
    assert all(budget == LENGTH for budget in drafter.limits)


def test_requests_with_the_same_prompt_keep_apart():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1, 2], [1, 2]])
    server.step([[3], [3]])
    server.step([[4], [9]])
    server.texts.reverse()
    assert [draft[0] for draft in server.step([[10], [5]])] == [11, 6]
    assert len(drafter.limits) == 2


def test_a_new_text_does_not_take_that_of_another_row():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1, 2]])
    server.step([[3]])
    server.texts.append([1, 2, 3, 4])  # goes on where the first row now is
    server.step([[4], [5]])
    assert len(drafter.limits) == 2
    server.step([[9], [6]])
    assert len(drafter.limits) == 2


def test_of_texts_that_begin_alike_the_longest_goes_on():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1]])
    server.step([[2]])
    server.texts = [[1, 2, 3]]
    server.step([[4]])  # goes on with the first
    server.texts = [[1]]
    server.step([[2]])  # a new one, shorter than the first is now
    server.texts = [[1, 2, 3, 4]]
    server.step([[5]])
    lengths = [len(chain.context) for chain, _ in server.proposer._open.values()]
    assert lengths == [5, 2]


def test_a_text_that_changed_is_a_new_one():
    drafter = FakeDrafter(count)
    server = Server(Proposer(config(**FIXED), drafter), [[1, 2]])
    server.step([[3]])
    server.texts = [[1, 9]]
    assert server.step([[5]]) == [[6, 7, 8, 9]]
    assert len(drafter.limits) == 2


def test_texts_that_are_gone_are_forgotten():
    server = Server(Proposer(config(**FIXED), FakeDrafter(count)), [[1], [5]])
    server.step([[2], [6]])
    for _ in range(IDLE):
        server.step([[], []])
    assert not server.proposer._open


def test_no_draft_beyond_the_models_length():
    server = Server(Proposer(config(**FIXED), FakeDrafter(count)), [[0] * (LENGTH - 4)])
    assert [len(server.step([[5]])[0]) for _ in range(4)] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (lambda context, depth: [], []),
        (lambda context, depth: [3, VOCAB, 4], [3]),
        (lambda context, depth: [3, -1, 4], [3]),
        (lambda context, depth: [3] * 99, [3] * 4),
    ],
)
def test_whatever_the_drafter_says_the_drafts_are_few_and_tokens(says, expected):
    server = Server(Proposer(config(**FIXED), FakeDrafter(says)), [[1]])
    assert server.step([[2]]) == [expected]


def test_every_control_serves_several_requests():
    for control in ("cost", "adl", "fixed", "threshold"):
        options = FIXED | {"control": control}
        server = Server(Proposer(config(**options), FakeDrafter(count)), [[0], [10], [20]])
        drafted = 0
        for _ in range(12):
            last = [text[-1] for text in server.texts]
            drafts = server.step([[(token + 1) % VOCAB] for token in last])
            for text, draft in zip(server.texts, drafts):
                assert draft == count(text, len(draft))
            drafted += sum(map(len, drafts))
        assert drafted > 0


def test_without_a_drafter_there_are_drafts_from_the_text():
    options = {"control": "fixed:depth=4", "sources": ["ngram"]}
    server = Server(Proposer(config(**options)), [[5, 6, 7, 8, 9, 5, 6]])
    assert server.step([[7]])[0][:2] == [8, 9]


def test_a_control_hears_what_was_accepted():
    options = FIXED | {"control": "threshold:reject=1,depth=2,step=1,most=9"}
    server = Server(Proposer(config(most=8, **options), FakeDrafter(count)), [[1]])
    assert server.step([[2]]) == [[3, 4]]
    assert server.step([[3, 4, 5]]) == [[6, 7, 8]]  # all accepted
    assert server.step([[6, 9]]) == [[10, 11]]


def test_what_a_text_shows_of_a_source_serves_the_next():
    """A source that is always wrong is heard no more, whatever it claims: also in a new text."""
    options = {"sources": ["tests.verify.chains:Wrong"], "control": "threshold:reject=0.5"}
    proposer = Proposer(config(**options))
    drafted = []
    for text in ([1], [2]):
        server = Server(proposer, [list(text)])
        drafted.append([server.step([[5]])[0] for _ in range(20)])
    assert drafted == [[[9]] * drafted[0].count([9]) + [[]] * drafted[0].count([]), [[]] * 20]
    assert [9] in drafted[0]


def test_the_drafter_that_the_options_name_is_loaded(monkeypatch):
    loaded = []

    def load(name, model_config, vocab_size, options):
        loaded.append((name, vocab_size, dict(options)))
        return FakeDrafter(count)

    monkeypatch.setattr(vllm, "load", load)
    proposer = Proposer(config(**FIXED, drafter="tiny", drafter_options={"width": 4}))
    assert loaded == []
    proposer.load_model(None)
    assert loaded == [("tiny", VOCAB, {"width": 4})]
    assert Server(proposer, [[1]]).step([[2]]) == [[3, 4, 5, 6]]
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "x"},
            "['dllm']: unknown option 'model'; known: search, control, sources, reuse",
        ),
        ({"search": "none-such"}, "'none-such': expected one of argmax"),
        ({"control": "fixed:depth=x"}, "depth='x': expected a whole number"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(DllmError) as error:
        Proposer(config(**options)).load_model()
    assert message in str(error.value)


def test_a_configuration_of_another_shape_is_an_error():
    with pytest.raises(DllmError, match="speculative_config=None: expected one with num_spec"):
        Proposer(SimpleNamespace(speculative_config=None))
    wrong = config()
    wrong.additional_config = {"dllm": "tiny"}
    with pytest.raises(DllmError, match="'tiny': expected a mapping of options"):
        Proposer(wrong)
