"""From an AR checkpoint to a block-diffusion model that `dllm.load` decodes."""

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

import dllm
from dllm.errors import DllmError
from dllm.registry import SpecError
from dllm.train.ar_to_block import ArToBlock
from dllm.train.block import groups, nll
from dllm.train.job import Job
from dllm.train.recipes import RECIPES
from dllm.train.tokenizer import EOS, MASK
from tests.train.words import TOKENIZER

SIZE = 8
VOCAB = TOKENIZER.get_vocab()


def job(ar, out, **options):
    asked = {"data": "generators:copy", "examples": 64, "steps": 24, "batch_size": 16, "lr": 5e-3}
    return Job(recipe="ar-to-block", out=out, model=str(ar), **asked | options)


def prepared(ar, out, spec=f"ar-to-block:block_length={SIZE}", **options):
    return RECIPES.build(spec).prepare(job(ar, out, **options), lambda *args: None)


@pytest.fixture(scope="module")
def trained(ar, tmp_path_factory):
    """The losses of a short run, its model, and the directory of what it wrote."""
    folder = tmp_path_factory.mktemp("block")
    run = prepared(ar, folder / "run")
    losses = [run.trainer.train_step() for _ in range(24)]
    model = {name: p.detach().clone() for name, p in run.trainer.model.named_parameters()}
    run.export(folder / "made")
    return losses, model, folder / "made", run.use


def test_it_learns(trained):
    losses, _, _, _ = trained
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_it_starts_from_the_weights_of_the_ar_model(ar, tmp_path):
    model = prepared(ar, tmp_path).trainer.model
    original = LlamaForCausalLM.from_pretrained(ar, dtype=torch.float32)
    assert torch.equal(model.head.weight, original.lm_head.weight)
    assert torch.equal(model.layers[1].down.weight, original.model.layers[1].mlp.down_proj.weight)
    spec = model.spec
    assert (spec.family, spec.block_length, spec.shift) == ("block", SIZE, 1)
    assert (spec.mask_id, spec.eos_id, spec.pad_id) == (VOCAB[MASK], VOCAB[EOS], VOCAB[EOS])


def test_what_it_writes_is_what_was_trained_in_the_dtype_of_the_original(trained):
    _, model, folder, use = trained
    engine = dllm.load(folder, dtype="float16", device="cpu")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    for name, p in engine.model.named_parameters():
        assert torch.equal(p, model[name].half()), name
    assert engine.text.tokenizer.get_vocab() == VOCAB
    assert use == "dllm generate --model {} --cache block --block-length 8 PROMPT"


PROMPTS = ["Copy the list: pear", "Copy the list: fig, plum, pear, kiwi", "3 + 4"]


@pytest.mark.parametrize("sampler", ["threshold:threshold=0.3", "quota"])
@pytest.mark.parametrize("block_length", [SIZE, 3])
def test_its_block_cache_is_exact(trained, sampler, block_length):
    engine = dllm.load(trained[2], dtype="float64", device="cpu")
    options = {"sampler": sampler, "block_length": block_length, "max_new_tokens": 21}
    plain, cached = (
        engine.generate(PROMPTS, **options, cache=cache, history=True)
        for cache in ("none", "block")
    )
    for a, b in zip(plain, cached, strict=True):
        assert (a.token_ids, a.nfe) == (b.token_ids, b.nfe)
        for one, two in zip(a.history, b.history, strict=True):
            assert one.positions == two.positions
            torch.testing.assert_close(one.confidences, two.confidences, rtol=0, atol=1e-12)
    assert any(len(a.history) > 2 for a in plain)


def test_sub_blocks_decode_with_their_cache(trained):
    engine = dllm.load(trained[2], device="cpu")
    outputs = engine.generate(
        PROMPTS, cache="block:exact=false", block_length=4, max_new_tokens=20, history=True
    )
    for output in outputs:
        assert output.nfe == len(output.history)
        assert output.slots >= len(output.token_ids)


def test_decoding_sees_the_probabilities_that_training_sees(trained):
    """Every confidence of a decoding run is the likelihood that the loss gives to that token."""
    engine = dllm.load(trained[2], dtype="float64", device="cpu")
    prompt = engine.text.chat([{"role": "user", "content": PROMPTS[1]}])
    length = -(-(len(prompt) + 13) // SIZE) * SIZE  # to the end of a block
    (output,) = engine.generate(
        [prompt],
        cache="block",
        block_length=SIZE,
        max_new_tokens=length - len(prompt),
        sampler="threshold:threshold=0.3",
        history=True,
    )
    committed = {p: t for c in output.history for p, t in zip(c.positions, c.token_ids)}
    ids = torch.full((1, length), VOCAB[EOS])
    ids[0, : len(prompt)] = torch.tensor(prompt)
    ids[0, list(committed)] = torch.tensor(list(committed.values()))
    ((streams, _),) = groups(torch.tensor([len(prompt)]), torch.tensor([length - 1]), SIZE)
    left, compared = set(range(len(prompt), length)), 0
    for commit in output.history:
        masked = torch.zeros(2, 1, length, dtype=torch.bool)
        masked[0, 0, list(left)] = True
        for pos, confidence in zip(commit.positions, commit.confidences, strict=True):
            weights = torch.zeros(2, 1, length)
            weights[0, 0, pos] = 1
            banned = ids.clone()
            banned[0, pos] = VOCAB[MASK]  # decoding never gives the mask token
            with torch.no_grad():
                token, mask = (
                    (-nll(engine.model, streams, text, masked, weights)).exp()
                    for text in (ids, banned)
                )
            assert confidence == pytest.approx((token / (1 - mask)).item(), abs=1e-6)
            compared += 1
        left -= set(commit.positions)
    assert compared > SIZE


def test_the_mask_token_by_text_by_id_and_by_default(ar, tmp_path):
    for spec in (
        "ar-to-block",
        f"ar-to-block:mask_token={MASK}",
        f"ar-to-block:mask_token={VOCAB[MASK]}",
    ):
        model = RECIPES.build(spec).student(job(ar, tmp_path)).model
        assert (model.spec.mask_id, model.spec.block_length) == (VOCAB[MASK], 32)


@pytest.fixture
def maskless(ar, tmp_path):
    """The checkpoint with a tokenizer that has no mask token."""
    folder = tmp_path / "maskless"
    shutil.copytree(ar, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["mask_token"]
    file.write_text(json.dumps(config))
    return folder


def test_a_tokenizer_without_a_mask_token(maskless, tmp_path):
    with pytest.raises(DllmError, match=r"maskless: the tokenizer has no mask token; .*<\|user\|>"):
        prepared(maskless, tmp_path)
    student = ArToBlock(mask_token="<|user|>").student(job(maskless, tmp_path))
    assert student.model.spec.mask_id == VOCAB["<|user|>"]
    student.export(tmp_path / "made")
    assert dllm.load(tmp_path / "made").model.spec.mask_id == VOCAB["<|user|>"]


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("nothing", r"no token 'nothing'; its special tokens: .*<\|mask\|>"),
        (EOS, "mask_id=0 ends or pads a text"),
        (10**6, "mask_token_id is 1000000, outside the vocabulary"),
        ("<|user|>", r"the tokenizer's mask token '<\|mask\|>' is id 1, but .* mask_id is 2"),
    ],
)
def test_a_mask_token_that_cannot_be_used(ar, tmp_path, token, problem):
    with pytest.raises(DllmError, match=problem):
        ArToBlock(mask_token=token).student(job(ar, tmp_path))


def test_what_is_no_ar_checkpoint(tmp_path):
    with pytest.raises(DllmError, match="--model is missing: expected a Llama, Qwen2 or Qwen3"):
        ArToBlock().student(Job(recipe="ar-to-block", out=tmp_path))
    with pytest.raises(DllmError, match=r"tiny: attends everywhere; expected a Llama"):
        ArToBlock().student(job("tiny", tmp_path))


def test_answers_that_were_cut_off_are_not_learned(ar, tmp_path):
    with pytest.raises(DllmError, match="some that end within max_new_tokens=2 "):
        prepared(ar, tmp_path, distill_from=str(ar), max_new_tokens=2, examples=4)


@pytest.mark.parametrize(
    "option",
    ["block_length=0", "frontier=1.5", "tail_weight=-1", "tail_hidden=nan"],
)
def test_bad_options_are_named(option):
    name, _, value = option.partition("=")
    with pytest.raises(SpecError, match=f"{name}={value}"):
        RECIPES.build(f"ar-to-block:{option}")
