"""Tokenizers as LLaDA and Dream ship them, chat formats, and stop strings."""

import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from dllm.errors import DllmError, LoadError
from dllm.models.hf import HFSpec
from dllm.text.tokenizer import load_text

BYTES = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
VOCAB = {**BYTES, "he": 256, "Ġw": 257}
MERGES = [("h", "e"), ("Ġ", "w")]
LLADA = {  # token -> id
    "<|startoftext|>": 258,
    "<|endoftext|>": 259,
    "<|mdm_mask|>": 260,
    "<|start_header_id|>": 261,
    "<|end_header_id|>": 262,
    "<|eot_id|>": 263,
}
QWEN = {
    "<|endoftext|>": 258,
    "<|im_start|>": 259,
    "<|im_end|>": 260,
    "<|beginoftext|>": 261,
    "<|mask|>": 262,
}
LLADA_SPEC = HFSpec(300, mask_id=260, eos_id=259, pad_id=259, eot_id=263, family="llada")
DREAM_SPEC = HFSpec(300, mask_id=262, eos_id=258, pad_id=258, eot_id=260, shift=1, family="dream")
HELLO = [{"role": "user", "content": "hello world"}]


def write_settings(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    """tokenizer.json beside a config.json that names remote code, and no mask token declared."""
    folder = tmp_path_factory.mktemp("llada")
    tokenizer = Tokenizer(BPE(vocab=VOCAB, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in LLADA])
    # a bos before everything, unless encoding asks for no special tokens
    bos = ("<|startoftext|>", LLADA["<|startoftext|>"])
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_settings(
        folder,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        add_bos_token=False,
        clean_up_tokenization_spaces=False,
        tokenizer_class="PreTrainedTokenizerFast",
    )
    (folder / "config.json").write_text(
        '{"model_type": "llada", "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"}}'
    )
    return folder


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    """vocab.json and merges.txt under a remote class whose file would fail the test."""
    folder = tmp_path_factory.mktemp("dream")
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    merges = "".join(f"{a} {b}\n" for a, b in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "tokenization_dream.py").write_text("raise SystemExit('remote code was run')")
    write_settings(
        folder,
        added_tokens_decoder={
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, i in QWEN.items()
        },
        auto_map={"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        bos_token="<|beginoftext|>",
        eos_token="<|endoftext|>",
        mask_token="<|mask|>",
        pad_token="<|endoftext|>",
        tokenizer_class="DreamTokenizer",
    )
    (folder / "config.json").write_text('{"model_type": "Dream"}')
    return folder


@pytest.fixture(scope="module")
def llada_text(llada):
    return load_text(llada, LLADA_SPEC)


@pytest.fixture(scope="module")
def dream_text(dream):
    return load_text(dream, DREAM_SPEC)


def copy(folder, to, **settings):
    """The same tokenizer with other settings."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    old = json.loads((folder / "tokenizer_config.json").read_text())
    write_settings(to, **(old | settings))
    return to


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_ids_are_those_of_the_files(request, family):
    text = request.getfixturevalue(f"{family}_text")
    special = LLADA if family == "llada" else QWEN
    assert {token: text.encode(token) for token in special} == {t: [i] for t, i in special.items()}
    # merged as the files say, no bos, no trailing eos
    assert text.encode("he w") == [256, 257]
    assert text.encode("") == []


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example("<|eot_id|> typed by a user")
@example("  two  spaces , and a comma .\n\n")
def test_llada_round_trip(llada_text, string):
    assert llada_text.decode(llada_text.encode(string), skip_special_tokens=False) == string


def test_dream_splits_like_qwen2(dream_text):
    """Qwen2's pattern cuts digits one by one and normalises to NFC."""
    assert len(dream_text.encode("123")) == 3
    assert dream_text.encode("e\u0301") == dream_text.encode("\u00e9")
    assert dream_text.decode(dream_text.encode("he's 12  wide\n")) == "he's 12  wide\n"


def test_special_tokens_are_skipped_on_demand(llada_text):
    ids = [256, 260, 257, 263, 259]
    assert llada_text.decode(ids) == "he w"
    assert llada_text.decode(ids, skip_special_tokens=False) == (
        "he<|mdm_mask|> w<|eot_id|><|endoftext|>"
    )


# --- chat -------------------------------------------------------------------------------------


def test_llada_chat(llada_text):
    ids = llada_text.chat([{"role": "system", "content": " brief\n"}, *HELLO])
    assert llada_text.decode(ids, skip_special_tokens=False) == (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nbrief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhello world<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ids.count(LLADA["<|startoftext|>"]) == 1


def test_dream_chat(dream_text):
    ids = dream_text.chat(HELLO)
    assert dream_text.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    )
    own = dream_text.chat([{"role": "system", "content": "brief"}, *HELLO])
    assert "helpful" not in dream_text.decode(own)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_template_of_the_checkpoint_goes_first(llada, tmp_path, where):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    if where == "chat_template.jinja":
        copy(llada, tmp_path)
        (tmp_path / where).write_text(template)
    else:
        copy(llada, tmp_path, chat_template=template)
    text = load_text(tmp_path, LLADA_SPEC)
    assert text.has_chat_template
    rendered = text.decode(text.chat(HELLO), skip_special_tokens=False)
    assert rendered == "<|startoftext|>[hello world]"


def test_template_that_refuses(llada, tmp_path):
    copy(llada, tmp_path, chat_template="{{ raise_exception('no system role') }}")
    text = load_text(tmp_path, LLADA_SPEC)
    with pytest.raises(DllmError, match="chat template refuses: no system role"):
        text.chat(HELLO)


def test_template_cannot_reach_python(llada, tmp_path):
    copy(llada, tmp_path, chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(DllmError, match=r"chat template refuses: .*unsafe"):
        load_text(tmp_path, LLADA_SPEC).chat(HELLO)


@pytest.mark.parametrize("family", ["hf", "sdar"])
def test_base_model_has_no_chat(llada, family):
    """No template file, and no published format or none of its tokens in this vocabulary."""
    spec = HFSpec(300, mask_id=260, eos_id=259, pad_id=259, family=family)
    text = load_text(llada, spec)
    assert not text.has_chat_template
    with pytest.raises(DllmError, match=f"this {family} checkpoint has no chat template"):
        text.chat(HELLO)


@pytest.mark.parametrize(
    "messages", ["hello", [], HELLO[0], ["hello"], [{"role": "user"}], [{"role": 1, "content": ""}]]
)
def test_malformed_messages(llada_text, messages):
    with pytest.raises(DllmError, match=r'expected a non-empty list like \[\{"role": "user"'):
        llada_text.chat(messages)


# --- checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [261, 263])
def test_mask_token_has_to_be_the_models(dream, other):
    spec = HFSpec(300, mask_id=other, eos_id=258, pad_id=258, family="dream")
    with pytest.raises(
        LoadError, match=rf"mask token '<\|mask\|>' is id 262, but .* mask_id is {other}"
    ):
        load_text(dream, spec)


def test_end_has_to_be_one_of_the_models(dream, dream_text, tmp_path):
    assert load_text(copy(dream, tmp_path, eos_token="<|im_end|>"), DREAM_SPEC)
    spec = HFSpec(300, mask_id=262, eos_id=4, pad_id=4, eot_id=5, family="dream")
    with pytest.raises(
        LoadError, match=r"'<\|im_end\|>', id 260, but the model with one of \[4, 5\]"
    ):
        load_text(tmp_path, spec)


def test_padding_may_differ(dream, tmp_path):
    load_text(copy(dream, tmp_path, pad_token="<|beginoftext|>"), DREAM_SPEC)


def test_tokenizer_larger_than_the_model(llada):
    spec = HFSpec(263, mask_id=260, eos_id=259, pad_id=259, family="llada")
    with pytest.raises(LoadError, match="ids up to 263, but the model only 263 tokens"):
        load_text(llada, spec)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_no_usable_tokenizer(tmp_path, content):
    (tmp_path / "config.json").write_text('{"model_type": "llada"}')
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        LoadError, match=r"no tokenizer( that works without remote code|; expected)"
    ) as caught:
        load_text(tmp_path, LLADA_SPEC)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_remote_tokenizer_class_is_not_run(dream, tmp_path):
    copy(dream, tmp_path, tokenizer_class="NewTokenizer")
    with pytest.raises(LoadError, match="no tokenizer that works without remote code"):
        load_text(tmp_path, DREAM_SPEC)


def test_import_is_light(root):
    heavy = {"torch", "transformers", "jinja2"}
    code = f"import sys, dllm.text.tokenizer; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr
