"""Models that are already there, behind the engine's interface."""

from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.models.hf import HFModel, HFSpec

VOCAB, T = 61, 11
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}


@pytest.fixture(params=["bert", "modernbert"])
def masked_lm(request):
    torch.manual_seed(0)
    if request.param == "bert":
        model = tf.BertForMaskedLM(tf.BertConfig(**SMALL, initializer_range=0.3))
    else:
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)
        model = tf.ModernBertForMaskedLM(tf.ModernBertConfig(**SMALL, **ids))
    return model.eval().requires_grad_(False)


@pytest.fixture
def ids():
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def dllm_like(input_ids, attention_mask=None):
    """A remote-code dLLM as the engine sees it: predicts each token itself, no config."""
    logits = torch.nn.functional.one_hot(input_ids, VOCAB).float()
    return SimpleNamespace(logits=logits)


def test_masked_lm(masked_lm, ids):
    wrapped = HFModel(masked_lm, mask_id=4, eos_id=2)
    assert wrapped.spec == HFSpec(VOCAB, mask_id=4, eos_id=2, pad_id=0)
    assert wrapped.spec.stop_ids == (2,)
    assert (wrapped.device.type, wrapped.dtype) == ("cpu", torch.float32)
    head = torch.tensor([[3, 0], [10, 10]])
    logits = wrapped(ids, ForwardPlan(pos=ForwardPlan.full(T, batch=2).pos, head=head))
    full = masked_lm(input_ids=ids).logits
    assert torch.equal(logits, torch.stack((full[0, head[0]], full[1, head[1]])))


def test_ragged_batch_equals_rows_alone(masked_lm, ids):
    wrapped = HFModel(masked_lm, mask_id=4, eos_id=2)
    pos = ForwardPlan.full(T, batch=2).pos
    valid = pos < torch.tensor([[T], [6]])
    together = wrapped(ids, ForwardPlan(pos=pos, head=pos, valid=valid))
    for row, length in ((0, T), (1, 6)):
        alone = wrapped(ids[row : row + 1, :length], ForwardPlan.full(length))
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=0, atol=1e-5)
    unmasked = wrapped(ids, ForwardPlan.full(T, batch=2))
    assert (together[1, :6] - unmasked[1, :6]).abs().max() > 1e-4


def test_plain_callable(ids):
    wrapped = HFModel(dllm_like, vocab_size=VOCAB, mask_id=4, eos_id=2, eot_id=3, shift=1)
    assert wrapped.spec == HFSpec(VOCAB, mask_id=4, eos_id=2, pad_id=2, eot_id=3, shift=1)
    assert wrapped.spec.stop_ids == (2, 3)
    assert torch.equal(wrapped(ids, ForwardPlan.full(T, batch=2)).argmax(-1), ids)


def test_ids_from_the_models_config():
    config = SimpleNamespace(vocab_size=9, mask_token_id=8, eos_token_id=[5, 6], pad_token_id=None)
    spec = HFModel(SimpleNamespace(config=config)).spec
    assert spec == HFSpec(9, mask_id=8, eos_id=5, pad_id=5)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"eos_id": 2}, "mask_id=None: the model's config has no 'mask_token_id'; pass mask_id="),
        ({"mask_id": 4}, "eos_id=None: the model's config has no 'eos_token_id'"),
        ({"mask_id": VOCAB, "eos_id": 2}, rf"mask_id={VOCAB} is outside the vocabulary \[0, 61\)"),
        ({"mask_id": 4, "eos_id": 2, "eot_id": -1}, "eot_id=-1 is outside the vocabulary"),
        ({"mask_id": "4", "eos_id": 2}, "mask_id='4'"),
        ({"mask_id": 4, "eos_id": 2, "shift": 2}, "shift=2, expected 0"),
    ],
)
def test_what_cannot_be_known_has_to_be_given(given, problem):
    with pytest.raises(DllmError, match=problem):
        HFModel(dllm_like, vocab_size=VOCAB, **given)


def test_only_the_whole_canvas_without_a_store(ids):
    wrapped = HFModel(dllm_like, vocab_size=VOCAB, mask_id=4, eos_id=2)
    full = ForwardPlan.full(T, batch=2)
    with pytest.raises(DllmError, match="cache='none'"):
        wrapped.new_kv(2, T)
    with pytest.raises(DllmError, match="reads and writes no KV cache: use cache='none'"):
        wrapped(ids, full, KVCache(1, 2, 1, T, 2))
    with pytest.raises(DllmError, match="reads and writes no KV cache"):
        wrapped(ids, ForwardPlan(full.pos, full.head, read=torch.ones(2, T, dtype=torch.bool)))
    for pos in (full.pos[:, :4], full.pos.flip(1)):
        with pytest.raises(DllmError, match="computes all 11 positions in order"):
            wrapped(ids, ForwardPlan(pos=pos, head=pos))


def test_wrong_vocabulary_size_is_noticed(ids):
    wrapped = HFModel(dllm_like, vocab_size=VOCAB + 3, mask_id=4, eos_id=2)
    with pytest.raises(DllmError, match=r"logits of shape \[2, 11, 61\], expected \[2, 11, 64\]"):
        wrapped(ids, ForwardPlan.full(T, batch=2))
