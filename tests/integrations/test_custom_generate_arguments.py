"""Arguments of `generate` with a custom loop: what it takes, tells, warns of and refuses."""

import pytest
import torch

import dllm.verify
from dllm.errors import DllmError
from tests.integrations.generating import ours, padded, plain, target_model


@pytest.mark.parametrize("name", ["streamer", "assistant_model"])
def test_what_transformers_keeps_back_is_warned_of(name):
    model = target_model("llama")
    value = {"streamer": Streamer(), "assistant_model": target_model("mistral")}[name]
    with pytest.warns(UserWarning, match=f"{name}=: transformers keeps it") as told:
        model.generate(
            torch.tensor([[9, 4]]),
            max_new_tokens=3,
            pad_token_id=0,
            custom_generate=dllm.verify.generate,
            **{name: value},
        )
    assert any(each.filename == __file__ for each in told)


WITHOUT_TOKENS = {
    "gpt2": {"token_type_ids": torch.zeros(1, 3, dtype=torch.long)},
    "llama": {"inputs_embeds": torch.zeros(1, 3, 32, dtype=torch.float64)},
    "qwen2": {"position_ids": torch.tensor([[0, 1, 5]])},
}


@pytest.mark.parametrize("family", WITHOUT_TOKENS)
def test_inputs_that_would_be_dropped_are_refused(family):
    inputs = WITHOUT_TOKENS[family]
    with pytest.raises(DllmError, match=next(iter(inputs))):
        ours(target_model(family), [[9, 4, 17]], max_new_tokens=3, **inputs)


def test_positions_that_are_the_usual_ones_are_taken():
    model, rows = target_model("llama"), [[9, 4, 17], [8]]
    options = {"position_ids": torch.tensor([[0, 1, 2], [1, 1, 0]]), "max_new_tokens": 6}
    got = ours(model, rows, use_cache=False, **options)
    assert got.tolist() == plain(model, rows, **options).tolist()


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
        ({"num_beams": 2}, "num_beams=2 asks for beam search"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 asks for contrastive search"),
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
