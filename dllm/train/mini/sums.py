"""Sums, differences and products, alone and in a story of one or two steps."""

from __future__ import annotations

from dllm.train.mini.dialogue import Dialogue, pick, sloppy
from dllm.train.mini.words import WordSource

WORDINGS = ("What is {s}?", "Calculate {s}", "{s} = ?", "{s}", "How much is {s}?", "{s}=",
            "What's {s}", "Compute {s}", "what is {s}", "{s}?", "Solve {s}")  # fmt: skip
SAID = {
    "+": (
        "Add {a} and {b}",
        "What is {a} plus {b}?",
        "{a} plus {b}",
        "What is the sum of {a} and {b}?",
    ),
    "-": ("Subtract {b} from {a}", "What is {a} minus {b}?", "{a} minus {b}"),
    "*": ("Multiply {a} by {b}", "What is {a} times {b}?", "{a} times {b}"),
}
SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "*", "x", "×")}
MORE = ("buys {n} more", "finds {n} more", "gets {n} more", "wins {n}", "picks up {n} more")
LESS = ("gives away {n}", "loses {n}", "sells {n}", "eats {n}", "throws away {n}")
QUESTIONS = ("How many {t} does {name} have now?", "How many {t} are left?",
             "How many {t} does {name} have?")  # fmt: skip


def operands(words: WordSource, most: int) -> tuple[int, str, int, int]:
    """a, sign, b, result: sums and differences of numbers up to `most`, products 2 x 1 digits."""
    rng = words.rng
    sign = rng.choice("++--*")
    if sign == "*":
        a, b = words.number(2, min(most, 99)), rng.randint(2, 9)
        if rng.random() < 0.3:
            a, b = b, a
        return a, sign, b, a * b
    a, b = words.number(1, most), words.number(1, most)
    if sign == "-" and a < b:
        a, b = b, a
    return a, sign, b, a + b if sign == "+" else a - b


def make(words: WordSource, most: int = 999) -> Dialogue:
    """One calculation; the answer repeats it."""
    rng = words.rng
    a, sign, b, result = operands(words, most)
    typed = rng.choice(SIGNS[sign])
    space = rng.choices((" ", ""), weights=(4, 1))[0]
    if rng.random() < 0.25:
        prompt = pick(rng, SAID[sign], a=a, b=b)
    else:
        prompt = pick(rng, WORDINGS, s=f"{a}{space}{typed}{space}{b}")
    return Dialogue("sum", ((sloppy(rng, prompt), f"{a} {sign} {b} = {result}"),))


def make_story(words: WordSource, most: int = 99) -> Dialogue:
    """Somebody has some things and gets or loses some, once or twice."""
    rng = words.rng
    name, thing, value = words.name(), words.word(), words.number(5, most)
    told, lines = [f"{name} has {value} {thing}s."], []
    for _ in range(rng.choice((1, 1, 2))):
        more = rng.random() < 0.5
        n = words.number(1, most) if more else rng.randint(1, max(value - 1, 1))
        told.append(
            f"{rng.choice((name, 'Then ' + name))} {pick(rng, MORE if more else LESS, n=n)}."
        )
        result = value + n if more else value - n
        lines.append(f"{value} {'+' if more else '-'} {n} = {result}")
        value = result
    told.append(pick(rng, QUESTIONS, t=f"{thing}s", name=name))
    return Dialogue("story", ((" ".join(told), "\n".join([*lines, f"Answer: {value}"])),))
