"""Samples as token ids, and answers as items: what a checkpoint is asked, and what is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dllm
from dllm.config import ConfigError
from dllm.eval.models import Checkpoint, DecodedAnswer, OracleModel, places
from dllm.eval.records import EvalSetting
from dllm.eval.run import Work, answer, configure
from dllm.eval.tasks import draw, task_of
from dllm.output import Output, Timings


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint(dllm.load("tiny"), "tiny")


def asked(model, spec, n=4, count=5, seed=0):
    task = task_of(spec)
    samples = {i: draw(task, n, seed, i) for i in range(count)}
    return task, model.ask(task, n, seed, samples)


def test_infill_leaves_one_hole_an_item(tiny):
    _, questions = asked(tiny, "shuffle:wording=short,surface=infill,n=4")
    for given_, sample in zip(questions.prefilled, questions.samples, strict=True):
        stands = {offset: ids[0] for offset, ids in given_}
        assert questions.budget == 8  # 4 items, 3 commas, the end
        assert sorted(stands) == [1, 3, 5, 7]
        assert stands[7] == tiny.engine.model.spec.eos_id
        comma = tiny.text.answer(sample.messages, sample.answer)[1]
        assert {stands[k] for k in (1, 3, 5)} == {comma}


def test_only_the_items_are_decoded(tiny):
    task, questions = asked(tiny, "copy:wording=short,surface=infill,n=4")
    setting = EvalSetting("quota", "", {"sampler": "quota:count=1"})
    for row in answer(
        tiny, task, questions, Work(0, 4, 0, 0, 5), 0, configure(task, questions, setting, 0)
    ):
        assert row.score
        assert row.nfe == row.tokens == row.filled == 4
        assert row.places == [0, 2, 4, 6]
        assert [step > 0 for step in row.steps] == [True, False] * 3 + [True]
        assert sorted(step for step in row.steps if step) == [1, 2, 3, 4]


def test_infill_wants_items_of_one_token(tiny):
    """In JSON a word follows a quote, and this tokenizer has words only behind spaces."""
    with pytest.raises(ConfigError, match=r"one token each, found .*try vocabulary=letters"):
        asked(tiny, "shuffle:surface=infill,n=4")
    _, questions = asked(tiny, "shuffle:surface=infill,n=4,vocabulary=letters")
    assert {questions.budget - len(prefilled) for prefilled in questions.prefilled} == {4}


def test_a_free_canvas_holds_the_answers_of_all_samples(tiny):
    """Its size is a function of task and size, not of the samples asked."""
    for spec in ("insert_random:wording=short", "sort:wording=short"):
        budgets = {asked(tiny, spec, n=5, count=c)[1].budget for c in (1, 7)}
        assert len(budgets) == 1
        _, questions = asked(tiny, spec, n=5, count=50)
        for sample in questions.samples:
            assert len(tiny.text.answer(sample.messages, sample.answer)) < questions.budget
        assert questions.budget % 16 == 0
    # 8 items, 7 commas and the end are 16 tokens, a quarter more is 20
    assert asked(tiny, "copy:wording=short,n=8", n=8)[1].budget == 32


def test_shots_go_before_the_question(tiny):
    _, questions = asked(tiny, "copy:n=3,shots=1", n=3, count=1)
    [sample] = questions.samples
    text = tiny.text.decode(questions.prompts[0], skip_special_tokens=False)
    (question, reply), asked_ = sample.shots[0], sample.prompt
    assert text.index(question.split()[0]) <= text.index(reply[-9:-2]) < text.rindex(asked_[-20:-2])


def test_without_a_template_the_prompt_is_text(tiny):
    plain = Checkpoint(tiny.engine, "tiny", chat=False)
    _, questions = asked(plain, "copy:wording=short,n=3", 3, count=1)
    [sample] = questions.samples
    assert questions.prompts == [tiny.text.encode(sample.prompt)]
    _, questions = asked(plain, "copy:n=3,shots=1", 3, count=1)
    [sample] = questions.samples
    ((question, reply),) = sample.shots
    text = f"{question}\n{reply}\n\n{sample.prompt}\n"
    assert questions.prompts == [tiny.text.encode(text)]
    _, questions = asked(tiny, "copy:wording=short,n=3", 3, count=1)
    assert questions.prompts == [tiny.text.chat(questions.samples[0].messages)]


def test_rows_of_a_cell_have_numbers_of_their_own(tiny):
    one, two = (asked(tiny, spec)[1].row_ids for spec in ("copy:n=4", "shuffle:n=4"))
    assert len({*one, *two}) == 10
    assert asked(tiny, "copy:n=4", count=2)[1].row_ids == one[:2]


def test_items_are_looked_for_in_the_text_of_the_tokens(tiny):
    """A text that a stop string has cut inside a token is not that of its tokens."""
    task = task_of("copy:wording=short,n=3")
    sample = draw(task, 3, 0, 0)
    ids = tiny.text.answer(sample.messages, sample.answer)
    text = tiny.text.decode(ids)
    for cut, found in ((text, [0, 2, 4]), (text[:-1], None)):
        output = Output(cut, ids, "stop", 1, 1, 5, 5, Timings(0, 0))
        assert tiny.read(task, sample, output) == DecodedAnswer(cut, found)


def test_an_oracle_answers_in_the_words_of_the_sample():
    model = OracleModel()
    task, questions = asked(model, "replace_random:n=4")
    setting = EvalSetting("quota", "", {"sampler": "quota:count=1"})
    config = configure(task, questions, setting, 0)
    rows = answer(model, task, questions, Work(0, 4, 0, 0, 5), 0, config)
    assert all(row.strict for row in rows)
    assert len({row.text for row in rows}) == 5


def test_an_oracle_says_what_it_does_not_know():
    with pytest.raises(ConfigError, match="no exact distribution is known"):
        asked(OracleModel(), "words_to_sentence", n=3)
    with pytest.raises(ConfigError, match="n=12: expected at most 8 items"):
        asked(OracleModel(), "shuffle:n=12", n=12)


def test_oracle_prompts_differ_by_seed_and_sample():
    prompts = [
        tuple(p) for s in (0, 1) for p in asked(OracleModel(), "copy:n=2", 2, 9, s)[1].prompts
    ]
    assert len(set(prompts)) == 18


@pytest.mark.parametrize(
    ("pieces", "spans", "expected"),
    [
        (["pear", ",", " fig"], [(0, 4), (6, 9)], [0, 2]),
        (["p", "ear", ",", " fig"], [(0, 4), (6, 9)], None),  # two tokens
        (["pear,", " fig"], [(0, 4), (6, 9)], None),  # a token with more in it
        (["fig", " fig"], [(0, 3), (4, 7)], [0, 1]),
        ([" fig "], [(1, 4)], [0]),
        ([], [(0, 0)], None),
    ],
)
def test_places(pieces, spans, expected):
    assert places(pieces, spans, "".join(pieces)) == expected


@given(st.lists(st.text("ab ", min_size=1, max_size=3), max_size=6))
def test_a_place_is_a_piece_that_reads_as_its_span(pieces):
    text = "".join(pieces)
    words = [(m, m + 1) for m, c in enumerate(text) if c != " "]
    found = places(pieces, words, text)
    if found is not None:
        assert [pieces[k].strip() for k in found] == [text[s:e] for s, e in words]
    else:
        assert any(len(piece.strip()) > 1 for piece in pieces)
