"""The fitter on a real Redis: when it fits, what it appends, and that it appends it once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.learn import log_fold
from service.learn.bell import Bell
from service.learn.fitter import Fitter
from service.learn.profiler import Profiler
from service.learn.runner import PolicyRunner
from service.records import START, Entry, Event, LoopRecord, Successor
from service.represent.learned import LearnedEncoder, LearnedSchema, Line
from service.represent.profile import Profile
from service.settings import Settings
from service.store import event_log, loop_store, policy_store
from service.store.connection import end
from service.store.keys import Keys
from tests.builders import event_of, import_of, policy_of
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


def events(n: int, *, first: int = 0) -> list[Event]:
    """Make events in which the segment decides which of four items is clicked."""
    found = []
    for number in range(first, first + n):
        rng = np.random.default_rng(number)
        seg, item = int(rng.integers(4)), int(rng.integers(4))
        found.append(
            replace(
                event_of(number, reward=float(rng.random() < (0.7 if seg == item else 0.1))),
                item=f"i{item}",
                context={"seg": f"s{seg}"},
                features={},
                user=f"u{number % 7}",
            )
        )
    return found


async def append(redis: Redis, keys: Keys, n: int, *, first: int = 0) -> tuple[Profile, str]:
    """Append events; return the profile of all that the log holds, and its last position."""
    await event_log.append_imported(redis, keys, import_of(events(n, first=first)), remember=10**5)
    profile, position = Profile(), START
    for entry in await event_log.read(redis, keys, START, most=10**4):
        position = entry.position
        if isinstance(entry, Event):
            profile.add(
                context=entry.context,
                item=entry.item,
                features=entry.features,
                user=entry.user,
                reward=entry.reward,
                at=entry.time,
            )
    return profile, position


async def successors(redis: Redis, keys: Keys) -> list[Successor]:
    entries: list[Entry] = await event_log.read(redis, keys, START, most=10**4)
    return [entry for entry in entries if isinstance(entry, Successor)]


async def test_a_fit_is_an_entry_of_the_log(redis: Redis, keys: Keys) -> None:
    profile, position = await append(redis, keys, 300)
    fitter = Fitter(redis, keys)
    assert not await fitter.is_due(39)
    assert await fitter.is_due(40)
    assert await fitter.fit(profile, position)
    [successor] = await successors(redis, keys)
    schema = LearnedSchema.model_validate(successor.schema)
    assert LearnedEncoder(schema).version == successor.encoder
    assert (successor.events, successor.declared) == (300, False)
    assert "seg" in schema.context
    assert not await fitter.is_due(319)
    assert await fitter.is_due(320)


async def test_learners_that_fit_the_same_append_it_once(redis: Redis, keys: Keys) -> None:
    profile, position = await append(redis, keys, 100)
    appended = await asyncio.gather(*(Fitter(redis, keys).fit(profile, position) for _ in range(3)))
    assert sorted(appended) == [False, False, True]
    assert len(await successors(redis, keys)) == 1
    again = Fitter(redis, keys)  # after a restart
    assert not await again.is_due(159)
    assert await again.is_due(160)


@pytest.mark.parametrize("how", ["declared", "declared in 0.1", "refused"])
async def test_nothing_is_fitted_where_a_person_said_so(redis: Redis, loop: LoopRecord, how: str) -> None:
    keys = Keys(loop.name, loop.id)
    profile, position = await append(redis, keys, 100)
    changes = {
        "declared": {"declared": "somebody's"},
        "declared in 0.1": {"schema": '{"context": {"seg": {"type": "categorical", "levels": ["s0"]}}}'},
        "refused": {"settings": loop.settings.model_copy(update={"fit_schema": False}).model_dump_json()},
    }
    await loop_store.change_loop(redis, loop, changes[how])
    assert not await Fitter(redis, keys).fit(profile, position)
    assert await successors(redis, keys) == []


async def test_the_profiler_fits_and_policies_move(redis: Redis, keys: Keys, settings: Settings) -> None:
    await policy_store.create_policy(redis, keys, policy_of("adaptive"))
    stop = asyncio.Event()
    tasks = [
        Profiler(redis, keys).run(stop, Bell(awake=True)),
        PolicyRunner(redis, keys, "adaptive", settings).run(stop, Bell(awake=True)),
    ]
    at_work = [asyncio.create_task(task) for task in tasks]
    async with asyncio.timeout(60):
        for first in range(0, 800, 100):
            await append(redis, keys, 100, first=first)
            while not await successors(redis, keys):
                await asyncio.sleep(0.02)
        while (record := await policy_store.read_policy(redis, keys, "adaptive")).events < 800:
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*at_work)
    assert record.encoder in {successor.encoder for successor in await successors(redis, keys)}


async def test_a_young_log_is_fitted_as_it_grows(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next look at the log."""
    monkeypatch.setattr(log_fold, "POLL_S", 60.0)
    running = asyncio.create_task(Profiler(redis, keys).run(asyncio.Event(), Bell(awake=True)))
    try:
        for first in (0, 30, 60):
            await append(redis, keys, 30, first=first)
        await until_async(lambda: successors(redis, keys), "a schema is fitted")
    finally:
        await end(running)


async def test_a_change_of_the_data_is_fitted_before_the_log_has_doubled(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages come in hundredths from the 400th event on; 640 events would be the next size to fit at.

    The profile is written down once: it is looked at more often.
    """
    monkeypatch.setattr(Profiler, "period_s", 1e9)
    monkeypatch.setattr(log_fold, "POLL_S", 0.02)
    rng = np.random.default_rng(5)

    def aged(n: int, first: int, unit: float) -> list[Event]:
        """Make events in which the old like two of the items and the young the others."""
        made = []
        for event in events(n, first=first):
            age = float(rng.uniform(18, 80))
            likely = 0.9 if (age > 49) == (event.item in ("i0", "i1")) else 0.1
            context = {**event.context, "age": unit * age}
            made.append(replace(event, context=context, reward=float(rng.random() < likely)))
        return made

    async def sizes() -> list[int]:
        return [successor.events for successor in await successors(redis, keys)]

    running = asyncio.create_task(Profiler(redis, keys).run(asyncio.Event(), Bell(awake=True)))
    try:
        await event_log.append_imported(redis, keys, import_of(aged(400, 0, 1.0)), remember=10**5)
        await until_async(sizes, "the first part is fitted")
        await event_log.append_imported(redis, keys, import_of(aged(150, 400, 100.0)), remember=10**5)

        async def is_fitted() -> bool:
            return any(size > 400 for size in await sizes())

        await until_async(is_fitted, "the change is fitted")
    finally:
        await end(running)
    newest = (await successors(redis, keys))[-1]
    assert newest.events == 550
    age = LearnedSchema.model_validate(newest.schema).context["age"]
    assert isinstance(age, Line)
    assert age.former is not None
    assert age.former.values[-1] < 100 < age.values[0]
