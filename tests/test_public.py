"""What a program outside may name: everything that the public functions take and give, and nothing that is not there."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from typing import TYPE_CHECKING

import pytest

import fanout
import fanout.cli

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = [value for name in fanout.__all__ if inspect.ismodule(value := getattr(fanout, name))]
# What is behind the doors: handed from one part of the library to another, and read by nobody outside.
INNER = {"Chunks", "CopyEntry", "CopyReader", "Ledger", "MemberSet", "ReadAhead"}


def offered() -> dict[str, object]:
    """Every public class and function by its name."""
    found = {name: getattr(fanout, name) for name in fanout.__all__}
    for module in MODULES:
        here = module.__name__
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        values = {name: getattr(module, name) for name in names}
        found |= {
            name: value
            for name, value in values.items()
            if getattr(value, "__module__", "").startswith(here)
        }
    return {n: one for n, one in found.items() if inspect.isclass(one) or inspect.isroutine(one)}


def functions(name: str, one: object) -> Iterator[tuple[str, object]]:
    """What of it is called or looked at from outside. A class that others make has no constructor that matters."""
    if not inspect.isclass(one):
        yield name, one
        return
    yield name, one
    made_here = one in (fanout.Engine, fanout.Session)
    for attribute, value in inspect.getmembers_static(one):
        if attribute.startswith("_") and not (made_here and attribute == "__init__"):
            continue
        found = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(found) and found.__module__.startswith("fanout"):
            yield f"{name}.{attribute}", found


def ours(word: str) -> list[object]:
    """The classes of fanout of that name, wherever they stand."""
    modules = [one for name, one in sys.modules.items() if name.startswith("fanout.")]
    found = [getattr(module, word, None) for module in modules]
    return [o for o in found if inspect.isclass(o) and o.__module__.startswith("fanout")]


def meant(word: str, function: object) -> list[object]:
    """What a word of its annotations can be: what it is called where the function stands, else any of that name."""
    here = getattr(sys.modules[str(getattr(function, "__module__", __name__))], word, None)
    return [here] if here in ours(word) else ours(word)


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert set(fanout.__all__) == {*fanout._HOMES, "__version__"}
    assert list(fanout.__all__) == sorted(fanout.__all__)
    for name in fanout.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(fanout, name)), name


@pytest.mark.parametrize("name", sorted(offered()))
def test_what_it_takes_and_gives_has_a_public_name(name: str) -> None:
    """Else nobody can write its type down, and mypy --strict is for nothing."""
    public = offered()
    for where, function in functions(name, public[name]):
        annotations: dict[str, object] = getattr(function, "__annotations__", {})
        for text in map(str, annotations.values()):
            words = set(re.findall(r"(?<![.\w])[A-Z]\w+", text)) - INNER - set(dir(typing))
            # `State` and `Fault` are known by what they are, and by another name; a `Progress` is a callable.
            found = {word: meant(word, function) for word in words - {"Progress"}}
            known = list(public.values())
            unknown = [
                word for word, one in found.items() if one and not any(o in known for o in one)
            ]
            assert not unknown, f"{where}: {text}"
