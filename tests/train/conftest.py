"""What tests of recipes share."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dllm.train.tokenizer import EOS, save_tokenizer
from tests.train.words import TOKENIZER

VOCAB = TOKENIZER.get_vocab()


@pytest.fixture(scope="module")
def ar(tmp_path_factory):
    """A random Llama with a tokenizer, as transformers writes it."""
    folder = tmp_path_factory.mktemp("ar")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=VOCAB[EOS],
        pad_token_id=None,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    save_tokenizer(TOKENIZER, folder)
    return folder
