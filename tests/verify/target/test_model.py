"""Trees verified in one pass against one plain pass per path, over many rounds."""

import json
import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import dllm.verify.target.model as target_module
from dllm.errors import DllmError, LoadError
from dllm.verify.target.model import HFTarget, TreeLogits, load_target
from dllm.verify.tree import Tree
from tests.verify.tiny_targets import (
    FAMILIES,
    POSITIONS,
    VOCAB,
    WINDOW,
    llama,
    plain_logits,
    random_text,
    random_tree,
    tiny_target,
)

TOLERANCE = 1e-10
EAGER = 1e-4  # it takes its softmax in fp32, whatever the model's type


@pytest.fixture(scope="module", params=FAMILIES)
def target(request):
    return HFTarget(tiny_target(request.param))


@pytest.fixture(scope="module")
def plain():
    return HFTarget(tiny_target("llama"))


@pytest.fixture(scope="module")
def windowed():
    return HFTarget(tiny_target("mistral"))


class Run:
    """A session beside the texts it should have read; commits random paths."""

    def __init__(self, target, prompts, seed=0):
        self.target, self.rng = target, random.Random(seed)
        self.texts = [list(prompt) for prompt in prompts]
        eager = target.model.config._attn_implementation == "eager"
        self.tolerance = EAGER if eager else TOLERANCE
        self.session = target.open(prompts, [POSITIONS - len(prompt) for prompt in prompts])

    def trees(self, drafts):
        return [random_tree(self.rng, text[-1], self.rng.randint(0, drafts)) for text in self.texts]

    def error(self, trees, scored):
        """The largest error of any logit behind any node of any row."""
        paths = [
            (row, node, [*self.texts[row], *(tree.tokens[step] for step in tree.path(node))])
            for row, tree in enumerate(trees)
            for node in range(len(tree))
        ]
        expected = plain_logits(self.target.model, [text for *_, text in paths])
        return max(
            float((scored.logits[row, node] - logits).abs().max())
            for (row, node, _), logits in zip(paths, expected)
        )

    def commit(self, trees):
        nodes = [[0, *tree.path(self.rng.randrange(len(tree)))] for tree in trees]
        self.session.commit(nodes)
        for text, tree, path in zip(self.texts, trees, nodes):
            text += [*(tree.tokens[node] for node in path[1:]), self.rng.randrange(VOCAB)]
        self.check()

    def round(self, drafts=5):
        trees = self.trees(drafts)
        scored = self.session.score(trees)
        error = self.error(trees, scored)
        self.commit(trees)
        return error

    def keep(self, rows):
        self.session.keep(rows)
        self.texts = [self.texts[row] for row in rows]
        self.check()

    def check(self):
        """Each row has its tokens but the last, each at its own position (I1 to I4)."""
        slots = self.session.slots
        assert slots.lengths.tolist() == [len(text) - 1 for text in self.texts]
        for row, text in enumerate(self.texts):
            valid = slots.valid[row, : slots.used]
            places = slots.pos[row, : slots.used][valid].tolist()
            first = len(text) - 1 - len(places)
            assert places == list(range(first, len(text) - 1))
            assert first == 0 or first <= len(text) - slots.horizon


@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
@settings(max_examples=3)
def test_a_tree_scores_as_its_paths_alone(target, seed, lengths):
    run = Run(target, [random_text(seed + n, length) for n, length in enumerate(lengths)], seed)
    for _ in range(6):  # far beyond the window
        assert run.round() < run.tolerance
    alive = run.rng.sample(range(len(lengths)), run.rng.randint(1, len(lengths)))
    run.keep(sorted(alive))
    assert run.round() < run.tolerance
    assert run.round() < run.tolerance


def test_after_fifty_rounds_the_cache_is_that_of_a_fresh_pass(target):
    run = Run(target, [random_text(1, 9), random_text(2, 2)])
    for _ in range(50):
        trees = run.trees(4)
        run.session.score(trees)
        run.commit(trees)
    slots = run.session.slots
    for row, text in enumerate(run.texts):
        fresh = DynamicCache()
        target.model(input_ids=torch.tensor([text[:-1]]), past_key_values=fresh)
        seen = torch.nonzero(slots.valid[row, : slots.used])[:, 0]
        for own, other in zip(slots.layers, fresh.layers, strict=True):
            for found, expected in ((own.keys, other.keys), (own.values, other.values)):
                expected = expected[0, :, -len(seen) :]
                assert (found[row, :, seen] - expected).abs().max() < run.tolerance
    trees = run.trees(6)
    assert run.error(trees, run.session.score(trees)) < run.tolerance


def test_a_row_reads_the_same_alone_and_in_a_batch(target):
    prompts = [random_text(n, length) for n, length in enumerate((11, 1, 4))]
    together = Run(target, prompts)
    alone = [Run(target, [prompt]) for prompt in prompts]
    for _ in range(8):
        trees = together.trees(5)
        scored = together.session.score(trees)
        nodes = [[0, *tree.path(len(tree) - 1)] for tree in trees]
        together.session.commit(nodes)
        for row, (tree, path, single) in enumerate(zip(trees, nodes, alone)):
            own = single.session.score([tree]).logits[0]
            assert (own - scored.logits[row, : len(tree)]).abs().max() < single.tolerance
            single.session.commit([path])
            together.texts[row].append(together.rng.randrange(VOCAB))


def test_compacting_changes_no_logit(target):
    run = Run(target, [random_text(1, 5), random_text(2, 8)])
    run.session.slots.share = 1.0
    for _ in range(4):
        assert run.round() < run.tolerance
    trees = run.trees(5)
    before = run.session.score(trees).logits
    used = run.session.slots.used
    run.session.slots.compact()
    assert run.session.slots.used < used
    after = run.session.score(trees).logits
    for row, tree in enumerate(trees):
        assert (before - after)[row, : len(tree)].abs().max() < run.tolerance
    run.commit(trees)
    assert run.round() < run.tolerance


def test_a_pass_that_is_not_committed_leaves_no_trace(plain):
    run = Run(plain, [random_text(1, 6), random_text(2, 3)])
    for _ in range(3):
        run.session.score(run.trees(6))
        assert run.round() < run.tolerance


@pytest.mark.parametrize("piece", [1, 3, 4])
def test_a_long_prompt_is_read_in_pieces(windowed, monkeypatch, piece):
    monkeypatch.setattr(target_module, "PREFILL", piece)
    run = Run(windowed, [random_text(1, 10), random_text(2, 2), random_text(3, 5)])
    for _ in range(3):
        assert run.round() < run.tolerance


def test_a_plain_step_uses_the_models_own_mask(plain, monkeypatch):
    masks = []
    forward = plain.model.forward

    def spy(*args, **kwargs):
        masks.append(kwargs["attention_mask"])
        return forward(*args, **kwargs)

    run = Run(plain, [random_text(1, 6)])
    monkeypatch.setattr(plain.model, "forward", spy)
    for drafts in (0, 0, 3, 0):
        tree = random_tree(random.Random(4), run.texts[0][-1], drafts)
        run.session.score([tree])
        run.session.commit([[0, len(tree) - 1][: len(tree)]] if drafts else [[0]])
        run.texts[0].append(1)
    assert [mask is None for mask in masks] == [True, True, False, False]


def test_greedy_text_is_that_of_the_model_alone(target):
    prompt = random_text(3, 6)
    expected = target.model.generate(
        torch.tensor([prompt]), max_new_tokens=25, do_sample=False, pad_token_id=0
    )[0].tolist()
    text, rng = list(prompt), random.Random(0)
    session = target.open([prompt], [40])
    while len(text) < len(expected):
        tree = random_tree(rng, text[-1], 4)
        for token in expected[len(text) : len(text) + rng.randint(0, 3)]:
            tree.add(len(tree) - 1, token, 0.9, "oracle")
        best, node, nodes = session.score([tree]).best()[0], 0, [0]
        text.append(best[0])
        while (child := tree.child(node, text[-1])) is not None:
            nodes.append(node := child)
            text.append(best[node])
        session.commit([nodes])
    assert text[: len(expected)] == expected


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_narrow_types_are_near(dtype, tolerance):
    run = Run(HFTarget(tiny_target("llama", dtype)), [random_text(1, 6), random_text(2, 3)])
    scale = float(plain_logits(run.target.model, run.texts)[0].float().std())
    for _ in range(4):
        assert run.round() < tolerance * scale
    row = run.session.score(run.trees(2)).row(1, 0)
    assert row.dtype == torch.float32


def test_logits_are_read_as_transformers_reads_them():
    logits = torch.zeros(2, 3, 5, dtype=torch.float64)
    logits[0, 0, 3], logits[0, 0, 4] = 1, 1 + 1e-12  # equal in fp32: the lowest id
    logits[0, 2], logits[1, 0, 2], logits[1, 0, 4] = torch.arange(5), 4, 2
    scored = TreeLogits(logits, [3, 1])
    assert scored.best() == [[3, 0, 4], [2]]
    assert scored.top(0, 2)[2].tolist() == [4, 3]
    assert scored.top(1, 2).tolist() == [[2, 4]]
    assert scored.top(1, 9).shape == (1, 5)
    assert scored.row(0, 2).dtype == torch.float32
    assert scored.row(0, 2).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_end_where_the_model_ends(family):
    """Rotary ones too: behind the last that it was trained on a model writes anything."""
    target = HFTarget(tiny_target(family))
    target.open([[1, 2]], [POSITIONS - 2])
    with pytest.raises(
        DllmError, match=f"{POSITIONS - 1} new ones make {POSITIONS + 1} positions.*{POSITIONS}$"
    ):
        target.open([[1, 2]], [POSITIONS - 1])
    session = target.open([random_text(0, POSITIONS)], [0])
    deep = Tree.root(1)
    deep.add(0, 1, 0.5, "test")
    session.score([Tree.root(1)])
    with pytest.raises(DllmError, match=f"position {POSITIONS}"):
        session.score([deep])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt 1 is empty"), ([3, VOCAB], f"token {VOCAB}, outside"), ([-1], "token -1")],
)
def test_a_prompt_has_tokens_of_the_vocabulary(plain, prompt, message):
    with pytest.raises(DllmError, match=message):
        plain.open([[1], prompt], [4, 4])


def test_commit_needs_a_pass(plain):
    session = plain.open([[1]], [4])
    with pytest.raises(DllmError, match="call score first"):
        session.commit([[0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    llama(vocab_size=1024).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "dllm" / "assets" / "tiny" / name, folder)
    return folder


def test_a_directory_is_loaded_with_its_tokenizer(checkpoint):
    target, tokenizer = load_target(checkpoint, dtype="float64", device="cpu")
    assert target.vocab_size == 1024
    assert not target.model.training
    assert target.model.dtype == torch.float64
    assert tokenizer.decode(tokenizer("3 + 4").input_ids) == "3 + 4"
    assert Run(target, [tokenizer("3 + 4").input_ids]).round() < TOLERANCE


def broken_copy(checkpoint, folder):
    return shutil.copytree(checkpoint, folder / "broken")


def test_a_missing_tensor_is_never_drawn_at_random(checkpoint, tmp_path):
    folder = broken_copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(LoadError, match=r"tensors are missing: model\.layers\.3"):
        load_target(folder)


def test_code_of_a_checkpoint_is_not_run(checkpoint, tmp_path):
    folder = broken_copy(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "code.Odd"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(LoadError, match="without remote code"):
        load_target(folder)


def test_pickled_weights_are_not_opened(checkpoint, tmp_path):
    folder = broken_copy(checkpoint, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="safetensors"):
        load_target(folder)


def test_a_name_of_nothing_is_an_error():
    with pytest.raises(LoadError, match="no model 'nowhere'"):
        load_target("nowhere")


def test_windows_are_really_exceeded():
    """What the tests above rely on: the window changes the logits of these texts."""
    model = tiny_target("mistral")
    text = random_text(5, 4 * WINDOW)
    short = plain_logits(model, [text, text[-3 * WINDOW :]])
    model.config.sliding_window = 100
    assert (plain_logits(model, [text])[0] - short[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "horizon"), [("llama", None), ("qwen2", None), ("mistral", 7)])
def test_only_where_every_layer_has_a_window_is_anything_dropped(family, horizon):
    session = HFTarget(tiny_target(family)).open([[1, 2]], [4])
    assert session.slots.horizon == horizon
