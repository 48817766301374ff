"""`rebound audit`: reads real traffic, and has it checked.

1. Propensities: were items drawn with the probabilities that the log names (`evaluate/propensities.py`)?
2. Decisions: each is made again from its record, the catalogue of then and the version of then. A version that is no
   longer kept is learned anew from the log up to its place.
3. Learning: every policy is learned anew from the start of the log up to its checkpoint; the state must be the same,
   byte for byte.
4. States of users: each is folded again from the log of activity, as far as its decision saw it
   (`evaluate/states.py`).
5. Fields of neighbourhoods: each is compared with what is kept of its version.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis.asyncio import Redis

from service.admin.encoders import encoder_for
from service.decide.active import UNIFORM, ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.errors import Conflict, NotFound
from service.evaluate.propensities import PropensityCheck, PropensityChecker
from service.evaluate.replay import same_decision
from service.evaluate.states import ServedState, same_state
from service.learn.trainer import Trainer
from service.policies import NumericalError, same_arrays
from service.records import Decision, Entry, Event, LoggedActivity, LoopRecord, PolicyRecord, order
from service.represent.graph import GRAPH
from service.represent.stored import AnyEncoder
from service.represent.user_state import ItemFields
from service.store import (
    activity_log,
    encoders,
    erasure_store,
    event_log,
    graph_store,
    item_store,
    loop_store,
    policy_store,
)
from service.store.codec import encoder_of, unpack
from service.store.decisions import read_stored_decision
from service.store.keys import Keys


@dataclass(frozen=True)
class Replayed:
    """How many decisions came out the same, which differently, and how many are past checking (what made them went)."""

    same: int
    different: list[str]
    gone: int


async def audit_propensities(redis: Redis, loop: str, *, confidence: float = 0.99) -> dict[str, PropensityCheck]:
    """Check the retained log; return policy -> its check.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    checker = PropensityChecker(record.settings.exploration_floor)
    async for entries in event_log.scan(redis, Keys(loop, record.id)):
        checker.add(entry for entry in entries if isinstance(entry, Event) and entry.source != "import")
    return checker.result(confidence=confidence)


async def audit_learning(redis: Redis, loop: str) -> dict[str, bool]:
    """Return policy -> whether a replay of the log from its start gives the checkpointed state, byte for byte.

    Raises:
        NotFound: there is no such loop.
        Conflict: a user is being erased.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    await _check_erasures(redis, keys)
    found = {}
    for name in await policy_store.policy_names(redis, keys):
        policy, state = await _checkpoint(redis, keys, name)
        trainer = await _trainer(redis, record, policy)
        if state is not None:
            await advance(redis, keys, trainer, until=policy.position)
        again = trainer.state()
        stored = unpack(state) if state is not None else again
        # A checkpoint that an older version wrote lacks arrays that this one keeps.
        again = {array: again[array] for array in again if array in stored}
        found[name] = same_arrays(stored, again) and trainer.events == policy.events
    return found


async def _check_erasures(redis: Redis, keys: Keys) -> None:
    """Refuse an audit while the log is without events that a policy has learned.

    Raises:
        Conflict.
    """
    for erasure in await erasure_store.list_erasures(redis, keys):
        if erasure.step in ("events", "traces", "learning"):
            raise Conflict(
                f"a user is being erased from loop {keys.loop!r} (erasure {erasure.id}), and policies learn the log "
                "anew: audit it afterwards",
                code="erasure_under_way",
            )


async def _checkpoint(redis: Redis, keys: Keys, name: str) -> tuple[PolicyRecord, bytes | None]:
    """Return a policy and its learned state of the same moment: the learner may write both while we read."""
    policy = await policy_store.read_policy(redis, keys, name)
    while True:
        state = await policy_store.read_state(redis, keys, name)
        after = await policy_store.read_policy(redis, keys, name)
        if after.position == policy.position:
            return policy, state
        policy = after


async def _trainer(redis: Redis, loop: LoopRecord, policy: PolicyRecord) -> Trainer:
    """Return a trainer that has learned nothing, and leaves out what the policy set aside."""
    keys = Keys(loop.name, loop.id)
    schemas = await encoders.read_schemas(redis, keys, policy.needs)
    return Trainer.of(loop, policy, schemas, await policy_store.read_letters(redis, keys, policy.name))


async def advance(redis: Redis, keys: Keys, trainer: Trainer, *, until: str) -> None:
    """Let a trainer learn the log from its position up to and including `until`."""
    while order(trainer.position) < order(until):
        entries: Sequence[Entry] = await event_log.read(redis, keys, trainer.position, until=until)
        if not entries:
            return
        while entries:
            done = trainer.apply(entries)
            loop = asyncio.get_running_loop()
            if done.successor is not None:
                history = event_log.scan_in_thread(
                    redis, keys, until=trainer.position, loop=loop, newest=trainer.memory
                )
                stand_ins = await item_store.read_stand_ins(redis, keys, done.successor.catalogue)
                await asyncio.to_thread(trainer.relearn, history, stand_ins)
            if done.training_due:
                history = event_log.scan_in_thread(redis, keys, until=trainer.position, loop=loop)
                with suppress(NumericalError):  # the learner went on with the weights of before, too
                    await asyncio.to_thread(trainer.train, history)
            entries = entries[done.read :]


async def audit_decisions(redis: Redis, loop: str, *, most: int = 1000) -> Replayed:
    """Make the newest decisions of the log again, each from its record.

    Raises:
        NotFound: there is no such loop.
        Conflict: a user is being erased.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    await _check_erasures(redis, keys)
    decisions = await _newest(redis, keys, most)
    served = await _served(redis, record, {(d.policy, d.version) for d in decisions})
    known = {policy.encoder.version: policy.encoder for policy in served.values() if policy.encoder is not None}
    for version in {decision.encoder for decision in decisions} - known.keys():
        if (encoder := await _encoder(redis, record, version)) is not None:
            known[version] = encoder
    catalogues: dict[tuple[int, str], Catalogue | None] = {}
    folded: dict[str, ServedPolicy] = {}  # policy -> its fold of last, the likeliest to be needed next: they are large
    same, different, gone = 0, [], 0
    for decision in decisions:
        encoder, policy = known.get(decision.encoder), served.get((decision.policy, decision.version))
        catalogue = None
        if encoder is not None:
            place = (decision.catalogue, encoder.version)
            if place not in catalogues:
                catalogues[place] = await _catalogue(redis, keys, decision.catalogue, encoder)
            catalogue = catalogues[place]
        if policy is not None and catalogue is not None and decision.folded:
            last = folded.get(decision.policy)
            policy = (last if last is not None and last.version == decision.version else policy).folded(catalogue)
            folded[decision.policy] = policy
        if encoder is None or catalogue is None or policy is None:
            gone += 1
        elif (policy.encoder or encoder).version == encoder.version and same_decision(
            decision, record, encoder, catalogue, policy
        ):
            same += 1
        else:
            different.append(decision.decision_id)
    return Replayed(same, different, gone)


async def audit_states(redis: Redis, loop: str, *, most: int = 1000) -> Replayed:
    """Fold the states of users in the newest events of the log again, from the log of activity; each decision once.

    Past checking are those of which some activity, or the catalogue of then, is no longer kept.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    decisions: dict[str, ServedState] = {}
    async for entries in event_log.scan(redis, keys, newest=most):
        found = (ServedState.of(entry) for entry in entries if isinstance(entry, Event))
        decisions |= {served.decision_id: served for served in found if served is not None}
    stats = await event_log.read_stats(redis, keys)
    lost = stats.get("activity", 0) - stats.get("activity_logged", 0)  # an older version accepted it, and wrote no log
    whole = not lost and not stats.get("activity_trimmed") and not stats.get("activity_erased")
    logged = await _logged_of(redis, keys, {served.user for served in decisions.values()})
    items: dict[int, ItemFields | None] = {}
    same, different, gone = 0, [], 0
    for served in decisions.values():
        if served.catalogue not in items:
            kept = await item_store.kept_items_at(redis, keys, served.catalogue)
            items[served.catalogue] = None if kept is None else ItemFields(kept)
        fields = items[served.catalogue]
        again = None if fields is None else same_state(served, logged[served.user], fields, whole=whole)
        if again is None:
            gone += 1
        elif again:
            same += 1
        else:
            different.append(served.decision_id)
    return Replayed(same, different, gone)


async def _logged_of(redis: Redis, keys: Keys, users: Collection[str]) -> dict[str, list[LoggedActivity]]:
    """Return user -> his activity that the log holds, in its order."""
    found: dict[str, list[LoggedActivity]] = {user: [] for user in users}
    if users:
        async for activity in activity_log.scan_log(redis, keys):
            for one in activity:
                if one.user in found:
                    found[one.user].append(one)
    return found


async def audit_graph(redis: Redis, loop: str, *, most: int = 1000) -> Replayed:
    """Compare the fields of neighbourhoods in the newest decisions of the log with those that were published.

    Past checking are those of which a newer version has been published since.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    served = [d for d in await _newest(redis, keys, most) if d.user_id is not None and GRAPH in d.context]
    kept = await graph_store.fields_of(redis, keys, sorted({str(d.user_id) for d in served}))
    same, different, gone = 0, [], 0
    for decision in served:
        fields, now = decision.context[GRAPH], kept[str(decision.user_id)]
        if fields.get("version") != now.get("version"):
            gone += 1
        elif fields == now:
            same += 1
        else:
            different.append(decision.decision_id)
    return Replayed(same, different, gone)


async def _newest(redis: Redis, keys: Keys, most: int) -> list[Decision]:
    """Return the newest decisions that the ledger still holds, newest first."""
    seen: dict[str, Decision] = {}
    async for decision_id in event_log.newest_decisions(redis, keys):
        if decision_id in seen:
            continue
        try:
            seen[decision_id] = await read_stored_decision(redis, keys, decision_id)
        except NotFound:  # an imported event, or its time in the ledger is over
            continue
        if len(seen) == most:
            break
    return list(seen.values())


async def _encoder(redis: Redis, record: LoopRecord, version: str) -> AnyEncoder | None:
    try:
        encoder = await encoder_for(redis, record, version)
    except ValueError:
        return None
    return encoder if encoder.version == version else None


async def _catalogue(redis: Redis, keys: Keys, version: int, encoder: AnyEncoder) -> Catalogue | None:
    features = await item_store.kept_items_at(redis, keys, version)
    return None if features is None else Catalogue.of(version, features, encoder)


async def _served(
    redis: Redis, record: LoopRecord, wanted: set[tuple[str, int]]
) -> dict[tuple[str, int], ServedPolicy]:
    """Return the policies at the wanted versions: from kept snapshots, else from a replay of the log."""
    keys = Keys(record.name, record.id)
    found = {("random", 0): UNIFORM}
    learn_again: dict[str, dict[str, int]] = defaultdict(dict)  # policy -> position -> version
    for name, version in wanted - set(found):
        try:
            policy = await policy_store.read_policy(redis, keys, name)
        except NotFound:
            continue
        if version == 0:
            found[name, 0] = ServedPolicy(name, policy.id, 0, UNIFORM.scorer)
        elif snapshot := await policy_store.read_snapshot(redis, keys, name, version):
            encoder = await encoder_for(redis, record, encoder_of(snapshot))
            found[name, version] = serving(policy, version, unpack(snapshot), encoder)
        elif position := await policy_store.version_position(redis, keys, name, version):
            learn_again[name][position] = version
    for name, versions in learn_again.items():
        policy = await policy_store.read_policy(redis, keys, name)
        trainer = await _trainer(redis, record, policy)
        for position in sorted(versions, key=order):
            await advance(redis, keys, trainer, until=position)
            version = versions[position]
            found[name, version] = serving(policy, version, trainer.policy.snapshot(), trainer.current_encoder)
    return found
