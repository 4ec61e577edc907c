"""The API page names everything that is public, and its table by task leads to what is there."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import companion

BOOK = Path(__file__).parents[1] / "book"
PAGE = (BOOK / "api.md").read_text(encoding="utf8")
PACKAGE = Path(companion.__file__).parent
MODULES = sorted(m.name for m in pkgutil.iter_modules([str(PACKAGE)]) if not m.name.startswith("_"))


def public(name):
    """The public names of a module: its __all__, or what its file defines at the top without an underscore."""
    module = importlib.import_module(f"companion.{name}")
    if hasattr(module, "__all__"):
        return set(module.__all__)
    found = set()
    for part in ast.parse(Path(module.__file__).read_text(encoding="utf8")).body:
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found.add(part.name)
        elif isinstance(part, ast.Assign):
            found |= {target.id for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
    return {each for each in found if not each.startswith("_")}


def section(name):
    """The part of the page about a module."""
    label = f"(api-{name.replace('_', '-')})="
    assert PAGE.count(label) == 1, f"book/api.md has no section {label}"
    return PAGE.split(label)[1].split("\n(api-")[0]


def test_every_module_has_a_section_and_a_line_in_the_list():
    assert set(companion.__all__) <= set(MODULES)
    listed = re.findall(r"^   companion\.(\w+)$", PAGE, re.M)
    assert sorted(listed) == MODULES
    assert sorted(re.findall(r"^\.\. automodule:: companion\.(\w+)$", PAGE, re.M)) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_its_section(name):
    """In the table that autosummary makes, or, where a constant comes from another file, described on the page."""
    text = section(name)
    table = text.split(":nosignatures:")[1].split("..")[0]
    listed = re.findall(r"^   (\w+)$", table, re.M)
    described = re.findall(rf"^\.\. py:data:: companion\.{name}\.(\w+)$", text, re.M)
    assert len(listed) == len(set(listed)) and not set(listed) & set(described)
    assert {*listed, *described} == public(name)


def test_the_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\{(?:func|class|meth|data)\}`[^`<]*<(companion[\w.]*)>`", PAGE):
        _, module, *rest = target.split(".")
        found = importlib.import_module(f"companion.{module}")
        for part in rest:
            found = getattr(found, part)
    for page in re.findall(r"\{doc\}`([\w-]+)`", PAGE):
        assert list(BOOK.glob(f"{page}.*")), page


@pytest.mark.parametrize("name", MODULES)
def test_no_first_line_is_cut_short_in_the_table(name):
    """The tables end at the first full stop, so "eq. 4" there would end at "eq."."""
    module = importlib.import_module(f"companion.{name}")
    for each in public(name):
        line = (getattr(module, each).__doc__ or "").split("\n")[0]
        assert not re.search(r"\b(eq|eqs|alg|sec|fig|ch|no|p|pp)\. ", line), (each, line)
