"""Decision ids that the service makes, and those of clients."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from service.errors import InvalidRequest
from service.loop import LOOP_NAME
from service.serve.ids import check_own_id, loop_of, new_decision_id

NAMES = st.from_regex(LOOP_NAME, fullmatch=True)
MADE = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop"


@given(NAMES, st.integers(0, 1023))
def test_an_id_of_the_service_names_its_loop(loop: str, partition: int) -> None:
    made = new_decision_id(loop, partition=partition)
    assert loop_of(made, None) == loop
    assert len(made) <= 128, "it can be sent back"
    check_own_id(made, loop)


@given(st.text(min_size=1, max_size=128))
def test_any_other_id_lies_in_the_default_loop(decision_id: str) -> None:
    assert loop_of(decision_id, None) == "default"
    check_own_id(decision_id, "shop")


@given(NAMES, st.text(min_size=1))
def test_the_loop_that_is_named_counts(loop: str, decision_id: str) -> None:
    assert loop_of(decision_id, loop) == loop
    assert loop_of(MADE, loop) == loop


@pytest.mark.parametrize(
    "decision_id",
    [
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.SHOP",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.00.shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.-1.shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.٣.shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1..shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop\n",
        " 01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop",
        "01jbx8e9z3t4v5w6x7y8z9a0b1.0.shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0BU.0.shop",
        "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop/x",
        f"01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.{'x' * 65}",
    ],
)
def test_what_only_looks_like_an_id_of_the_service_is_the_clients_own(decision_id: str) -> None:
    assert loop_of(decision_id, None) == "default"
    check_own_id(decision_id, "any")


def test_an_own_id_that_names_another_loop_is_refused() -> None:
    check_own_id(MADE, "shop")
    with pytest.raises(InvalidRequest) as refused:
        check_own_id(MADE, "home")
    assert refused.value.extra["errors"][0]["field"] == "decision_id"


def test_ids_sort_by_the_time_at_which_they_were_made() -> None:
    made = [new_decision_id("shop")[:10] for _ in range(100)]
    assert made == sorted(made)


def test_an_id_holds_the_time_at_which_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = {ULID.from_str(new_decision_id("shop")[:26]) for _ in range(100)}
    assert all(before <= one.milliseconds <= time.time_ns() // 1_000_000 for one in made)
    assert len({one.bytes[6:] for one in made}) == 100
