"""What waits in one turn of the event loop is decided together, each as if it were alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.decide.decision import Request, decide
from service.errors import NoCandidates
from service.represent.misfits import Misfits
from service.serve import turns
from service.serve.turns import Turns
from tests.decide.builders import active_of, request_of

pytestmark = pytest.mark.anyio
ACTIVE = active_of({f"p{at}": {"price": at, "kind": f"k{at % 3}"} for at in range(40)})


def requests(size: int) -> list[Request]:
    """Make requests of different numbers of candidates, and of places."""
    return [
        request_of(
            f"d{at}",
            user_id=f"u{at}",
            context={"hour": at % 24, "city": "x" * (300 * (at % 2))},  # every other one is a misfit
            exclude=[f"p{one}" for one in range(at % 39)],
            k=1 + at % 3,
        )
        for at in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
async def test_each_is_decided_as_if_it_were_alone(size: int) -> None:
    deciding, asked = Turns(), requests(size)
    counted, alone = [Misfits() for _ in asked], [Misfits() for _ in asked]
    found = await asyncio.gather(
        *(deciding.decide(one, ACTIVE, at=7.0, misfits=its) for one, its in zip(asked, counted, strict=True))
    )
    for (decision, rows), one, its, own in zip(found, asked, counted, alone, strict=True):
        expected, expected_rows = decide(one, ACTIVE, at=7.0, misfits=own)
        assert (decision, rows.tobytes()) == (expected, expected_rows.tobytes())
        assert its.counts == own.counts


async def test_slow_decisions_give_way_to_what_else_there_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 0.0)
    deciding, order = Turns(), list[str]()

    async def decided(one: Request) -> None:
        await deciding.decide(one, ACTIVE, at=7.0, misfits=Misfits())
        order.append(one.decision_id)

    async def other_work() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        order.append("other work")

    await asyncio.gather(*(decided(one) for one in requests(5)), other_work())
    assert sorted(order) == ["d0", "d1", "d2", "d3", "d4", "other work"]
    assert order.index("other work") < order.index("d4")


async def test_one_that_fails_or_is_cancelled_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = []

    def spy(request: Request, *args: Any, **named: Any) -> Any:
        decided.append(request.decision_id)
        return decide(request, *args, **named)

    monkeypatch.setattr(turns, "decide", spy)
    deciding, asked = Turns(), [*requests(3), request_of("none", candidates=[])]
    tasks = [asyncio.create_task(deciding.decide(one, ACTIVE, at=7.0, misfits=Misfits())) for one in asked]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert decided == ["d0", "d2", "none"]
    assert isinstance(results[1], asyncio.CancelledError)
    assert isinstance(results[3], NoCandidates)
    assert [result[0].decision_id for result in results if isinstance(result, tuple)] == ["d0", "d2"]
