"""What an experiment says: the formulas against simpler ones, false alarms, and the sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from service.evaluate.experiment import (
    COLUMNS,
    METRICS,
    REWARD,
    REWARD_BEFORE,
    SHOWN,
    Findings,
    findings,
    lift_of,
    mean_of,
    moments,
)
from service.evaluate.sequential import planned_for
from service.policies import Array
from tests.evaluate.experiments import Pair, by_new_users, by_returning_users, fresh, heavy

HALVES = {"control": 0.5, "bold": 0.5}


def drawn(seed: int, size: int, *, lift: float = 0.0) -> tuple[Array, Array]:
    """Draw the units of control and arm."""
    units, arm = fresh(np.random.default_rng(seed), size, lift=lift, rate=0.2)
    return units[arm == 0], units[arm == 1]


def said(pair: Pair, **changes: object) -> Findings:
    options = {"metric": "reward", "guardrails": {}, "minimum_effect": 0.05, "confidence": 0.95, "days": 4.0}
    arms = dict(zip(HALVES, pair, strict=True))
    return findings(arms, HALVES, control="control", **options | changes)  # type: ignore[arg-type]  # its options


@pytest.mark.parametrize("metric", METRICS)
def test_the_error_of_a_metric_is_that_of_its_linear_parts(metric: str) -> None:
    """And about that of a jackknife, which knows no formula."""
    units, _ = drawn(1, 800)
    of, per = units[:, METRICS[metric].of], units[:, METRICS[metric].per]
    found = mean_of(moments(units), METRICS[metric])
    ratio = of.sum() / per.sum()
    parts = (of - ratio * per) / per.mean()
    assert found == pytest.approx((ratio, parts.std(ddof=1) / np.sqrt(len(units))))
    without = (of.sum() - of) / (per.sum() - per)
    assert found.error == pytest.approx(np.sqrt(((without - ratio) ** 2).sum()), rel=0.02)


def test_a_user_s_decisions_are_one_unit() -> None:
    """To say the same ten times is to say it once."""
    units, _ = drawn(2, 400)
    again = units * np.array([1, *[10.0] * (COLUMNS - 1)])
    for name in ("reward", "reported"):
        assert mean_of(moments(again), METRICS[name]) == pytest.approx(mean_of(moments(units), METRICS[name]))


def test_the_time_before_takes_out_what_it_explains() -> None:
    """The lift is right with and without, and as uncertain as is said."""
    found: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for seed in range(40):
        pair = [moments(units) for units in drawn(seed, 1500, lift=0.1)]
        blind = [one.copy() for one in pair]
        for one in blind:
            one[4:] = one[:, 4:] = 0.0
        for sees, (control, arm) in ((True, pair), (False, blind)):
            lift = lift_of(control, arm, METRICS["reward"], error=0.05, planned=1000.0)
            assert lift is not None
            found[sees].append((lift.lift.estimate, lift.variance, lift.reduced))
    variance = {}
    for sees, lifts in found.items():
        estimates, variances, reduced = np.array(lifts).T
        assert np.sqrt(variances.mean()) == pytest.approx(estimates.std(), rel=0.3)
        assert abs(estimates.mean() - 0.1) < 4 * estimates.std() / np.sqrt(40)
        assert reduced.mean() > 0.05 if sees else reduced.max() < 1e-9
        variance[sees] = variances.mean()
    share = np.array(found[True])[:, 2].mean()
    assert variance[True] == pytest.approx(variance[False] * (1 - share), rel=0.05)


def test_the_slope_is_that_of_least_squares() -> None:
    units = drawn(3, 600)
    found = lift_of(moments(units[0]), moments(units[1]), METRICS["reward"], error=0.05, planned=1.0)
    assert found is not None
    before = np.concatenate(units)
    rate = before[:, REWARD_BEFORE].sum() / before[:, 4].sum()
    values, covariates, weights = [], [], []
    for one in units:
        ratio = one[:, REWARD].sum() / one[:, SHOWN].sum()
        values.append((one[:, REWARD] - ratio * one[:, SHOWN]) / one[:, SHOWN].mean())
        covariates.append(one[:, REWARD_BEFORE] - rate * one[:, 4])
        weights.append(np.full(len(one), 1 / len(one) ** 2))
    centred = np.concatenate([x - x.mean() for x in covariates])
    weight = np.concatenate(weights)
    slope = (weight * centred * np.concatenate(values)).sum() / (weight * centred**2).sum()
    middle = np.concatenate(covariates).mean()
    means = [
        one[:, REWARD].sum() / one[:, SHOWN].sum() - slope * (x.mean() - middle)
        for one, x in zip(units, covariates, strict=True)
    ]
    assert found.lift.estimate == pytest.approx(means[1] / means[0] - 1)


Looks = Callable[[np.random.Generator], Iterator[Pair]]


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param(lambda rng: by_new_users(rng, 20), id="new users"),
        pytest.param(lambda rng: by_new_users(rng, 20, rate=0.03, spread=0.03), id="rare clicks"),
        pytest.param(lambda rng: by_returning_users(rng, 20, users=300), id="users who return"),
        pytest.param(lambda rng: by_returning_users(rng, 20, users=600, once=True), id="users who click once"),
        pytest.param(lambda rng: heavy(rng, 10), id="large rewards"),
    ],
)
def test_a_comparison_of_the_same_with_the_same_raises_few_alarms(looks: Looks) -> None:
    """30 runs of 20 looks; the benchmark plays 1 000 of 100."""
    assert sum(alarm(looks(np.random.default_rng(seed))) for seed in range(30)) <= 4  # P < .02 at 5 %


def test_the_alarm_can_be_raised() -> None:
    assert alarm(by_new_users(np.random.default_rng(1), 20, each=1000, lift=0.3))


def alarm(looks: Iterator[Pair]) -> bool:
    """Return whether any look finds a difference."""
    planned = planned_for(0.1, error=0.05)
    found = [lift_of(control, arm, METRICS["reward"], error=0.05, planned=planned) for control, arm in looks]
    return any(one is not None and (one.lift.low > 0 or one.lift.high < 0) for one in found)


# ---- what is said


def test_a_clear_difference_is_said_and_its_sign() -> None:
    control, arm = drawn(1, 20_000, lift=0.2)
    better, worse = said((moments(control), moments(arm))), said((moments(arm), moments(control)))
    assert (better.code, better.verdicts[0].code, worse.verdicts[0].code) == ("settled", "better", "worse")
    assert better.says.startswith("bold is better by ")
    assert better.says.endswith("; you may stop")
    lift = better.verdicts[0].lift
    assert lift is not None
    assert lift.lift.low < 0.2 < lift.lift.high


def test_no_difference_that_matters_is_said_too() -> None:
    control, arm = drawn(4, 20_000)
    found = said((moments(control), moments(arm)), minimum_effect=0.2)
    assert (found.code, found.verdicts[0].code) == ("settled", "same")
    assert found.says == "bold differs from 20.0% either way by less; you may stop"


def test_the_days_that_are_missing_get_fewer_and_end() -> None:
    """At the same rate, information grows with the days: half of what is needed needs as many days more."""
    looks = [
        pair for number, pair in enumerate(by_new_users(np.random.default_rng(1), 40, each=1000)) if number % 8 == 7
    ]
    found = [said(pair, days=float(8 * number + 8)) for number, pair in enumerate(looks)]
    left = [one.verdicts[0].days for one in found if one.code == "open"]
    totals = [8 * number + 8 + days for number, days in enumerate(left) if days is not None]
    assert all(totals[number] > 8 * number + 8 for number in range(len(totals)))
    assert max(totals[:3]) < 1.2 * min(totals[:3])
    assert "nothing can be said yet" in found[0].says
    assert found[0].says.endswith(" days more")


def test_a_split_that_is_not_what_was_asked_for_comes_first() -> None:
    control, arm = drawn(1, 20_000, lift=0.2)
    found = said((moments(control), moments(arm[: len(arm) * 9 // 10])))
    assert found.code == "mismatch"
    assert found.says.startswith("do not trust this")


def test_guard_rails() -> None:
    control, arm = drawn(1, 20_000, lift=-0.3)
    found = said((moments(control), moments(arm)), metric="shown", guardrails={"reward": 0.02, "shown": 0.2})
    assert {one.metric: one.verdict for one in found.verdicts[0].guardrails} == {"reward": "broken", "shown": "ok"}
    assert found.code == "broken"
    assert found.says.startswith("stop: reward of bold fell by ")
    few = said((moments(control[:100]), moments(arm[:100])), guardrails={"reported": 0.02})
    assert few.verdicts[0].guardrails[0].verdict == "open"


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_units_say_nothing(rows: int) -> None:
    control, arm = drawn(1, 1000)
    found = said((moments(control), moments(arm[:rows])), guardrails={"reward": 0.1})
    assert found.verdicts[0].lift is None
    nothing = np.zeros((COLUMNS, COLUMNS))
    assert said((nothing, nothing)).code == "open"


def test_rewards_of_nothing_say_nothing() -> None:
    """A mean of 0 has no lift; one below 0 has: less of a loss is better."""
    control, arm = drawn(1, 4000, lift=0.3)
    loss = np.array([1, 1, -1, 1, 1, -1, 1.0])
    found = said((moments(control * loss), moments(arm * loss)))
    assert found.verdicts[0].code == "worse"
    none = np.array([1, 1, 0, 1, 1, 0, 1.0])
    assert said((moments(control * none), moments(arm * none))).verdicts[0].lift is None
