"""What a program and its test hand each other."""

import math
from collections import Counter, deque, namedtuple
from contextlib import suppress
from decimal import Decimal
from http import HTTPStatus

from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.eval.sandbox.execution import Execution, execute
from dllm.eval.sandbox.plain import Thing, pack, unpack
from tests.eval.sandbox.programs import RIGHT, TEST

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.fractions()
    | st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.binary())
    ),
    max_leaves=20,
)


def typed(value):
    """Tells 1, 1.0 and True apart, and -0.0 from 0.0."""
    inner = [typed(each) for each in value] if isinstance(value, (list, tuple)) else repr(value)
    if isinstance(value, dict):
        inner = {key: typed(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        inner = value
    return type(value), inner


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_plain_values_come_over_as_they_are(value):
    (back,) = unpack(memoryview(pack(value)))
    assert typed(back) == typed(value)


def test_other_values_become_plain_ones_or_nothing_at_all():
    class Odd:
        def __eq__(self, other):
            return True

    point = namedtuple("Point", "x y")(1, 2)
    values = [point, Counter("aab"), bytearray(b"x"), Decimal("2.5"), HTTPStatus.OK, math.nan]
    odd = [Odd(), print, Odd, Decimal("nan"), Decimal("inf")]
    ((*back, nan),) = unpack(memoryview(pack(values)))
    assert back == [(1, 2), {"a": 2, "b": 1}, b"x", 2.5, 200]
    assert [type(each) for each in back[:3]] == [tuple, dict, bytes]
    assert math.isnan(nan)
    assert {type(each) for each in unpack(memoryview(pack(odd)))[0]} == {Thing}
    ((items, keys, found),) = unpack(memoryview(pack([map(abs, [-1]), {2: 3}.keys(), deque([4])])))
    assert [list(items), list(keys), list(found)] == [[1], [2], [4]]


@settings(deadline=None)
@given(st.binary() | st.lists(st.sampled_from([b"l", b"d", b"q", b"S", bytes(8)])).map(b"".join))
def test_what_is_no_value_is_an_exception(data):
    with suppress(Exception):
        unpack(memoryview(data))


def test_a_program_that_hands_over_too_much_is_an_error():
    nested = "def add(a, b):\n    x = []\n    for _ in range(10 ** 5): x = [x]\n    return x"
    assert execute(nested, TEST, "add").error.startswith("RecursionError")
    itself = "def add(a, b):\n    x = []\n    x.append(x)\n    return x"
    assert execute(itself, TEST, "add").error.startswith("RecursionError")
    forged = "import os\nfor fd in range(3, 16):\n    try: os.write(fd, b't' + b'\\xff' * 64)\n"
    forged += "    except OSError: pass"
    done = execute(f"{RIGHT}{forged}", TEST, "add", timeout=0.7)
    assert done.outcome in ("memory", "error", "timeout")


def test_what_a_program_raises_is_what_the_test_can_catch():
    program = "class Odd(KeyError): pass\ndef add(a, b): raise Odd('no such sum')"
    test = "try: add(2, 3)\nexcept KeyError as error: assert str(error) == {!r}"
    assert execute(program, test.format("'no such sum'"), "add") == Execution("ok")
    assert execute(program, "add(2, 3)", "add") == Execution("error", "Odd: 'no such sum'")
    number = "def add(a, b): return b'\\xff'.decode()"
    assert execute(number, "add(2, 3)", "add").error.startswith("UnicodeDecodeError: 'utf-8'")
    assert execute("", "add(2, 3)", "add").error == "NameError: name 'add' is not defined"
    options = "def add(a, *, b): return a + b"
    assert execute(options, "assert add(2, b=3) == 5", "add") == Execution("ok")
