"""README and pages: every term of the glossary links there where a page uses it first."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRY = re.compile(r'^- <a id="([\w-]+)"></a>\*\*(.+?)\*\*: (.+)$', re.MULTILINE)
# what is no running text: code, tables, headings, comments, pictures, links, HTML
OTHER = re.compile(
    r"```.*?```|^    .*?$|^\|.*?$|^#.*?$|<!--.*?-->|!\[.*?\]\(.*?\)"
    r"|`(?:[^`\n]|\n(?!\n))*`|<[^>\n]+>|\[[^\]]*\]\([^)]*\)",
    re.DOTALL | re.MULTILINE,
)
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {GLOSSARY})]


def terms() -> dict[str, str]:
    """Anchor of every term of the glossary, by the regular expression of its uses."""
    found = {}
    for anchor, names, _ in ENTRY.findall(GLOSSARY.read_text()):
        for name in names.split(", "):
            found[rf"(?<![\w-]){re.escape(name)}s?(?![\w-])"] = anchor
    return found


def first_use(text: str, pattern: str) -> int | None:
    """Where running text has a term first."""
    prose = OTHER.sub(lambda m: re.sub(r"[^\n]", "\0", m[0]), text)
    found = re.search(pattern, prose, re.IGNORECASE)
    return None if found is None else found.start()


def unlinked(text: str, glossary: str) -> list[str]:
    """Terms that a page uses before it links them."""
    missing = []
    for pattern, anchor in terms().items():
        use, link = first_use(text, pattern), text.find(f"{glossary}#{anchor})")
        if use is not None and not 0 <= link < use:
            missing.append(f"{anchor}: {text[use : use + 40]!r}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_first_use_of_a_term_links_to_the_glossary(page):
    glossary = "docs/glossary.md" if page.parent == ROOT else "glossary.md"
    assert unlinked(page.read_text(), glossary) == []


def test_a_use_without_a_link_is_found():
    assert unlinked("A canvas.", "glossary.md") == ["canvas: 'canvas.'"]
    assert unlinked("A [canvas](glossary.md#canvas), a canvas.", "glossary.md") == []
    assert unlinked("Two canvases; `a lattice`.\n\n    one draft\n", "glossary.md") == []


def test_every_term_is_one_sentence_with_an_anchor_of_its_own():
    text = GLOSSARY.read_text()
    entries = ENTRY.findall(text)
    assert len(entries) == text.count("\n- ") <= 25
    assert len({anchor for anchor, _, _ in entries}) == len(entries)
    for _, _, sentence in entries:
        assert sentence.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", sentence)
