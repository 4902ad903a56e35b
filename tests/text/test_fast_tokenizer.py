"""The fast tokenizer reads out of a checkpoint's files what transformers reads out of them."""

import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dllm.errors import LoadError
from dllm.models.hub import resolve
from dllm.text.fast_tokenizer import FastTokenizer
from dllm.text.tokenizer import load_tokenizer

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
SIZE = len(FastTokenizer(resolve("tiny")).get_vocab())


def added(text, special=True, **flags):
    return {"content": text, "special": special, **FLAGS, **flags}


CONFIGS = {
    "as it is": {},
    "tokens only in the configuration": {
        "added_tokens_decoder": {
            str(SIZE + 1): added("<|later|>"),
            str(SIZE): added("<|sooner|>", lstrip=True),
            str(SIZE + 2): added("plain", special=False),
        }
    },
    "named tokens that nobody has": {
        "bos_token": "<s>",
        "unk_token": added("<unk>", __type="AddedToken"),
    },
    "extra special tokens": {"extra_special_tokens": ["<|user|>", "<|tool|>"]},
    "one that is a word so far": {"additional_special_tokens": ["Sort"]},
    "one that is added and named": {
        "added_tokens_decoder": {str(SIZE): added("<s>", special=False)},
        "bos_token": "<s>",
    },
    "several templates": {
        "chat_template": [
            {"name": "default", "template": "{{ messages }}"},
            {"name": "tool_use", "template": "tools"},
        ]
    },
    "templates without a default": {"chat_template": [{"name": "tool_use", "template": "tools"}]},
    "no template": {"chat_template": None},
}
FILES = {
    "a template in a file": {"chat_template.jinja": "{{ 'file' }}"},
    "templates in a folder": {"additional_chat_templates/tool_use.jinja": "{{ 'tools' }}"},
    "special tokens in the old file": {
        "special_tokens_map.json": json.dumps({"bos_token": "<s>", "cls_token": added("<c>")})
    },
    "tokens in the old file": {"added_tokens.json": json.dumps({"<b>": SIZE + 1, "<a>": SIZE})},
}
TEXTS = ["Sort the list: fig, plum", " <|sooner|> x<|later|>plain", "<s><unk><c><a><b> <|tool|>"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with the bundled tokenizer and one difference each."""
    made = {}
    for name, change in {**CONFIGS, **FILES}.items():
        made[name] = folder = tmp_path_factory.mktemp("tokenizer")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(resolve("tiny") / file, folder)
        if name in CONFIGS:
            file = folder / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
            continue
        for path, text in change.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
    return made


@pytest.mark.parametrize("name", [*CONFIGS, *FILES])
def test_it_reads_what_transformers_reads(folders, name):
    ours, theirs = (
        FastTokenizer(folders[name]),
        PreTrainedTokenizerFast.from_pretrained(folders[name]),
    )
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert ours.chat_template == theirs.chat_template
    for role in ("bos_token", "eos_token", "mask_token", "eos_token_id", "mask_token_id"):
        assert getattr(ours, role) == getattr(theirs, role)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        for skip in (True, False):
            shown = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == shown


@pytest.mark.parametrize("bundled", ["tiny", "tiny-sure", "tiny-ar"])
@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_spelled_alike(bundled, text):
    ours, theirs = PAIRS.setdefault(bundled, _pair(bundled))
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


PAIRS: dict = {}


def _pair(bundled):
    folder = resolve(bundled)
    return FastTokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def test_templates_without_a_default_are_refused_by_name(folders):
    with pytest.raises(ValueError, match=r"several chat templates and no default: \['tool_use'\]"):
        FastTokenizer(folders["templates without a default"]).get_chat_template()


@pytest.mark.parametrize(
    "config", ["[]", '{"bos_token": 3}', '{"added_tokens_decoder": {"x": {}}}', '{"eos_token": {}}']
)
def test_a_broken_configuration_is_one_error(tmp_path, config):
    shutil.copy(resolve("tiny") / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(LoadError, match="no tokenizer that works without remote code"):
        load_tokenizer(tmp_path)


def test_a_short_run_imports_neither_transformers_nor_the_compiler(root):
    code = (
        "import sys, dllm\n"
        "assert dllm.load('tiny').generate('What is 7 + 8?').text == '7 + 8 = 15'\n"
        "print({'transformers', 'torch._dynamo'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr
