"""The use case of `/recommend`: decide, store, answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from service.decide.decision import Request, decide
from service.errors import InvalidRequest, StoreUnavailable
from service.records import Decision, Features
from service.represent.misfits import Misfits
from service.serve.activity import ActivityKeeper, check_names
from service.serve.follower import Follower
from service.serve.ids import check_own_id, new_decision_id
from service.serve.misfit_counter import MisfitCounter
from service.serve.strict import refuse
from service.settings import Settings
from service.store.decisions import DecisionWriter, PendingDecision
from service.store.keys import Keys


class Recommender:
    """Answers requests from the active loops of this worker."""

    def __init__(
        self,
        follower: Follower,
        decisions: DecisionWriter,
        misfits: MisfitCounter,
        activity: ActivityKeeper,
        settings: Settings,
    ) -> None:
        self._follower, self._decisions, self._misfits, self._activity = follower, decisions, misfits, activity
        self._most_candidates, self._most_k = settings.max_candidates, settings.max_k

    async def recommend(
        self,
        loop: str,
        *,
        user_id: str | None = None,
        context: Features | None = None,
        candidates: Sequence[tuple[str, Features | None]] | None = None,
        exclude: Sequence[str] = (),
        k: int = 1,
        decision_id: str | None = None,
        displayed: bool = True,
    ) -> tuple[Decision, bool]:
        """Decide, and store the decision before it is answered.

        Args:
            displayed: False: it teaches nothing until its display is reported.

        Returns:
            The decision that stands under its id (a repeated id gets the stored one back, unchanged), and whether it
            was answered from memory, without the user's state, because the store does not answer.

        Raises:
            NotFound: there is no such loop.
            NoCandidates: nothing is eligible.
            InvalidRequest: too many candidates, one that stands twice, a slate that is too long, a decision id of
                another loop, a name in the context that is not for clients, or, in a strict loop, a field that its
                schema cannot use.
        """
        active = self._follower.loop(loop)
        self._check(candidates, k)
        context = context or {}
        check_names(context)
        if decision_id is None:
            decision_id = new_decision_id(loop)
        else:
            check_own_id(decision_id, loop)
        at = time.time_ns() // 1_000_000  # as exact as it is recorded
        known = user_id is None or not active.activity  # all that there is about the user
        if user_id is not None and active.activity and not self._decisions.buffered:
            with suppress(StoreUnavailable):
                context = await self._activity.with_state(context, user_id, active, at=at)
                known = True
        request = Request(decision_id, user_id, context, candidates, exclude, k)
        keys = Keys(active.name, active.id)
        strict = active.settings.strict
        misfits = Misfits() if strict else self._misfits.of(keys)
        decision, rows = decide(request, active, at=at / 1000, misfits=misfits)
        if strict:
            served = active.policy_for(user_id or decision_id)
            refuse(request, served.encoder or active.encoder, misfits)
        shown = active.catalogue.shown(candidates, [item.id for item in decision.items])
        of_loop = active.settings
        decision, degraded = await self._decisions.append(
            PendingDecision(
                keys,
                decision,
                rows,
                shown,
                of_loop.wait_ms,
                ledger_ms=of_loop.ledger_ms,
                aggregation=of_loop.aggregation,
                displayed=displayed,
            )
        )
        return decision, degraded or not known

    def _check(self, candidates: Sequence[tuple[str, Features | None]] | None, k: int) -> None:
        if k > self._most_k:
            raise InvalidRequest("k", f"at most {self._most_k}")
        if candidates is None:
            return
        if len(candidates) > self._most_candidates:
            raise InvalidRequest("candidates", f"at most {self._most_candidates}, got {len(candidates)}")
        if len({item for item, _ in candidates}) < len(candidates):
            raise InvalidRequest("candidates", "an item stands twice")
