"""Imports point one way: api → decide → policies, learn → policies, all → store; the simulator knows only HTTP."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUNDATION = {"service.errors", "service.loop", "service.events", "service.settings"}
MAY_IMPORT = {
    "service/policies": {"service.policies"},
    "service/store": FOUNDATION | {"service.store"},
    "service/decide": FOUNDATION | {"service.decide", "service.policies", "service.store"},
    "service/learn": FOUNDATION | {"service.learn", "service.policies", "service.store"},
    "service/api": FOUNDATION | {"service.api", "service.decide", "service.policies", "service.store"},
    "simulator": {"simulator"},
}


def imports_of(file: Path) -> set[str]:
    """Every module that a file names in an import, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def broken(file: Path, allowed: set[str]) -> set[str]:
    """Imports of ours that this file may not make."""
    ours = {name for name in imports_of(file) if name.split(".")[0] in ("service", "simulator", "tests")}
    roots = {name for name in ours if name not in ("service", "simulator")}
    return {name for name in roots if not any(name == a or name.startswith(f"{a}.") for a in allowed)}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(f.relative_to(ROOT)): found for f in files if (found := broken(f, MAY_IMPORT[folder]))} == {}


def test_the_check_can_fail(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from service.api import app\n")
    assert broken(wrong, MAY_IMPORT["service/policies"]) == {"service.api", "service.api.app"}


def test_only_the_store_knows_redis() -> None:
    types_only = {"redis.asyncio", "redis.asyncio.Redis"}
    for file in sorted((ROOT / "service").rglob("*.py")):
        if "store" not in file.parts:
            used = {name for name in imports_of(file) if name.split(".")[0] == "redis"}
            assert used <= types_only, file


def test_torch_is_imported_inside_functions_only() -> None:
    for file in sorted((ROOT / "service").rglob("*.py")):
        top = ast.parse(file.read_text()).body
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
        assert not {name for name in names if name.split(".")[0] == "torch"}, file
