"""Checks that ids keep their rows, and that forgotten ids make room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from service.policies import Array, Ids, ItemIndex


def test_ids_get_rows_in_order_of_first_appearance() -> None:
    index = ItemIndex(["b"])
    assert [index.add(item) for item in ("a", "b", "c", "a")] == [1, 0, 2, 1]
    assert list(index) == ["b", "a", "c"]
    assert (len(index), index.get("c"), index.get("new")) == (3, 2, None)


def test_unknown_ids_get_the_row_past_the_last() -> None:
    assert ItemIndex(["a", "b"]).rows(["b", "new", "a"]).tolist() == [1, 2, 0]
    assert ItemIndex().rows([]).shape == (0,)
    assert len(ItemIndex()) == 0


def test_forgetting_moves_the_others_up_in_their_order() -> None:
    index = ItemIndex("abcde")
    values = np.array([10, 11, 12, 13, 14])
    kept = index.forget(["d", "a", "new", "d"])
    assert kept is not None
    assert values[kept].tolist() == [11, 12, 14]
    assert [index.get(item) for item in "abcde"] == [None, 0, 1, None, 2]
    assert index.add("a") == 3
    assert index.forget(["new"]) is None
    assert index.forget([]) is None


@pytest.mark.parametrize("ids", [[], ["a"], ['ü/"', "", "b c"]])
def test_ids_come_back_from_bytes(ids: list[str]) -> None:
    array = ItemIndex(ids).to_array()
    assert array.dtype == np.uint8
    assert list(ItemIndex.from_array(array)) == ids


@pytest.mark.parametrize("text", ["", "[", '["a"', '{"a": 1}', "[1]", '["a","a"]', '["a"]["b"]', '"a"'])
def test_anything_but_a_list_of_distinct_strings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ItemIndex.from_array(np.frombuffer(text.encode(), dtype=np.uint8))


def test_rows_of_a_catalogue_are_looked_up_once_for_each_index() -> None:
    looked_up: list[list[str]] = []

    class Counting(ItemIndex):
        def find(self, items: Sequence[str]) -> Array:
            looked_up.append(list(items))
            return super().find(items)

    ids, one, other = Ids(["a", "b", "new"]), Counting(["b", "a"]), Counting(["a"])
    part = ids.take(np.array([2, 0, 2]))
    assert (list(part), len(part), part[1], part[1:]) == (["new", "a", "new"], 3, "a", ["a", "new"])
    for _ in range(2):
        assert one.rows(ids).tolist() == [1, 0, 2]
        assert one.rows(part).tolist() == [2, 1, 2]
        assert other.rows(ids).tolist() == [0, 1, 1]
    assert looked_up == [["a", "b", "new"]] * 2
    assert one.rows(["a"]).tolist() == [1]
