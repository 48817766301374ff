"""Stands in for the parts that the use cases are given."""

from __future__ import annotations

from service.decide.active import ActiveLoop
from service.errors import NotFound, StoreUnavailable
from service.records import Decision, Features, Seen
from service.serve.activity import ActivityKeeper
from service.serve.follower import Follower
from service.serve.limits import Limiter
from service.store.decisions import DecisionWriter, PendingDecision


class Follows(Follower):
    """Knows the loops that it is given, and no Redis."""

    def __init__(self, *loops: ActiveLoop) -> None:
        self._loops = {loop.name: loop for loop in loops}
        self.store_lost = False

    @property
    def names(self) -> list[str]:
        return list(self._loops)

    def loop(self, name: str) -> ActiveLoop:
        if name not in self._loops:
            raise NotFound(name, code="unknown_loop")
        return self._loops[name]


class Writes(DecisionWriter):
    """Keeps decisions in memory, by id."""

    def __init__(self, *, degraded: bool = False) -> None:
        self.pending: dict[str, PendingDecision] = {}
        self._degraded = degraded

    @property
    def buffered(self) -> int:
        return 0

    async def append(self, pending: PendingDecision) -> tuple[Decision, bool]:
        stood = self.pending.setdefault(pending.decision.decision_id, pending)
        return stood.decision, self._degraded


class NoActivity(ActivityKeeper):
    """Is of a loop in which no activity was ever sent: nobody may ask it."""

    def __init__(self) -> None: ...

    async def with_state(
        self, context: Features, user: str, active: ActiveLoop, *, at: int, takes_up: bool = True
    ) -> tuple[Features, Seen]:
        raise AssertionError(f"the state of {user} was read in a loop without activity")


class NoLimits(Limiter):
    """Is of a loop without limits: nobody may ask it."""

    def __init__(self) -> None: ...


class NoRedis:
    """Raises what a Redis that does not answer leads to."""

    async def run(self, *_: object, **__: object) -> bytes:
        raise StoreUnavailable("gone")
