"""The conversations of `mini`: right answers, words that training never sees, one way to spell."""

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.text.tokenizer import ChatTokenizer, load_tokenizer
from dllm.train.mini import facts, lists, sums, talk
from dllm.train.mini.dialogue import Dialogue, sloppy, typo
from dllm.train.mini.recipe import LONGEST, STAGES, VOCAB_SIZE, conversations, draw, encode
from dllm.train.mini.tokenizer import letter_pair_tokenizer
from dllm.train.mini.words import ALWAYS, WordSource, is_held_out
from dllm.train.tokenizer import save_tokenizer

seeds = st.integers(0, 2**32)
TOKENIZER = letter_pair_tokenizer()
STRANGERS = Path(__file__).parents[3] / "benchmarks" / "strangers.jsonl"


@given(st.text(max_size=40))
def test_any_text_can_be_spelled(text):
    assert TOKENIZER.decode(TOKENIZER.encode(f" {text}").ids) == text


@given(st.from_regex("[A-Za-z]{1,12}", fullmatch=True))
def test_a_word_is_spelled_by_pairs_of_letters_wherever_it_stands(word):
    pieces = TOKENIZER.encode(f" {word}").tokens
    assert "".join(pieces) == f"Ġ{word}"
    assert all(len(piece.removeprefix("Ġ")) <= 2 for piece in pieces)
    assert TOKENIZER.encode(f"Sort: fig, {word}, kiwi").tokens.count(pieces[0]) >= 1
    assert TOKENIZER.get_vocab_size() <= VOCAB_SIZE


@given(seeds, st.booleans())
def test_training_and_evaluation_share_no_word_name_or_large_number(seed, held_out):
    words = WordSource(random.Random(seed), held_out)
    for make in (words.word, words.name, words.city):
        assert is_held_out(make()) == held_out
    number = words.number(1, 999)
    assert is_held_out(str(number)) == held_out or (number < ALWAYS and not held_out)


@given(seeds, st.from_regex("[a-z]{4,9}", fullmatch=True))
def test_a_slip_of_the_finger_spares_the_values(seed, word):
    said, kept = f"Insert {word} at position 3", f"fig, {word}"
    assert word in sloppy(random.Random(seed), said, kept).split()
    assert word in typo(random.Random(seed), said, kept).split()


def place(said: str, count: int) -> int:
    """The index that an instruction names."""
    if "last" in said:
        return count - 1
    for i, ordinal in reversed(list(enumerate(lists.ORDINALS))):
        if ordinal in said.split():
            return i
    return int(re.search(r"(?:[Ii]tem|position) (\d+)", said)[1]) - 1


def literally(name: str, said: str, items: list[str]) -> str:
    """What an instruction asks for, read off its words."""
    down = any(word in said for word in ("z to a", "descending", "largest to"))
    numbers = all(item.isdigit() for item in items)
    key = int if numbers else str.lower
    cases = {"upper": str.upper, "capital letters": str.upper, "UPPER": str.upper}
    match name:
        case "copy":
            return ", ".join(items)
        case "reverse":
            return ", ".join(reversed(items))
        case "sort":
            return ", ".join(sorted(items, key=key, reverse=down))
        case "count":
            return str(len(items))
        case "unique":
            return ", ".join(x for i, x in enumerate(items) if x not in items[:i])
        case "nth":
            return items[place(said, len(items))]
        case "array":
            return json.dumps([int(x) if x.isdigit() else x for x in items])
        case "case" if any(word.lower() in said.lower() for word in cases):
            return ", ".join(items).upper()
        case "case" if any(word in said.lower() for word in ("lower", "small")):
            return ", ".join(items).lower()
        case "case":
            return ", ".join(x.title() for x in items)
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name", ["copy", "reverse", "sort", "count", "unique", "nth", "array", "case"]
)
@given(seeds)
def test_answers_are_what_the_words_ask_for(name, seed):
    words = WordSource(random.Random(seed))
    items = lists.draw_items(words, name, range(2, 13))
    asked = lists.OPERATIONS[name](words, items)
    assert asked.answer == literally(name, asked.first, items)


@pytest.mark.parametrize("name", ["replace", "insert", "remove"])
@given(seeds)
def test_changes_are_where_the_words_say(name, seed):
    words = WordSource(random.Random(seed))
    items = lists.draw_items(words, name, range(2, 13))
    asked = lists.OPERATIONS[name](words, items)
    size = {"replace": 0, "insert": 1, "remove": -1}[name]
    assert len(asked.items) == len(items) + size
    assert asked.answer == ", ".join(asked.items)
    if re.search(r"(?:[Ii]tem|position) \d", asked.first):
        at = place(asked.first, len(items))
        behind = at + (name != "remove")
        before = at + (name != "insert")
        assert asked.items[:at] == items[:at]
        assert asked.items[behind:] == items[before:]


@given(seeds)
def test_sums_are_right(seed):
    ((asked, answer),) = sums.make(WordSource(random.Random(seed))).turns
    left, _, right = answer.partition(" = ")
    a, sign, b = left.split()
    assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(right)
    assert {a, b} <= set(re.findall(r"\d+", asked))
    story = sums.make_story(WordSource(random.Random(seed))).turns[0][1]
    *steps, last = story.splitlines()
    assert all(eval(line.replace("=", "==")) for line in steps)  # digits and signs of our own
    assert last == f"Answer: {steps[-1].split()[-1]}"


@given(seeds)
def test_forms_of_facts_say_the_same(seed):
    rng = random.Random(seed)
    words = WordSource(rng)
    sentence = rng.choice([s for s in facts.PEOPLE if len(facts.keys_of(s)) > 1])
    found = facts.records(words, sentence, rng.randint(1, 3))
    values = json.loads(facts.as_json(found))
    values = values if isinstance(values, list) else [values]
    assert [{k: str(v) for k, v in each.items()} for each in values] == found
    assert list(csv.DictReader(io.StringIO(facts.as_csv(found)))) == found
    head, _, *rows = (
        [c.strip() for c in r.split("|")[1:-1]] for r in facts.as_table(found).split("\n")
    )
    assert [dict(zip(head, row, strict=True)) for row in rows] == found


@given(seeds)
def test_questions_extractions_and_templates_are_answered_from_the_text(seed):
    rng = random.Random(seed)
    words = WordSource(rng)
    for make in (facts.make_question, facts.make_extraction):
        ((asked, answer),) = make(words).turns
        assert all(part in asked for part in answer.split(", "))
    ((asked, answer),) = facts.make_template(words).turns
    assert "{" not in answer
    assert answer.split()[0] in asked or "{" in asked


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_a_batch_is_a_function_of_its_number(stage):
    _, menu = STAGES[stage]
    batches = conversations(TOKENIZER, menu, 0)
    one, two, other = batches(5), batches(5), batches(6)
    assert one.ids.tolist() == two.ids.tolist() != other.ids.tolist()
    assert int((one.end).max()) <= LONGEST


def test_conversations_are_laid_out_as_the_chat_template_does(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    text = ChatTokenizer(load_tokenizer(tmp_path), "llada")
    words = WordSource(random.Random(1))
    _, menu = STAGES[-1]
    for _ in range(200):
        dialogue = draw(words, menu)
        *before, (last, answer) = dialogue.turns
        messages = [
            {"role": role, "content": said.strip()}
            for turn in before
            for role, said in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": last.strip()})
        pair = encode(TOKENIZER, dialogue)
        assert text.chat(messages) == list(pair.prompt), dialogue
        assert text.decode(pair.answer) == answer


def test_strangers_prompts_are_two_halves_that_no_generator_made():
    lines = [json.loads(line) for line in STRANGERS.read_text().splitlines()]
    assert len({json.dumps(line["turns"]) for line in lines}) == 200
    assert [line["half"] for line in lines] == ["seen", "unseen"] * 100
    assert {line["answer"] for line in lines if line["kind"] == "refuse"} == {talk.REFUSAL}
    assert {talk.HELLO, talk.ABILITIES} <= {x["answer"] for x in lines if x["kind"] == "talk"}
    assert isinstance(talk.make(WordSource(random.Random(0))), Dialogue)
