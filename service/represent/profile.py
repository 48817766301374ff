"""The profile of a loop's data: what its contexts, items, users and rewards look like, in bounded memory.

It is made from the log, event by event, and is a deterministic function of it. It decides nothing by itself: it says of
each path what kind of field it is (`kind_of`), and what may be wrong with it (`notices.py`).

Memory: at most 200 paths a side, 20 kB each at the very most (4 to 8 kB as a rule), 512 ids of requests, a sample of
1024 users and 1024 items (≤ 128 characters an id), and 1024 rewards: below 9 MB whatever is sent, about 300 kB with 20
fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.represent.field_profile import NEWEST, SHARES, Example, FieldProfile, Reference
from service.represent.fields import AnyField, Categorical, Numeric, Vector
from service.represent.json_paths import leaves
from service.represent.misfits import Side
from service.represent.schema import FeatureSchema
from service.represent.sketches import Quantiles, Sample, hash_of

Arrays = Mapping[str, NDArray[Any]]
Type = Literal["levels", "number", "vector", "set", "boolean", "left_out"]
Reason = Literal["constant", "new_each_time", "clock", "same_as_id", "rare_levels", "empty"]

FORMAT = 1
MOST_PATHS = 200  # a side
MOST_REQUESTS = 512
MOST_IDS = 1024  # in the sample of users, and of items
NEWEST_REWARDS = 1024
FEW = 12  # integers of no more different values are codes
MOST_LEVELS = 24
LATELY = 0.04  # of the newest values (11 of 256): a level that is new may be rare in the whole log
QUANTILES = (0.002, 0.02, 0.27, 0.5, 0.73, 0.98, 0.998)
LARGE = 1e8  # integers that are new each time and spread wider are ids


@dataclass(frozen=True, slots=True)
class Kind:
    """What a path is good for.

    Attributes:
        type: `left_out` where it can teach nothing; then `reason` says why.
        levels: of `levels`, `set` and `boolean`: the most frequent first, at most 24, each seen max(3, 1 %) times; then
            those that are frequent among the newest values alone.
        quantiles: of a number, at .002, .02, .27, .5, .73, .98 and .998, in its unit of now.
        unit, former_unit: where the unit changed: seven numbers at the same shares in that of now and in that before.
        size: of a vector.
    """

    type: Type
    levels: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()
    former_unit: tuple[float, ...] = ()
    size: int = 0
    reason: Reason | None = None


@dataclass(slots=True)
class _Side:
    """The paths of the contexts, or of the items that were shown."""

    name: Side
    records: int = 0
    left_out: int = 0  # values that no path was free for, or that lay too deep
    left_out_at: int = 0  # the last record that had one


class Profile:
    """What was seen of a loop. `add` takes one event after the other."""

    def __init__(self) -> None:
        self.events = 0
        self.fields: dict[Side, dict[str, FieldProfile]] = {"context": {}, "item": {}}
        self._sides: dict[Side, _Side] = {"context": _Side("context"), "item": _Side("item")}
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._requests: dict[str, None] = {}
        # rewards
        self.rewards = Quantiles()
        self._newest_rewards: list[float] = []
        self.first_reward: Example | None = None
        self.last_reward: Example | None = None
        # users: [requests]; items: [times shown, signature of the features, number of features]
        self._users: Sample[list[int]] = Sample(MOST_IDS)
        self._items: Sample[list[int]] = Sample(MOST_IDS)
        self.with_user = 0
        self._returns: list[int] = []  # of the newest 256 requests of users in the sample: 1 where the user came back
        self.first_user: Example | None = None
        self.last_user: Example | None = None
        self.without_features = 0  # events
        self._schema: FeatureSchema | None = None

    def add(
        self,
        *,
        context: Mapping[str, Any],
        item: str,
        features: Mapping[str, Any] | None,
        user: str | None,
        reward: float,
        at: float,
        request: str | None = None,
    ) -> None:
        """Add one event.

        Args:
            context: as the client sent it: any JSON object.
            item: id of the item that was shown.
            features: the item's, as it was shown: any JSON object; None: not known, so the item is passed over.
            user: id; None where there was none.
            reward: finite.
            at: unix seconds.
            request: id of the decision. Its context and user count once, however long its slate is, as long as its
                events lie within 512 others; None: a request of its own.
        """
        self.events += 1
        self.first_at = at if self.first_at is None else self.first_at
        self.last_at = at
        if request is None or self._is_new(request):
            self._add_features(self._sides["context"], context, at)
            if user is not None:
                self._add_user(user, at)
        if features is not None:
            self._add_features(self._sides["item"], features, at)
            self._add_item(item, features)
        self._add_reward(reward, at)

    def _is_new(self, request: str) -> bool:
        if request in self._requests:
            return False
        if len(self._requests) == MOST_REQUESTS:
            del self._requests[next(iter(self._requests))]
        self._requests[request] = None
        return True

    def _add_features(self, side: _Side, features: Mapping[str, Any], at: float) -> None:
        side.records += 1
        found, left_out = leaves(features)
        fields = self.fields[side.name]
        for path, value in found:
            known = fields.get(path)
            if known is None:
                known = self._new_path(side, path)
            if known is None:
                left_out += 1
            else:
                known.add(value, at=at, record=side.records)
        if left_out:
            side.left_out += left_out
            side.left_out_at = side.records

    def _new_path(self, side: _Side, path: str) -> FieldProfile | None:
        """Make room for a path: by one that was seen less than three times, and not lately."""
        fields = self.fields[side.name]
        if len(fields) == MOST_PATHS:
            oldest = min(fields.values(), key=lambda field: (field.seen >= 3, field.last))
            if oldest.seen >= 3 or oldest.last == side.records:
                return None
            del fields[oldest.path]
            side.left_out += 1
            side.left_out_at = side.records
        made = fields[path] = FieldProfile(side.name, path, side.records - 1)
        if self._schema is not None:
            made.declare(_reference(self._schema, side.name, path))
        return made

    def _add_user(self, user: str, at: float) -> None:
        self.with_user += 1
        self.last_user = Example(at, user[:80])
        self.first_user = self.first_user or self.last_user
        known = self._users.get(user)
        if known is not None:
            known[0] += 1
        elif not self._users.admit(user, [1]):
            return
        if len(self._returns) == 256:
            self._returns.pop(0)
        self._returns.append(int(known is not None))

    def _add_item(self, item: str, features: Mapping[str, Any]) -> None:
        self.without_features += not features
        known = self._items.get(item)
        if known is None:
            self._items.admit(item, [1, _signature(features), len(features)])
            return
        known[0] += 1
        if known[0] & (known[0] - 1) == 0:  # now and then: features may change
            known[1:] = [_signature(features), len(features)]

    def _add_reward(self, reward: float, at: float) -> None:
        self.rewards.add(reward)
        if len(self._newest_rewards) < NEWEST_REWARDS:
            self._newest_rewards.append(reward)
        else:
            self._newest_rewards[(self.events - 1) % NEWEST_REWARDS] = reward
        self.last_reward = Example(at, json.dumps(reward))
        self.first_reward = self.first_reward or self.last_reward

    # ---- figures

    def records(self, side: Side) -> int:
        """Return the number of requests, or of items shown."""
        return self._sides[side].records

    def left_out(self, side: Side) -> tuple[int, int]:
        """Return how many values were left out, and how many records ago the last one was."""
        found = self._sides[side]
        return found.left_out, found.records - found.left_out_at

    def missing(self, field: FieldProfile) -> float:
        """Return the share of records, since the field was first seen, that lack it or say null, in [0, 1]."""
        records = self.records(field.side) - field.born
        return max(0.0, 1.0 - field.values / records) if records else 0.0

    def new(self, field: FieldProfile) -> float:
        """Return the share of values that were new when they came, in [0, 1]."""
        return min(1.0, field.count_distinct() / field.values) if field.values else 0.0

    @property
    def users(self) -> int:
        """Different users, about."""
        return self._users.size()

    @property
    def items(self) -> int:
        """Different items that were shown, about."""
        return self._items.size()

    def returning(self) -> float | None:
        """Return the share of newest requests whose user had come before; None before 256 of them."""
        return sum(self._returns) / 256 if len(self._returns) == 256 else None

    def users_once(self) -> float:
        """Return the share of users seen once, in [0, 1]."""
        counts = [note[0] for note in self._users.notes.values()]
        return counts.count(1) / len(counts) if counts else 0.0

    def same_items(self) -> tuple[int, int, int]:
        """Return of the sampled items with features: how many, how many alone have theirs, how many pairs share."""
        sizes: dict[int, int] = {}
        for _, signature, n in self._items.notes.values():
            if n:
                sizes[signature] = sizes.get(signature, 0) + 1
        alone = sum(size == 1 for size in sizes.values())
        return sum(sizes.values()), alone, sum(size * (size - 1) // 2 for size in sizes.values())

    def a_same_pair(self) -> tuple[str, str] | None:
        """Return two items of the same features."""
        seen: dict[int, str] = {}
        for item, (_, signature, n) in self._items.notes.items():
            if n and signature in seen:
                return seen[signature], item
            seen[signature] = item
        return None

    def items_with_features(self) -> float:
        """Return the share of items that had features when they were looked at last, in [0, 1]."""
        notes = self._items.notes.values()
        return sum(1 for note in notes if note[2]) / len(notes) if notes else 0.0

    def newest_rewards(self) -> NDArray[np.float64]:
        """Return the newest rewards, at most 1024, in no order."""
        return np.array(self._newest_rewards)

    # ---- kinds

    def kind_of(self, side: Side, path: str) -> Kind:
        """Say what a path is good for.

        Raises:
            KeyError: it was never seen, or there was no room for it.
        """
        field = self.fields[side][path]
        if field.values == 0:
            return Kind("left_out", reason="empty")
        if field.share("vector", "set") >= 0.5:
            return self._kind_of_list(field)
        distinct = field.count_distinct()
        if distinct <= 1 and self.missing(field) == 0 and field.born == 0:
            return Kind("left_out", reason="constant")
        if field.share("boolean") >= 0.95:
            return Kind("boolean", levels=("false", "true"))
        if (left := self._left_out(field)) is not None:
            return Kind("left_out", reason=left)
        counted = sum(field.types.get(name, 0) for name in ("integer", "number"))
        in_text = field.moments.n - counted
        written = in_text > counted  # prices in text are numbers; codes and versions, such as "1.2", are not
        numeric = field.moments.n >= 0.95 * field.values and (not written or (field.fractions > 0 and distinct > FEW))
        if numeric and (field.fractions or distinct > FEW):
            quantiles = tuple(field.quantiles.at(QUANTILES))
            if not field.former_unit:
                return Kind("number", quantiles=quantiles)
            unit = tuple(field.quantiles.at(SHARES))
            return Kind("number", quantiles=quantiles, unit=unit, former_unit=field.former_unit)
        if side == "item" and self.items >= 2 and distinct >= 0.9 * self.items and field.share("text") > 0.5:
            return Kind("left_out", reason="same_as_id")
        return self._with_levels(field, "levels")

    def _kind_of_list(self, field: FieldProfile) -> Kind:
        vectors = sum(field.sizes.values())
        if vectors and field.share("vector") >= 0.5:
            size, times = max(field.sizes.items(), key=lambda pair: pair[1])
            if times >= 0.95 * vectors or not len(field.levels):
                return Kind("vector", size=int(size))
        return self._with_levels(field, "set")

    def _left_out(self, field: FieldProfile) -> Reason | None:
        new = self.new(field)
        numeric = field.moments.n >= 0.95 * field.values
        if field.values < 40 or new <= 0.5:
            return None
        if new > 0.9 and (field.rises() >= 0.95 or (numeric and field.moments.correlation > 0.95)):
            return "clock"
        if not numeric and field.rises() >= 0.95:
            return "clock"
        if field.side == "item":  # an item's own text is new for each item: `same_as_id`, later
            return None
        wide = numeric and not field.fractions and _width(field) >= LARGE
        newest = field.newest()
        still = newest.distinct > 0.5 * newest.n
        return "new_each_time" if still and (not numeric or wide) else None

    def _with_levels(self, field: FieldProfile, kind: Type) -> Kind:
        least = max(3.0, 0.01 * field.values)
        ever = [text for text, _ in field.levels.most_frequent(MOST_LEVELS, at_least=least)]
        lately = [text for text, share in field.newest().levels if share >= LATELY and text not in ever]
        chosen = (*ever[: MOST_LEVELS - len(lately)], *lately)
        return Kind(kind, levels=chosen) if chosen else Kind("left_out", reason="rare_levels")

    # ---- a schema

    def declare(self, schema: FeatureSchema | None) -> None:
        """Compare values with a declared schema from here on; None: with earlier values."""
        self._schema = schema
        for side, fields in self.fields.items():
            for path, field in fields.items():
                field.declare(None if schema is None else _reference(schema, side, path))

    @property
    def schema(self) -> FeatureSchema | None:
        """The declared schema that values are compared with."""
        return self._schema

    # ---- state

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that it takes to go on, bit for bit."""
        fields = [field.state() for side in self.fields.values() for field in side.values()]
        said = {
            "v": FORMAT,
            "events": self.events,
            "sides": [[s.name, s.records, s.left_out, s.left_out_at] for s in self._sides.values()],
            "at": [self.first_at, self.last_at],
            "requests": list(self._requests),
            "rewards": self.rewards.state(),
            "examples": [
                None if e is None else [e.at, e.value]
                for e in (self.first_reward, self.last_reward, self.first_user, self.last_user)
            ],
            "users": self._users.state(),
            "items": self._items.state(),
            "with_user": self.with_user,
            "returns": self._returns,
            "without_features": self.without_features,
            "schema": None if self._schema is None else self._schema.model_dump(mode="json"),
            "fields": [field for field, _, _ in fields],
        }
        return {
            "json": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8).copy(),
            "kinds": np.array([rings[:2] for _, rings, _ in fields], dtype=np.uint8).reshape(-1, 2, NEWEST),
            "serials": np.array([rings[2] for _, rings, _ in fields], dtype=np.int64).reshape(-1, NEWEST),
            "numbers": np.array([numbers for _, _, numbers in fields], dtype=np.float64).reshape(-1, NEWEST),
            "rewards": np.array(self._newest_rewards, dtype=np.float64),
        }

    @classmethod
    def load(cls, state: Arrays) -> Profile:
        """Go on from `state`.

        Raises:
            ValueError: it is no profile of this format.
        """
        try:
            said = json.loads(state["json"].tobytes())
            if said["v"] != FORMAT:
                raise ValueError(f"a profile of format {said['v']}; this version reads {FORMAT}")
            return cls._of(said, state)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a profile: {type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, said: dict[str, Any], state: Arrays) -> Profile:
        found = cls()
        for name in ("events", "with_user", "without_features"):
            setattr(found, name, said[name])
        for name, *counts in said["sides"]:
            found._sides[name] = _Side(name, *counts)
        found.first_at, found.last_at = said["at"]
        found._requests = dict.fromkeys(said["requests"])
        found.rewards = Quantiles.of(said["rewards"])
        examples = [None if e is None else Example(*e) for e in said["examples"]]
        found.first_reward, found.last_reward, found.first_user, found.last_user = examples
        found._users, found._items = Sample.of(MOST_IDS, said["users"]), Sample.of(MOST_IDS, said["items"])
        found._returns = said["returns"]
        found._newest_rewards = state["rewards"].tolist()
        found._schema = None if said["schema"] is None else FeatureSchema.model_validate(said["schema"])
        for field, kinds, serials, numbers in zip(
            said["fields"], state["kinds"], state["serials"], state["numbers"], strict=True
        ):
            rings = [*kinds.tolist(), serials.tolist()]
            found.fields[field["side"]][field["path"]] = FieldProfile.of(field, rings, numbers.tolist())
        return found


def _signature(features: Mapping[str, Any]) -> int:
    """Return 63 bits of an item's features, whatever the order of their names."""
    try:
        text = json.dumps(features, sort_keys=True)
    except (TypeError, ValueError):  # an integer of thousands of digits, or no JSON
        text = repr(sorted(features))
    return hash_of(text) >> 1


def _width(field: FieldProfile) -> float:
    low, high = field.quantiles.at((0.02, 0.98)) or (0.0, 0.0)
    return high - low


def _reference(schema: FeatureSchema, side: Side, path: str) -> Reference | None:
    """Return what a declared field takes; None where it is not declared."""
    declared: AnyField | None = (schema.context if side == "context" else schema.item).get(path)
    infinite = float("inf")
    if isinstance(declared, Categorical):
        return Reference(1 | 2 | 4, -infinite, infinite, 0, levels=frozenset(declared.levels), declared=True)
    if isinstance(declared, Numeric):
        return Reference(2, declared.min, declared.max, 0, declared=True)
    if isinstance(declared, Vector):
        return Reference(8, -infinite, infinite, 0, size=declared.size, declared=True)
    return None
