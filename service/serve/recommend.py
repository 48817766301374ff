"""The use case of `/recommend`: decide, store, answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from service.decide.decision import Chance, Request, chances, request_of
from service.errors import InvalidRequest, NotFound, StoreUnavailable
from service.records import Decision, Features
from service.represent.misfits import Misfits
from service.rules import NO_RULES, Rules
from service.serve.activity import ActivityKeeper, check_names
from service.serve.follower import Follower
from service.serve.ids import check_own_id, new_decision_id
from service.serve.misfit_counter import MisfitCounter
from service.serve.release_counter import ReleaseCounter
from service.serve.strict import refuse
from service.serve.turns import Turns
from service.settings import Settings
from service.store.decisions import DecisionWriter, PendingDecision
from service.store.keys import Keys

MOST_EXPLAINED = 1000  # candidates


class Recommender:
    """Answers requests from the active loops of this worker."""

    def __init__(
        self,
        follower: Follower,
        decisions: DecisionWriter,
        misfits: MisfitCounter,
        activity: ActivityKeeper,
        released: ReleaseCounter,
        settings: Settings,
    ) -> None:
        self._follower, self._decisions, self._misfits, self._activity = follower, decisions, misfits, activity
        self._released = released
        self._turns = Turns()
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
        rules: Rules = NO_RULES,
    ) -> tuple[Decision, bool]:
        """Decide, and store the decision before it is answered.

        Args:
            displayed: False: it teaches nothing until its display is reported.
            rules: of this request, beside those of the loop.

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
        started = time.perf_counter()
        active = self._follower.loop(loop)
        self._check(candidates, k)
        context = context or {}
        check_names(context)
        if decision_id is None:
            decision_id = new_decision_id(loop)
        else:
            check_own_id(decision_id, loop)
        at = time.time_ns() // 1_000_000  # as exact as it is recorded
        known = user_id is None or not active.knows_users  # all that there is about the user
        if user_id is not None and active.knows_users and not self._decisions.buffered:
            with suppress(StoreUnavailable):
                context = await self._activity.with_state(context, user_id, active, at=at)
                known = True
        if active.settings.rules:
            rules = active.settings.rules.and_those(rules)
        request = Request(decision_id, user_id, context, candidates, exclude, k, rules)
        keys = Keys(active.name, active.id)
        misfits = Misfits()
        decision, rows = await self._turns.decide(request, active, at=at / 1000, misfits=misfits)
        if active.settings.strict:
            served, _ = active.assigned(user_id, decision_id, at=at / 1000)
            refuse(request, served.encoder or active.encoder, misfits)
        elif misfits:
            self._misfits.of(keys).merge(misfits)
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
        degraded = degraded or not known
        self._released.count(active, decision.policy, time.perf_counter() - started, degraded=degraded)
        return decision, degraded

    def explain(self, decision: Decision) -> list[Chance] | None:
        """Return the candidates' chances of the first place of a decision, at most 1000, the likeliest first.

        None where the policy or the catalogue has moved on since the decision, or the loop is gone. Where the funnel
        has moved on, they do not say where it had them from.
        """
        try:
            active = self._follower.loop(decision.loop)
        except NotFound:
            return None
        served, _ = active.assigned(decision.user_id, decision.decision_id, at=decision.at)
        now = (served.policy, served.version, (served.encoder or active.encoder).version, active.catalogue.version)
        if now != (decision.policy, decision.version, decision.encoder, decision.catalogue):
            return None
        served = served if decision.folded else replace(served, fold=None)
        return chances(request_of(decision), active, served)[:MOST_EXPLAINED]

    def _check(self, candidates: Sequence[tuple[str, Features | None]] | None, k: int) -> None:
        if k > self._most_k:
            raise InvalidRequest("k", f"at most {self._most_k}")
        if candidates is None:
            return
        if len(candidates) > self._most_candidates:
            raise InvalidRequest("candidates", f"at most {self._most_candidates}, got {len(candidates)}")
        if len({item for item, _ in candidates}) < len(candidates):
            raise InvalidRequest("candidates", "an item stands twice")
