"""An engine decodes as `model.generate`: the checkpoint's generation config, options over it."""

import json
import shutil
import warnings
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessor, RepetitionPenaltyLogitsProcessor

import dllm.verify
from dllm.checks import ConfigError
from dllm.errors import DllmError
from dllm.verify.config import SpecConfig
from dllm.verify.engine import SpecEngine
from dllm.verify.rng import row_seed
from tests.verify.scripted import knowing
from tests.verify.tiny_targets import SHALLOW, VOCAB, tiny_target

model_of = cache(tiny_target)
tokens = st.integers(4, VOCAB - 1)
OPTIONS = {
    "temperature": st.sampled_from([0.5, 1.0, 3.0]),
    "top_k": st.sampled_from([0, 2, 3, 20]),
    "top_p": st.sampled_from([0.3, 0.6, 0.9, 1.0]),
    "min_p": st.sampled_from([0.05, 0.3]),
    "top_h": st.sampled_from([0.4]),
    "typical_p": st.sampled_from([0.5, 0.9]),
    "epsilon_cutoff": st.sampled_from([0.01]),
    "eta_cutoff": st.sampled_from([0.02]),
    "repetition_penalty": st.sampled_from([0.8, 1.0, 1.3]),
    "encoder_repetition_penalty": st.sampled_from([0.7, 1.4]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 2),
    "bad_words_ids": st.sampled_from([[[5], [7, 8]], [[9, 10, 11], [12]]]),
    "sequence_bias": st.sampled_from([[[[5], 2.0], [[7, 8], -3.0]]]),
    "suppress_tokens": st.lists(tokens, min_size=1, max_size=5),
    "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=5),
    "min_length": st.integers(1, 12),
    "min_new_tokens": st.integers(1, 8),
    "eos_token_id": st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12, unique=True),
    "forced_bos_token_id": tokens,
    "forced_eos_token_id": tokens,
    "exponential_decay_length_penalty": st.sampled_from([(2, 1.5)]),
    "remove_invalid_values": st.just(True),
    "renormalize_logits": st.just(True),
    "watermarking_config": st.sampled_from([{"bias": 3.0, "greenlist_ratio": 0.4}]),
}


@st.composite
def some_options(draw, most):
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=most, unique=True))
    found = {name: draw(OPTIONS[name]) for name in names}
    if "exponential_decay_length_penalty" in found:  # it raises the end tokens
        found.setdefault("eos_token_id", [3])
    return found


def engine(checkpoint, drafter=None, family=SHALLOW):
    """An engine whose target has these options in its generation config."""
    model = model_of(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.generation_config = GenerationConfig(pad_token_id=0, **checkpoint)
    return SpecEngine(dllm.verify.HFTarget(model), None, drafter)


def plain(model, ids, length, seed=0, **options):
    """What `generate` adds to a prompt; one draw of the row's generator after the other."""
    torch.manual_seed(row_seed(seed, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(torch.tensor([ids]), max_new_tokens=length, **options)
    return out[0, len(ids) :].tolist()


def emitted(output):
    return [token for each in output.rounds for token in each.tokens]


def forces_the_suppressed(options):
    """What transformers refuses: a token that must come and must not."""
    forced = {options.get("forced_bos_token_id"), options.get("forced_eos_token_id")}
    return bool(forced & set(options.get("suppress_tokens") or ()))


@pytest.mark.parametrize("sampled", [False, True])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_token_for_token_as_generate(sampled, data):
    """Options of the checkpoint, others over them, and what transformers does without any."""
    checkpoint, options = data.draw(some_options(4)), data.draw(some_options(3))
    assume(not any(map(forces_the_suppressed, (checkpoint, {**checkpoint, **options}))))
    data.draw(st.sampled_from([checkpoint, options]))["do_sample"] = sampled
    if not sampled:
        options.pop("temperature", None)  # given to an engine, it asks for sampling
    ids = data.draw(st.lists(tokens, min_size=1, max_size=8))
    length, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 9))
    made = engine(checkpoint)
    expected = plain(made.target.model, ids, length, seed, **options)
    made.drafter = data.draw(st.sampled_from([None, knowing([ids + expected], VOCAB, 2)]))
    control = data.draw(st.sampled_from(["fixed:depth=5,nodes=7", "fixed:depth=1,nodes=1"]))
    search = data.draw(st.sampled_from(["argmax", "product"]))
    output = made.generate(
        ids, max_new_tokens=length, seed=seed, control=control, search=search, **options
    )
    assert emitted(output) == expected
    assert output.decoding["do_sample"] == sampled
    assert output.rule == ("match" if sampled else "greedy")
    known = {"do_sample", *OPTIONS, *GenerationConfig()._get_default_generation_params()}
    assert set(output.decoding) <= known


SAMPLED = {"do_sample": True, "temperature": 2.0}


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.6},
        {"top_k": 3},
        {"top_k": 4, "top_p": 0.6},  # in the other order they keep other tokens
        {"temperature": 5.0, "top_p": 0.5},
        {"temperature": 0.3},
        {"min_p": 0.3},
        {},  # top_k = 50 of transformers' own
    ],
)
def test_every_warper_counts_and_their_order_does(options):
    made, given = engine({}), {**SAMPLED, **options}
    for seed in range(2):
        expected = plain(made.target.model, [9, 4, 17], 40, seed, **given)
        output = made.generate([9, 4, 17], max_new_tokens=40, seed=seed, **given)
        assert emitted(output) == expected


def test_a_checkpoints_sampling_is_the_default_and_temperature_0_is_greedy():
    ids, length = [9, 4, 17], 40
    made = engine({**SAMPLED, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05})
    model = made.target.model
    output = made.generate(ids, max_new_tokens=length)
    assert emitted(output) == plain(model, ids, length)
    assert list(output.decoding.items()) == [
        ("do_sample", True),
        ("repetition_penalty", 1.05),
        ("temperature", 2.0),
        ("top_k", 20),
        ("top_p", 0.8),
    ]
    cold = made.generate(ids, max_new_tokens=length, temperature=0)
    assert emitted(cold) == plain(model, ids, length, do_sample=False)
    assert cold.decoding == {"do_sample": False, "repetition_penalty": 1.05}
    assert made.generate(ids, repetition_penalty=1.0, temperature=0).decoding == {
        "do_sample": False
    }


def test_every_row_of_a_batch_is_what_it_is_alone():
    """Also where a processor counts tokens: rows are not shown each other's padding."""
    rows = [[9, 4, 17, 22, 8], [30, 4], [5, 11, 5, 11]]
    begins = [plain(engine({}).target.model, ids, 1)[0] for ids in rows]
    ends = {"eos_token_id": [3, 8, 20, 31, 40], "begin_suppress_tokens": begins}
    made = engine({"no_repeat_ngram_size": 2, **ends})
    outputs = made.generate(rows, max_new_tokens=25)
    expected = [plain(made.target.model, ids, 25) for ids in rows]
    assert [emitted(output) for output in outputs] == expected


def test_each_of_several_end_tokens_ends_a_text():
    made = engine({})
    whole = emitted(made.generate([9, 4, 17], max_new_tokens=30))
    first = {}
    for at, token in enumerate(whole):
        first.setdefault(token, at)
    for token, at in list(first.items())[1:5]:
        other = max(first, key=first.get)
        for ends in ([token, other], [other, token]):
            for chosen, options in ((engine({"eos_token_id": ends}), {}), (made, {})):
                if chosen is made:
                    chosen, options = engine({}), {"eos_token_id": ends}
                output = chosen.generate([9, 4, 17], max_new_tokens=30, **options)
                assert (output.finish_reason, emitted(output)) == ("eos", whole[: at + 1])
                assert output.token_ids == whole[:at]


class Tied(torch.nn.Module):
    """Logits in steps so wide that the best one is rarely alone."""

    def forward(self, module, inputs, logits):
        return (logits / 3).round() * 3


@pytest.mark.parametrize("options", [{}, {"suppress_tokens": [4]}, {"repetition_penalty": 1.2}])
def test_of_equal_logits_the_lowest_token_wins(options):
    made = engine(options)
    model, ids = made.target.model, [9, 4, 17]
    hook = model.lm_head.register_forward_hook(Tied())
    try:
        expected = plain(model, ids, 30)
        made.drafter = knowing([ids + expected], VOCAB)
        assert emitted(made.generate(ids, max_new_tokens=30)) == expected
        logits = model(torch.tensor([ids + expected])).logits[0]
        best = logits == logits.max(-1, keepdim=True).values
        assert (best.sum(-1) > 1).sum() > 5  # ties there were
    finally:
        hook.remove()


class Biased(LogitsProcessor):
    """Raises token 5, after what the config makes and before it is warmed."""

    stateless = True

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, 5] += 4.0
        return scores


class Counting(LogitsProcessor):
    """Has a state: what it does depends on how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        return scores.roll(self.calls, -1)


@pytest.mark.parametrize(
    "processors", [[Biased()], Biased(), [RepetitionPenaltyLogitsProcessor(2.0), Biased()]]
)
def test_processors_of_ones_own(processors):
    made, ids = engine({"repetition_penalty": 1.3}), [9, 4, 17]
    own = processors if isinstance(processors, list) else [processors]
    options = {"do_sample": True, "temperature": 2.0}
    expected = plain(made.target.model, ids, 30, logits_processor=own, **options)
    made.drafter = knowing([ids + expected], VOCAB)
    output = made.generate(ids, max_new_tokens=30, logits_processor=processors, **options)
    assert emitted(output) == expected
    assert output.decoding["logits_processor"] == [type(each).__name__ for each in own]
    assert ("repetition_penalty" in output.decoding) == (len(own) == 1)  # or its place is taken


def test_a_processor_with_a_state_goes_without_drafts_and_alone():
    made, ids = engine({}), [9, 4, 17]
    expected = plain(made.target.model, ids, 12, logits_processor=[Counting()])
    options = {"max_new_tokens": 12, "sources": ()}
    output = made.generate(ids, logits_processor=Counting(), **options)
    assert emitted(output) == expected
    with pytest.raises(DllmError, match=r"Counting may keep a state.*give no drafter"):
        made.generate(ids, logits_processor=Counting())
    with pytest.raises(DllmError, match=r"Counting may keep a state.*give one prompt"):
        made.generate([ids, ids], logits_processor=Counting(), **options)


REFUSED = {
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 1.5,
    "max_time": 2.0,
    "num_return_sequences": 2,
    "token_healing": True,
    "cache_implementation": "quantized",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", ["checkpoint", "options"])
def test_what_cannot_be_kept_is_refused_by_name(name, place):
    wrong = {name: REFUSED[name], "do_sample": name == "num_return_sequences"}
    made = engine(wrong if place == "checkpoint" else {})
    with pytest.raises(DllmError, match=f"{name}={REFUSED[name]!r}"):
        made.generate([9, 4], **({} if place == "checkpoint" else wrong))


def test_what_a_checkpoint_asks_for_in_vain_can_be_put_back():
    made = engine({"num_beams": 4})
    output = made.generate([9, 4], max_new_tokens=9, num_beams=1)
    assert emitted(output) == plain(made.target.model, [9, 4], 9, num_beams=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty.*strictly positive"),
        ({"bad_words_ids": [[999]]}, "bad_words_ids: .*999"),
        ({"suppress_tokens": "abc"}, "suppress_tokens"),
        ({"top_k": -1}, "top_k=-1"),
        ({"do_sample": False, "temperature": 0.7}, "do_sample=False contradicts temperature=0.7"),
        ({"do_sample": True, "temperature": 0}, "do_sample=True contradicts temperature=0"),
        ({"logits_processor": [3]}, "logits_processor"),
        ({"output_scores": True}, "unknown option 'output_scores'; known: .*min_p"),
    ],
)
def test_bad_options_are_one_error(options, message):
    with pytest.raises(ConfigError, match=message):
        engine({}).generate([9, 4], **options)


def test_further_options_are_checked_where_they_are_written_down():
    config = SpecConfig(generation={"min_p": 0.1}).replace(repetition_penalty=1.2, top_p=0.9)
    assert config.generation == {"min_p": 0.1, "repetition_penalty": 1.2}
    assert config.generate_options() == {"top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}
    with pytest.raises(ConfigError, match="'minp': expected one of do_sample, min_p"):
        SpecConfig(generation={"minp": 0.1})


def test_a_checkpoint_on_disk(tmp_path):
    """`load` reads the generation config that lies beside the weights, stop strings included."""
    first = dllm.verify.load("tiny-ar", dtype="float64")
    source = first.target.model.name_or_path
    checkpoint = shutil.copytree(source, tmp_path / "ar")
    asked = "Copy the list: fig, plum, pear, fig, plum"
    plain_text = first.generate(asked).text
    config = {"eos_token_id": 0, "pad_token_id": 0, "no_repeat_ngram_size": 2}
    (checkpoint / "generation_config.json").write_text(json.dumps(config))
    made = dllm.verify.load(checkpoint, "tiny", dtype="float64")
    output = made.generate(asked)
    ids = made.text.chat([{"role": "user", "content": asked}])
    assert emitted(output) == plain(made.target.model, ids, 128)
    assert output.text != plain_text
    (checkpoint / "generation_config.json").write_text(json.dumps({"stop_strings": ["pear"]}))
    made = dllm.verify.load(checkpoint, "tiny", dtype="float64")
    output = made.generate(asked)
    assert (output.finish_reason, output.text) == ("stop", plain_text[: plain_text.index("pear")])
    assert output.decoding["stop_strings"] == ["pear"]
    assert "pear" in made.generate(asked, stop="xyz", max_new_tokens=30).text
