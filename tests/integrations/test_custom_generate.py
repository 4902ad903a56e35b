"""Inside transformers: the very tokens of `model.generate`, in float64, whatever is drafted."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, StoppingCriteria, StopStringCriteria

import dllm.verify
from dllm.errors import DllmError
from tests.integrations.generating import ours, padded, plain, target_model
from tests.verify.scripted import ADVERSARIES, Scripted, knowing
from tests.verify.tiny_targets import FAMILIES, SHALLOW, VOCAB

SEARCHES = ["argmax", "cps", "product", "coupled:gamma=1.5", "greedy-plus-one", "sample"]
CONTROLS = ["fixed:depth=1,nodes=1", "fixed:depth=5,nodes=3", "fixed:depth=9,nodes=20", "adl"]
SOURCES = [(), ("ngram",)]
PROCESSED = [
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "eos_token_id": 3},
    {"eos_token_id": [3, 9, 20, 31, 45], "exponential_decay_length_penalty": (1, 1.6)},
    {"prefix_allowed_tokens_fn": lambda row, ids: [row, len(ids) % 50 + 4, 60]},
    {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [7, 8]], "repetition_penalty": 0.8},
]
prompts = st.lists(
    st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=3
)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), rows=prompts)
@settings(max_examples=7, deadline=None)
def test_greedy_is_token_for_token_that_of_generate(family, data, rows):
    model = target_model(family)
    if model.config._attn_implementation == "eager":
        rows = rows[:1]  # there transformers' own float64 is NaN where a row is padded
    options = {"max_new_tokens": data.draw(st.integers(1, 14))} | data.draw(
        st.sampled_from(PROCESSED)
    )
    expected = plain(model, rows, **options)
    texts = [row + new.tolist() for row, new in zip(rows, expected[:, max(map(len, rows)) :])]
    drafter = knowing(texts, VOCAB, data.draw(st.integers(1, 4)))
    got = ours(
        model,
        rows,
        drafter=drafter,
        search=data.draw(st.sampled_from(SEARCHES)),
        control=data.draw(st.sampled_from(CONTROLS)),
        sources=data.draw(st.sampled_from(SOURCES)),
        reuse=data.draw(st.sampled_from([0, 2])),
        **options,
    )
    assert got.tolist() == expected.tolist()


ROWS, SHORT = [[9, 4, 17, 4, 9], [30, 4]], {"max_new_tokens": 12, "eos_token_id": 3}


@cache
def greedy_texts():
    return plain(target_model(SHALLOW), ROWS, **SHORT).tolist()


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_drafter_cannot_change_the_text(name, search):
    drafter = Scripted(ADVERSARIES[name], eos=(3,))
    got = ours(target_model(SHALLOW), ROWS, drafter=drafter, search=search, **SHORT)
    assert got.tolist() == greedy_texts()


def sampled(seed, **options):
    model = target_model(SHALLOW)  # made before the seed is set: its weights are drawn too
    given = {**padded(ROWS[:1]), **SHORT, **options}
    torch.manual_seed(seed)
    return model.generate(**given, do_sample=True, pad_token_id=0).tolist()


plainly_sampled = cache(sampled)


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("search", SEARCHES[:4])  # the others draw drafts from the same generator
def test_a_drafter_cannot_change_a_sampled_text(name, search):
    """One draw per emitted token, so that even the sampled text is the same."""
    drafter = Scripted(ADVERSARIES[name], eos=(3,))
    options = {"drafter": drafter, "search": search, "accept": "match"}
    for seed in range(2):
        got = sampled(seed, custom_generate=dllm.verify.generate, **options)
        assert got == plainly_sampled(seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_follows_the_seed(family):
    """With warpers too: top-k, top-p, temperature."""
    model, rows = target_model(family), [[9, 4, 17, 4, 9]]
    options = {
        "max_new_tokens": 15,
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 9,
        "top_p": 0.9,
        "pad_token_id": 0,
    }
    texts = []
    for seed in range(2):
        torch.manual_seed(seed)
        expected = model.generate(**padded(rows), **options)
        drafter = knowing(expected.tolist(), VOCAB)
        for search in ("argmax", "coupled"):
            torch.manual_seed(seed)
            rounds = []
            got = model.generate(
                **padded(rows),
                **options,
                custom_generate=dllm.verify.generate,
                drafter=drafter,
                search=search,
                control="fixed:depth=6,nodes=12",
                on_round=rounds.append,
            )
            assert got.tolist() == expected.tolist()
            assert len(rounds) < 10  # drafts were accepted
        texts.append(expected.tolist())
    assert len({str(text) for text in texts}) > 1


class Counting(LogitsProcessor):
    """A state of its own: what it does to a row depends on what came before, row by row."""

    def __init__(self):
        self.sums = None

    def __call__(self, ids, scores):
        last = ids[:, -1:].double()
        self.sums = last if self.sums is None else self.sums * 0.9 + last
        return scores + torch.sin(self.sums + torch.arange(scores.shape[-1])) * 3


ENDS = {"eos_token_id": [3, 8, 20, 31, 40, 45], "max_new_tokens": 14}


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.7}])
def test_a_processor_with_a_state_sees_what_plain_generation_shows_it(options):
    model, rows = target_model("llama"), [[9, 4, 17, 8], [30, 4], [5, 11, 6]]
    counting = [] if options else [Counting()]
    expected = plain(model, rows, logits_processor=counting, **options, **ENDS)
    assert (expected == 0).any()  # rows end before others
    counting = [] if options else [Counting()]
    got = ours(model, rows, logits_processor=counting, sources=(), **options, **ENDS)
    assert got.tolist() == expected.tolist()
    with pytest.raises(DllmError, match=r"(Counting|Guidance).* may keep a state"):
        ours(model, rows, logits_processor=counting, **options, **ENDS)


class Watching(LogitsProcessor):
    """Notes how many rows it is given each time."""

    stateless = True

    def __init__(self):
        self.rows = []

    def __call__(self, ids, scores):
        self.rows.append(len(ids))
        return scores


def test_a_step_costs_each_row_once():
    model, rows = target_model("llama"), [[9, 4, 17]] * 4
    alone = Watching()
    ours(model, rows, max_new_tokens=5, logits_processor=[alone], sources=())
    assert alone.rows == [4] * 5
    drafted = Watching()
    expected = plain(model, rows[:1], max_new_tokens=5)
    rounds = []
    ours(
        model,
        rows,
        max_new_tokens=5,
        logits_processor=[drafted],
        drafter=knowing(expected.tolist(), VOCAB, spoil=100),
        search="argmax",
        sources=(),
        control="fixed:depth=4,nodes=4",
        on_round=rounds.append,
    )
    assert len(rounds) == 1
    assert drafted.rows == [1] * 20  # five tokens of four rows, none twice


class Elsewhere(StoppingCriteria):
    """Ends the second row of a batch when it is long enough."""

    def __call__(self, ids, scores, **more):
        return (torch.arange(len(ids)) == 1) & (ids.shape[1] >= 8)


def test_a_criterion_that_knows_rows_apart():
    model, rows = target_model("llama"), [[9, 4, 17], [30, 4, 5]]
    options = {"max_new_tokens": 9, "stopping_criteria": [Elsewhere()], "eos_token_id": 0}
    got = ours(model, rows, **options)
    assert got.tolist() == plain(model, rows, **options).tolist()
    assert got[1, 8:].tolist() == [0] * 4


def test_right_drafts_save_forwards():
    model, rows = target_model("llama"), [[9, 4, 17]]
    expected = plain(model, rows, max_new_tokens=20)
    rounds = []
    ours(
        model,
        rows,
        max_new_tokens=20,
        drafter=knowing(expected.tolist(), VOCAB, spoil=100),
        search="argmax",
        control="fixed:depth=4,nodes=4",
        sources=(),
        on_round=rounds.append,
    )
    assert [len(each.rows[0].tokens) for each in rounds] == [5, 5, 5, 5]


@pytest.fixture(scope="module")
def pair():
    return dllm.verify.load("tiny-ar", "tiny", dtype="float64")


def test_stop_strings_end_each_text_for_itself(pair):
    asked = ["Reverse the list: pear, fig, plum", "Copy the list: fig, plum, pear, kiwi"]
    rows = [pair.text.chat([{"role": "user", "content": text}]) for text in asked]

    def options():  # a criterion keeps what it has seen
        stops = [StopStringCriteria(pair.text.tokenizer, ["m, p"])]
        return {"max_new_tokens": 20, "stopping_criteria": stops}

    model = pair.target.model
    expected = plain(model, rows, **options())
    got = ours(model, rows, drafter=pair.drafter, control="fixed:depth=16,nodes=16", **options())
    assert got.tolist() == expected.tolist()
    texts = [pair.text.decode(new) for new in expected[:, max(map(len, rows)) :].tolist()]
    assert texts == ["plum, fig, pear", "fig, plum, pear"]


def test_a_drafter_is_loaded_for_a_tokenizer(pair):
    tokenizer = pair.text.tokenizer
    drafter = dllm.verify.load_drafter("tiny", tokenizer, dtype="float64")
    messages = [{"role": "user", "content": "Copy the list: fig, plum, pear, kiwi"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    row = inputs["input_ids"]
    rounds = []
    options = {"sources": (), "control": "fixed:depth=16", "on_round": rounds.append}
    got = ours(pair.target.model, [row], drafter=drafter, **options)
    assert tokenizer.decode(got[0, len(row) : -1]) == "fig, plum, pear, kiwi"
    assert sum(each.rows[0].accepted for each in rounds) > len(rounds)


def test_a_drafter_by_its_name(pair):
    """It is loaded once, for the tokenizer that lies beside the target's checkpoint."""
    row = pair.text.chat([{"role": "user", "content": "Copy the list: fig, plum, pear, kiwi"}])
    rounds = []
    options = {"sources": (), "control": "fixed:depth=16", "on_round": rounds.append}
    got = ours(pair.target.model, [row], drafter="tiny", **options)
    assert pair.text.decode(got[0, len(row) : -1].tolist()) == "fig, plum, pear, kiwi"
    assert sum(each.rows[0].accepted for each in rounds) > len(rounds)
    with pytest.raises(DllmError, match="'tinny'"):
        ours(pair.target.model, [row], drafter="tinny")


def test_a_drafter_that_cannot_be_loaded():
    model = target_model("llama")
    with pytest.raises(DllmError, match=r"drafter='tiny': no tokenizer.*load_drafter"):
        ours(model, [[9, 4]], drafter="tiny", max_new_tokens=3)
    with pytest.raises(DllmError, match="drafter=3: expected a name"):
        ours(model, [[9, 4]], drafter=3, max_new_tokens=3)
