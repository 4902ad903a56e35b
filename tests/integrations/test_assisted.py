"""Assisted generation of transformers with our drafts says what the model alone says."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from dllm.errors import DllmError
from dllm.integrations.assisted import Assist, LatticeCandidates
from dllm.verify.accept.rules import Match
from dllm.verify.control.controllers import FixedController, ThresholdController
from dllm.verify.control.goodput import CostController
from dllm.verify.draft.chain import Chain
from dllm.verify.draft.rows import SpeculationComponents
from dllm.verify.draft.search import Argmax
from dllm.verify.research.cps import AdlController
from dllm.verify.sources.recycling import Recycling
from tests.verify.chains import Copy, FakeDrafter, FirstPath, Says, Wrong
from tests.verify.exact import distribution_of, tv

VOCAB = 31
NEW = 14


@pytest.fixture(scope="module")
def model() -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    made = tf.LlamaForCausalLM(config).double().eval().requires_grad_(False)
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCAB, (1, n), generator=generator) for n in (1, 5, 9)]


def oracle(text: list[int], wrong_at: int | None = None) -> FakeDrafter:
    """Knows the whole text, with a wrong token at one position."""
    text = [token ^ (i == wrong_at) for i, token in enumerate(text)]
    return FakeDrafter(lambda context, depth: text[len(context) : len(context) + depth])


SAYS: dict[str, Says] = {
    "constant": lambda context, depth: [3] * depth,
    "nothing": lambda context, depth: [],
    "beyond": lambda context, depth: [VOCAB, 2**40, -1, 5][:depth],
    "echo": lambda context, depth: [context[-1]] * depth,
    "too much": lambda context, depth: [4] * (depth + 50),
}


def drafters(text: list[int]) -> dict[str, FakeDrafter | None]:
    known = {"oracle": oracle(text), "nearly": oracle(text, wrong_at=len(text) - 5), "none": None}
    return known | {name: FakeDrafter(says) for name, says in SAYS.items()}


def assisting(drafter: FakeDrafter | None, control=FixedController(depth=5), sources=()) -> Assist:  # noqa: B008
    return Assist(drafter, SpeculationComponents(FirstPath(), Match(), control, tuple(sources)))


def candidates(drafter: FakeDrafter | None) -> LatticeCandidates:
    """Those of a text of at most 9 tokens."""
    return LatticeCandidates(Chain(assisting(None).components, drafter, VOCAB, 9))


GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@pytest.mark.parametrize("name", ["oracle", "nearly", "none", *SAYS])
def test_greedy_text_is_the_models_own(model, prompts, name):
    for prompt in prompts:
        alone = model.generate(prompt, **GREEDY)
        drafter = drafters(alone[0].tolist())[name]
        sources = [Copy()] if name in ("constant", "none") else []
        helped = model.generate(
            prompt, custom_generate=assisting(drafter, sources=sources), **GREEDY
        )
        assert helped.tolist() == alone.tolist()


@pytest.mark.parametrize(
    "control",
    [
        FixedController(0),
        FixedController(40),
        AdlController(),
        ThresholdController(step=4),
        CostController(),
    ],
)
@pytest.mark.parametrize("name", ["oracle", "constant"])
def test_with_any_control(model, prompts, control, name):
    options = {"do_sample": False, "max_new_tokens": 40, "repetition_penalty": 1.3}
    alone = model.generate(prompts[1], **options)
    drafter = drafters(alone[0].tolist())[name]
    assist = assisting(drafter, control, [Copy()])
    assert model.generate(prompts[1], custom_generate=assist, **options).tolist() == alone.tolist()


def widths(
    model: tf.LlamaForCausalLM, prompt: torch.Tensor, assist: Assist, **options
) -> list[int]:
    """Tokens that each forward reads."""
    found: list[int] = []

    def note(module, args, kwargs):
        found.append(kwargs["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.generate(prompt, custom_generate=assist, **options)
    finally:
        handle.remove()
    return found


def test_good_drafts_save_passes_and_bad_ones_cost_none(model, prompts):
    text = model.generate(prompts[1], **GREEDY)[0].tolist()
    known = oracle(text)
    wrong = FakeDrafter(lambda context, depth: [(text + [0] * 9)[len(context)] ^ 1] * depth)
    assert len(widths(model, prompts[1], assisting(known), **GREEDY)) == 3  # 6, 6 and 2 new tokens
    assert len(widths(model, prompts[1], assisting(wrong), **GREEDY)) == NEW


@pytest.mark.parametrize("new", [1, 2, 3, 6])
def test_no_token_more_than_there_is_room_for(model, prompts, new):
    alone = model.generate(prompts[2], max_new_tokens=new, do_sample=False)
    for drafter in (oracle(alone[0].tolist()), FakeDrafter(SAYS["too much"])):
        assist = assisting(drafter, FixedController(40))
        helped = model.generate(
            prompts[2], custom_generate=assist, max_new_tokens=new, do_sample=False
        )
        assert helped.tolist() == alone.tolist()
        assert drafter.limits == [prompts[2].shape[1] + new]
        assert all(len(context) + 1 < drafter.limits[0] for context in drafter.contexts)


@pytest.mark.parametrize("at", [0, 1, 4, 13])
def test_the_text_ends_at_an_end_token(model, prompts, at):
    end = model.generate(prompts[1], **GREEDY)[0, prompts[1].shape[1] + at].item()
    options = GREEDY | {"eos_token_id": end}
    alone = model.generate(prompts[1], **options)
    text = model.generate(prompts[1], **GREEDY)[0].tolist()
    for says in (lambda c, d: text[len(c) : len(c) + d], lambda c, d: [end] * d):
        assist = assisting(FakeDrafter(says, eos=frozenset({end})), FixedController(9))
        assert model.generate(prompts[1], custom_generate=assist, **options).tolist() == (
            alone.tolist()
        )


def test_returns_a_dict_when_asked(model, prompts):
    options = GREEDY | {"return_dict_in_generate": True, "output_scores": True}
    alone = model.generate(prompts[1], **options)
    assist = assisting(oracle(alone.sequences[0].tolist()))
    helped = model.generate(prompts[1], custom_generate=assist, **options)
    assert helped.sequences.tolist() == alone.sequences.tolist()
    assert torch.allclose(torch.cat(helped.scores), torch.cat(alone.scores))


@pytest.mark.parametrize("name", ["nearly", "constant", "copy"])
def test_sampled_text_has_the_models_distribution(model, name, monkeypatch):
    """Three tokens, two likely at each place, by enumeration of all that transformers draws."""
    prompt, options = (
        torch.tensor([[5, 7, 5]]),
        {"do_sample": True, "top_k": 2, "max_new_tokens": 3},
    )
    expected = {(): 1.0}
    for _ in range(3):
        expected = {
            (*text, token): mass * p
            for text, mass in expected.items()
            for token, p in likeliest(model, [*prompt[0].tolist(), *text]).items()
        }
    first = likeliest(model, prompt[0].tolist())
    says = {"constant": [max(first, key=first.get)] * 5, "nearly": [min(first, key=first.get)] * 5}

    def program(rng):
        drafter = FakeDrafter(lambda c, d: says.get(name, [])[:d])
        assist = assisting(drafter, sources=[Copy()])  # a new one, which has learned nothing yet

        def multinomial(probs, num_samples):
            assert num_samples == 1
            probs = probs.double()  # transformers rounds to fp32
            probs /= probs.sum(-1, keepdim=True)
            return torch.tensor([[rng.outcome(row.tolist())] for row in probs])

        monkeypatch.setattr(torch, "multinomial", multinomial)
        return tuple(model.generate(prompt, custom_generate=assist, **options)[0, 3:].tolist())

    found = distribution_of(program)
    assert found.keys() == expected.keys()
    assert tv(found, expected) < 1e-6


def likeliest(model: tf.LlamaForCausalLM, text: list[int]) -> dict[int, float]:
    """softmax of the two highest logits."""
    top = model(torch.tensor([text])).logits[0, -1].topk(2)
    return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist()))


def test_what_a_text_shows_of_a_source_serves_the_next(model, prompts):
    """A source that is always wrong is heard no more, whatever it claims: also in a new text."""
    options = GREEDY | {"max_new_tokens": 40}
    text = model.generate(prompts[1], **options)[0].tolist()
    wrong = Wrong([token ^ 1 for token in text])
    assist = assisting(None, ThresholdController(reject=0.5, depth=4), [wrong])
    plain = widths(model, prompts[1], assisting(None), **options)
    first = widths(model, prompts[1], assist, **options)
    assert sum(first) > sum(plain)
    assert widths(model, prompts[1], assist, **options) == plain


def test_candidates_come_without_logits(model, prompts):
    """What makes transformers draw from the target and compare, the rule for such drafts."""
    ids, logits = candidates(FakeDrafter(lambda context, depth: [7] * depth)).get_candidates(
        prompts[1]
    )
    assert logits is None
    assert ids.tolist() == [[*prompts[1][0].tolist(), 7, 7, 7]]
    assert ids.dtype == prompts[1].dtype


def test_sources_learn_what_the_target_finds_likely(model, prompts):
    text = model.generate(prompts[1], **GREEDY)[0].tolist()
    source = Copy(weight=0.1)
    model.generate(prompts[1], custom_generate=assisting(oracle(text), sources=[source]), **GREEDY)
    last, at = source.last, prompts[1].shape[1] - 1
    assert last.tokens == text[: len(last.tokens)]
    assert [len(tokens) for tokens, _ in last.learned] == [6, 6, 2]
    for tokens, top in last.learned:
        assert tokens == text[at : at + len(tokens)]
        assert top.shape == (len(tokens), 8)
        assert top[:, 0].tolist() == text[at + 1 : at + 1 + len(tokens)]
        at += len(tokens)


def test_the_model_is_left_as_it_was(model, prompts):
    before = dict(vars(model))
    model.generate(prompts[0], custom_generate=assisting(None), **GREEDY)
    assert vars(model) == before


def test_a_text_beyond_the_models_positions_is_an_error(model, prompts):
    assist = assisting(None)
    with pytest.raises(DllmError, match=r"5 tokens and 124 new ones make 129 .* model has 128$"):
        model.generate(prompts[1], custom_generate=assist, max_new_tokens=124, do_sample=False)


def test_more_texts_than_one_are_an_error(model):
    with pytest.raises(DllmError, match="2 texts: assisted generation takes one"):
        candidates(None).get_candidates(torch.ones((2, 3), dtype=torch.long))
    with pytest.raises(DllmError, match="num_beams=2 asks for beam search"):
        model.generate(
            torch.ones((1, 3), dtype=torch.long),
            custom_generate=assisting(None),
            num_beams=2,
            max_new_tokens=2,
        )


def test_options_are_those_of_chains():
    made = Assist(sources=["recycling"], reuse=2).components
    assert (type(made.search), type(made.control)) == (Argmax, ThresholdController)
    assert (made.sources, made.reuse) == ((Recycling(),), 2)
    with pytest.raises(DllmError, match="unknown option 'accept'; known: search, control, sources"):
        Assist(accept="ratio")
    with pytest.raises(DllmError, match="search=: components= are made already"):
        Assist(components=made, search="product")
