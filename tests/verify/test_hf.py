"""Inside transformers: the very tokens of `model.generate`, in float64, whatever is drafted."""

import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StopStringCriteria

import dllm.verify
from dllm.errors import DllmError
from tests.verify.scripted import ADVERSARIES, Scripted, knowing
from tests.verify.tiny_targets import FAMILIES, VOCAB, tiny_target

target_model = cache(tiny_target)  # the same object: what was learned of it is kept
SEARCHES = ["argmax", "cps", "product", "coupled:gamma=1.5", "greedy-plus-one", "sample"]
CONTROLS = ["fixed:depth=1,nodes=1", "fixed:depth=5,nodes=3", "fixed:depth=9,nodes=20", "adl"]
SOURCES = [(), ("ngram",)]
PROCESSED = [
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "eos_token_id": 3},
    {"bad_words_ids": [[5], [7, 8]], "repetition_penalty": 0.8},
]
prompts = st.lists(
    st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=3
)


def padded(rows):
    """Rows with padding on the left, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def plain(model, rows, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(**padded(rows), do_sample=False, pad_token_id=0, **options)


def ours(model, rows, **options):
    return plain(model, rows, custom_generate=dllm.verify.generate, **options)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), rows=prompts)
@settings(max_examples=12, deadline=None)
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


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_drafter_cannot_change_the_text(name, search, sampled):
    model, rows = target_model("llama"), [[9, 4, 17, 4, 9], [30, 4]][: 1 if sampled else 2]
    drafter = Scripted(ADVERSARIES[name], eos=(3,))
    options = {"max_new_tokens": 12, "eos_token_id": 3}
    if not sampled:
        got = ours(model, rows, drafter=drafter, search=search, **options)
        assert got.tolist() == plain(model, rows, **options).tolist()
        return
    accept = "match"  # one draw per emitted token, so that even the sampled text is the same
    deterministic = {"drafter": drafter, "search": search, "accept": accept}
    if search in ("sample", "greedy-plus-one"):  # these draw drafts from the same generator
        return
    for seed in range(5):
        torch.manual_seed(seed)
        expected = model.generate(**padded(rows), do_sample=True, pad_token_id=0, **options)
        torch.manual_seed(seed)
        got = model.generate(
            **padded(rows),
            do_sample=True,
            pad_token_id=0,
            custom_generate=dllm.verify.generate,
            **deterministic,
            **options,
        )
        assert got.tolist() == expected.tolist()


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
    for seed in range(4):
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


def test_stop_strings_end_each_text_for_itself():
    pair = dllm.verify.load("tiny-ar", "tiny", dtype="float64")
    asked = ["Reverse the list: pear, fig, plum", "Copy the list: fig, plum, pear, kiwi"]
    rows = [pair.text.chat([{"role": "user", "content": text}]) for text in asked]

    def options():  # a criterion keeps what it has seen
        stops = [StopStringCriteria(pair.text.tokenizer, ["m, p"])]
        return {"max_new_tokens": 20, "stopping_criteria": stops}

    model = pair.target.model
    expected = plain(model, rows, **options())
    for search in ("argmax", "coupled"):
        got = ours(model, rows, drafter=pair.drafter, search=search, **options())
        assert got.tolist() == expected.tolist()
    texts = [pair.text.decode(new) for new in expected[:, max(map(len, rows)) :].tolist()]
    assert texts == ["plum, fig, pear", "fig, plum, pear"]


def test_a_drafter_is_loaded_for_a_tokenizer():
    pair = dllm.verify.load("tiny-ar", None, dtype="float64")
    tokenizer = pair.text.tokenizer
    drafter = dllm.verify.load_drafter("tiny", tokenizer, dtype="float64")
    messages = [{"role": "user", "content": "Copy the list: fig, plum, pear, kiwi"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    row = inputs["input_ids"]
    rounds = []
    got = ours(pair.target.model, [row], drafter=drafter, sources=(), on_round=rounds.append)
    assert tokenizer.decode(got[0, len(row) : -1]) == "fig, plum, pear, kiwi"
    assert sum(each.rows[0].accepted for each in rounds) > len(rounds)


def test_new_tokens_are_told_as_they_come():
    model, seen = target_model("llama"), {0: [], 1: []}
    rows = [[9, 4, 17], [30, 4]]
    got = ours(model, rows, max_new_tokens=9, on_tokens=lambda row, ids: seen[row].extend(ids))
    assert [seen[0], seen[1]] == got[:, 3:].tolist()


class Streamer:
    def __init__(self):
        self.got, self.ended = [], False

    def put(self, value):
        self.got += value.tolist()

    def end(self):
        self.ended = True


def test_a_streamer_is_fed():
    model, streamer = target_model("llama"), Streamer()
    got = ours(model, [[9, 4, 17]], max_new_tokens=9, on_tokens=streamer)
    assert streamer.got == got[0, 3:].tolist()
    assert streamer.ended
    with pytest.raises(DllmError, match="2 rows"):
        ours(model, [[9, 4], [8]], max_new_tokens=2, on_tokens=Streamer())


def test_more_sequences_and_a_dictionary():
    model, rows = target_model("llama"), [[9, 4, 17]]
    output = ours(model, rows, max_new_tokens=5, return_dict_in_generate=True)
    assert output.sequences.tolist() == plain(model, rows, max_new_tokens=5).tolist()
    torch.manual_seed(0)
    several = model.generate(
        **padded(rows),
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=5,
        pad_token_id=0,
        custom_generate=dllm.verify.generate,
    )
    assert several.shape == (3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"search": "nearest"}, "unknown search method 'nearest'.*coupled"),
        ({"accept": "typical"}, "lossless=False"),
        ({"accept": "block", "search": "coupled"}, "does not fit"),
        ({"max_new_tokens": 511}, "511 new ones make 513 positions.*512"),
    ],
)
def test_what_cannot_be_done_is_said(options, message):
    with pytest.raises(DllmError, match=message):
        ours(target_model("llama"), [[9, 4]], **{"max_new_tokens": 3, **options})


def test_padding_on_the_right_is_refused():
    model = target_model("llama")
    with pytest.raises(DllmError, match="expected padding on the left"):
        model.generate(
            input_ids=torch.tensor([[9, 4, 0]]),
            attention_mask=torch.tensor([[1, 1, 0]]),
            max_new_tokens=3,
            pad_token_id=0,
            custom_generate=dllm.verify.generate,
        )


def test_a_filled_cache_is_refused():
    model = target_model("llama")
    cache = model(torch.tensor([[9, 4]])).past_key_values
    with pytest.raises(DllmError, match="past_key_values"):
        model.generate(
            input_ids=torch.tensor([[9, 4, 5]]),
            past_key_values=cache,
            max_new_tokens=3,
            custom_generate=dllm.verify.generate,
        )
