import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks.reading import list_spans

TEXT = st.text(alphabet="ab,.:[]'\"`-*1) \n\t", max_size=40)


def read(reply):
    return [reply[start:end] for start, end in list_spans(reply)]


@given(TEXT)
def test_spans_are_in_order_and_bare(reply):
    spans = list_spans(reply)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert not edges or 0 <= edges[0] <= edges[-1] <= len(reply)
    for word in read(reply):
        assert word == word.strip(" \n\t'\"`").rstrip(".]")
        assert "," not in word


@given(st.lists(st.text(alphabet="abc d", min_size=1).filter(lambda w: w == w.strip()), min_size=1))
def test_what_is_written_is_read(words):
    assert read(str(words)) == read("So: " + ", ".join(words)) == words
    assert read("\n".join(f"- {word}" for word in words)) == words


@pytest.mark.parametrize(
    ("reply", "items"),
    [
        ("", []),
        ("\n \n", []),
        ("...", []),
        ("[", []),
        ("[ \n]", []),
        ("List:", []),
        ("a, [b, c], [d", ["d"]),
        ("[a, b] and [c, d] so, e", ["c", "d"]),
        ("[1. a, 2. b]", ["1. a", "2. b"]),
        ("a, b\nc, d", ["c", "d"]),
        ("x, y: z: a, b", ["a", "b"]),
        ("- a\nb", ["b"]),
        ("b\n- a", ["a"]),
        ("x: y\n- a\n\n2) c: d", ["a", "c: d"]),
        ("-a, b", ["-a", "b"]),
        ("1. a, b", ["a", "b"]),
        ("[a, , b]", ["a", "", "b"]),
        ("[a, '', b,]", ["a", "", "b"]),
        ("['a b', c.]", ["a b", "c"]),
    ],
)
def test_reading(reply, items):
    assert read(reply) == items
