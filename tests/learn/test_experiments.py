"""The sums of experiments on a real Redis: each event counts once, and what is over needs no units any more."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from rich.console import Console
from typer.testing import CliRunner, Result

from service import cli
from service.admin.backups import restore_backup, write_backup
from service.admin.experiments import read_experiment
from service.decide.assignment import Assigner
from service.errors import NotFound
from service.evaluate import units
from service.evaluate.experiment import moments
from service.learn.bell import Bell
from service.learn.experiments import ExperimentKeeper
from service.records import Event, Experiment, LoopRecord
from service.store import experiment_store, loop_store
from service.store.codec import experiments_bytes
from service.store.connection import now
from service.store.experiment_store import ROW, SumsRecord
from service.store.keys import Keys
from tests.builders import event_of, experiment_of, fields_of

pytestmark = pytest.mark.anyio

USERS = 7
STARTS = 2_000.0


@pytest.fixture
def keys(loop: LoopRecord) -> Keys:
    return Keys(loop.name, loop.id)


def event(experiment: Experiment, number: int) -> Event:
    """Build the event of this number: a second after the one before, of one of seven users."""
    user, at = f"u{number * number % USERS}", 1_000.0 + 50 * number
    found = replace(
        event_of(number, user=user, position=f"{round(1000 * at)}-0", reward=0.5 + number % 3),
        experiment=Assigner(experiment).assignment(user, f"d{number}", at=at),
        source="default" if number % 4 else "feedback",
    )
    return found


async def begin(redis: Redis, keys: Keys, experiment: Experiment) -> None:
    await redis.hset(keys.record, "experiments", experiments_bytes({experiment.name: experiment}))


async def append(redis: Redis, keys: Keys, events: list[Event]) -> None:
    for one in events:
        await redis.xadd(keys.partition().events, fields_of(one), id=one.position)


def expected(experiment: Experiment, events: list[Event]) -> np.ndarray:
    """Add up in the simplest way: all events of each user at once."""
    arms = units.arms_of(experiment)
    rows: list[list[list[float]]] = [[] for _ in arms]
    for user in sorted({one.user for one in events if one.experiment is not None and one.user}):
        mine = [one for one in events if one.user == user]
        sums = [1.0]
        for before in (False, True):
            some = [one for one in mine if (one.time < experiment.starts) == before]
            sums += [len(some), sum(one.reward for one in some), sum(one.source != "default" for one in some)]
        fell = next(one.experiment for one in mine if one.experiment is not None)
        rows[arms.index(fell.arm)].append(sums)
    return np.stack([moments(np.array(one)) if one else np.zeros((7, 7)) for one in rows])


async def test_every_event_counts_once_whoever_counts(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(holdout=0.3, starts=STARTS)
    await begin(redis, keys, experiment)
    events = [event(experiment, number) for number in range(60)]
    one, two = ExperimentKeeper(redis, keys), ExperimentKeeper(redis, keys)
    for start in range(0, 60, 20):
        await append(redis, keys, events[start : start + 20])
        await asyncio.gather(one.step(), two.step())
        assert await one.step() + await two.step() == 0
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert found.moments == pytest.approx(expected(experiment, events))
    assert (found.events, found.positions) == (
        sum(e.experiment is not None for e in events),
        (events[-1].position,) * 2,
    )
    assert (found.first, found.last) == (2_000.0, events[-1].time)
    replies = await read_experiment(redis, keys.loop, experiment.name)
    assert sum(arm.units for arm in replies.arms) == USERS - 3  # squares modulo 7
    assert await redis.hlen(keys.experiment_units(experiment.id, 1)) == USERS - 3


async def test_sessions_are_units_by_a_field_of_the_context(redis: Redis, keys: Keys) -> None:
    experiment = experiment_of(unit="session", session="visit", starts=STARTS)
    assigner = Assigner(experiment)
    await begin(redis, keys, experiment)
    events = []
    for number in range(20, 40):
        context = {} if number % 5 == 0 else {"visit": number // 2}
        one = replace(event(experiment, number), context=context)
        events.append(replace(one, experiment=assigner.assignment(one.user, "d", at=one.time, context=context)))
    await append(redis, keys, [event(experiment, number) for number in range(5)])  # from before: of no session
    await append(redis, keys, events)
    await ExperimentKeeper(redis, keys).step()
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert found.moments[:, 0, 0].sum() == len({str(e.context["visit"]) for e in events if e.context})
    assert found.events == 16


async def test_an_erased_user_has_no_row_and_who_counts_at_that_moment_makes_none(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(starts=STARTS)
    await begin(redis, keys, experiment)
    events = [event(experiment, number) for number in range(60)]
    await append(redis, keys, events[:40])
    keeper, name = ExperimentKeeper(redis, keys), keys.experiment_units(experiment.id, 1)
    await keeper.step()
    before = await experiment_store.read_sums(redis, keys, experiment)
    assert await redis.hexists(name, experiment.digest("u1"))
    await experiment_store.erase_unit(redis, keys, experiment, "u1")
    after = await experiment_store.read_sums(redis, keys, experiment)
    assert not await redis.hexists(name, experiment.digest("u1"))
    assert after.moments == pytest.approx(before.moments), "in the sums of his arm he is one of many"
    assert (after.erased, after.positions) == (1, before.positions)

    await append(redis, keys, events[40:])
    read = experiment_store.read_units

    async def erased_meanwhile(*args: Any) -> Any:
        await redis.xdel(keys.partition().events, *(one.position for one in events[40:] if one.user == "u1"))
        await experiment_store.erase_unit(redis, keys, experiment, "u1")
        return await read(*args)

    monkeypatch.setattr(experiment_store, "read_units", erased_meanwhile)
    assert await keeper.step()
    assert (await experiment_store.read_sums(redis, keys, experiment)).positions == before.positions, "not written"
    monkeypatch.undo()
    await keeper.step()
    counted = await experiment_store.read_sums(redis, keys, experiment)
    assert counted.positions == (events[-1].position,) * 2
    assert not await redis.hexists(name, experiment.digest("u1"))
    assert counted.events == sum(one.experiment is not None for one in events) - sum(
        one.user == "u1" for one in events[40:]
    )


async def test_an_unit_that_is_erased_before_anything_is_counted(redis: Redis, keys: Keys) -> None:
    experiment = experiment_of(starts=STARTS)
    await begin(redis, keys, experiment)
    await experiment_store.erase_unit(redis, keys, experiment, "u1")
    await append(redis, keys, [event(experiment, number) for number in range(60)])
    await ExperimentKeeper(redis, keys).step()
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert (found.erased, found.events > 0) == (1, True)


async def test_units_beyond_the_bound_are_left_out_and_counted(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MOST_UNITS", 3)
    monkeypatch.setattr(units, "MOST_BEFORE", 1)
    experiment = experiment_of(starts=STARTS)
    await begin(redis, keys, experiment)
    await append(redis, keys, [event(experiment, number) for number in range(40)])
    await ExperimentKeeper(redis, keys).step()
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert await redis.hlen(keys.experiment_units(experiment.id, 1)) == 3
    assert found.left_out > 0
    assert found.moments[:, 0, 0].sum() == 3


async def test_a_change_of_shares_begins_anew(redis: Redis, keys: Keys) -> None:
    first = experiment_of(starts=STARTS)
    second = replace(first, version=2)
    events = [event(first, number) for number in range(30)] + [event(second, number) for number in range(30, 40)]
    await begin(redis, keys, second)
    await append(redis, keys, events)
    await ExperimentKeeper(redis, keys).step()
    found = await experiment_store.read_sums(redis, keys, second)
    assert (found.events, found.moments[:, 1, 0].sum()) == (10, 10)


async def test_what_is_over_is_kept_without_its_units(redis: Redis, keys: Keys) -> None:
    experiment = experiment_of(starts=STARTS, ends=3_000.0)
    await begin(redis, keys, experiment)
    await append(redis, keys, [event(experiment, number) for number in range(60)])
    keeper = ExperimentKeeper(redis, keys)
    assert [await keeper.step() for _ in range(3)] == [120, 0, 0], "each entry for rewards, and for their absence"
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert (found.whole, found.events) == (True, 20)
    assert not await redis.exists(keys.experiment_units(experiment.id, 1))


async def test_one_with_rewards_to_come_is_not_over(redis: Redis, keys: Keys) -> None:
    experiment = experiment_of(starts=STARTS, ends=3_000.0)
    await begin(redis, keys, experiment)
    await redis.zadd(keys.partition().pending, {"d1": 3_000_000 + 600_000})  # decided as it ended
    await ExperimentKeeper(redis, keys).step()
    assert not (await experiment_store.read_sums(redis, keys, experiment)).whole
    await redis.zrem(keys.partition().pending, "d1")
    await ExperimentKeeper(redis, keys).step()
    assert (await experiment_store.read_sums(redis, keys, experiment)).whole


async def test_rewards_wait_for_the_absence_of_those_of_their_time(redis: Redis, keys: Keys) -> None:
    """Else users who click would be there before the others."""
    experiment = experiment_of(starts=STARTS)
    await begin(redis, keys, experiment)
    at = 1000 * await now(redis)
    waiting, keeper = round(at) + 300_000, ExperimentKeeper(redis, keys)  # decided 300 s ago, of 600
    await redis.zadd(keys.partition().pending, {"d0": waiting})
    events = [
        replace(event(experiment, number), position=f"{round(at) - 1000 * ago}-0", source=source)
        for number, (ago, source) in enumerate(
            [(400, "feedback"), (390, "default"), (200, "feedback"), (9, "default")], 40
        )
    ]
    await append(redis, keys, events)
    await keeper.step()
    assert (await experiment_store.read_sums(redis, keys, experiment)).moments[:, 0, 1:4].sum(axis=0)[
        [0, 2]
    ].tolist() == [3, 1]
    await redis.zrem(keys.partition().pending, "d0")
    await keeper.step()
    found = await experiment_store.read_sums(redis, keys, experiment)
    assert found.moments[:, 0, 1:4].sum(axis=0)[[0, 2]].tolist() == [4, 2]
    assert await keeper.step() == 0


async def test_the_task_ends_where_there_is_no_experiment(redis: Redis, keys: Keys) -> None:
    await ExperimentKeeper(redis, keys).run(asyncio.Event(), Bell(awake=True))
    with pytest.raises(NotFound):
        await ExperimentKeeper(redis, keys).step()


async def test_a_backup_holds_what_is_known(redis: Redis, quiet_redis: Redis, keys: Keys, tmp_path: Path) -> None:
    """And the units, so that it goes on where it was."""
    experiment = experiment_of(starts=STARTS, holdout=0.3)
    await begin(redis, keys, experiment)
    await append(redis, keys, [event(experiment, number) for number in range(60)])
    await ExperimentKeeper(redis, keys).step()
    await write_backup(redis, tmp_path / "backup", [keys.loop])
    await restore_backup(quiet_redis, tmp_path / "backup", into="again")
    again = await loop_store.read_loop(quiet_redis, "again")
    assert again.experiments == {experiment.name: experiment}
    before = await read_experiment(redis, keys.loop, experiment.name)
    assert await read_experiment(quiet_redis, "again", experiment.name) == before.model_copy(update={"loop": "again"})
    copies = [
        await one.hgetall(where.experiment_units(experiment.id, 1))
        for one, where in ((redis, keys), (quiet_redis, Keys("again", again.id)))
    ]
    assert copies[0] == copies[1] != {}


async def test_the_command_shows_what_was_found(
    redis: Redis, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = experiment_of(starts=STARTS, holdout=0.3, guardrails={"reported": 0.1})
    await begin(redis, keys, experiment)
    await append(redis, keys, [event(experiment, number) for number in range(60)])
    await ExperimentKeeper(redis, keys).step()
    monkeypatch.setattr(cli, "console", Console(width=120))
    words = ["experiment", "--loop", keys.loop, "--redis", redis_url]

    def run(*more: str) -> Result:
        return CliRunner().invoke(cli.app, [*words, *more])

    done = await asyncio.to_thread(run)
    assert done.exit_code == 0, done.output
    for said in ("prices, running since 1970-01-01", "bold", "(left out)", "reported open", "nothing can be said yet"):
        assert said in done.output
    [found] = json.loads((await asyncio.to_thread(run, "prices", "--json")).output)
    assert found == (await read_experiment(redis, keys.loop, "prices")).model_dump(mode="json")
    assert (await asyncio.to_thread(run, "none")).exit_code == 1
    done = await asyncio.to_thread(run, "prices", "--report", str(tmp_path / "x.html"))
    assert done.exit_code == 0, done.output
    assert "<h1>• bold: nothing can be said yet" in (tmp_path / "x.html").read_text()
    assert (await asyncio.to_thread(run, "--report", "x.html")).exit_code == 2, "a report is of one experiment"


async def test_what_is_not_to_be_trusted_ends_with_a_fault(redis: Redis, redis_url: str, keys: Keys) -> None:
    experiment = experiment_of(starts=STARTS)
    await begin(redis, keys, experiment)
    lopsided = np.zeros((3, 7, 7))
    lopsided[:, 0, 0] = 900, 100, 0
    sums = SumsRecord(positions=("1-0", "1-0"), moments=lopsided)
    assert await experiment_store.save(redis, keys, experiment, seen=SumsRecord(), sums=sums, units={})
    words = ["experiment", "prices", "--loop", keys.loop, "--redis", redis_url]
    done = await asyncio.to_thread(CliRunner().invoke, cli.app, words)
    assert done.exit_code == 1
    assert "do not trust this" in done.output


def test_a_unit_takes_as_much_room_as_is_said() -> None:
    assert ROW.size == 57
