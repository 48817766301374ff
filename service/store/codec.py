"""How records are written to Redis, each with its format version, and how they are read back.

A reader ignores fields that it does not know and takes what is older. At a version that is newer than its own it
raises `NewerFormat`: what is written there may mean something that this code would get wrong.

Format 1 is what version 0.1 wrote, which named no format. Format 2 names it (`v`); loops and policies have an id.

An event's entry in the log has these fields: `e` (JSON: the raw record, and under which policy and encoder it was
shown), `x` (the item's row as it was served, float32 little-endian), `o` (the slate position), `r` (the reward in
decimal), `s` (where the reward came from) and `t` (when an imported event happened, in ms). `e` and `x` are made when
the decision is, and lie beside it until its feedback comes. A control entry has the field `c`; one that has an event
learned again has the fields of that event, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.errors import Conflict
from service.loop import LoopSettings
from service.records import (
    Arm,
    Assignment,
    Change,
    DeadLetter,
    Decision,
    Entry,
    Erasure,
    Event,
    Experiment,
    LoopRecord,
    Note,
    PolicyRecord,
    Removed,
    Retrieved,
    Retry,
    Seen,
    SlateItem,
    Successor,
    Training,
    Unreadable,
)

FORMAT = 2
MOST_OF_A_CHANGE = 4 * 1024  # bytes of `before`, and of `after`; of larger ones the size is written down
MOST_FEATURES = 16 * 1024  # bytes of an item's features in an event; larger ones are left to the catalogue


class NewerFormat(Conflict, RuntimeError):
    """A newer version of Rebound wrote this; the message says what to do."""

    code, title = "newer_format", "A newer version wrote this"

    def __init__(self, what: str, found: int) -> None:
        super().__init__(
            f"{what} has format {found}, and this version of Rebound reads formats up to {FORMAT}; "
            "nothing was changed: start the newer version again"
        )


def check_format(what: str, found: object) -> None:
    """Raises NewerFormat where `found` (None: format 1) is newer than `FORMAT`, ValueError where it is no number."""
    version = 1 if found is None else int(found)  # type: ignore[call-overload]
    if version > FORMAT:
        raise NewerFormat(what, version)


# ---- arrays: safetensors, no pickle anywhere


def pack(arrays: Mapping[str, NDArray[np.generic]], *, encoder: str | None = None) -> bytes:
    """Write arrays by name; the same arrays always give the same bytes.

    Args:
        encoder: version of the encoder whose rows they fit.
    """
    metadata = {"v": str(FORMAT)} if encoder is None else {"v": str(FORMAT), "encoder": encoder}
    return save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, metadata=metadata)


def unpack(packed: bytes) -> dict[str, NDArray[np.generic]]:
    """Read what `pack` wrote.

    Raises:
        ValueError: these bytes are no arrays.
        NewerFormat: a newer version wrote them.
    """
    try:
        arrays = dict(load(packed))
    except SafetensorError as error:
        raise ValueError(f"not a set of arrays: {error}") from error
    check_format("a set of arrays", _metadata(packed).get("v"))
    return arrays


def _metadata(packed: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")]).get("__metadata__", {})
    return found


def digest_of(packed: bytes) -> bytes:
    """Return 32 hexadecimal digits that tell whether what is read is what was published."""
    return blake2b(packed, digest_size=16).hexdigest().encode()


def encoder_of(packed: bytes) -> str | None:
    """Return the version of the encoder that `pack` was given; None where it was given none, or these are no arrays."""
    try:
        return _metadata(packed).get("encoder")
    except (ValueError, AttributeError):
        return None


# ---- loops and policies


def loop_fields(record: LoopRecord) -> dict[str, str | bytes | int]:
    """Write a loop's record as fields of a hash."""
    return {
        "v": FORMAT,
        "id": record.id,
        "settings": record.settings.model_dump_json(),
        "schema": orjson.dumps(record.schema),
        "d": record.d,
        "encoder": record.encoder,
        "epoch": record.epoch,
        "catalogue": record.catalogue,
        "traffic": orjson.dumps(record.traffic),
        "pins": orjson.dumps(record.pins),
        "newest": orjson.dumps(record.newest),
        "declared": record.declared or "",
        "activity": int(record.activity),
        "edges": int(record.edges),
        "experiments": experiments_bytes(record.experiments),
        "release": orjson.dumps(record.release),
    }


def read_loop_fields(name: str, stored: Mapping[bytes, bytes]) -> LoopRecord:
    """Read a loop's record.

    Raises:
        NewerFormat: a newer version wrote it.
        ValueError, KeyError: it is garbled.
    """
    check_format(f"loop {name!r}", stored.get(b"v"))
    return LoopRecord(
        name=name,
        id=stored[b"id"].decode(),
        settings=LoopSettings.model_validate(known(LoopSettings, orjson.loads(stored[b"settings"]))),
        schema=orjson.loads(stored[b"schema"]),
        d=int(stored[b"d"]),
        encoder=stored[b"encoder"].decode(),
        epoch=int(stored[b"epoch"]),
        catalogue=int(stored[b"catalogue"]),
        traffic=orjson.loads(stored[b"traffic"]),
        pins=orjson.loads(stored[b"pins"]),
        newest=orjson.loads(stored.get(b"newest", b"null")),
        declared=_declared(stored),
        activity=stored.get(b"activity") == b"1",
        edges=stored.get(b"edges") == b"1",
        experiments=_experiments(stored.get(b"experiments", b"[]")),
        release=orjson.loads(stored.get(b"release", b"null")),
    )


def experiments_bytes(experiments: Mapping[str, Experiment]) -> bytes:
    """Write the experiments of a loop as JSON."""
    return orjson.dumps([asdict(one) for one in experiments.values()])


def _experiments(stored: bytes) -> dict[str, Experiment]:
    names = [field.name for field in fields_of(Experiment)]
    found = {}
    for said in orjson.loads(stored):
        arms = {name: Arm(arm["policy"], arm["share"]) for name, arm in said["arms"].items()}
        spans = tuple((arm, parts) for arm, parts in said["spans"])
        given = {name: said[name] for name in names if name in said}
        found[said["name"]] = Experiment(**given | {"arms": arms, "spans": spans})
    return found


def _declared(stored: Mapping[bytes, bytes]) -> str | None:
    """Return the encoder that a person declared. Older records tell it by their schema."""
    if b"declared" in stored:
        return stored[b"declared"].decode() or None
    schema = orjson.loads(stored[b"schema"])
    said = any(schema.get(part) for part in ("context", "item", "crosses"))
    return stored[b"encoder"].decode() if said or schema.get("hash_dims", 31) != 31 else None


def known(model: type[LoopSettings], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that this version does not know."""
    return {name: value for name, value in stored.items() if name in model.model_fields}


def policy_fields(record: PolicyRecord) -> dict[str, str | bytes | int]:
    """Write a new policy's record as fields of a hash."""
    return {
        "v": FORMAT,
        "id": record.id,
        "kind": record.kind,
        "params": orjson.dumps(record.params),
        "seed": record.seed,
        "retention": record.retention,
        "version": record.version,
        "position": record.position,
        "events": record.events,
        "set_aside": record.set_aside,
        "skipped": record.skipped,
        "apart": record.apart,
        "alarms": orjson.dumps(record.alarms),
        "begun": orjson.dumps(record.begun),
        "encoding": orjson.dumps(record.encoding),
    }


def read_policy_fields(name: str, stored: Mapping[bytes, bytes]) -> PolicyRecord:
    """Read a policy's record.

    Raises:
        NewerFormat: a newer version wrote it.
        ValueError, KeyError: it is garbled.
    """
    check_format(f"policy {name!r}", stored.get(b"v"))
    return PolicyRecord(
        name=name,
        id=stored[b"id"].decode(),
        kind=stored[b"kind"].decode(),
        params=orjson.loads(stored[b"params"]),
        seed=int(stored[b"seed"]),
        retention=int(stored.get(b"retention", 1_000_000)),
        version=int(stored[b"version"]),
        position=stored[b"position"].decode(),
        events=int(stored[b"events"]),
        erased=int(stored.get(b"erased", 0)),
        set_aside=int(stored.get(b"set_aside", 0)),
        skipped=int(stored[b"skipped"]),
        apart=int(stored.get(b"apart", 0)),
        bytes=int(stored.get(b"bytes", 0)),
        kept=int(stored.get(b"kept", 0)),
        published=int(stored[b"published"]) / 1000 if b"published" in stored else None,
        alarms=orjson.loads(stored[b"alarms"]),
        begun=orjson.loads(stored.get(b"begun", b"null")),
        encoding=orjson.loads(stored.get(b"encoding", b"null")),
    )


def letters_bytes(letters: Iterable[DeadLetter]) -> bytes:
    """Write the dead letters of a policy as JSON."""
    return orjson.dumps({"v": FORMAT, "letters": [asdict(letter) for letter in letters]})


def read_letters(stored: bytes) -> dict[str, DeadLetter]:
    """Read position -> dead letter.

    Raises:
        NewerFormat: a newer version wrote them.
        ValueError, KeyError: they are garbled.
    """
    said = orjson.loads(stored)
    check_format("a policy's dead letters", said.get("v"))
    found = [DeadLetter(one["position"], one["why"], of=one["of"], learned=one["learned"]) for one in said["letters"]]
    return {letter.position: letter for letter in found}


# ---- decisions


def decision_bytes(decision: Decision) -> bytes:
    """Write a decision as JSON."""
    more: dict[str, Any] = {} if decision.rung == "ok" else {"rung": decision.rung}
    if decision.rules is not None:
        more |= {"rules": decision.rules, "left": decision.left}
    if decision.folded:
        more["folded"] = True
    if decision.retrieved is not None:
        more["retrieved"] = _retrieved(decision.retrieved)
    if decision.seen is not None:
        more["seen"] = [decision.seen.position, *decision.seen.items]
    if decision.removed is not None:
        more["removed"] = {sort: items for sort, items in decision.removed._asdict().items() if items}
    if decision.attempt:
        more["attempt"] = decision.attempt
    return orjson.dumps(
        {
            "v": FORMAT,
            "decision_id": decision.decision_id,
            "loop": decision.loop,
            "at": datetime.fromtimestamp(decision.at, UTC).isoformat(timespec="milliseconds"),
            "user_id": decision.user_id,
            "context": decision.context,
            "candidates": decision.candidates,
            "exclude": decision.exclude,
            "catalogue": decision.catalogue,
            "n": decision.n,
            "k": decision.k,
            "policy": decision.policy,
            "version": decision.version,
            "encoder": decision.encoder,
            "exploration_floor": decision.exploration_floor,
            "seed": decision.seed,
            "items": [{"id": i.id, "score": i.score, "propensity": i.propensity} for i in decision.items],
            **more,
            **_of_experiment(decision.experiment),
        }
    )


def _of_experiment(assignment: Assignment | None) -> dict[str, Any]:
    """Return the field `experiment` of a decision or an event; those that take part in none have no such field."""
    if assignment is None:
        return {}
    said = asdict(assignment)
    if not assignment.apart:
        del said["apart"]
    return {"experiment": said}


def _assignment(record: Mapping[str, Any]) -> Assignment | None:
    said = record.get("experiment")
    if said is None:
        return None
    return Assignment(
        experiment=_a(str, said["experiment"]),
        id=_a(str, said["id"]),
        version=_a(int, said["version"]),
        arm=_a(str, said["arm"]),
        share=float(said["share"]),
        apart=tuple(_a(str, policy) for policy in said.get("apart", ())),
    )


def _retrieved(retrieved: Retrieved) -> dict[str, Any]:
    """Write candidates compactly: the gaps between their rows, which have fewer digits."""
    rows = retrieved.rows
    said = {"version": retrieved.version, "gaps": [row - before for row, before in zip(rows, (0, *rows), strict=False)]}
    return {**said, "embedding": retrieved.embedding} if retrieved.embedding else said


def read_retrieved(stored: Mapping[str, Any]) -> Retrieved:
    """Read candidates as the record of a decision holds them."""
    return Retrieved(stored["version"], tuple(accumulate(stored["gaps"])), stored.get("embedding", 0))


def _removed(stored: Mapping[str, Sequence[str]]) -> Removed:
    return Removed(*(tuple(stored.get(sort, ())) for sort in Removed._fields))


def read_decision(stored: bytes) -> Decision:
    """Read a decision.

    Raises:
        NewerFormat: a newer version wrote it.
        ValueError, KeyError: it is garbled.
    """
    record = orjson.loads(stored)
    check_format(f"decision {record['decision_id']!r}", record.get("v"))
    candidates = record["candidates"]
    return Decision(
        decision_id=record["decision_id"],
        loop=record["loop"],
        at=datetime.fromisoformat(record["at"]).timestamp(),
        user_id=record["user_id"],
        context=record["context"],
        candidates=None if candidates is None else [(item, features) for item, features in candidates],
        exclude=record["exclude"],
        catalogue=record["catalogue"],
        n=record["n"],
        k=record["k"],
        policy=record["policy"],
        version=record["version"],
        encoder=record["encoder"],
        exploration_floor=record["exploration_floor"],
        seed=record["seed"],
        items=tuple(SlateItem(item["id"], item["score"], item["propensity"]) for item in record["items"]),
        rules=record.get("rules"),
        left=tuple(record["left"]) if "left" in record else None,
        folded=record.get("folded", False),
        rung=record.get("rung", "ok"),
        experiment=_assignment(record),
        retrieved=read_retrieved(record["retrieved"]) if "retrieved" in record else None,
        seen=Seen(record["seen"][0], tuple(record["seen"][1:])) if "seen" in record else None,
        removed=_removed(record["removed"]) if "removed" in record else None,
        attempt=record.get("attempt", 0),
    )


# ---- entries of the log


def row_bytes(x: NDArray[np.generic]) -> bytes:
    """Write field `x` of an event: the row (d,)."""
    return x.astype("<f4").tobytes()


def event_body(
    *,
    decision_id: str,
    item: str,
    user: str | None,
    context: Mapping[str, Any],
    n: int | None,
    propensity: float | None,
    policy: str | None,
    version: int,
    features: Mapping[str, Any] | None,
    encoder: str | None,
    decided: float | None = None,
    rung: str = "ok",
    place: int = 0,
    experiment: Assignment | None = None,
    seen: tuple[str, int] | None = None,
) -> bytes:
    """Write field `e` of an event.

    Args:
        features: of the item, as it was shown. Those that take more than MOST_FEATURES bytes are not written.
        encoder: version of the encoder that wrote the row.
        decided: unix seconds, as the decision's rung and the item's place in its slate; None: it is imported.
    """
    more: dict[str, Any] = {} if decided is None else {"decided": decided}
    if rung != "ok":
        more["rung"] = rung
    if place:
        more["place"] = place
    if seen is not None:
        more["seen"] = seen
    raw = b"null" if features is None else orjson.dumps(features)
    return orjson.dumps(
        {
            "v": FORMAT,
            "decision_id": decision_id,
            "item": item,
            "user": user,
            "context": context,
            "n": n,
            "propensity": propensity,
            "policy": policy,
            "version": version,
            "features": orjson.Fragment(raw) if len(raw) <= MOST_FEATURES else None,
            "encoder": encoder,
            **more,
            **_of_experiment(experiment),
        }
    )


def slate_bodies(decision: Decision, features: Sequence[Mapping[str, Any] | None]) -> list[bytes]:
    """Write field `e` of the event of each item of a decision, which were shown with these features."""
    seen = None if decision.seen is None else (decision.seen.position, decision.catalogue)
    return [
        event_body(
            decision_id=decision.decision_id,
            item=item.id,
            user=decision.user_id,
            context=decision.context,
            n=decision.candidates_for(place),
            propensity=item.propensity,
            policy=decision.policy,
            version=decision.version,
            features=shown,
            encoder=decision.encoder,
            decided=decision.at,
            rung=decision.rung,
            place=place,
            experiment=decision.experiment,
            seen=seen,
        )
        for place, (item, shown) in enumerate(zip(decision.items, features, strict=True))
    ]


def training_body(policy: str, policy_id: str) -> bytes:
    """Write field `c` of a request to train."""
    return orjson.dumps({"v": FORMAT, "train": policy, "policy_id": policy_id})


def retry_body(policy: str, policy_id: str, of: str) -> bytes:
    """Write field `c` of a retry of the event that stood first at `of`."""
    return orjson.dumps({"v": FORMAT, "retry": policy, "policy_id": policy_id, "of": of})


def successor_body(successor: Successor) -> bytes:
    """Write field `c` of a successor."""
    return orjson.dumps(
        {
            "v": FORMAT,
            "successor": successor.encoder,
            "schema": successor.schema,
            "events": successor.events,
            "why": successor.why,
            "declared": successor.declared,
            "catalogue": successor.catalogue,
        }
    )


def read_entry(position: str, fields: Mapping[bytes, bytes]) -> Entry:
    """Read one entry of the log; one that is garbled comes back as `Unreadable`.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    try:
        if b"c" in fields:
            return _control(position, orjson.loads(fields[b"c"]), fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Unreadable(position, f"{type(error).__name__}: {error}")
    return _event(position, fields)


def _event(position: str, fields: Mapping[bytes, bytes]) -> Event | Unreadable:
    try:
        e = orjson.loads(fields[b"e"])
        check_format(f"entry {position} of the log", e.get("v"))
        return Event(
            position=position,
            decision_id=_a(str, e["decision_id"]),
            item=_a(str, e["item"]),
            user=_a((str, type(None)), e["user"]),
            context=_a(dict, e["context"]),
            x=np.frombuffer(fields[b"x"], dtype="<f4"),
            n=_a((int, type(None)), e["n"]),
            propensity=_propensity(e["propensity"]),
            policy=_a((str, type(None)), e["policy"]),
            version=_a(int, e["version"]),
            reward=float(fields[b"r"]),
            source=fields[b"s"].decode(),
            slate_position=int(fields[b"o"]) if fields.get(b"o") else None,
            at=int(fields[b"t"]) / 1000 if fields.get(b"t") else None,
            features=_a((dict, type(None)), e.get("features")),
            encoder=_a((str, type(None)), e.get("encoder")),
            decided=_a((float, int, type(None)), e.get("decided")),
            rung=_a(str, e.get("rung", "ok")),
            place=_a(int, e.get("place", 0)),
            experiment=_assignment(e),
            seen=(_a(str, e["seen"][0]), _a(int, e["seen"][1])) if "seen" in e else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Unreadable(position, f"{type(error).__name__}: {error}")


def _a(types: type | tuple[type, ...], value: Any) -> Any:
    """Return a value that is of the right type. Policies would stop at another one, at every try.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, types):
        raise TypeError(f"{value!r:.100} is out of place")
    return value


def _propensity(value: Any) -> float | None:
    if value is None:
        return None
    propensity = float(_a((float, int), value))
    if not 0.0 < propensity < 1.0 + 1e-6:  # sums of probabilities are rounded
        raise ValueError(f"{propensity!r} is no propensity")
    return propensity


def _control(position: str, said: Mapping[str, Any], fields: Mapping[bytes, bytes]) -> Entry:
    check_format(f"entry {position} of the log", said.get("v"))
    if "train" in said:
        return Training(position, str(said["train"]), said.get("policy_id"))
    if "retry" in said:
        policy, policy_id, of = (_a(str, said[name]) for name in ("retry", "policy_id", "of"))
        return Retry(position, policy, policy_id, of, _event(position, fields))
    if "erasure" in said:
        return Erasure(position, events=_a(int, said["events"]))
    if "successor" in said:
        return Successor(
            position,
            encoder=_a(str, said["successor"]),
            schema=_a(dict, said["schema"]),
            events=_a(int, said["events"]),
            why=_a(str, said["why"]),
            declared=_a(bool, said["declared"]),
            catalogue=_a(int, said["catalogue"]),
        )
    return Note(position)


def read_entries(
    entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]],
    read: Callable[[str, Mapping[bytes, bytes]], Entry] = read_entry,
) -> list[Entry]:
    """Read entries in order, up to the first that a newer version wrote.

    Args:
        read: reads one entry, as `read_entry` does.

    Raises:
        NewerFormat: the first of them is such an entry.
    """
    found: list[Entry] = []
    for position, fields in entries:
        try:
            found.append(read(position.decode(), fields))
        except NewerFormat:
            if not found:
                raise
            break
    return found


# ---- administrative changes


def change_body(change: Change) -> bytes:
    """Write field `c` of a change."""
    return orjson.dumps(
        {
            "v": FORMAT,
            "by": change.by,
            "what": change.what,
            "before": _bounded(change.before),
            "after": _bounded(change.after),
        }
    )


def _bounded(value: Any) -> Any:
    size = len(orjson.dumps(value))
    return value if size <= MOST_OF_A_CHANGE else {"left_out": f"{size} bytes"}


def read_change(place: str, fields: Mapping[bytes, bytes]) -> Change:
    """Read a change from its entry. The script that changes items adds what they were before (`before`).

    Raises:
        NewerFormat: a newer version wrote it.
    """
    said = orjson.loads(fields[b"c"])
    check_format("an entry of the log of changes", said.get("v"))
    before = orjson.loads(fields[b"before"]) if b"before" in fields else said["before"]
    return Change(said["by"], said["what"], before, said["after"], at=int(place.split("-")[0]) / 1000)
