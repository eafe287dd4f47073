"""What holds for every Markdown file."""

import re
import tomllib
import unicodedata

import pytest

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def anchors(page):
    """The anchors GitHub makes of a page's headings."""
    found = set()
    for heading in HEADING.findall(page.prose):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        kept = "".join(c for c in plain if c in " -_" or unicodedata.category(c)[0] in "LN")
        found.add(kept.replace(" ", "-"))
    return found


def test_every_internal_link_resolves(each_page, read_page, root):
    broken = []
    for match in LINK.finditer(each_page.prose):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (each_page.path.parent / target).resolve() if target else each_page.path
        has_anchor = (
            not path.exists()
            or path.suffix != ".md"
            or not anchor
            or anchor in anchors(read_page(path.relative_to(root)))
        )
        if not (path.exists() and has_anchor):
            broken.append(match["target"])
    assert not broken


def test_every_python_block_compiles(each_page):
    for number, (language, body) in enumerate(each_page.blocks):
        if language == "python":
            compile(body, f"{each_page.name}, block {number}", "exec")


def test_every_toml_block_parses(each_page):
    for language, body in each_page.blocks:
        if language == "toml":
            tomllib.loads(body)


@pytest.mark.parametrize("name", ["README", "docs/tutorials/first-model"])
def test_english_and_korean_have_the_same_structure_and_code(read_page, name):
    english, korean = read_page(f"{name}.md"), read_page(f"{name}.ko.md")
    assert korean.headings == english.headings
    assert korean.blocks == english.blocks
    assert sum("가" <= letter <= "힣" for letter in korean.prose) > 500


def test_every_page_is_on_a_shelf(root):
    listed = set(re.findall(r"[\w/.-]+\.md", (root / "mkdocs.yml").read_text()))
    there = {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    assert there == listed


def test_every_decision_is_listed(root, read_page):
    index = read_page("architecture/README.md").text
    missing = [path.name for path in (root / "architecture").glob("0*.md") if path.name not in index]
    assert missing == []
