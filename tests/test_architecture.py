"""Rules of the house that a machine can check. Imports point one way (docs/concepts.md draws them)."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUNDATION = {
    "service.errors",
    "service.funnel",
    "service.limits",
    "service.loop",
    "service.records",
    "service.rules",
    "service.settings",
    "service.version",
}
PURE_RECORDS = {
    "service.errors",
    "service.funnel",
    "service.layout",
    "service.limits",
    "service.loop",
    "service.records",
    "service.rules",
}

# Room (or file, where one differs from its room) → what of ours it may import. The longest match counts.
MAY_IMPORT = {
    "service/__init__.py": set(),
    "service/__main__.py": {"service.cli"},
    "service/cli.py": {"service"},
    "service/backup.py": {"service"},
    "service/transfer.py": {"service"},
    "service/evaluation.py": {"service"},
    "service/experiment.py": {"service"},
    "service/explain.py": {"service.over_http"},
    "service/doctor.py": {"service"},
    "service/over_http.py": {"service.errors"},
    "service/errors.py": set(),
    "service/layout.py": set(),
    "service/rules.py": set(),
    "service/funnel.py": {"service.rules"},
    "service/limits.py": set(),
    "service/loop.py": {"service.funnel", "service.limits", "service.rules"},
    "service/records.py": {"service.loop"},
    "service/settings.py": set(),
    "service/version.py": set(),
    "service/logs.py": {"service.settings"},
    # pure: no Redis, no clock, no HTTP
    "service/represent": {"service.represent", "service.errors", "service.layout"},
    "service/policies": {"service.policies", "service.layout"},
    "service/retrieve": PURE_RECORDS | {"service.retrieve", "service.represent", "service.policies"},
    "service/decide": PURE_RECORDS | {"service.decide", "service.retrieve", "service.represent", "service.policies"},
    "service/learn/change": {"service.learn.change", "service.policies"},
    "service/learn/rows.py": PURE_RECORDS | {"service.policies", "service.represent"},
    "service/learn/challenger.py": PURE_RECORDS | {"service.learn.change", "service.learn.rows", "service.policies"},
    "service/learn/trainer.py": PURE_RECORDS
    | {
        "service.learn.change",
        "service.learn.rows",
        "service.learn.challenger",
        "service.policies",
        "service.represent",
    },
    "service/evaluate": PURE_RECORDS
    | {"service.evaluate", "service.decide", "service.represent", "service.policies", "service.learn.trainer"},
    "service/report": {"service.report", "service.errors"},
    "service/exchange": PURE_RECORDS | {"service.exchange"},
    # what knows Redis, and who works with it
    "service/store": PURE_RECORDS | {"service.store"},
    "service/serve": FOUNDATION
    | {
        "service.serve",
        "service.decide",
        "service.represent",
        "service.retrieve",
        "service.policies",
        "service.store",
    },
    "service/learn": FOUNDATION | {"service.learn", "service.policies", "service.store"},
    "service/learn/experiments.py": FOUNDATION
    | {"service.evaluate", "service.store", "service.learn.bell", "service.learn.tail"},
    "service/learn/towers.py": PURE_RECORDS | {"service.retrieve"},
    "service/learn/embedder.py": FOUNDATION
    | {"service.retrieve", "service.store", "service.learn.bell", "service.learn.child", "service.learn.towers"},
    "service/learn/indexer.py": FOUNDATION
    | {"service.retrieve", "service.store", "service.learn.log_fold", "service.learn.tail"},
    "service/learn/graph_keeper.py": FOUNDATION
    | {"service.represent", "service.store", "service.learn.log_fold", "service.learn.tail"},
    "service/learn/fitter.py": FOUNDATION | {"service.represent", "service.store"},
    "service/learn/profiler.py": FOUNDATION
    | {"service.represent", "service.store", "service.learn.fitter", "service.learn.log_fold", "service.learn.tail"},
    "service/learn/historian.py": FOUNDATION
    | {"service.evaluate.history", "service.store", "service.learn.log_fold", "service.learn.tail"},
    "service/learn/releaser.py": FOUNDATION
    | {"service.evaluate", "service.learn.bell", "service.learn.tail", "service.store"},
    "service/learn/shadows.py": FOUNDATION
    | {
        "service.decide",
        "service.represent",
        "service.evaluate",
        "service.store",
        "service.learn.log_fold",
        "service.learn.tail",
    },
    "service/learn/tail.py": FOUNDATION | {"service.store"},
    "service/admin": FOUNDATION
    | {
        "service.admin",
        "service.serve",
        "service.decide",
        "service.represent",
        "service.policies",
        "service.evaluate",
        "service.exchange",
        "service.learn.trainer",
        "service.store",
    },
    "service/api": FOUNDATION
    | {
        "service.api",
        "service.admin",
        "service.serve",
        "service.decide.explanation",
        "service.represent",
        "service.policies",
        "service.store",
    },
    "service/run": FOUNDATION | {"service.run", "service.store", "service.logs"},
    "simulator": {"simulator"},
}
PURE = (
    "service/represent",
    "service/policies",
    "service/decide",
    "service/retrieve",
    "service/learn/change",
    "service/learn/trainer.py",
    "service/learn/rows.py",
    "service/learn/towers.py",
    "service/learn/challenger.py",
    "service/evaluate",
    "service/errors.py",
    "service/funnel.py",
    "service/layout.py",
    "service/limits.py",
    "service/loop.py",
    "service/records.py",
    "service/rules.py",
)
WEB = {"httpx", "fastapi", "starlette", "uvicorn"}
IMPURE = WEB | {"redis", "asyncio", "time", "datetime", "random", "secrets", "uuid"}
FILES = sorted(
    file.relative_to(ROOT).as_posix() for room in ("service", "simulator") for file in (ROOT / room).rglob("*.py")
)


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def imports_of(tree: ast.Module) -> set[str]:
    """Every module that a file names in an import, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed_in(file: str) -> set[str] | None:
    """What a file may import of ours: the rule of the longest path that it lies under."""
    rules = [place for place in MAY_IMPORT if file == place or file.startswith(f"{place}/")]
    return MAY_IMPORT[max(rules, key=len)] if rules else None


def broken(tree: ast.Module, allowed: set[str]) -> set[str]:
    """Imports of ours that a file may not make."""
    ours = {name for name in imports_of(tree) if name.split(".")[0] in ("service", "simulator", "tests")}
    return {name for name in ours if not any(name == a or name.startswith(f"{a}.") for a in allowed)}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file: str) -> None:
    allowed = allowed_in(file)
    assert allowed is not None, "no rule covers this file"
    assert broken(tree_of(file), allowed) == set()


def test_the_check_can_fail() -> None:
    wrong = ast.parse("def f():\n    from service.api import app\n")
    assert broken(wrong, MAY_IMPORT["service/policies"]) == {"service.api.app"}
    assert allowed_in("service/nowhere/new.py") is None
    assert allowed_in("service/learn/trainer.py") != allowed_in("service/learn/runner.py")


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(PURE)])
def test_the_middle_is_pure(file: str) -> None:
    """No Redis, no clock, no HTTP, no randomness that was not given."""
    roots = {name.split(".")[0] for name in imports_of(tree_of(file))}
    assert roots & IMPURE == set()


def test_only_the_store_knows_redis() -> None:
    """Elsewhere its client is a type to pass on; the embedded server has a client of its own to start it with."""
    for file in FILES:
        if file.startswith("service") and not file.startswith(("service/store/", "service/run/embedded.py")):
            used = {name for name in imports_of(tree_of(file)) if name.split(".")[0] == "redis"}
            assert used <= {"redis.asyncio.Redis"}, file


def test_torch_is_imported_inside_functions_only() -> None:
    for file in FILES:
        if file.startswith("service"):
            names = imports_of(ast.Module([node for node in tree_of(file).body if _is_import(node)], []))
            assert not {name for name in names if name.split(".")[0] == "torch"}, file


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def test_no_kind_of_policy_is_named_outside_its_file() -> None:
    """A policy is one file: nowhere else does the code of service or simulator know what kinds there are."""
    from service.policies import KINDS

    known = {
        "service/admin/loops.py": {"adaptive"},  # what a new deployment begins with
        "service/learn/change/drift.py": {"adaptive"},  # the reference for policies that expect nothing
        "service/api/schemas.py": None,  # examples in /docs
        "simulator/cli.py": None,  # examples and defaults of its commands
        "simulator/demo.py": None,
    }
    for file in FILES:
        if file.startswith("service/policies/") or known.get(file, set()) is None:
            continue
        texts = {
            node.value
            for node in ast.walk(tree_of(file))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # `random` is a word as well: what serves before a first snapshot, the line that a report compares with.
        assert (texts & KINDS.keys()) - {"random"} - (known.get(file) or set()) == set(), file
