"""Who may import whom (DESIGN §2), read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "manifests": set(),
    "filters": {"manifests"},
    "captions": {"manifests"},
    "tokenize": {"manifests"},
    "train": {"manifests", "tokenize"},
    "generate": {"manifests", "tokenize", "train"},
    "pipelines": {"filters", "captions", "tokenize", "generate", "manifests"},
}
ROOMS = set(MAY_IMPORT)
# A captioner that needs a trained model lives in generate/ and joins by entry point: like any plug-in it knows the
# protocol, and nothing else of that room.
PROTOCOLS = {"generate": {"tokenmill.captions.captioner"}}
ONLY_IN = {"ray": "pipelines", "deepspeed": "train"}
# What the command line imports before it knows the command, or for a command that has to answer at once.
LIGHT = ("tokenmill.cli", "tokenmill.commands", "tokenmill.recipe")
HEAVY = ("torch", "ray", "transformers", "cv2", "deepspeed", "pyarrow", "polars", "numpy")


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield (room, or `spine`; file) of every module of the project."""
    for room in sorted(ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield room, path
    for path in sorted((ROOT / "src" / "tokenmill").rglob("*.py")):
        if path.relative_to(ROOT / "src" / "tokenmill").parts[0] not in ROOMS:
            yield "spine", path


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = list(_modules())


def test_every_room_is_looked_at():
    found = {room for room, _ in MODULES}
    assert found == ROOMS | {"spine"}
    assert len(MODULES) > 60


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_imports_only_the_rooms_it_may(room):
    for where, path in MODULES:
        if where != room:
            continue
        for name in _imports(path):
            parts = name.split(".")
            if any(name == known or name.startswith(f"{known}.") for known in PROTOCOLS.get(room, ())):
                continue
            if parts[0] == "tokenmill" and len(parts) > 1 and parts[1] in ROOMS - {room}:
                assert parts[1] in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"


def test_rooms_are_imported_by_the_name_of_the_package_only():
    """`import manifests` would work from the repository's root and nowhere else; `import tokenize` is Python's own."""
    for _, path in MODULES:
        roots = {name.split(".")[0] for name in _imports(path)}
        assert not roots & (ROOMS - {"tokenize"}), path


@pytest.mark.parametrize(("library", "room"), ONLY_IN.items())
def test_library_is_imported_in_one_room_alone(library, room):
    users = {where for where, path in MODULES for name in _imports(path) if name.split(".")[0] == library}
    assert users == {room}


def test_no_room_is_a_regular_package():
    """A `tokenize/__init__.py` would shadow Python's own module for everything started in the repository's root."""
    assert [str(path) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")] == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_is_reached_through_its_link(room):
    link = ROOT / "src" / "tokenmill" / room
    assert link.is_symlink() and link.resolve() == (ROOT / room).resolve()


def test_tokenize_from_the_root_of_the_repository_is_the_one_of_the_standard_library():
    program = "import inspect, tokenize, torch; print(tokenize.__file__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == Path(sysconfig.get_paths()["stdlib"])


@pytest.mark.parametrize("module", LIGHT)
def test_command_line_imports_nothing_heavy(module):
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
