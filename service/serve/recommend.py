"""The use case of `/recommend`: decide, store, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count

from service.decide.active import ActiveLoop
from service.decide.decision import Chance, Request, chances, request_of
from service.errors import InvalidRequest, NoCandidates, NotFound, StoreUnavailable
from service.records import Decision, Features, Removed, Seen
from service.represent.misfits import Misfits
from service.rules import NO_RULES, Rules
from service.serve.activity import ActivityKeeper, check_names
from service.serve.follower import Follower
from service.serve.ids import check_own_id, new_decision_id
from service.serve.limits import NOTHING, Limiter
from service.serve.misfit_counter import MisfitCounter
from service.serve.release_counter import ReleaseCounter
from service.serve.strict import refuse
from service.serve.turns import Turns
from service.settings import Settings
from service.store.decisions import DecisionWriter, Overtaken, PendingDecision
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
        limiter: Limiter,
        released: ReleaseCounter,
        settings: Settings,
    ) -> None:
        self._follower, self._decisions, self._misfits, self._activity = follower, decisions, misfits, activity
        self._limiter, self._released = limiter, released
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
            was answered from memory, without the user's state and caps, because the store does not answer.

        Raises:
            NotFound: there is no such loop.
            NoCandidates: nothing is eligible.
            StoreUnavailable: Redis does not answer, and every candidate has a budget.
            InvalidRequest: too many candidates, one that stands twice, a slate that is too long, a decision id of
                another loop, a name in the context that is not for clients, or, in a strict loop, a field that its
                schema cannot use.
        """
        started = time.perf_counter()
        active = self._follower.loop(loop)
        if k > self._most_k:
            raise InvalidRequest("k", f"at most {self._most_k}")
        check_candidates(candidates, self._most_candidates)
        context = context or {}
        check_names(context)
        own_id = decision_id
        if own_id is not None:
            check_own_id(own_id, loop)
        decision_id = new_decision_id(loop) if own_id is None else own_id
        at = time.time_ns() // 1_000_000  # as exact as it is recorded
        of_loop = active.settings
        known = user_id is None or not (active.knows_users or of_loop.caps)  # all that there is about the user
        seen, removed = None, NOTHING
        if user_id is not None and not known and not self._decisions.buffered:
            with suppress(StoreUnavailable):
                context, seen, removed = await self._of_user(user_id, context, candidates, active, at=at)
                known = True
        if of_loop.budgets:
            removed = self._limiter.with_budgets(removed, active, candidates)
        if of_loop.rules:
            rules = of_loop.rules.and_those(rules)
        request = Request(
            decision_id,
            user_id,
            context,
            candidates,
            exclude,
            k,
            rules,
            seen=seen,
            removed=removed if any(removed) else None,
        )
        keys = Keys(active.name, active.id)
        misfits = Misfits()
        try:
            decision, rows = await self._turns.decide(request, active, at=at / 1000, misfits=misfits)
        except NoCandidates:  # what it was decided on before may be what limits allow no more
            stood = await self._limiter.stored(active, own_id) if own_id is not None and any(removed) else None
            if stood is None:
                raise
            return stood, False
        if of_loop.strict:
            served, _ = active.assigned(user_id, decision_id, at=at / 1000, context=context)
            refuse(request, served.encoder or active.encoder, misfits)
        elif misfits:
            self._misfits.of(keys).merge(misfits)
        for attempt in count(1):
            shown = active.catalogue.shown(candidates, [item.id for item in decision.items])
            limited = of_loop.caps or of_loop.budgets
            pending = PendingDecision(
                keys,
                decision,
                rows,
                shown,
                of_loop.wait_ms,
                ledger_ms=of_loop.ledger_ms,
                aggregation=of_loop.aggregation,
                displayed=displayed,
                activity_above=of_loop.activity_above,
                limits=self._limiter.of_decision(decision, active) if limited else None,
            )
            try:
                decision, degraded = await self._decisions.append(pending)
                break
            except Overtaken as met:
                removed = self._limiter.after(met, removed, active, candidates)
                if met.alone and own_id is None:  # the one before may be stored all the same
                    decision_id = new_decision_id(loop)
                alone = met.alone
            request = replace(request, decision_id=decision_id, removed=removed, attempt=attempt)
            try:
                decision, rows = await self._turns.decide(request, active, at=at / 1000, misfits=Misfits())
            except NoCandidates as error:
                if not alone:
                    raise
                raise StoreUnavailable(
                    "Redis does not answer, and nobody else knows what is left of budgets"
                ) from error
        degraded = degraded or not known
        self._released.count(active, decision.policy, time.perf_counter() - started, degraded=degraded)
        return decision, degraded

    async def _of_user(
        self,
        user: str,
        context: Features,
        candidates: Sequence[tuple[str, Features | None]] | None,
        active: ActiveLoop,
        *,
        at: int,
    ) -> tuple[Features, Seen | None, Removed]:
        """Return the context with the user's state, what it was made from, and what caps remove, in one round trip.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if not active.settings.caps:
            return *await self._activity.with_state(context, user, active, at=at), NOTHING
        capped = self._limiter.of_user(active, user, candidates)
        if not active.knows_users:
            return context, None, await capped
        (context, seen), removed = await asyncio.gather(self._activity.with_state(context, user, active, at=at), capped)
        return context, seen, removed

    def explain(self, decision: Decision) -> list[Chance] | None:
        """Return the candidates' chances of the first place of a decision, at most 1000, the likeliest first.

        None where the policy or the catalogue has moved on since the decision, or the loop is gone. Where the funnel
        has moved on, they do not say where it had them from.
        """
        try:
            active = self._follower.loop(decision.loop)
        except NotFound:
            return None
        served, _ = active.assigned(decision.user_id, decision.decision_id, at=decision.at, context=decision.context)
        now = (served.policy, served.version, (served.encoder or active.encoder).version, active.catalogue.version)
        if now != (decision.policy, decision.version, decision.encoder, decision.catalogue):
            return None
        served = served if decision.folded else replace(served, fold=None)
        return chances(request_of(decision), active, served)[:MOST_EXPLAINED]


def check_candidates(candidates: Sequence[tuple[str, Features | None]] | None, most: int) -> None:
    """Refuse candidates that are too many, or of which one stands twice.

    Raises:
        InvalidRequest.
    """
    if candidates is None:
        return
    if len(candidates) > most:
        raise InvalidRequest("candidates", f"at most {most}, got {len(candidates)}")
    if len({item for item, _ in candidates}) < len(candidates):
        raise InvalidRequest("candidates", "an item stands twice")
