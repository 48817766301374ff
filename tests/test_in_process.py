"""The benchmarks' run in one process: it learns what the service learns, and delays rewards as told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.learn.runner import PolicyRunner
from service.policies import Arrays
from service.records import Event, Training
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.settings import Settings
from service.store import policy_store
from service.store.codec import training_body, unpack
from service.store.keys import Keys
from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import InProcessRun, oracle, run_in_process
from tests.builders import fields_of, loop_of, store_loop

pytestmark = pytest.mark.anyio

RETRAINED = {"retrain_every": 150, "epochs": 1}


def petshop(shock: int | None = None) -> Petshop:
    """Make a pet shop, perhaps with a change of tastes at a step."""
    return Petshop(3, [] if shock is None else [(shock, find_shock("petshop", "taste-swap"))])


def short_run(kind: str, params: Mapping[str, Any], **arguments: Any) -> InProcessRun:
    given = {"world": petshop(200), "steps": 401, "snapshot_period": 80, "reward_delay": 40, **arguments}
    return run_in_process(kind, params, **given)


async def learn_with_runner(redis: Redis, settings: Settings, run: InProcessRun) -> Keys:
    """Put the log of a run into Redis and let the service's runner learn the same policy from it."""
    encoder = Encoder(FeatureSchema.model_validate(Petshop.schema))
    keys = await store_loop(
        redis, replace(loop_of(d=encoder.d), encoder=encoder.version, schema=encoder.schema.model_dump(mode="json"))
    )
    await policy_store.create_policy(redis, keys, run.record)
    for entry in run.log:
        assert isinstance(entry, Event | Training)
        fields = fields_of(entry) if isinstance(entry, Event) else {b"c": training_body(entry.policy, run.record.id)}
        await redis.xadd(keys.partition().events, fields, id=entry.position)
    runner = PolicyRunner(redis, keys, run.record.name, settings)
    assert await runner.open()
    assert await runner.drain() == len(run.log)
    return keys


def bits(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the type, shape and bytes of each array."""
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("kind", "params", "history"),
    [("linucb", {}, 0), ("adaptive", {}, 250), ("embedding_mlp", RETRAINED, 0), ("embedding_mlp", RETRAINED, 250)],
    ids=["linucb", "adaptive with a history", "embedding_mlp", "embedding_mlp with a history"],
)
async def test_the_runner_learns_the_same_bit_for_bit(
    redis: Redis, settings: Settings, kind: str, params: Mapping[str, Any], history: int
) -> None:
    run = short_run(kind, params, history=history)
    keys = await learn_with_runner(redis, settings, run)
    stored = await policy_store.read_state(redis, keys, run.record.name)
    record = await policy_store.read_policy(redis, keys, run.record.name)
    assert stored is not None
    assert bits(run.trainer.state()) == bits(unpack(stored))
    assert (record.position, record.events) == (run.trainer.position, run.trainer.events)
    assert record.alarms == run.trainer.alarms


async def test_a_difference_of_one_event_shows() -> None:
    run, longer = short_run("linucb", {}), short_run("linucb", {}, reward_delay=39)
    assert bits(run.trainer.state()) != bits(longer.trainer.state())


async def test_a_policy_is_retrained_at_its_event_whatever_the_snapshot_period() -> None:
    """80 events are learned at a time, and a training is due after each 150."""
    run = short_run("embedding_mlp", RETRAINED)
    assert run.trainer.events == 360
    assert run.trainer.state()["rows"].tolist() == [300]


async def test_two_runs_are_the_same() -> None:
    one, other = (short_run("adaptive", {}) for _ in range(2))
    assert one.expected.tobytes() == other.expected.tobytes()
    assert one.log[-1].position == other.log[-1].position


async def test_rewards_and_silence_enter_the_log_when_they_are_due() -> None:
    """A snapshot at step s has learned all that arrived before s, in the order of arrival."""
    run = short_run("popularity", {}, reward_delay=5, silence_delay=150, steps=321)
    decided = np.array([entry.slate_position for entry in run.log if isinstance(entry, Event)])
    clicked = np.array([entry.reward for entry in run.log if isinstance(entry, Event)]) == 1.0
    arrivals = decided + np.where(clicked, 5, 150)
    assert (np.diff(arrivals) >= 0).all()
    assert arrivals.max() == 319
    assert set(decided.tolist()) >= set(range(170))
    assert (decided[clicked] >= 170).any()


async def test_nothing_is_learned_before_its_reward_has_arrived() -> None:
    """With the delay of a whole run the policy serves its prior all along."""
    run = short_run("linucb", {}, reward_delay=401)
    assert run.log == []
    assert run.trainer.events == 0
    assert run.update_us == 0.0


async def test_a_policy_that_learns_beats_a_uniform_choice_and_no_policy_beats_the_oracle() -> None:
    world = petshop()
    learned, uniform = (
        run_in_process(kind, {}, world=world, steps=1500, snapshot_period=20, reward_delay=0, floor=0.0)
        for kind in ("adaptive", "random")
    )
    best = oracle(world, 1500)
    assert (learned.expected <= best).all()
    assert learned.expected[500:].sum() > 0.8 * best[500:].sum() > 1.5 * uniform.expected[500:].sum()
    assert learned.alarms == []


async def test_a_change_of_tastes_raises_an_alarm_after_it() -> None:
    run = run_in_process("adaptive", {}, world=petshop(1500), steps=2500, snapshot_period=20, reward_delay=0, floor=0.0)
    assert run.alarms
    assert min(run.alarms) > 1500
    assert [alarm["reaction"] for alarm in run.trainer.alarms] == ["reset"]


async def test_the_exploration_floor_bounds_propensities() -> None:
    run = short_run("linucb", {}, floor=0.5)
    propensities = np.array([entry.propensity for entry in run.log if isinstance(entry, Event)])
    n = len(petshop().catalogue(0).items)
    assert propensities.min() == pytest.approx(0.5 / n)
