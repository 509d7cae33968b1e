"""Docstrings tell what there is to know: every parameter is explained, what is raised is told, names resolve.

A parameter is explained where its name stands in the prose, before the first example: in ``Args`` or in a sentence.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import textwrap
from importlib import import_module
from typing import Any

import pytest

import prunus
from prunus.core import errors
from tests.test_architecture import public

# What these mean is the same everywhere: the network; what `prunus.trace` or `prunus.tensors` returned of it; the file
# that is read or written; the outputs of a network of the zoo.
EVERYWHERE = ("model", "groups", "path", "classes")

ITEMS: dict[str, Any] = {k: v for k, v in public() if str(getattr(v, "__module__", "prunus")).startswith("prunus")}
for _name, _class in [(k, v) for k, v in ITEMS.items() if inspect.isclass(v) and not issubclass(v, BaseException)]:
    _methods = {k: v.__func__ for k, v in vars(_class).items() if isinstance(v, classmethod | staticmethod)}
    ITEMS |= {f"{_name}.{k}": v for k, v in _methods.items() if not k.startswith("_")}
FUNCTIONS = sorted(name for name, value in ITEMS.items() if inspect.isfunction(value))
CLASSES = sorted(name for name, value in ITEMS.items() if inspect.isclass(value))
RAISED = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}


def said(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def parameters(value: Any) -> list[str]:
    """The names that a caller gives; a function of nothing but keywords, passed on, may say what takes them."""
    found = inspect.signature(value).parameters.values()
    if {p.kind for p in found} == {inspect.Parameter.VAR_KEYWORD}:
        return []
    return [p.name for p in found if p.name not in ("self", "cls") and not p.name.startswith("_")]


def signature(value: Any) -> list[str]:
    """The parameters of a function or class; none of a property, or of an error that takes what all errors do."""
    try:
        return [*inspect.signature(value).parameters]
    except (TypeError, ValueError):
        return []


def known() -> set[str]:
    """Names that a docstring may use alone: of what is public, and of what public classes have."""
    names = {*dir(prunus), *dir(builtins), *(name.rpartition(".")[2] for name in ITEMS)}
    for value in ITEMS.values():
        if inspect.isclass(value):
            names |= {*dir(value), *signature(value), *inspect.get_annotations(value)}
    return names


KNOWN = known()


def test_there_is_something_to_read() -> None:
    assert len(FUNCTIONS) > 200 and len(CLASSES) > 80
    assert len(KNOWN & {"shrink_", "Groups", "keep"}) == 3


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith(".forward")])
def test_every_parameter_is_explained(name: str) -> None:
    prose = said(ITEMS[name]).split(">>>")[0]
    names = [p for p in parameters(ITEMS[name]) if p not in EVERYWHERE]
    assert [p for p in names if not re.search(rf"(?<![\w.]){p}(?!\w)", prose)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_a_class_is_explained(name: str) -> None:
    """In its own docstring, that of its ``__init__``, or of a class that it is made from."""
    kinds = [kind for kind in ITEMS[name].__mro__ if kind.__module__.startswith("prunus")]
    docs = [said(value) for kind in kinds for value in (kind, vars(kind).get("__init__"))]
    prose = "\n".join(doc.split(">>>")[0] for doc in docs)
    names = [p for p in signature(ITEMS[name]) if p not in (*EVERYWHERE, "args", "kwargs")]
    assert [p for p in names if not re.search(rf"(?<![\w.]){p}(?!\w)", prose)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_raised_is_told(name: str) -> None:
    """Of what the function itself raises; that arguments of another kind are an `InputError` goes without saying."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ITEMS[name])))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    raised = {call.func.id for call in calls if isinstance(call.func, ast.Name)} & RAISED
    assert sorted(error for error in raised if not re.search(rf"\b{error}\b", said(ITEMS[name]))) == []


@pytest.mark.parametrize("name", sorted(ITEMS))
def test_names_resolve(name: str) -> None:
    """Those in backticks: dotted ones from prunus on, and words alone; single letters are of formulas."""
    value, prose = ITEMS[name], re.sub(r":math:`[^`]*`", "", said(ITEMS[name]))
    dotted = re.findall(r"`{1,2}(prunus(?:\.\w+)+)(?:\(.*?\))?`{1,2}", prose)
    assert [d for d in dotted if not resolves(d)] == []
    near = {*vars(sys.modules[getattr(value, "__module__", None) or "prunus"])}
    near |= {*signature(value)}
    words = re.findall(r"(?<!`)`([A-Za-z_]\w+)`(?!`)", prose)
    assert [word for word in words if word not in near | KNOWN] == []


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    found: Any = prunus
    for i, part in enumerate(parts[1:], 1):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = import_module(".".join(parts[: i + 1]))
        except ImportError:
            return False
    return True
