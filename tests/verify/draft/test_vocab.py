"""A drafter with another vocabulary: what it says, in the target's tokens."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dllm.text.tokenizer import ChatTokenizer
from dllm.train.tokenizer import EOS, build_tokenizer
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.vocab import Translated, id_map, same_ids
from tests.verify.scripted import Scripted


def text_of(words):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer([words]), eos_token=EOS)
    return ChatTokenizer(tokenizer, "llada")


DRAFT, TARGET = text_of("fig plum pear kiwi"), text_of("kiwi plum lime fig")  # other ids


def ids_of(text, words):
    return text.encode(words)


def translated(say, seen=None):
    def noted(context, depth):
        if seen is not None:
            seen.append(DRAFT.decode(context))
        return say

    sizes = len(DRAFT.tokenizer), len(TARGET.tokenizer)
    drafter = Scripted(noted, eos=(DRAFT.tokenizer.eos_token_id,))
    return Translated(drafter, id_map(DRAFT, TARGET, *sizes), DRAFT, TARGET)


def propose(say, context="kiwi plum", seen=None):
    session = translated(say, seen).open([50])
    return session.propose([TARGET.encode(context)], [len(say)])[0]


def test_tokens_that_are_written_the_same_are_the_same():
    ids = id_map(DRAFT, TARGET, len(DRAFT.tokenizer), len(TARGET.tokenizer))
    for word in (" fig", " plum", " kiwi", "f", ","):
        (mine,), (its,) = ids_of(DRAFT, word), ids_of(TARGET, word)
        assert ids[mine] == its
    (pear,) = ids_of(DRAFT, " pear")
    assert ids[pear] == -1
    assert ids[DRAFT.tokenizer.eos_token_id] == TARGET.tokenizer.eos_token_id
    assert not same_ids(ids)
    assert same_ids(id_map(DRAFT, DRAFT, 500, 500))
    assert not same_ids(torch.full((4,), -1))


def test_ids_beyond_a_vocabulary_are_left_out():
    small = id_map(DRAFT, TARGET, len(DRAFT.tokenizer), 10)
    assert small.max() < 10


def test_columns_are_in_the_targets_ids():
    (fig,), (plum,) = DRAFT.encode(" fig"), DRAFT.encode(" plum")
    seen = []
    lattice = propose([{fig: 0.6, plum: 0.3}, {plum: 0.8}], seen=seen)
    assert seen == ["kiwi plum"]
    assert lattice.tokens[0].tolist() == [*TARGET.encode(" fig"), *TARGET.encode(" plum")]
    assert np.exp(lattice.logp[0]) == pytest.approx([0.6, 0.3])
    assert lattice.eos == {TARGET.tokenizer.eos_token_id}
    assert lattice.branches == ()


def test_what_the_target_has_no_token_for_is_left_out_and_its_mass_shared():
    (fig,), (pear,) = DRAFT.encode(" fig"), DRAFT.encode(" pear")
    lattice = propose([{fig: 0.5, pear: 0.25}])
    assert lattice.tokens[0].tolist() == [*TARGET.encode(" fig"), -1]
    assert np.exp(lattice.logp[0]) == pytest.approx([0.5 / 0.75, 0])


def test_a_path_that_is_not_one_to_one_becomes_a_branch():
    (fig,), (pear,), (plum,) = (DRAFT.encode(w) for w in (" fig", " pear", " plum"))
    lattice = propose([{fig: 0.9}, {pear: 0.8}, {plum: 0.5}])
    assert len(lattice) == 1  # up to the token that the target does not have
    (branch,) = lattice.branches
    assert list(branch.tokens) == TARGET.encode(" fig pear plum")
    assert len(branch.tokens) > 3  # " pear" falls apart into bytes
    assert np.prod(branch.weights) == pytest.approx(0.9 * 0.8 * 0.5)


def test_a_path_ends_before_the_end_token():
    (pear,), end = DRAFT.encode(" pear"), DRAFT.tokenizer.eos_token_id
    lattice = propose([{pear: 0.9}, {end: 0.8}, {pear: 0.5}])
    assert len(lattice) == 0
    assert list(lattice.branches[0].tokens) == TARGET.encode(" pear")


def test_nothing_said_is_nothing_drafted():
    lattice = propose([])
    assert len(lattice) == 0
    assert lattice.branches == ()


def test_pairs_are_translated_with_their_columns():
    """What is dropped is shared by what may follow each token, and the path is the greedy one."""
    (fig,), (pear,), (plum,) = (DRAFT.encode(w) for w in (" fig", " pear", " plum"))
    tokens = np.array([[fig, plum], [pear, plum], [fig, plum]])
    pairs = np.log([[[0.6, 0.4]] * 2, [[0.6, 0.3], [0.25, 0.5]], [[0.1, 0.8], [0.9, 0.1]]])
    chained = Lattice.chained(tokens, np.log([0.4, 0.6]), pairs)

    class Said(Scripted):
        def propose(self, contexts, depths):
            return [chained]

    sizes = len(DRAFT.tokenizer), len(TARGET.tokenizer)
    whole = Translated(Said(None), id_map(DRAFT, TARGET, *sizes), DRAFT, TARGET)
    [lattice] = whole.open([50]).propose([TARGET.encode("kiwi")], [3])
    (its_fig,), (its_plum,) = TARGET.encode(" fig"), TARGET.encode(" plum")
    assert lattice.branches == ()  # plum plum fig: no pear on the way
    assert lattice.tokens[np.arange(3), lattice.path()].tolist() == [its_plum, its_plum, its_fig]
    assert lattice.distribution(0).prob(its_plum) == pytest.approx(0.6)
    behind_fig = lattice.pairs[1, lattice.slot(0, its_fig)]
    behind_plum = lattice.pairs[1, lattice.slot(0, its_plum)]
    at = lattice.slot(1, its_plum)
    assert np.exp([behind_fig[at], behind_plum[at]]) == pytest.approx([0.3 / 0.4, 0.5 / 0.75])
    assert np.isinf(np.delete(behind_fig, at)).all()
    assert np.exp(lattice.logp[1, at]) == pytest.approx(0.4 * 0.3 / 0.4 + 0.6 * 0.5 / 0.75)


def test_a_greedy_path_with_a_word_of_its_own_becomes_a_branch():
    (fig,), (pear,), (plum,) = (DRAFT.encode(w) for w in (" fig", " pear", " plum"))
    tokens = np.array([[fig, plum], [plum, pear]])
    pairs = np.log([[[0.55, 0.45]] * 2, [[0.4, 0.6], [0.95, 0.05]]])
    chained = Lattice.chained(tokens, np.log([0.55, 0.45]), pairs)
    assert chained.tokens[1, 0] == plum  # the likeliest on the whole, but not behind fig

    class Said(Scripted):
        def propose(self, contexts, depths):
            return [chained]

    sizes = len(DRAFT.tokenizer), len(TARGET.tokenizer)
    whole = Translated(Said(None), id_map(DRAFT, TARGET, *sizes), DRAFT, TARGET)
    [lattice] = whole.open([50]).propose([TARGET.encode("kiwi")], [2])
    assert len(lattice) == len(lattice.pairs) == 1
    (branch,) = lattice.branches
    assert list(branch.tokens) == TARGET.encode(" fig pear")
    assert np.prod(branch.weights) == pytest.approx(0.55 * 0.6)
