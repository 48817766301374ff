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
    parser.addoption(
        "--million", action="store_true", help="of test_index_libraries.py: a million vectors, and no others"
    )
    of_shapes = parser.getgroup("test_shapes_of_data.py, test_real_data.py, test_without_schema.py")
    of_shapes.addoption(
        "--world",
        action="append",
        help="a world, `study`, `neighbours`, `noise`, `levels`, `changes`, `all`; of test_real_data.py a table, of"
        " test_without_schema.py a scenario",
    )
    of_shapes.addoption("--arm", action="append", help="a column of the table, such as `no schema`; may be repeated")
    of_shapes.addoption("--seeds", help="such as 1-10 or 1,4,7")
    of_shapes.addoption("--clients", type=int, default=1, help="of test_shapes_over_http.py: at once, in each loop")
    of_shapes.addoption("--steps", type=int, help="decisions of a run; by default those of the world")
    parser.addoption("--price", type=float, default=0.04, help="of test_funnel_cost.py: of a core hour")
    of_market = parser.getgroup("test_market.py, which takes --arm, --seeds and --steps, too")
    of_market.addoption("--items", type=int, help="of the catalogue")
    of_market.addoption("--processes", type=int, help="at once; by default as many as there are cores")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether to run at the smallest size."""
    found: bool = request.config.getoption("--quick")
    return found
