"""Options of the benchmarks: `make bench ARGS='--quick'` shows in minutes whether all of them work."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="run at the smallest size, to see whether the benchmarks work; figures and limits need the full size",
    )
    parser.addoption(
        "--policy", action="append", help="of test_arena.py: only this policy, such as linucb:alpha=1; may be repeated"
    )


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether to run at the smallest size."""
    found: bool = request.config.getoption("--quick")
    return found
