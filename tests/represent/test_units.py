"""Numbers that come in another unit from some value on: what the profile sees, and what the encoder makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.represent.field_profile import FieldProfile
from service.represent.fit import Raw, fit
from service.represent.learned import Bend, FormerUnit, LearnedEncoder, Line
from service.represent.profile import Profile

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator], float]

UNIFORM: Draw = lambda rng: float(rng.uniform(18, 80))  # noqa: E731
STEADY: Mapping[str, Draw] = {
    "uniform": UNIFORM,
    "whole": lambda rng: float(rng.integers(18, 80)),
    "normal": lambda rng: float(rng.normal(0.0, 3.0)),
    "prices": lambda rng: float(rng.lognormal(3.0, 1.5)),
    "mostly nothing": lambda rng: float(rng.exponential(10.0)) if rng.random() < 0.4 else 0.0,
    "two shops": lambda rng: float(rng.normal(10.0, 1.0) if rng.random() < 0.5 else rng.normal(1000.0, 50.0)),
    "outliers": lambda rng: float(rng.normal(10.0, 1.0) * (1000.0 if rng.random() < 0.1 else 1.0)),
    "codes": lambda rng: float(rng.integers(3)),
}
CHANGES: Mapping[str, Callable[[float], float]] = {
    "times 100": lambda v: 100.0 * v,
    "a hundredth": lambda v: v / 100.0,
    "kelvin": lambda v: v + 273.15,
}


def seen(numbers: Array) -> FieldProfile:
    field = FieldProfile("context", "age", 0)
    for record, number in enumerate(numbers.tolist(), 1):
        field.add(number, at=float(record), record=record)
    return field


def drawn(draw: Draw, n: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.array([draw(rng) for _ in range(n)])


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_one_unit_have_no_other(name: str, seed: int) -> None:
    assert seen(drawn(STEADY[name], 4000, seed)).former_unit == ()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("begins", [1500, 1537, 1599])
def test_another_unit_is_seen_within_128_values_and_the_quantiles_begin_anew(change: str, begins: int) -> None:
    numbers, its = drawn(UNIFORM, begins + 128, begins), CHANGES[change]
    numbers[begins:] = [its(number) for number in numbers[begins:].tolist()]
    field = seen(numbers)
    assert begins <= field.unit_from <= begins + 96
    assert field.former_unit[3] == pytest.approx(49.0, abs=5.0)
    assert field.unit[3] == pytest.approx(its(49.0), abs=abs(its(65.0) - its(49.0)))
    low, high = field.quantiles.at((0.0, 1.0))
    assert its(18.0) <= low <= high <= its(80.0)  # nothing of the former unit is among them


def test_a_unit_that_comes_back_is_the_one_of_now_again() -> None:
    numbers = drawn(UNIFORM, 2000, 1)
    numbers[700:1400] *= 100.0
    field = seen(numbers)
    assert field.unit[-1] < 100.0 < 1800.0 <= field.former_unit[0]


def test_a_state_keeps_the_units() -> None:
    numbers = drawn(UNIFORM, 1000, 2)
    numbers[500:] *= 100.0
    whole, halves = Profile(), Profile()
    for at, number in enumerate(numbers.tolist()):
        for profile in (whole, halves):
            profile.add(context={"age": number}, item="a", features={}, user=None, reward=0.0, at=float(at))
        if at in (501, 600, 701):
            halves = Profile.load(halves.state())
    assert whole.state()["json"].tobytes() == halves.state()["json"].tobytes()
    assert whole.fields["context"]["age"].former_unit
    assert halves.kind_of("context", "age") == whole.kind_of("context", "age")


# ---- rows


def test_a_number_of_the_former_unit_has_the_columns_of_the_one_of_now_at_its_place() -> None:
    numbers = drawn(UNIFORM, 1200, 3)
    numbers[700:] *= 100.0
    profile = Profile()
    records = [
        Raw({"age": number}, f"i{at % 5}", {}, None, float(at % 2)) for at, number in enumerate(numbers.tolist())
    ]
    for at, record in enumerate(records):
        profile.add(
            context=record.context, item=record.item, features={}, user=None, reward=record.reward, at=float(at)
        )
    schema = fit(records, profile).schema
    line = schema.context["age"]
    assert isinstance(line, Line)
    ages = np.arange(25.0, 75.0, 5.0)
    before, now = np.zeros((len(ages), 1)), np.zeros((len(ages), 1))
    line.write_numbers(ages, before)
    line.write_numbers(100.0 * ages, now)
    np.testing.assert_allclose(before, now, atol=0.15)  # of the width 2: as close as two summaries of 64 numbers are
    assert LearnedEncoder(type(schema).model_validate(schema.model_dump(mode="json"))).version == (
        LearnedEncoder(schema).version
    )


@pytest.mark.parametrize(
    ("former", "number", "as_now"),
    [
        (FormerUnit(values=[0, 10], as_now=[0, 1000]), 5.0, 500.0),  # the narrower has what lies in both
        (FormerUnit(values=[0, 10], as_now=[0, 1000]), 11.0, 11.0),
        (FormerUnit(values=[0, 1000], as_now=[0, 10]), 5.0, 5.0),
        (FormerUnit(values=[0, 1000], as_now=[0, 10]), 500.0, 5.0),
        (FormerUnit(values=[0, 1000], as_now=[0, 10]), 2000.0, 2000.0),
    ],
)
def test_where_two_units_overlap_the_narrower_has_it(former: FormerUnit, number: float, as_now: float) -> None:
    assert former.in_unit_of_now(np.array([number])).tolist() == [as_now]


@given(st.lists(st.floats(-1e300, 1e300) | st.integers(-200, 2000).map(float), min_size=1, max_size=20))
def test_rows_made_together_are_those_made_one_by_one(numbers: list[float]) -> None:
    former = FormerUnit(values=[0, 3, 10], as_now=[0, 400, 1000])
    for field in (
        Line(path="v", values=[0, 500, 1000], places=[-1, 0, 1], former=former),
        Bend(path="v", knots=[0, 200, 700, 1000], former=former),
    ):
        together = np.zeros((len(numbers), len(field.columns)), dtype=np.float32)
        field.write_numbers(np.array(numbers), together)
        one_by_one = np.zeros_like(together)
        for number, row in zip(numbers, one_by_one, strict=True):
            assert field.write(number, row) is None
        assert together.tobytes() == one_by_one.tobytes()


def test_a_schema_of_before_there_were_units_keeps_its_version() -> None:
    line = Line(path="v", values=[0, 1], places=[-1, 1])
    assert line.model_dump() == {"type": "line", "path": "v", "values": [0.0, 1.0], "places": [-1.0, 1.0]}
