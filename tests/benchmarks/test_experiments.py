"""Plays experiments whose truth is known: false alarms, power, time to a decision, and splits that lose units.

make bench ARGS='-s tests/benchmarks/test_experiments.py'            # 1 000 runs a row; minutes

A user has a taste of his own and about four visits, and as many before the experiment. There is a look after every
100 users, 100 in all; where users return, after every 100 visits. An alarm is a look at which the interval of the lift
excludes 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from redis.asyncio import Redis

from service.decide.assignment import Assigner
from service.evaluate.experiment import METRICS, lift_of, mean_of
from service.evaluate.sequential import information_needed, mismatch, planned_for
from service.learn.experiments import ExperimentKeeper
from service.store import experiment_store
from service.store.codec import experiments_bytes
from tests.builders import event_of, experiment_of, fields_of, loop_of, store_loop
from tests.evaluate.experiments import Pair, by_new_users, by_returning_users, heavy

ERROR = 0.05
REWARD = METRICS["reward"]
Looks = Callable[[np.random.Generator], Iterator[Pair]]

SAME: dict[str, Looks] = {
    "new users": lambda rng: by_new_users(rng, 100),
    "rare clicks (1 %)": lambda rng: by_new_users(rng, 100, rate=0.01, spread=0.02),
    "large rewards (log-normal, σ 1.5)": lambda rng: heavy(rng, 100),
    "500 users who return": lambda rng: by_returning_users(rng, 100, users=500),
    "2 000 users who click once": lambda rng: by_returning_users(rng, 100, users=2000, once=True),
}


def first_alarm(looks: Iterator[Pair], effect: float) -> int | None:
    """Return the number of the first look, from 1 on, that finds a difference."""
    planned = planned_for(effect, error=ERROR)
    for number, (control, arm) in enumerate(looks, 1):
        found = lift_of(control, arm, REWARD, error=ERROR, planned=planned)
        if found is not None and (found.lift.low > 0 or found.lift.high < 0):
            return number
    return None


@pytest.mark.parametrize("name", SAME)
def test_the_same_against_the_same(name: str, quick: bool) -> None:
    """At most 5 % of runs raise an alarm at any of 100 looks; an interval for one look would at many."""
    runs = 20 if quick else 1000
    z = NormalDist().inv_cdf(1 - ERROR / 2)
    alarms = {0.02: 0, 0.1: 0}
    peeks = 0
    for seed in range(runs):
        looks = list(SAME[name](np.random.default_rng(seed)))
        for effect in alarms:
            alarms[effect] += first_alarm(iter(looks), effect) is not None
        means = [[mean_of(one, REWARD) for one in pair] for pair in looks]
        peeks += any(abs(two.value - one.value) > z * math.hypot(one.error, two.error) for one, two in means)
    for effect, found in alarms.items():
        print(f"| {name}, minimum effect {effect:.0%} | {100 * found / runs:.1f} % |")
        assert quick or found <= 0.05 * runs
    print(f"| {name}, an interval for one look at each | {100 * peeks / runs:.1f} % |")


@pytest.mark.parametrize("lift", [0.02, 0.05, 0.1])
def test_power_and_time_to_a_decision(lift: float, quick: bool) -> None:
    """Looked at 100 times, up to what is needed for the minimum effect; a test for one look has 80 % at its end."""
    runs = 5 if quick else 200
    [(control, arm)] = by_new_users(np.random.default_rng(1000), 1, each=200_000)
    pilot = lift_of(control, arm, REWARD, error=ERROR, planned=1.0)
    assert pilot is not None
    each_user = pilot.variance * 200_000
    z = NormalDist().inv_cdf(1 - ERROR / 2) + NormalDist().inv_cdf(0.8)
    fixed = each_user * (z / lift) ** 2
    planned = planned_for(lift, error=ERROR)
    most = each_user * information_needed(lift, error=ERROR, power=0.8, planned=planned)
    each = math.ceil(most / 100)
    found = [
        first_alarm(by_new_users(np.random.default_rng(seed), 100, each=each, lift=lift), lift) for seed in range(runs)
    ]
    users = sorted(each * one for one in found if one is not None)
    at_fixed = sum(one <= fixed for one in users) / runs
    double = [
        first_alarm(by_new_users(np.random.default_rng(seed), 100, each=each, lift=2 * lift), lift)
        for seed in range(runs // 2)
    ]
    print(
        f"| {lift:.0%} | {fixed:,.0f} | {most:,.0f} | {100 * len(users) / runs:.0f} % | {100 * at_fixed:.0f} % |"
        f" {np.median(users):,.0f} | {np.median([each * one for one in double if one is not None]):,.0f} |"
    )
    assert quick or len(users) >= 0.8 * runs


def test_splits_that_lose_units(quick: bool) -> None:
    """Looked at after each 1 000 units, up to two million; of clean ones at most 1 % are found."""
    runs, looks = (20, 100) if quick else (1000, 2000)
    rng = np.random.default_rng(1)
    steps = np.unique(np.geomspace(1, looks, 150).astype(int))  # looks, for the clean ones all that matter
    for lost in (0.0, 0.01, 0.02, 0.1):
        found = []
        for _ in range(runs if lost == 0 else runs // 10):
            arms = rng.multinomial(1000, [0.5, 0.5 * (1 - lost), 0.5 * lost], size=looks)[:, :2].cumsum(axis=0)
            found.append(next((int(at) for at in steps if mismatch(arms[at - 1].tolist(), [0.5, 0.5]) < 0.01), None))
        when = [1000 * at for at in found if at is not None]
        share = f"{100 * len(when) / len(found):.1f} %"
        print(f"| {lost:.0%} | {share} | {np.median(when):,.0f} |" if when else f"| {lost:.0%} | {share} | - |")
        assert quick or (len(when) <= 0.01 * len(found) if lost == 0 else len(when) == len(found))


@pytest.mark.anyio
async def test_cost_of_the_sums(quiet_redis: Redis, quick: bool) -> None:
    """CPU of the learner for an event, and bytes in Redis for a unit: 200 000 users with an event each."""
    users = 5_000 if quick else 200_000
    experiment = experiment_of(starts=0.0)
    keys = await store_loop(quiet_redis, loop_of())
    await quiet_redis.hset(keys.record, "experiments", experiments_bytes({experiment.name: experiment}))
    assigner, row = Assigner(experiment), np.zeros(4)
    for start in range(0, users, 1000):
        async with quiet_redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 1000):
                user = f"user-{number * 7919 % users}"
                fell = assigner.assignment(user, f"d{number}", at=1e9)
                one = replace(event_of(number, user=user, x=row), experiment=fell)
                pipe.xadd(keys.partition().events, fields_of(one), id=f"{10**12 + number}-0")
            await pipe.execute()
    before, keeper = (await quiet_redis.info("memory"))["used_memory"], ExperimentKeeper(quiet_redis, keys)
    started = time.process_time()
    while await keeper.step():
        pass
    spent = time.process_time() - started
    found = await experiment_store.read_sums(quiet_redis, keys, experiment)
    size = (await quiet_redis.info("memory"))["used_memory"] - before
    assert found.moments[:, 0, 0].sum() == users
    print(f"| {users:,} units | {1e6 * spent / found.events:.0f} µs CPU an event | {size / users:.0f} bytes a unit |")
