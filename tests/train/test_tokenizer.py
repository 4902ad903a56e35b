import itertools

from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.text.tokenizer import load_text
from dllm.train.tokenizer import ASSISTANT, USER, save_tokenizer
from tests.train.words import TOKENIZER


@given(st.text(max_size=40))
def test_any_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER.encode(" " + text).ids, skip_special_tokens=False) == text


def test_an_item_is_one_token_wherever_it_stands():
    ids = TOKENIZER.encode(" pear, fig, pear").ids
    assert len(ids) == 5
    assert ids[0] == ids[-1]


def test_digits_are_single_tokens():
    assert len(TOKENIZER.encode(" 123").ids) == 3


def test_ids_do_not_change_when_later_families_grow():
    from dllm.train.tokenizer import build_tokenizer

    texts = [
        [e.prompt for e in itertools.islice(examples(DATASETS[n], 0, held_out=False), 50)]
        for n in ("copy", "json")
    ]
    short = build_tokenizer(texts[0]).get_vocab()
    long = build_tokenizer([*texts[0], *texts[1]]).get_vocab()
    assert len(long) > len(short)
    assert all(long[token] == i for token, i in short.items())


def test_the_chat_template_is_what_training_saw(tmp_path):
    class Ids:
        family = "llada"
        mask_id, eos_id, pad_id, stop_ids = 1, 0, 0, (0,)
        vocab_size = TOKENIZER.get_vocab_size()

    save_tokenizer(TOKENIZER, tmp_path)
    text = load_text(tmp_path, Ids)
    expected = TOKENIZER.encode(f"{USER} Copy the list: pear{ASSISTANT}").ids
    assert text.chat([{"role": "user", "content": "Copy the list: pear "}]) == expected
