"""Docstrings: their examples run, and the names in them exist."""

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_layers import PACKAGES, ROOT, module, sources


def docstrings(tree: ast.Module) -> list[ast.Constant]:
    """Return the docstrings of a file, those below attributes included."""
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def words() -> set[str]:
    """Return every word that the code of the packages contains, other than in docstrings and comments."""
    found = set()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text in docstrings(tree):
            text.value = ""
        found |= set(re.findall(r"\w+", ast.unparse(tree))) | set(path.relative_to(ROOT).with_suffix("").parts)
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    names = words()
    for package in PACKAGES:
        names |= {path.name for path in (ROOT / package).rglob("*") if path.is_dir()}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_docstrings_exist(path: Path, known: set[str]):
    """A name in backticks that does not exist is left over from before a change."""
    for text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
        for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", str(text.value)):
            ours = not name.startswith(("torch.", "ray.", "numpy."))
            unknown = [part for part in name.split(".") if ours and part and part not in known]
            assert not unknown, f"line {text.lineno}: `{name}`"


@pytest.mark.parametrize(
    "path", [p for p in sources() if ">>>" in p.read_text(encoding="utf-8")], ids=lambda p: p.stem
)
def test_examples_in_docstrings_run(path: Path):
    outcome = doctest.testmod(import_module(module(path)))
    assert outcome.attempted > 0
    assert outcome.failed == 0
