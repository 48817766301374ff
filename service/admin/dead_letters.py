"""List the events that policies could not learn, and have them learned once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from service.errors import NotFound
from service.records import DeadLetter, PolicyRecord, order
from service.store import event_log, loop_store, policy_store
from service.store.keys import Keys


@dataclass(frozen=True)
class Listed:
    """A dead letter of one policy."""

    policy: str
    position: str
    why: str


async def dead_letters(redis: Redis, loop: str, policy: str | None = None) -> list[Listed]:
    """Return the dead letters of a loop, by policy, in the order of the log.

    Args:
        policy: the only one to look at; None: all of the loop.

    Raises:
        NotFound: there is no such loop or policy.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = []
    for one in await _policies(redis, keys, policy):
        letters = list(_open(await policy_store.read_letters(redis, keys, one.name)))
        held = await event_log.held(redis, keys, [letter.position for letter in letters])
        found += [Listed(one.name, letter.position, letter.why) for letter in letters if letter.position in held]
    return found


async def retry(redis: Redis, loop: str, policy: str | None, positions: Sequence[str] | None) -> int:
    """Put dead letters into the log once more, each for the policy that could not learn it; return how many.

    Args:
        policy: as `dead_letters`.
        positions: of those to retry; None: all.

    Raises:
        NotFound: there is no such loop or policy, or no such dead letter; nothing was retried.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    policies = await _policies(redis, keys, policy)
    listed = await dead_letters(redis, loop, policy)
    if missing := set(positions or ()) - {letter.position for letter in listed}:
        raise NotFound(f"there is no dead letter at {sorted(missing)[0]}", code="unknown_dead_letter")
    retried = 0
    for one in policies:
        wanted = [letter.position for letter in listed if letter.policy == one.name]
        if positions is not None:
            wanted = [position for position in wanted if position in set(positions)]
        retried += await event_log.append_retries(redis, keys, one.name, one.id, wanted)
    return retried


async def _policies(redis: Redis, keys: Keys, policy: str | None) -> list[PolicyRecord]:
    names = await policy_store.policy_names(redis, keys) if policy is None else [policy]
    return [await policy_store.read_policy(redis, keys, name) for name in names]


def _open(letters: Mapping[str, DeadLetter]) -> Iterator[DeadLetter]:
    """Yield the events that were set aside where they stood first, and were not learned since."""
    for letter in sorted(letters.values(), key=lambda one: order(one.position)):
        if letter.of is None and letter.learned is None:
            yield letter
