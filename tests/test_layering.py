"""Who may know whom, as the code says it: imports of .py and .pyx files and includes of the C core, against one table."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fanout"

# The doors, from the metal up. A module may import those of its own layer and of the layers that `BELOW` names.
LAYERS = {
    "base": {"errors", "types", "units", "tables"},
    "engine": {"engine", "aio", "sources", "_tee"},
    "session": {"policy", "host", "aggregate", "blame", "placing", "transaction", "session"},
    "catalog": {"catalog"},
    "store": {
        "config",
        "format",
        "ahead",
        "allocator",
        "records",
        "directory",
        "medium",
        "making",
        "pool",
        "opening",
        "growing",
        "agreement",
        "volume",
        "pools",
        "undisturbed",
        "committer",
        "scribe",
        "ledger",
        "joining",
        "read",
        "copying",
        "reconcile",
        "audit",
        "retire",
        "deletion",
        "evidence",
        "rebuild",
        "backup",
        "check",
        "store_reader",
        "store",
    },
    "faces": {"cli", "bench", "demo", "__main__"},
}
BELOW = {
    "base": set[str](),
    "engine": {"base"},
    "session": {"base", "engine"},
    "catalog": {"base"},
    "store": {"base", "engine", "session", "catalog"},
    "faces": {"base", "engine", "session", "catalog", "store"},
}

# Decisions and encodings: no clock, no files, no threads, and of ours nothing that has them.
PURE = {
    "errors",
    "types",
    "units",
    "policy",
    "format",
    "allocator",
    "records",
    "directory",
    "joining",
}
ACTING = {"time", "sqlite3", "os", "io", "socket", "threading", "subprocess", "random", "pathlib"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def unit(path: Path) -> str:
    """Name of a module, or of the package that it is in."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, *, typing_too: bool = False) -> set[str]:
    """Dotted names of all imports, those of typing blocks only on request."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not typing_too:
        drop_typing_blocks(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def drop_typing_blocks(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [item for item in block if not is_typing_block(item)])


def is_typing_block(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("fanout.")}


def layer(name: str) -> str:
    """The layer of a module or package."""
    found = [key for key, names in LAYERS.items() if name in names]
    assert found, f"{name} is new: give it a place in LAYERS"
    return found[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    """Breaks if a layer learns of one above it, at run time; what is imported for typing alone may point up."""
    name = unit(path)
    used = ours(imports(path)) - {name, "__version__"}
    if name == "__init__":
        assert not used, "import fanout must import nothing"
        return
    allowed = {layer(name), *BELOW[layer(name)]}
    for other in used - {"_core"}:
        assert layer(other) in allowed, (
            f"{name} ({layer(name)}) must not import {other} ({layer(other)})"
        )


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if unit(path) in PURE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pure_modules_are_pure(path: Path) -> None:
    """Breaks if a decision starts to depend on a clock, a file or a device."""
    found = imports(path)
    tops = {name.split(".")[0] for name in found}
    assert not tops & (ACTING - ({"os"} if unit(path) == "errors" else set()))  # os.strerror
    assert ours(found) <= PURE | {"host"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_one_door_each(path: Path) -> None:
    """Breaks if SQLite, the native core, or a terminal library gets a second door."""
    found = imports(path, typing_too=True)
    tops = {name.split(".")[0] for name in found}
    if "_core" in ours(found):
        assert unit(path) == "engine"
    if "sqlite3" in tops:
        assert unit(path) == "catalog"
    if tops & {"rich", "click"}:
        assert unit(path) in LAYERS["faces"]


def test_the_core_knows_no_python() -> None:
    """Breaks if the C core stops building without Python."""
    for path in (ROOT / "csrc").rglob("*.[ch]"):
        included = set(re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8")))
        assert not {name for name in included if "Python" in name or "sqlite" in name}, path


def test_the_glue_knows_only_the_core() -> None:
    """Breaks if the extension starts to decide things."""
    text = (PACKAGE / "_core.pyx").read_text(encoding="utf-8")
    pulled = set(
        re.findall(r"^\s*(?:from\s+(\S+)\s+c?import|c?import\s+(\S+))", text, re.MULTILINE)
    )
    names = {first or second for first, second in pulled}
    assert {name for name in names if name.startswith("fanout")} == {"fanout"}
    assert names <= {"fanout", "cython", "collections"} | {
        name for name in names if re.match(r"(cpython|libc)\.", name)
    }
    assert "from fanout cimport _csrc" in text


def test_the_build_tools_are_named_once() -> None:
    """Breaks if an isolated build and `make build` use different tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]
