"""Files of logs: what is written is read back as it was, and what is wrong in a file is named."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from service.errors import InvalidRequest
from service.exchange import obp
from service.exchange.dsjson import read_dsjson, readable, write_line
from service.exchange.obp import read_arrays, read_table
from service.exchange.parquet import ParquetFolder, read_parquet
from service.records import Event, PastEvent
from tests.builders import decision_of, event_of, loop_of, policy_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT | st.sampled_from(["_multi", "_label_cost", "c", "rebound"]), VALUE, max_size=3)
ID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
MS = 253402300799999  # of the last moment of the year 9999
LOOP = loop_of("shop")


@st.composite
def an_event(draw: st.DrawFn, propensity: st.SearchStrategy[float | None]) -> Event:
    """Draw an event; imported ones have a time of their own."""
    at = draw(st.none() | st.integers(-62135510400000, MS))
    return replace(
        event_of(draw(st.integers(0, 99))),
        position=f"{draw(st.integers(0, MS))}-{draw(st.integers(0, 9))}",
        decision_id=draw(ID),
        item=draw(ID),
        user=draw(st.none() | ID),
        context=draw(OBJECT),
        features=draw(st.none() | OBJECT),
        reward=draw(NUMBER),
        propensity=draw(propensity | st.floats(0, 1, exclude_min=True)),
        n=draw(st.none() | st.integers(1, 10**6)),
        policy=draw(st.none() | st.sampled_from(["a", "b-2"])),
        version=draw(st.integers(0, 2**63 - 1)),
        source="import" if at is not None else "feedback",
        at=None if at is None else at / 1000,
    )


def past(event: Event) -> PastEvent:
    """Return what a file that holds this event says."""
    return PastEvent(
        event_id=f"{event.decision_id}/{event.item}",
        user_id=event.user,
        context=event.context,
        item_id=event.item,
        features=event.features,
        reward=event.reward,
        propensity=event.propensity,
        at=event.time,
        decision_id=event.decision_id,
        n=event.n,
        policy=event.policy,
        version=event.version,
        origin=LOOP.id,
    )


def write_folder(folder: Path, events: Sequence[Event]) -> Path:
    files = ParquetFolder(folder, LOOP)
    for event in events:
        files.add_event(event)
    files.close()
    return folder


def by_time(events: Sequence[Event]) -> list[PastEvent]:
    return sorted(map(past, events), key=lambda event: (event.at, repr(event)))


@settings(max_examples=8)
@given(st.lists(an_event(propensity=st.none()), min_size=1, max_size=4))
def test_parquet_gives_back_what_was_written(events: list[Event]) -> None:
    """Decided and imported events come in the order of their times, each file of its own."""
    events = [
        *sorted((e for e in events if e.at is None), key=lambda e: e.time),
        *sorted((e for e in events if e.at is not None), key=lambda e: e.time),
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = [event for _, event in read_parquet(write_folder(Path(folder), events))]
    times = [event.at for event in found]
    assert times == sorted(times, key=lambda at: at or 0.0)
    assert sorted(found, key=lambda event: (event.at, repr(event))) == by_time(events)


def test_decided_and_imported_events_of_a_day_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    events = [replace(event_of(n), position=f"{n}-0", at=None if n % 3 else n / 1000) for n in range(9)]
    found = [event for _, event in read_parquet(write_folder(tmp_path, events))]
    assert found == by_time(events)
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


@settings(max_examples=15)
@given(an_event(propensity=st.just(0.5)))
def test_dsjson_gives_back_what_was_written(event: Event) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.dsjson"
        file.write_bytes(write_line(event, origin=LOOP.id) + b"\n" + write_line(event, origin=LOOP.id))
        assert [found for _, found in read_dsjson(file)] == [past(event)] * 2


def test_what_is_nested_as_deep_as_an_event_may_be_is_written(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(252):
        deep = {"a": deep}
    event = replace(event_of(), context=deep, features=deep)
    (tmp_path / "log.dsjson").write_bytes(write_line(event, [("a", deep), (event.item, deep)], origin=LOOP.id))
    [(_, found)] = read_dsjson(tmp_path / "log.dsjson")
    assert found == past(event)


def test_decisions_and_policies_are_tables(tmp_path: Path) -> None:
    decision = decision_of("d1", "ab", candidates=[("a", None), ("b", {"price": 1.5})], exclude=["c"], user_id="u")
    policy = replace(policy_of(alpha=0.5), version=3, published=1.5, alarms=({"number": 1},))
    files = ParquetFolder(tmp_path, LOOP)
    files.add_decision(decision)
    files.write_policies([(policy, 0.25)])
    files.close()
    [path] = (tmp_path / "decisions").rglob("*.parquet")
    [row] = parquet.ParquetFile(path).read().to_pylist()
    assert row["items"] == [asdict(item) for item in decision.items]
    assert orjson.loads(row["candidates"]) == [["a", None], ["b", {"price": 1.5}]]
    assert row["at"].timestamp() == pytest.approx(decision.at, abs=1e-3)
    same = ("decision_id", "user_id", "exclude", "catalogue", "n", "k", "policy", "version", "encoder", "seed")
    assert {name: row[name] for name in same} == {name: getattr(decision, name) for name in same}
    [row] = parquet.ParquetFile(tmp_path / "policies.parquet").read().to_pylist()
    assert (row["name"], row["version"], row["share"]) == ("linucb", 3, 0.25)
    assert orjson.loads(row["params"]) == {"alpha": 0.5}
    assert orjson.loads(row["alarms"]) == [{"number": 1}]


def test_memory_and_open_files_do_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve days that come again and again are written a few at a time, and every event once."""
    monkeypatch.setattr("service.exchange.parquet.AT_ONCE", 2)
    monkeypatch.setattr("service.exchange.parquet.ROWS", 4)
    events = [replace(event_of(n), position=f"{86_400_000 * (n % 12) + n}-0", at=None) for n in range(60)]
    files = ParquetFolder(tmp_path, LOOP)
    for event in events:
        files.add_event(event)
        assert len(files._open) <= 8
    files.close()
    assert len({path.parent.name for path in tmp_path.rglob("*.parquet")}) == 12
    assert [found for _, found in read_parquet(tmp_path)] == by_time(events)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'rebound\[parquet\]'"):
        next(iter(read_parquet(tmp_path)))


# ---- Vowpal Wabbit


HARD = {
    "_multi": [{"x": 1}],
    "_label_cost": 5,
    "likes": ["film", "_food"],
    "mixed": [1, "x", None, {"z": 1}],
    "size": [1, 2.5],
    "none": None,
    "huge": 1e300,
    "device": {"os": "ios", "_id": 3},
    "a|b c": "d e:f\n",
    "": [],
}


def test_what_vowpal_wabbit_is_shown() -> None:
    assert readable(HARD) == {
        "._label_cost": 5,
        "likes": {"film": True, "._food": True},
        "size": [1, 2.5],
        "device": {"os": "ios", "._id": 3},
        "a|b c": "d e:f\n",
        "": {},
    }


def test_vowpal_wabbit_learns_from_hard_lines_too() -> None:
    """It passes over a line that it cannot read: then fewer than all actions come back."""
    vw = pytest.importorskip("vowpalwabbit").Workspace("--cb_explore_adf --dsjson -q :: --quiet")
    event = replace(event_of(), context=HARD, features=HARD, item="b", propensity=0.25, reward=1.0, user="u")
    line = write_line(event, [("a", HARD), ("b", HARD), ("c", {})]).decode()
    examples = vw.parse(line)
    assert len(examples) == 4, "the context and three actions"
    assert str(examples[2].get_label()) == "2:-1.0:0.25"
    vw.learn(examples)
    vw.finish_example(examples)
    vw.finish()


def test_dsjson_of_another_logger_is_read(tmp_path: Path) -> None:
    file = tmp_path / "other.dsjson"
    line = {
        "_label_cost": -1,
        "_label_probability": 0.8,
        "_label_Action": 2,
        "_labelIndex": 1,
        "Timestamp": "2026-10-01T09:12:00.0000000Z",
        "EventId": "e1",
        "a": [2, 1],
        "p": [0.8, 0.2],
        "c": {"GUser": {"id": "rnc"}, "_multi": [{"_tag": "cmplx"}, {"_tag": "dt", "j": [{"p": 3}]}]},
    }
    file.write_bytes(orjson.dumps(line))
    [(_, found)] = read_dsjson(file)
    assert found.item_id == "dt"
    assert found.context == {"GUser": {"id": "rnc"}}
    assert found.features == {"j": [{"p": 3}]}
    assert (found.reward, found.propensity, found.n) == (1.0, 0.8, 2)
    assert found.at == 1790845920.0


# ---- Open Bandit Pipeline


def test_arrays_of_open_bandit_pipeline_are_read(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "action": np.array([1, 0]),
        "reward": np.array([1, 0]),
        "pscore": np.array([0.25, 0.5]),
        "position": np.array([0, 2]),
        "context": np.array([[0.5, -1], [2, 3]]),
        "action_context": np.array([[1.0], [2.0]]),
    }
    np.savez(tmp_path / "log.npz", **arrays)
    found = [event for _, event in read_arrays(tmp_path / "log.npz")]
    assert [(e.decision_id, e.item_id, e.reward, e.propensity, e.n) for e in found] == [
        ("0", "1", 1.0, 0.25, 2),
        ("1", "0", 0.0, 0.5, 2),
    ]
    assert found[1].context == {"features": [2.0, 3.0], "position": 2}
    assert found[0].features == {"features": [2.0]}


def test_a_table_of_the_open_bandit_dataset_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,affinity\n"
        "7,2019-11-24 00:00:23.800131+00:00,79,2,1,0.0125,0031e,0.5\n"
    )
    [(_, event)] = read_table(file)
    assert (event.decision_id, event.item_id, event.reward, event.propensity) == ("7", "79", 1.0, 0.0125)
    assert event.context == {"position": 2, "user_feature_0": "0031e", "affinity": 0.5}
    assert event.at == 1574553623.800131


# ---- damaged and hostile files


def a_line(**changes: Any) -> bytes:
    line = {**orjson.loads(write_line(event_of())), "rebound": None}
    return orjson.dumps({name: value for name, value in {**line, **changes}.items() if value is not ...})


def own(**changes: Any) -> bytes:
    line = orjson.loads(write_line(event_of()))
    return orjson.dumps(line | {"rebound": line["rebound"] | changes})


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"{", "line 2: is no JSON"),
        (b"[1]", "line 2: is no JSON object"),
        (a_line(c=...), "line 2, c: is missing"),
        (a_line(c=7), "line 2: is no line of DSJSON"),
        (a_line(_labelIndex=9), "line 2, _labelIndex: there are 1 actions"),
        (a_line(_label_cost="free"), "line 2: is no line of DSJSON"),
        (a_line(_label_probability=0), "line 2, propensity: "),
        (a_line(EventId=""), "line 2, decision_id: "),
        (a_line(Timestamp="yesterday"), "line 2, Timestamp: 'yesterday' is no time"),
        (a_line(Timestamp=[1]), "line 2, Timestamp: "),
        (own(reward=True), "line 2, reward: "),
        (own(item_id="x" * 129), "line 2, item_id: "),
        (own(context=[]), "line 2, context: "),
        (own(wings=2), "line 2, wings: "),
        (own(version=-1), "line 2, version: "),
        (own(context="deep").replace(b'"deep"', b'{"a":' * 300 + b"{}" + b"}" * 300), "line 2, context: cannot be"),
    ],
)
def test_what_is_wrong_in_a_line_is_named(tmp_path: Path, line: bytes, named: str) -> None:
    file = tmp_path / "log.dsjson"
    file.write_bytes(own() + b"\n" + line + b"\n")
    with pytest.raises(InvalidRequest) as told:
        list(read_dsjson(file))
    assert told.value.detail.startswith(named), told.value.detail


def test_times_of_other_writers_are_read(tmp_path: Path) -> None:
    """A time without a zone is of UTC; nanoseconds are cut."""
    for sort in (pa.timestamp("ns"), pa.timestamp("ns", tz="Europe/Berlin"), pa.timestamp("s", tz="UTC")):
        at = pa.array([1_790_000_000, 1_790_000_001], pa.timestamp("s")).cast(sort)
        file = tmp_path / "log.parquet"
        parquet.write_table(pa.table(GOOD | {"time": at}), file)
        assert [event.at for _, event in read_parquet(file)] == [1_790_000_000.0, 1_790_000_001.0]


GOOD: dict[str, Any] = {"decision_id": ["d1", "d2"], "item_id": ["a", "b"], "reward": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"reward": None}, "log.parquet, reward: there is no such column"),
        ({"wings": [1, 2]}, "log.parquet, wings: is no column of an event"),
        ({"reward": [0.0, float("nan")]}, "log.parquet row 2, reward: "),
        ({"reward": ["0", "1"]}, "log.parquet row 1, reward: "),
        ({"item_id": ["a", None]}, "log.parquet row 2, item_id: "),
        ({"context": ["{}", "{"]}, "log.parquet row 2, context: is no JSON text"),
        ({"context": [{"a": 1}, {"a": 2}]}, "log.parquet row 1, context: is no JSON text"),
        ({"features": ["{}", "7"]}, "log.parquet row 2, features: "),
        ({"propensity": [0.5, 1.5]}, "log.parquet row 2, propensity: "),
        ({"time": ["yesterday", "today"]}, "log.parquet row 1, time: is no timestamp"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path: Path, columns: dict[str, Any], named: str) -> None:
    file = tmp_path / "log.parquet"
    parquet.write_table(pa.table({name: c for name, c in (GOOD | columns).items() if c is not None}), file)
    with pytest.raises(InvalidRequest) as told:
        list(read_parquet(file))
    assert told.value.detail.startswith(named), told.value.detail


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"PAR1" + b[100:], lambda b: b"", lambda b: b[:-9] + bytes(9)]
)
def test_a_damaged_parquet_file_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = next(write_folder(tmp_path, [event_of(n) for n in range(50)]).rglob("*.parquet"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        list(read_parquet(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"pscore": None}, "log.npz, pscore: there is no such array"),
        ({"reward": np.zeros(2)}, r"log.npz, reward: has the shape (2,); there are 3 rounds"),
        ({"reward": np.array(["a", "b", "c"])}, "log.npz, reward: holds "),
        ({"reward": np.array([0, np.nan, 0])}, "round 1, reward: "),
        ({"pscore": np.array([0.5, 0.5, 0])}, "round 2, propensity: "),
        ({"context": np.array([[0.0], [np.inf], [0.0]])}, "log.npz row 1, context: is not finite"),
        ({"action": np.array([0, 5, 1])}, "round 1, action: 5 is none of the 2 rows"),
        ({"action": np.array(3)}, "log.npz, action: has the shape ()"),
        ({"reward": np.array([{}, 1, 2], dtype=object)}, "log.npz: cannot be read"),
    ],
)
def test_what_is_wrong_in_arrays_is_named(tmp_path: Path, arrays: dict[str, Any], named: str) -> None:
    good = {
        "action": np.array([0, 1, 1]),
        "reward": np.ones(3),
        "pscore": np.ones(3),
        "action_context": np.ones((2, 1)),
    }
    found = {name: array for name, array in (good | arrays).items() if array is not None}
    np.savez(tmp_path / "log.npz", allow_pickle=True, **found)
    with pytest.raises(InvalidRequest) as told:
        list(read_arrays(tmp_path / "log.npz"))
    assert told.value.detail.startswith(named), told.value.detail


def test_arrays_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obp, "LARGEST_ARRAYS", 1000)
    np.savez_compressed(tmp_path / "log.npz", action=np.zeros(1000))
    with pytest.raises(InvalidRequest, match="its arrays take"):
        list(read_arrays(tmp_path / "log.npz"))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("1,x,0.5", "line 3, reward: 'x' is no number"),
        ("1,nan,0.5", "line 3, reward: "),
        ("1,1,0", "line 3, propensity: "),
        (",1,0.5", "line 3, item_id: "),
        ("1,1", "line 3: has fewer fields than the head"),
        ("1,1,0.5,9", "line 3: has more fields than the head"),
        ('"1', "after line "),
    ],
)
def test_what_is_wrong_in_a_row_is_named(tmp_path: Path, row: str, named: str) -> None:
    file = tmp_path / "log.csv"
    file.write_text(f"action,reward,pscore\n0,1,0.5\n{row}\n")
    with pytest.raises(InvalidRequest) as told:
        list(read_table(file))
    assert told.value.detail.startswith(named), told.value.detail


def test_a_table_without_a_needed_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("action,reward\n0,1\n")
    with pytest.raises(InvalidRequest, match="line 1, pscore: is not one column of the head"):
        list(read_table(tmp_path / "log.csv"))
