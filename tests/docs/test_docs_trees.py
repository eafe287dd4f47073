"""The tree in each package's README names every module, with a sentence."""

from pathlib import Path

import pytest

PACKAGES = sorted((Path(__file__).parents[2] / "packages").glob("*/README.md"))


@pytest.mark.parametrize("readme", PACKAGES, ids=lambda path: path.parent.name)
def test_every_module_has_its_sentence(readme):
    modules = {path.name for path in readme.parent.glob("src/*/*.py")} - {"__init__.py", "__main__.py"}
    said = {words[0] for line in readme.read_text().splitlines() if len(words := line.split()) > 2}
    assert modules - said == set()
    assert {name for name in said if name.startswith("_") and name.endswith(".py")} - modules == set()
