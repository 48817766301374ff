"""The data contract: each fault is planted, seen, and gone after it is over; a clean run is silent all the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.represent.fields import Categorical, Numeric
from service.represent.notices import CODES, Notice, notices_of
from service.represent.profile import Profile
from service.represent.schema import FeatureSchema
from tests.represent.streams import START, Change, events, profile_of

N, BEGIN = 2000, 1400
Event = dict[str, Any]
Random = np.random.Generator


def notices(profile: Profile, reward_range: tuple[float, float] = (0.0, 1.0)) -> list[Notice]:
    return notices_of(profile, reward_range=reward_range)


def found(profile: Profile) -> set[tuple[str, str | None]]:
    return {(notice.code, notice.path) for notice in notices(profile)}


def put(path: str, value: Any) -> Change:
    """Plant a value, or what a function of (number, generator) gives, in the context."""

    def change(event: Event, number: int, rng: Random) -> None:
        event["context"][path] = value(number, rng) if callable(value) else value

    return change


def scaled(event: Event, number: int, rng: Random) -> None:
    event["context"]["age"] *= 100


def outliers(event: Event, number: int, rng: Random) -> None:
    if number % 6 == 0:
        event["context"]["age"] = 99_999


def as_text(event: Event, number: int, rng: Random) -> None:
    event["context"]["code"] = str(event["context"]["code"])


def dropped(event: Event, number: int, rng: Random) -> None:
    del event["context"]["segment"]


def shorter(event: Event, number: int, rng: Random) -> None:
    event["context"]["taste"] = event["context"]["taste"][:10]


def all_same(event: Event, number: int, rng: Random) -> None:
    event["features"] = {"kind": "thing"}


def twice(event: Event, number: int, rng: Random) -> None:
    if event["item"] == "i7":
        event["features"] = {"price": 5.0 + 4.75 * 8, "kind": "k0", "new": True}


def nothing_known(event: Event, number: int, rng: Random) -> None:
    event["context"], event["user"] = {"page": "home"}, None


def stranger(event: Event, number: int, rng: Random) -> None:
    event["user"] = f"session-{number}"


def ids_as_names(event: Event, number: int, rng: Random) -> None:
    event["context"]["seen"] = {f"p{number}-{i}": 1 for i in range(3)}


def no_reward(event: Event, number: int, rng: Random) -> None:
    event["reward"] = 0.0


def small(event: Event, number: int, rng: Random) -> None:
    event["reward"] = float(rng.random() < 0.3) * 0.08


# What is planted, from which event on → the code, the path that it names
PLANTED: list[tuple[str, Change, int, str | None]] = [
    ("unseen_field", put("extra", lambda number, rng: f"e{rng.integers(3)}"), BEGIN, "extra"),
    ("vanished_field", dropped, BEGIN, "segment"),
    ("unseen_levels", put("segment", lambda number, rng: f"t{rng.integers(4)}"), BEGIN, "segment"),
    ("changed_type", as_text, BEGIN, "code"),
    ("out_of_range", outliers, BEGIN, "age"),
    ("changed_scale", scaled, BEGIN, "age"),
    ("wrong_size", shorter, BEGIN, "taste"),
    ("constant_field", put("segment", "s1"), BEGIN, "segment"),
    ("saturated_field", put("age", lambda number, rng: 100 if rng.random() < 0.97 else 40), BEGIN, "age"),
    ("constant_field", put("shop", "main"), 0, "shop"),
    ("new_each_time", put("request_id", lambda number, rng: f"{rng.integers(2**60):x}"), 0, "request_id"),
    ("new_each_time", put("request_id", lambda number, rng: int(rng.integers(2**60))), 0, "request_id"),
    ("clock", put("time", lambda number, rng: 1.7e9 + number + float(rng.random())), 0, "time"),
    ("clock", put("time", lambda number, rng: f"2026-11-{1 + number // 1000:02}T{number % 1000:04}"), 0, "time"),
    ("clock", put("counter", lambda number, rng: number), 0, "counter"),
    ("too_many_fields", ids_as_names, 0, None),
    ("constant_context", nothing_known, 0, None),
    ("users_once", stranger, 0, None),
    ("same_items", all_same, 0, None),
    ("same_items", twice, 0, None),
    ("narrow_rewards", small, 0, None),
    ("constant_rewards", no_reward, BEGIN - 700, None),
]


def test_every_code_is_planted() -> None:
    assert {code for code, *_ in PLANTED} == set(CODES)


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_run_is_silent_from_beginning_to_end(seed: int) -> None:
    profile = Profile()
    for number, event in enumerate(events(N, seed=seed)):
        profile.add(**event)
        if number % 100 == 99:
            assert notices(profile) == [], number


@pytest.mark.parametrize(("code", "change", "start", "path"), PLANTED, ids=[f"{p[0]}-{p[3]}" for p in PLANTED])
def test_a_planted_fault_is_seen_and_nothing_else(code: str, change: Change, start: int, path: str | None) -> None:
    profile = profile_of(N, change=change, start=start)
    told = notices(profile)
    assert [(notice.code, notice.path) for notice in told] == [(code, path)]
    [notice] = told
    assert notice.count >= 3 or code == "same_items"
    assert notice.means.endswith(".")
    assert notice.do.endswith(".")
    if notice.first is not None and notice.last is not None:
        assert START <= notice.first.at <= notice.last.at <= START + 10 * N
        assert len(notice.last.value) <= 80


@pytest.mark.parametrize(("code", "change", "start", "path"), PLANTED, ids=[f"{p[0]}-{p[3]}" for p in PLANTED])
def test_a_notice_goes_when_its_fault_is_over(code: str, change: Change, start: int, path: str | None) -> None:
    """The fault ends at 2000. After 2600 more events nothing is said of it."""
    told = found(profile_of(N + 2600, change=change, start=start, end=N))
    # A field that the clean run does not have is missed, which is said instead.
    own = path if path not in (None, "segment", "code", "age", "taste") else "page" if change is nothing_known else None
    assert told == ({("vanished_field", own)} if own else set())


def test_a_change_that_stays_becomes_the_rule() -> None:
    assert ("changed_scale", "age") in found(profile_of(N, change=scaled, start=BEGIN))
    assert found(profile_of(BEGIN + 2200, change=scaled, start=BEGIN)) == set()


def test_examples_are_the_first_and_the_last_at_fault() -> None:
    [notice] = notices(profile_of(N, change=outliers, start=BEGIN))
    assert (notice.first and notice.first.value, notice.count) == ("99999", 100)
    assert notice.first is not None
    assert notice.first.at == pytest.approx(START + 10 * BEGIN, abs=60)


def test_a_declared_schema_is_what_values_are_compared_with() -> None:
    schema = FeatureSchema(
        context={
            "age": Numeric(type="numeric", min=20, max=60),
            "code": Categorical(type="categorical", levels=["1001", "1002", "1003"]),
            "segment": Numeric(type="numeric", min=0, max=1),
        }
    )
    profile = Profile()
    profile.declare(schema)
    for event in events(600):
        profile.add(**event)
    assert found(profile) == {("out_of_range", "age"), ("unseen_levels", "code"), ("changed_type", "segment")}
    narrow = FeatureSchema(context={"age": Numeric(type="numeric", min=20, max=25)})
    profile.declare(narrow)
    assert found(profile) == set()
    for event in events(300):
        profile.add(**event)
    assert found(profile) == {("saturated_field", "age")}
    profile.declare(None)
    assert found(profile) == set()


def test_rewards_that_use_little_of_their_range() -> None:
    profile = profile_of(1500)
    [notice] = notices(profile, (0.0, 1000.0))
    assert (notice.code, notice.needs_person) == ("narrow_rewards", True)
    assert "[0, 1]" in notice.do
    [dealt_with] = notices_of(profile, reward_range=(0.0, 1000.0), fits=True)
    assert (dealt_with.code, dealt_with.needs_person) == ("narrow_rewards", False)
    assert notices(profile, (-1.0, 1.0)) == []


@pytest.mark.parametrize("rate", [0.01, 0.003])
def test_rare_clicks_are_no_fault(rate: float) -> None:
    def rare(event: Event, number: int, rng: Random) -> None:
        event["reward"] = float(number == 5 or rng.random() < rate)

    for n in (600, 1200, 2400):
        assert "narrow_rewards" not in {code for code, _ in found(profile_of(n, change=rare))}


def test_users_without_a_context_are_no_fault() -> None:
    def ids_only(event: Event, number: int, rng: Random) -> None:
        event["context"], event["features"] = {}, {}

    assert found(profile_of(N, change=ids_only)) == set()


def test_many_users_that_come_back_are_no_fault() -> None:
    def many(event: Event, number: int, rng: Random) -> None:
        event["user"] = f"u{rng.integers(10_000)}"

    for n in (1100, 2000):
        assert found(profile_of(n, change=many)) == set()


def shop(number: int, rng: Random) -> dict[str, Any]:
    """A context as a real shop may send it: what stays, what drifts, what comes and goes, what is skewed."""
    hour = number // 60 % 24
    return {
        "weekday": f"day {number // 1440}",
        "hour": hour,
        "celsius": 12 + 8 * np.sin(hour / 4) + rng.normal() / 3,
        "stock": 800 - number % 800,
        "page": f"landing {number // 600 - rng.integers(4)}",
        "city": f"c{int(rng.zipf(1.6)) % 3000}",
        "spent": float(rng.lognormal(3, 1.5)) if rng.random() < 0.3 else 0.0,
        "ratio": float(rng.standard_cauchy()),
        "rarely": bool(rng.random() < 0.002),
        "session": f"s{number // 6}",
        "cart": [f"p{i}" for i in rng.integers(0, 200, rng.integers(0, 4))],
        "score": None if rng.random() < 0.7 else float(rng.random()),
    }


@pytest.mark.slow
def test_what_is_usual_in_a_shop_is_no_fault() -> None:
    """Weekdays, temperatures, new pages and sessions change, and need nobody. Pages are news at first."""

    def usual(event: Event, number: int, rng: Random) -> None:
        event["context"] = shop(number, rng)
        event["item"] = f"i{number // 50 + int(rng.integers(40))}"
        event["features"] = {"title": f"The {event['item']}", "price": rng.random()}

    profile = Profile()
    for number, event in enumerate(events(6000, change=usual)):
        profile.add(**event)
        if number % 200 == 199:
            told = {(notice.code, notice.path) for notice in notices(profile) if notice.needs_person}
            assert told <= {("unseen_levels", "page")}, number
    assert told == set(), "new pages are the rule by now"
