"""The latent world is exactly the generator that it is said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.shocks import find_shock
from simulator.world import latent
from simulator.world.latent import ITEMS, USERS, Latent, Tastes, calibrate

AT = 500
SEED = 1  # the worlds of other tests are of this seed, too, and it takes a second to make one


@pytest.fixture(scope="module")
def world() -> Latent:
    return Latent(SEED, [(AT, find_shock("latent", "taste-redraw"))])


@pytest.fixture(scope="module")
def states(world: Latent) -> tuple[Tastes, Tastes]:
    return world.state(0), world.state(AT)


def some_users(tastes: Tastes, count: int) -> Tastes:
    """The same tastes with the first users alone."""
    people = tastes.population
    fewer = replace(people, users=people.users[:count], blurred=people.blurred[:count])
    return replace(tastes, population=fewer, rates=tastes.rates[:count])


def test_rates_are_calibrated_before_and_after_the_shock(states: tuple[Tastes, Tastes]) -> None:
    for tastes in states:
        assert tastes.rates.shape == (USERS, ITEMS)
        assert tastes.rates.mean() == pytest.approx(0.012, rel=1e-9)
        assert tastes.rates.max(axis=1).mean() == pytest.approx(0.10, rel=1e-9)
        assert 0.5 < tastes.s < 1.5


def test_a_rate_by_hand(states: tuple[Tastes, Tastes]) -> None:
    for t in states:
        p = t.population
        for user, item in ((0, 0), (7, 499), (1999, 250)):
            u, v = p.users[user], p.items[item]
            h = sum(w * np.tanh(a @ u + b @ v) for w, a, b in zip(t.output, t.of_user, t.of_item, strict=True))
            liking = 0.75 * u @ t.bilinear @ v + 0.5 * (h - t.centre) / t.spread + p.quality[item]
            assert t.rates[user, item] == pytest.approx(1 / (1 + np.exp(-(t.a + t.s * liking))), rel=1e-9)
        assert t.rates_for(p.users[:5]) == pytest.approx(t.rates[:5])


def test_each_part_has_the_spread_it_is_said_to_have(states: tuple[Tastes, Tastes]) -> None:
    tastes, _ = states
    p = tastes.population
    # standard errors: sd / √(2 × numbers drawn); four of them each
    for drawn, sd in (
        (p.users, 1),
        (p.items, 1),
        (p.blurred - p.users, 0.4),
        (p.quality, 0.4),
        (tastes.bilinear, 1 / 16),
        (tastes.of_user, 1 / 4),
        (tastes.of_item, 1 / 4),
        (tastes.output, 1 / 4),
    ):
        assert drawn.std() == pytest.approx(sd, rel=4 / (2 * drawn.size) ** 0.5)
    h = latent._network(p.users, p.items, tastes.of_user, tastes.of_item, tastes.output)
    h = (h - tastes.centre) / tastes.spread
    assert h.mean() == pytest.approx(0, abs=1e-9)
    assert h.std() == pytest.approx(1)


def test_the_service_sees_the_blurred_user_and_the_item(world: Latent) -> None:
    p = world.state(0).population
    for step in range(50):
        moment = world.at(step)
        user = int(moment.visit.user_id.removeprefix("user-"))
        assert moment.rates.tolist() == world.state(0).rates[user].tolist()
        assert moment.visit.context["taste"] == pytest.approx(p.blurred[user] / (6.5 * 1.16**0.5))
        assert moment.visit == world.visit_of(user), "the noise is the user's, not the visit's"
    shown = np.array([item.features["style"] for item in world.catalogue(0).items])
    assert shown == pytest.approx(p.items / 6.5)
    lengths = np.linalg.norm([*shown, *(visit.context["taste"] for visit in p.visits)], axis=1)
    assert (lengths > 1).mean() < 0.002, "the encoder would shorten them to 1"


def test_a_redraw_changes_tastes_and_nothing_else(world: Latent, states: tuple[Tastes, Tastes]) -> None:
    before, after = states
    assert after.population is before.population
    assert abs(np.corrcoef(before.bilinear.ravel(), after.bilinear.ravel())[0, 1]) < 4 / 16
    calm = Latent(SEED)
    assert np.array_equal(world.at(AT - 1).rates, calm.at(AT - 1).rates)
    old, new = calm.at(AT), world.at(AT)
    assert old.visit == new.visit
    assert old.catalogue is new.catalogue
    assert np.array_equal(old.click_draws, new.click_draws)
    chosen = before.rates.argmax(axis=1)
    assert after.rates[np.arange(USERS), chosen].mean() < 0.04, "the old favourites are worth little: quality remains"


def test_it_follows_from_the_seed(states: tuple[Tastes, Tastes]) -> None:
    again, other = (latent._initial_tastes.__wrapped__(seed) for seed in (SEED, SEED + 1))
    assert np.array_equal(again.rates, states[0].rates)
    assert not np.array_equal(other.population.users, again.population.users)


def test_clicks_come_at_the_expected_rate(world: Latent) -> None:
    outcomes = np.array([moment.outcome(f"item-{moment.rates.argmax():03}") for moment in map(world.at, range(4000))])
    expected, clicked = outcomes.mean(axis=0)
    assert clicked == pytest.approx(expected, abs=4 * 0.3 / 4000**0.5)


def test_noise_in_users_costs_a_little(states: tuple[Tastes, Tastes]) -> None:
    tastes = some_users(states[0], 400)
    rows = np.arange(400)
    best = tastes.observable(np.random.default_rng(0), draws=2)
    share = tastes.rates[rows, best].mean() / tastes.rates.max(axis=1).mean()
    # taking the posterior mean for the truth is about as good
    naive = tastes.rates[rows, tastes.rates_for(tastes.population.blurred / 1.16).argmax(axis=1)]
    assert 0.88 < share < 0.96
    assert share == pytest.approx(naive.mean() / tastes.rates.max(axis=1).mean(), abs=0.02)


@pytest.mark.parametrize(("mean", "best"), [(0.012, 0.10), (0.05, 0.3), (0.2, 0.9), (0.01, 0.012)])
def test_calibration_meets_both_means(mean: float, best: float) -> None:
    liking = np.random.default_rng(1).normal(size=(200, 50))
    a, s = calibrate(liking, mean=mean, best=best)
    rates = 1 / (1 + np.exp(-(a + s * liking)))
    assert s > 0
    assert rates.mean() == pytest.approx(mean, rel=1e-9)
    assert rates.max(axis=1).mean() == pytest.approx(best, rel=1e-9)


def test_calibration_says_when_there_is_none() -> None:
    with pytest.raises(ArithmeticError, match="calibration"):
        calibrate(np.random.default_rng(1).normal(size=(200, 50)), mean=0.1, best=0.05)


def test_history_is_random_and_from_before_the_shock() -> None:
    calm = Latent(SEED)
    events = list(calm.history(3000))
    assert {event["propensity"] for event in events} == {1 / ITEMS}
    assert len({event["item_id"] for event in events}) > 450
    rate = np.mean([event["reward"] for event in events])
    assert rate == pytest.approx(0.012, abs=4 * (0.012 / 3000) ** 0.5)
