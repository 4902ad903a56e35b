"""No module imports itself by way of others, be it inside a function or under TYPE_CHECKING."""

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.test_import_rules import imports


def circle(graph):
    """The modules of one import circle, in order; [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others(modules):
    known = set(modules)
    graph = {
        name: {target for _, target in imports(name, file.read_text(), known)} & known - {name}
        for name, file in modules.items()
    }
    assert circle(graph) == []


@pytest.mark.parametrize(
    "source",
    ["import b", "from b import x", "def late():\n    import b", "if TYPE_CHECKING: import b"],
)
def test_a_circle_is_found(source):
    known = {"a", "b", "c"}
    sources = {"a": source, "b": "import c", "c": "import a"}
    graph = {name: {t for _, t in imports(name, text, known)} for name, text in sources.items()}
    assert set(circle(graph)) == known
    assert circle({**graph, "c": set()}) == []
