"""Models that cannot be a target are refused, by their configuration or by the trial."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dllm.errors import DllmError
from dllm.verify.target.capability import TOLERANCE, attention_spans, length_limit
from dllm.verify.target.model import HFTarget
from tests.verify.tiny_targets import FAMILIES, SIZES, VOCAB, WINDOW, tiny_target


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))


def gpt_neo():
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            attention_types=[[["local"], 1]],
        )
    )


def mamba():
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    )


def with_setting(**settings):
    model = tiny_target("llama")
    for key, value in settings.items():
        setattr(model.config, key, value)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (t5, "encoder-decoder"),
        (bloom, "forward takes no position_ids"),
        (gpt_neo, "counts slots"),
        (mamba, "linear_attention cannot forget"),
        (lambda: with_setting(layer_types=["chunked_attention"]), "chunked_attention.*known kinds"),
        (
            lambda: with_setting(_attn_implementation_internal="flash_attention_2"),
            "'flash_att.*'sd",
        ),
        (lambda: tiny_target("llama").to(torch.float8_e4m3fn), "float8.*expected one of.*float32"),
    ],
)
def test_what_the_configuration_tells_is_refused_at_once(make, message):
    with pytest.raises(DllmError, match=message):
        HFTarget(make().eval())


def test_a_model_in_training_is_refused():
    with pytest.raises(DllmError, match=r"model\.eval\(\)"):
        HFTarget(tiny_target("llama").train())


def test_a_recurrent_model_of_unknown_layers_is_refused(monkeypatch):
    model = tiny_target("llama")
    monkeypatch.setattr(type(model), "_is_stateful", True)
    with pytest.raises(DllmError, match="recurrent cannot forget"):
        HFTarget(model)


def test_anything_else_is_no_target():
    with pytest.raises(DllmError, match="Linear: expected a transformers causal LM"):
        HFTarget(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_model_passes_the_trial(family, dtype):
    HFTarget(tiny_target(family, dtype)).open([[1]], [1])


class Faulty(LlamaForCausalLM):
    """A model that does something else than it is told."""

    fault = "none"

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        logits_to_keep=0,
    ):
        told = past_key_values is not None
        if told and self.fault == "raises":
            raise KeyError("boom")
        if told and self.fault == "positions":
            position_ids = None
        if told and self.fault == "off by one":
            position_ids = position_ids.clone()
            position_ids[:, -1:] += 1
        if told and self.fault == "mask":
            attention_mask = None
        if told and self.fault == "gaps" and attention_mask is not None:
            attention_mask = attention_mask.clone()
            attention_mask[..., : -input_ids.shape[1]] = 0
        if told and self.fault == "branches" and attention_mask is not None:
            size = input_ids.shape[1]
            attention_mask = attention_mask.clone()
            attention_mask[..., -size:] = torch.full((size, size), -torch.inf).triu(1)
        if told and self.fault == "all logits":
            logits_to_keep = 0
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        if told and self.fault == "nan":
            output.logits[0, 0] = torch.nan
        if told and self.fault == "short":
            output.logits = output.logits[..., :-1]
        return output


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("positions", "it ignores position_ids"),
        ("off by one", "differ from plain passes"),
        ("mask", r"a mask \[B, 1, Q, K\]"),
        ("gaps", "differ from plain passes"),
        ("branches", "differ from plain passes"),
        ("nan", "by nan of their spread"),
        ("raises", r"failed \(KeyError: 'boom'\)"),
        ("short", r"logits of shape \[60\], expected \[61\]"),
    ],
)
def test_the_trial_finds(fault, message, dtype):
    torch.manual_seed(0)
    model = Faulty(LlamaConfig(**SIZES)).to(dtype).eval()
    HFTarget(model).open([[1]], [1])
    model.fault = fault
    with pytest.raises(DllmError, match=message):
        HFTarget(model).open([[1]], [1])


def test_a_model_that_returns_more_logits_than_asked_for_will_do():
    torch.manual_seed(0)
    model = Faulty(LlamaConfig(**SIZES)).eval()
    model.fault = "all logits"
    HFTarget(model).open([[1]], [1])


def test_the_trial_is_held_once(monkeypatch):
    target = HFTarget(tiny_target("llama"))
    target.open([[1]], [1])
    monkeypatch.setattr(target.model, "forward", None)
    target.open([[1, 2]], [1])


def test_spans_of_attention():
    assert attention_spans(tiny_target("llama").config) == {"full_attention": None}
    assert attention_spans(tiny_target("mistral").config) == {"sliding_attention": WINDOW}
    for family in ("qwen2", "gemma2", "gemma3"):
        spans = attention_spans(tiny_target(family).config)
        assert spans == {"full_attention": None, "sliding_attention": WINDOW}


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, 99),
        ({"rope_parameters": {"rope_type": "default"}}, 99),
        # the old length beside the factor (Qwen), or the new one
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 396),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 20,
                }
            },
            99,
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 198),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 99),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 99),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 5}}, 5),
        (
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "dynamic"},
                }
            },
            99,
        ),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_length_up_to_which_a_model_is_exact(settings, limit):
    config = SimpleNamespace(**{"max_position_embeddings": 99, **settings})
    config.get_text_config = lambda: config
    assert length_limit(config) == limit
