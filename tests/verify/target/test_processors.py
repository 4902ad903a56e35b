"""Processors asked about drafts: row by row where they can be, all rows at once where they must."""

import pytest
import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from dllm.errors import DllmError
from dllm.verify.config import SpecConfig
from dllm.verify.loop import Request, speculate
from dllm.verify.target.processors import Processors, stateless
from tests.verify.exact import Table, distribution_of, tv
from tests.verify.scripted import Scripted

PROMPT, VOCAB, LENGTH = (0, 1), 3, 3
PENALTY = 3.0
EXACT, BIASED = 1e-12, 1e-2


class TableTarget:
    """A table of distributions as a target of one row."""

    def __init__(self, table):
        self.table, self.vocab_size = table, table.vocab

    def open(self, prompts, budgets):
        self.text = tuple(prompts[0][:-1])
        return self

    def score(self, trees):
        [self.tree] = trees
        return self

    def row(self, row, node):
        path = [self.tree.tokens[0], *(self.tree.tokens[n] for n in self.tree.path(node))]
        return self.table.scores((*self.text, *path))

    def commit(self, nodes):
        self.text += tuple(self.tree.tokens[node] for node in nodes[0])


def penalised():
    lists = [LogitsProcessorList([RepetitionPenaltyLogitsProcessor(PENALTY)])]
    return Processors([torch.tensor(PROMPT)], lists, lists[0])


class Forgetful(Processors):
    """Wrong: does not look at what was emitted in the same round."""

    def row(self, row, emitted, logits):
        return super().row(row, [], logits)


def distribution(table, process, **options):
    """The exact distribution of the whole text that speculation gives."""
    columns = [{0: 0.5, 2: 0.3}, {2: 0.6, 1: 0.3}]
    drafter = Scripted(lambda context, depth: columns[:depth])
    config = SpecConfig(temperature=1.0, control="fixed:depth=2,nodes=3", sources=(), **options)

    def program(rng):
        request = Request(PROMPT, LENGTH, rng, lambda emitted: None)
        components = config.components()
        rounds = speculate(TableTarget(table), drafter, [request], components, process)
        return tuple(token for each in rounds for token in each.rows[0].tokens)

    return distribution_of(program)


def truth(table):
    """Token by token, with the penalty written out."""
    distributions = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for text, mass in distributions.items():
            scores = table.scores((*PROMPT, *text)).clone()
            for token in {*PROMPT, *text}:
                scores[token] = scores[token] * (PENALTY if scores[token] < 0 else 1 / PENALTY)
            for token, prob in enumerate(torch.softmax(scores, -1).tolist()):
                longer[(*text, token)] = mass * prob
        distributions = longer
    return distributions


@pytest.mark.parametrize(
    "options",
    [
        {"search": "argmax"},
        {"search": "product"},
        {"search": "sample", "accept": "ratio"},
        {"search": "sample", "accept": "block"},
        {"search": "rsd:widths=2+1"},
    ],
)
def test_with_a_repetition_penalty_the_distribution_is_the_targets(options):
    for seed in range(2):
        table = Table(seed, VOCAB)
        expected = truth(table)
        assert tv(distribution(table, penalised(), **options), expected) < EXACT
        assert tv(distribution(table, None, **options), expected) > BIASED


def test_the_enumeration_sees_a_penalty_that_leaves_out_drafts():
    wrong = Forgetful([torch.tensor(PROMPT)], penalised().lists)
    table = Table(0, VOCAB)
    assert tv(distribution(table, wrong, search="argmax"), truth(table)) > BIASED


class Seen(LogitsProcessor):
    """Notes what it is shown."""

    def __init__(self, stateless=True):
        self.stateless, self.calls = stateless, []

    def __call__(self, ids, scores):
        self.calls.append(ids.tolist())
        scores += ids.sum(1, keepdim=True)  # in place, as some do
        return scores


IDS = torch.tensor([[1, 2], [3, 4], [5, 6]])


def batch(processor):
    return Processors.of_batch(IDS, LogitsProcessorList([processor]), 0)


def test_rows_without_drafts_are_processed_together():
    seen = Seen()
    logits = torch.zeros(3, 2)
    scores = batch(seen).batch({0: [7], 1: [8], 2: [9]}, logits)
    assert seen.calls == [[[1, 2, 7], [3, 4, 8], [5, 6, 9]]]
    assert scores.tolist() == [[10, 10], [15, 15], [20, 20]]


def test_rows_with_drafts_or_at_other_places_are_processed_one_by_one():
    seen = Seen()
    process = batch(seen)
    logits = torch.zeros(2)
    assert process.row(2, [9, 9], logits).tolist() == [29, 29]
    assert logits.tolist() == [0, 0]  # a rule may ask for them again
    process.batch({0: [7], 2: [9, 9]}, torch.zeros(2, 2))
    assert seen.calls == [[[5, 6, 9, 9]], [[1, 2, 7]], [[5, 6, 9, 9]]]


def test_a_state_sees_every_row_to_the_end_in_its_place():
    """Rows that have ended are filled up, as plain generation shows them."""
    seen = Seen(stateless=False)
    process = Processors.of_batch(IDS, LogitsProcessorList([seen]), 55)
    process.batch({0: [7], 1: [8], 2: [9]}, torch.zeros(3, 2))
    scores = process.batch({0: [7, 1], 2: [9, 2]}, torch.zeros(2, 2))
    assert seen.calls[-1] == [[1, 2, 7, 1], [3, 4, 8, 55], [5, 6, 9, 2]]
    assert scores.tolist() == [[11, 11], [22, 22]]


def test_the_stateless_are_not_asked_about_rows_that_have_ended():
    seen = Seen()
    batch(seen).batch({1: [8]}, torch.zeros(1, 2))
    assert seen.calls == [[[3, 4, 8]]]


class Warmer(TemperatureLogitsWarper):
    """A subclass may do anything."""


def test_what_is_known_to_be_stateless():
    assert stateless(TopKLogitsWarper(3))
    assert not stateless(Warmer(2.0))
    assert not stateless(lambda ids, scores: scores)
    assert stateless(Seen(stateless=True))


def test_a_state_and_drafts_do_not_go_together():
    process = batch(Seen(stateless=False))
    process.check(drafts=False)
    with pytest.raises(DllmError, match=r"logits processor Seen may keep a state.*sources="):
        process.check(drafts=True)
    batch(Seen()).check(drafts=True)
    side_by_side = Processors(list(IDS), process.lists)
    with pytest.raises(DllmError, match=r"Seen .* give one prompt"):
        side_by_side.check(drafts=False)


TEXTS = torch.tensor([[0, 0, 3], [0, 0, 3], [1, 2, 1], [1, 2, 1]])  # two of each prompt
PROMPTS = TEXTS[::2]


@pytest.mark.parametrize(
    "processor",
    [
        RepetitionPenaltyLogitsProcessor(2.0, torch.tensor([2, 2, 0, 0])),  # leaves out padding
        EncoderRepetitionPenaltyLogitsProcessor(0.5, PROMPTS),
        EncoderNoRepeatNGramLogitsProcessor(2, PROMPTS),
        PrefixConstrainedLogitsProcessor(lambda row, ids: [row, int(ids[0])], 1),
    ],
)
def test_a_processor_that_knows_rows_apart_does_so_when_they_are_alone(processor):
    process = Processors.of_batch(TEXTS, LogitsProcessorList([processor]), 0)
    logits = torch.arange(4 * 5.0).reshape(4, 5) - 9
    expected = processor(TEXTS, logits)
    assert len({str(row - row.max()) for row in expected - logits}) > 1
    for row in range(4):
        assert process.row(row, [], logits[row]).tolist() == expected[row].tolist()
