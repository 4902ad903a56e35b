"""What lm-eval's arguments come to, without lm-eval."""

from __future__ import annotations

import pytest

from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.integrations.lm_eval_options import DECODING, Options, generation, stable_id


def test_arguments_are_sorted_out():
    given = {
        "pretrained": "tiny",
        "dtype": "float32",
        "revision": None,
        "preset": "llada",
        "sampler": "threshold:threshold=0.9",
        "block_length": "none",
        "max_new_tokens": 64,
        "mc_num": 16,
        "batch_size": "8",
        "max_batch_size": None,
        "device": "cpu",
    }
    assert Options.of(given) == Options(
        model="tiny",
        loading={"dtype": "float32", "device": "cpu"},
        preset="llada",
        decoding={
            "sampler": "threshold:threshold=0.9",
            "block_length": None,
            "max_new_tokens": 64,
        },
        mc_num=16,
        batch_size=8,
    )


def test_what_is_left_out_has_the_defaults():
    options = Options.of({"model": "folder"})
    assert options == Options("folder", {}, None, {}, 128, False, None, 1)


def test_check_greedy_and_record_are_kept():
    options = Options.of({"model": "m", "check_greedy": True, "record": "out/answers.jsonl"})
    assert (options.check_greedy, options.record) == (True, "out/answers.jsonl")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"block_length": 0}, {"block_length": None}),
        ({"block_length": "None"}, {"block_length": None}),
        ({"cache_mib": "none"}, {"cache_mib": None}),
        ({"speculator": "none"}, {"speculator": None}),
        ({"cache": None}, {"cache": "none"}),
        ({"cache": "none"}, {"cache": "none"}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"stop": ["a"]}, {"stop": ["a"]}),
        ({"stop": "none"}, {"stop": "none"}),
    ],
)
def test_none_as_lm_eval_parses_it(given, found):
    options = Options.of({"model": "m", **given})
    assert options.decoding == found
    DecodeConfig().replace(**found).check_components()


@pytest.mark.parametrize(("most", "size"), [(None, 8), (4, 4), (16, 8)])
def test_the_batch_size_is_capped(most, size):
    assert Options.of({"model": "m", "batch_size": 8, "max_batch_size": most}).batch_size == size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "0 models: expected one, pretrained=tiny"),
        ({"model": "a", "pretrained": "b"}, "2 models: expected one"),
        (
            {"model": "a", "peft": "b"},
            r"'peft' \(quote a value that holds commas\); known: pre",
        ),
        ({"model": "a", "history": 3}, "unknown model argument 'history'"),
        ({"model": "a", "batch_size": "auto"}, "batch_size='auto': expected a whole number"),
        ({"model": "a", "batch_size": 0}, "batch_size=0"),
        ({"model": "a", "max_batch_size": -1}, "max_batch_size=-1"),
        ({"model": "a", "mc_num": 0.5}, "mc_num=0.5"),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(DllmError, match=message):
        Options.of(given)


def test_an_unknown_argument_lists_every_known_one_once():
    with pytest.raises(DllmError) as error:
        Options.of({"model": "a", "peft": "b"})
    known = str(error.value).partition("known: ")[2].split(", ")
    assert {*DECODING, "mc_num", "record", "dtype"} < set(known)
    assert len(known) == len(set(known))


BASE = DecodeConfig(stop=("#",), temperature=0.7, sampler="quota:remasking=random")


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({}, {"stop": ("#",)}),
        ({"until": ["\n", "#", ""]}, {"stop": ("#", "\n")}),
        ({"until": "Q:"}, {"stop": ("#", "Q:")}),
        ({"until": None}, {"stop": ("#",)}),
        ({"stop": "a", "until": ["b"]}, {"stop": ("a", "b")}),
        ({"stop": ["a", "c"]}, {"stop": ("a", "c")}),
        ({"max_gen_toks": 5}, {"stop": ("#",), "max_new_tokens": 5}),
        ({"max_tokens": 6, "max_gen_toks": 5}, {"stop": ("#",), "max_new_tokens": 5}),
        ({"max_new_tokens": 6}, {"stop": ("#",), "max_new_tokens": 6}),
        ({"do_sample": False}, {"stop": ("#",), "temperature": 0.0}),
        ({"do_sample": False, "temperature": 1.0}, {"stop": ("#",), "temperature": 0.0}),
        ({"do_sample": True}, {"stop": ("#",)}),
        ({"do_sample": True, "temperature": 0.2}, {"stop": ("#",), "temperature": 0.2}),
        ({"top_p": 0.9, "block_length": 0}, {"stop": ("#",), "top_p": 0.9, "block_length": None}),
        ({"steps": 8}, {"stop": ("#",), "sampler": "quota:remasking=random,steps=8"}),
        ({"steps": 8, "sampler": "quota"}, {"stop": ("#",), "sampler": "quota:steps=8"}),
        ({"steps": 8, "sampler": "quota:steps=2"}, {"stop": ("#",), "sampler": "quota:steps=8"}),
    ],
)
def test_generation_arguments_change_the_config(given, changes):
    assert generation(BASE, given) == changes
    BASE.replace(**changes).check_components()


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            BASE,
            {"num_beams": 2},
            "unknown generation argument 'num_beams' .*known: until, do_s",
        ),
        (DecodeConfig(), {"do_sample": True}, "do_sample=True at temperature 0"),
        (BASE, {"do_sample": True, "temperature": 0}, "do_sample=True at temperature 0"),
        (BASE, {"steps": 2, "sampler": object()}, r"sampler=<object.*: expected a spec"),
    ],
)
def test_bad_generation_arguments_are_named(config, given, message):
    with pytest.raises(DllmError, match=message):
        generation(config, given)


def test_a_fingerprint_is_the_same_on_every_machine_and_fits_a_signed_number():
    assert stable_id("a question", 0) == 3446980171669944669
    found = {stable_id(text, n) for text in ("", "a", "b", "a0") for n in range(100)}
    assert len(found) == 400
    assert all(0 <= number < 2**63 for number in found)


def test_a_task_file_names_no_code():
    with pytest.raises(DllmError, match="a file may name no other code"):
        generation(BASE, {"sampler": "this:s"})
    own = DecodeConfig(sampler="dllm.samplers.quota:Quota")  # the user's model argument
    assert generation(own, {"steps": 3})["sampler"] == "dllm.samplers.quota:Quota:steps=3"
