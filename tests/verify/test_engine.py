"""A target and a drafter in one engine: texts in, the target's own texts out."""

import pytest
import torch

import dllm.verify
from dllm.errors import DllmError, LoadError
from dllm.verify.config import SpecConfig
from dllm.verify.engine import SpecEngine
from dllm.verify.rng import row_seed
from tests.verify.scripted import Scripted, knowing
from tests.verify.tiny_targets import VOCAB, tiny_target

PROMPTS = [
    "Reverse the list: pear, fig, plum",
    "Turn into JSON: Tom is 31 and lives in Oslo.",
    "Tom has 12 apples. Tom gives 4 to Ana. How many apples does Tom have now?",
]


@pytest.fixture(scope="module")
def pair():
    return dllm.verify.load("tiny-ar", "tiny", dtype="float64")


@pytest.fixture(scope="module")
def plain(pair):
    """What the target's own `generate` gives, by prompt: token ids with the end token."""
    found = {}
    for prompt in PROMPTS:
        ids = torch.tensor([pair.text.chat([{"role": "user", "content": prompt}])])
        out = pair.target.model.generate(ids, max_new_tokens=64, do_sample=False)
        found[prompt] = out[0, ids.shape[1] :].tolist()
    return found


def emitted(output):
    return [token for each in output.rounds for token in each.tokens]


@pytest.mark.parametrize("search", ["argmax", "cps", "product", "coupled"])
@pytest.mark.parametrize("control", ["cost", "fixed:depth=16,nodes=16"])
def test_the_bundled_pair_says_what_the_target_says(pair, plain, search, control):
    outputs = pair.generate(PROMPTS, search=search, control=control, max_new_tokens=64)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert emitted(output) == plain[prompt]
        assert output.finish_reason == "eos"
        assert output.token_ids == plain[prompt][:-1]
        assert output.text == pair.text.decode(plain[prompt][:-1])
        assert (output.rule, output.lossless) == ("greedy", True)


def test_drafts_save_passes(pair, plain):
    output = pair.generate(PROMPTS[1], control="fixed:depth=16,nodes=16")
    assert output.target_passes < 0.5 * output.emitted
    assert output.tokens_per_pass == output.emitted / output.target_passes
    assert output.accepted_per_round == pytest.approx(
        sum(each.accepted for each in output.rounds) / output.target_passes
    )
    assert output.drafter_passes <= output.target_passes


SHUFFLES = [f"Shuffle the list: {items}" for items in ("red, blue, green", "fig, plum, kiwi, pear")]


@pytest.mark.parametrize(
    ("prompts", "temperature"), [(PROMPTS, 0.0), ([*SHUFFLES, PROMPTS[0]], 2.0)]
)
def test_a_row_of_a_batch_is_what_it_is_alone(pair, prompts, temperature):
    """Every row, wherever it stands: a row draws from a generator of its own."""
    options = {"temperature": temperature, "control": "fixed:depth=8,nodes=8", "seed": 5}
    options["max_new_tokens"] = 12
    together = pair.generate(prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = pair.generate([prompt], row_ids=[row], **options)
        assert emitted(together[row]) == emitted(alone[0])
    turned = pair.generate(prompts[::-1], row_ids=[2, 1, 0], **options)
    assert [emitted(each) for each in turned] == [emitted(each) for each in together[::-1]]


def test_one_prompt_many_times_is_many_samples(pair):
    prompts = ["Shuffle the list: red, blue, green, gold"] * 6
    outputs = pair.generate(prompts, temperature=2.0, seed=3, max_new_tokens=10)
    assert len({output.text for output in outputs}) > 3
    again = pair.generate(prompts, temperature=2.0, seed=4, max_new_tokens=10)
    assert [output.text for output in again] != [output.text for output in outputs]


@pytest.mark.parametrize("seed", [0, 1, 10**14, 2**63 - 1])
def test_sampling_is_that_of_generate_with_the_same_seed(pair, seed):
    ids = pair.text.chat([{"role": "user", "content": "Shuffle the list: red, blue, green"}])
    options = {"temperature": 1.3, "top_k": 7, "top_p": 0.95}
    model, expected = pair.target.model, []
    for row in range(2):
        torch.manual_seed(row_seed(seed, row))
        out = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=True, **options)
        expected.append(out[0, len(ids) :].tolist())
    outputs = pair.generate([ids, ids], max_new_tokens=30, seed=seed, **options)
    assert [emitted(output) for output in outputs] == expected
    assert outputs[0].rule == "match"


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_a_seed_has_63_bits(pair, seed):
    with pytest.raises(DllmError, match=f"^seed={seed}: expected a whole number of at least 0"):
        pair.generate(PROMPTS[0], seed=seed)


def test_an_unknown_option_of_a_drafter_is_named():
    with pytest.raises(DllmError, match=r"'widht' of a drafter; known: markov, width, temperature"):
        dllm.verify.load_drafter("tiny", None, widht=3)


def test_row_ids_are_as_many_as_the_prompts(pair):
    with pytest.raises(DllmError, match="2 row_ids for 3 prompts"):
        pair.generate(PROMPTS, row_ids=[0, 1])


def test_each_of_several_end_tokens_ends_a_text(tmp_path):
    """Qwen and Llama instruct models list two in their generation config."""
    own = dllm.verify.load("tiny-ar", dtype="float64")
    text = own.generate(PROMPTS[0])
    folder, ends = tmp_path / "two-ends", sorted(own.eos)
    second = text.token_ids[4]
    own.target.model.generation_config.eos_token_id = [*ends, second]
    own.target.model.save_pretrained(folder)
    own.text.tokenizer.save_pretrained(folder)
    output = dllm.verify.load(folder, dtype="float64").generate(PROMPTS[0])
    assert output.finish_reason == text.finish_reason == "eos"
    assert output.token_ids == text.token_ids[: text.token_ids.index(second)]


def test_a_character_of_several_tokens_stands_with_the_last(pair):
    ids = pair.text.encode("世界 x")
    assert len(ids) > 4
    pieces = pair.pieces(ids)
    assert [piece for piece in pieces if piece] == ["世", "界", " x"]
    assert "".join(pieces) == pair.text.decode(ids)
    assert pair.pieces(ids[:-2])[-1] == "\ufffd"


def test_a_stop_string_cuts_the_text(pair, plain):
    whole = pair.generate(PROMPTS[2]).text
    stop = whole[5:9]
    output = pair.generate(PROMPTS[2], stop=stop)
    assert output.finish_reason == "stop"
    assert output.text == whole[: whole.index(stop)]
    assert output.text.startswith(pair.text.decode(output.token_ids))


def test_a_length_cuts_it(pair, plain):
    output = pair.generate(PROMPTS[1], max_new_tokens=5)
    assert output.finish_reason == "length"
    assert output.token_ids == plain[PROMPTS[1]][:5]


def test_an_interrupt_keeps_what_is_there(pair, plain):
    def stop(each):
        raise KeyboardInterrupt

    output = pair.generate(PROMPTS[1], on_round=stop)
    assert output.finish_reason == "interrupted"
    assert 0 < len(output.token_ids) < len(plain[PROMPTS[1]])
    assert output.token_ids == plain[PROMPTS[1]][: len(output.token_ids)]


def test_without_a_drafter_and_without_sources(pair, plain):
    free = SpecEngine(pair.target, pair.text, None)
    output = free.generate(PROMPTS[0], sources=())
    assert emitted(output) == plain[PROMPTS[0]]
    assert output.target_passes == output.emitted
    assert output.drafter_passes == 0


def test_a_drafter_with_other_tokens_helps(plain, tmp_path):
    """The dLLM's vocabulary in another order: drafts are translated, the text stays."""
    from tests.verify.other_vocab import permuted

    pair = dllm.verify.load("tiny-ar", permuted(tmp_path), dtype="float64")
    output = pair.generate(PROMPTS[1], control="fixed:depth=16,nodes=16", sources=())
    assert emitted(output) == plain[PROMPTS[1]]
    assert output.accepted_per_round > 2


def test_the_rest_of_a_draft_is_used_again():
    """With reuse the drafter runs in fewer rounds, and the text is the same."""
    model = tiny_target("llama")
    ids = [9, 4, 17]
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    drafter = knowing(out.tolist(), VOCAB, spoil=3)
    engine = SpecEngine(dllm.verify.HFTarget(model), None, drafter)
    options = {"max_new_tokens": 24, "sources": (), "search": "argmax"}
    runs = [
        engine.generate(ids, control="fixed:depth=9,nodes=9", reuse=reuse, **options)
        for reuse in (0, 3)
    ]
    assert [run.token_ids for run in runs] == [out[0, 3:].tolist()] * 2
    assert runs[1].drafter_passes < runs[0].drafter_passes


def test_lossy_rules_are_named():
    engine = SpecEngine(dllm.verify.HFTarget(tiny_target("llama")), None, Scripted(lambda *_: []))
    with pytest.raises(DllmError, match=r"lossless=False \(--lossy\)"):
        engine.generate([9, 4], accept="typical", temperature=1.0)
    output = engine.generate(
        [9, 4], accept="typical", temperature=1.0, lossless=False, max_new_tokens=5
    )
    assert (output.rule, output.lossless) == ("typical", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"nfe": 3}, "unknown option 'nfe'; known: search, control"),
        ({"search": "best"}, "'best': expected one of argmax"),
        ({"accept": "block"}, "accept='block' does not fit.*for the searches sample; .*, match;"),
        ({"accept": "ratio"}, "'ratio'.*searches sample, rsd, kseq, greedy-plus-one;.*relaxed$"),
        ({"accept": "greedy", "temperature": 1.0}, "temperature 0, not 1.0: expected one of match"),
        ({"accept": "no"}, "acceptance rule 'no': expected one of block, greedy, kseq, match"),
        ({"max_new_tokens": 511}, "prompt 0 has 2 tokens, and 511 new ones make 513.*to 512$"),
        ({"control": "cost:depth=0"}, "depth=0"),
        ({"sources": ["web"]}, "'web'"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"stop": ["x"]}, "no tokenizer"),
        ({"search": 3}, "search=3"),
    ],
)
def test_bad_options_are_one_error(options, message):
    engine = SpecEngine(dllm.verify.HFTarget(tiny_target("llama")))
    with pytest.raises(DllmError, match=message):
        engine.generate([9, 4], **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty prompt"), ([9, 999], "token id 999"), ("text", "no tokenizer")],
)
def test_bad_prompts_are_one_error(prompt, message):
    engine = SpecEngine(dllm.verify.HFTarget(tiny_target("llama")))
    with pytest.raises(DllmError, match=message):
        engine.generate([prompt])


def test_names_that_do_not_load():
    with pytest.raises(LoadError, match="no model 'tiny-br'"):
        dllm.verify.load("tiny-br", "tiny")
    with pytest.raises(DllmError, match="width"):
        dllm.verify.load("tiny-ar", None, width=3)


def test_a_configuration_is_checked_without_a_model():
    config = SpecConfig(search="cps:beam=5", sources="ngram")
    assert config.sources == ("ngram",)
    assert config.components().search.beam == 5
    with pytest.raises(DllmError, match="lossles"):
        config.replace(lossles=True)


def test_components_are_made_once_whatever_the_seed_and_the_length():
    """What they have learned of a pair stays."""
    engine = SpecEngine(dllm.verify.HFTarget(tiny_target("llama")))
    for seed in range(3):
        engine.generate([9, 4, 9, 4, 9], max_new_tokens=12 + seed, seed=seed)
    config = SpecConfig()
    made = engine.components.of(config, sampled=False)
    assert made.control.learned.seen > 12
    others = config.replace(seed=9, max_new_tokens=3, stop="x", min_p=0.1)
    assert made is engine.components.of(others, sampled=False)
    warm = engine.components.of(config.replace(temperature=0.7), sampled=True)
    assert warm is engine.components.of(config.replace(temperature=1.2, top_k=5), sampled=True)
    assert warm.rule != made.rule
    for changes in ({"search": "coupled"}, {"control": "adl"}, {"sources": ()}, {"reuse": 2}):
        assert engine.components.of(config.replace(**changes), sampled=False) is not made
