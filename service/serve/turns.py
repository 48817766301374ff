"""Decides what waits in one turn of the event loop, one decision right after the other."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from service.decide.active import ActiveLoop
from service.decide.decision import Request, decide
from service.policies import Array
from service.records import Decision
from service.represent.misfits import Misfits

LONGEST_S = 0.1  # of a turn: a batch of slow decisions gives way to what else the worker does


class _Waiting(NamedTuple):
    request: Request
    active: ActiveLoop
    at: float
    misfits: Misfits
    result: asyncio.Future[Any]


class Turns:
    """Gathers requests until the turn ends. Each is decided as if it were alone, so it is the same, bit for bit.

    Parsing, storing and answering between two decisions push their code out of the processor's caches: a decision right
    after another costs two thirds of one by itself (docs/benchmarks/decision-cost.md).
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    async def decide(
        self, request: Request, active: ActiveLoop, *, at: float, misfits: Misfits
    ) -> tuple[Decision, Array]:
        """Decide on one request in its turn: see `service.decide.decision.decide`."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._decide_all)
        result: asyncio.Future[tuple[Decision, Array]] = loop.create_future()
        self._waiting.append(_Waiting(request, active, at, misfits, result))
        return await result

    def _decide_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        until = time.perf_counter() + LONGEST_S
        for number, (request, active, at, misfits, result) in enumerate(waiting):
            if number and time.perf_counter() > until:
                self._waiting = waiting[number:] + self._waiting
                asyncio.get_running_loop().call_soon(self._decide_all)
                return
            if result.done():  # its request was cancelled
                continue
            try:
                decided = decide(request, active, at=at, misfits=misfits)
            except Exception as error:  # whatever it is, it is this request's alone
                result.set_exception(error)
            else:
                result.set_result(decided)
