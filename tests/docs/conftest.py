import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A Markdown file: its text, its code blocks, its text without them."""

    path: Path

    @property
    def name(self):
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self):
        return self.path.read_text()

    @property
    def blocks(self):
        """The code blocks as (language, body)."""
        return [(each["language"], each["body"]) for each in FENCE.finditer(self.text)]

    @property
    def prose(self):
        return FENCE.sub("", self.text)

    @property
    def headings(self):
        return re.findall(r"^(#+) ", self.prose, re.MULTILINE)


def pages():
    """Every Markdown file that is part of the project."""
    found = [*ROOT.glob("*.md")]
    for folder in ("docs", "architecture", "examples", "packages", "benchmarks"):
        found += [
            path for path in (ROOT / folder).rglob("*.md") if not set(path.parts) & {".venv", "results", "node_modules"}
        ]
    return [Page(path=path) for path in sorted(found)]


@pytest.fixture(scope="session")
def root():
    return ROOT


def page(name):
    return Page(path=ROOT / name)


@pytest.fixture(scope="session")
def read_page():
    return page


def pytest_generate_tests(metafunc):
    if "each_page" in metafunc.fixturenames:
        found = pages()
        metafunc.parametrize("each_page", found, ids=[each.name for each in found])
