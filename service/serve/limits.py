"""What limits remove from the candidates of a decision, and what is to be checked when it is stored."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from contextlib import suppress

from service.decide.active import ActiveLoop
from service.errors import StoreUnavailable
from service.records import Decision, Features, Removed
from service.serve.budgets import BudgetKeeper
from service.store.decisions import Overtaken
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.limits import Limits, read_counted, read_record

NOTHING = Removed()
Named = Sequence[tuple[str, Features | None]]  # candidates that a request names


class Limiter:
    """Applies the limits of a loop to its decisions."""

    def __init__(self, commit: GroupCommit, budgets: BudgetKeeper) -> None:
        self._commit, self._budgets = commit, budgets

    async def of_user(self, active: ActiveLoop, user: str, named: Named | None) -> Removed:
        """Return what the caps of a loop remove for a user, in the round trip that others share.

        Args:
            named: the candidates; None: the catalogue.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        caps = active.settings.caps
        counted = await read_counted(self._commit, Keys(active.name, active.id), user, caps)
        taken = _among(counted.taken, active, named)
        shown = _among(counted.is_capped(caps), active, named)
        return Removed(taken, tuple(item for item in shown if item not in taken))

    async def of_request(self, active: ActiveLoop, user: str | None, named: Named | None) -> Removed:
        """Return all that limits remove from the candidates of a request.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        removed = NOTHING
        if user is not None and active.settings.caps:
            removed = await self.of_user(active, user, named)
        return self.with_budgets(removed, active, named) if active.settings.budgets else removed

    def with_budgets(self, removed: Removed, active: ActiveLoop, named: Named | None) -> Removed:
        """Add the items that have no budget left, as far as this worker knows."""
        return self._with_spent(removed, self._budgets.spent(active), active, named)

    def after(self, met: Overtaken, removed: Removed, active: ActiveLoop, named: Named | None) -> Removed:
        """Return what is removed from the attempt that follows on one that met a limit."""
        shown = (*removed.shown, *(item for item in met.shown if item not in removed.shown))
        removed = removed._replace(shown=tuple(sorted(shown)))
        if met.alone:
            return self._with_spent(removed, active.settings.budgets, active, named)
        self._budgets.met(active, met.spent)
        return self._with_spent(removed, {*removed.spent, *met.spent}, active, named)

    def of_decision(self, decision: Decision, active: ActiveLoop) -> Limits | None:
        """Return what is to be checked when a decision is stored, and counted; None: nothing."""
        caps, budgets = active.settings.caps, active.settings.budgets
        counts = decision.user_id is not None and caps.count_decisions
        spends = {item.id: budgets[item.id].per for item in decision.items if item.id in budgets}
        if not counts and not spends:
            return None
        return Limits(caps if counts else None, decision.user_id or "", spends)

    async def stored(self, active: ActiveLoop, decision_id: str) -> Decision | None:
        """Return the decision that stands under an id; None: none does, or Redis does not answer."""
        with suppress(StoreUnavailable):
            return await read_record(self._commit, Keys(active.name, active.id), decision_id)
        return None

    def _with_spent(self, removed: Removed, spent: Iterable[str], active: ActiveLoop, named: Named | None) -> Removed:
        others = {*removed.taken, *removed.shown}
        return removed._replace(spent=tuple(item for item in _among(spent, active, named) if item not in others))


def _among(items: Iterable[str], active: ActiveLoop, named: Named | None) -> tuple[str, ...]:
    """Return those of some items that would be candidates, sorted."""
    known: Container[str]
    known = active.catalogue.features if named is None else {item for item, _ in named}
    return tuple(sorted(item for item in items if item in known))
