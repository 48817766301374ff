"""Base of the worlds that have the shapes of data that users send.

A family of worlds is a file: a class, a dataclass of constants, and the constants of each world by name. A world can
also be played in its *declared reference*: the same users, tastes and luck, said in the form that is easiest to learn,
with a schema that declares the fields that matter.

Letters: **n** items on offer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np

from simulator.world._base import (
    AMOUNTS,
    BOTS,
    CLICKS,
    POPULATION,
    USERS,
    VISITS,
    Array,
    Catalogue,
    Moment,
    Shock,
    State,
    Visit,
    World,
    uniforms,
)

PAST = 16  # added to the streams of random numbers: a history has the tastes of the run, and luck of its own
DECLARED = ".declared"  # at the end of a name: the world in its declared reference


@dataclass(frozen=True, slots=True)
class Clicks:
    """1 with probability p, else 0."""

    range: tuple[float, float] = (0.0, 1.0)  # that the loop allows
    used: tuple[float, float] = (0.0, 1.0)  # that rewards reach

    def expected(self, p: Array, amounts: Array) -> Array:
        """Return the (n,) expected rewards, of probabilities p (n,) and amounts (n,)."""
        return p

    def draw(self, p: Array, amounts: Array, u: Array, v: Array) -> Array:
        """Return the (n,) rewards, of two independent uniform numbers (n,) for each item."""
        return (u < p).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Revenue:
    """Something is bought with probability p, for the item's amount × uniform(spread)."""

    range: tuple[float, float] = (0.0, 1000.0)
    used: tuple[float, float] = (0.0, 80.0)
    amounts: tuple[float, float] = (20.0, 60.0)  # between which each kind's amount is drawn, uniformly
    spread: tuple[float, float] = (0.7, 1.3)

    def expected(self, p: Array, amounts: Array) -> Array:
        mean: Array = p * amounts * (sum(self.spread) / 2)
        return mean

    def draw(self, p: Array, amounts: Array, u: Array, v: Array) -> Array:
        low, high = self.spread
        paid: Array = (u < p) * amounts * (low + (high - low) * v)
        return paid


@dataclass(frozen=True, slots=True)
class Signed:
    """`liked` with probability p, `disliked` with probability against × (1 - p), else 0."""

    range: tuple[float, float] = (-10.0, 1.0)
    used: tuple[float, float] = (-1.0, 1.0)
    against: float = 0.3
    liked: float = 1.0
    disliked: float = -1.0

    def expected(self, p: Array, amounts: Array) -> Array:
        mean: Array = self.liked * p + self.disliked * self.against * (1 - p)
        return mean

    def draw(self, p: Array, amounts: Array, u: Array, v: Array) -> Array:
        return np.where(u < p, self.liked, np.where(u < p + self.against * (1 - p), self.disliked, 0.0))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Constants that all these worlds have.

    Args:
        about: the world, as a sentence without its full stop.
        near: the world of which this one is a neighbour; None: it is no neighbour.
        steps: decisions of a run.
        users: ids from which each visit draws one, uniformly.
        inline: each request brings its candidates.
    """

    about: str
    near: str | None = None
    steps: int = 3000
    users: int = 500
    inline: bool = False
    reward: Clicks | Revenue | Signed = Clicks()

    @property
    def changes_at(self) -> int | None:
        """The decision from which on data or tastes are others; None: they stay."""
        return None


S = TypeVar("S", bound=Shape)


class Arrival(NamedTuple):
    """One request: what the service sees, and what it does not."""

    context: Mapping[str, Any]
    p: Array  # (n,): probabilities that the item is clicked, bought or liked
    amounts: Array  # (n,): 1 where an amount means nothing
    person: bool = True
    user_id: str | None = None  # None: `u` and the number of the user


class ShapedWorld(World[State], Generic[State, S]):
    """A world of one family.

    Args:
        name: of the world, without the suffix of its declared reference.
        shape: the constants.
        declared: play the declared reference.
    """

    columns: ClassVar[int] = 8  # uniform numbers that `arrive` gets

    def __init__(
        self,
        seed: int,
        schedule: Iterable[tuple[int, Shock[State]]] = (),
        *,
        name: str,
        shape: S,
        declared: bool = False,
    ) -> None:
        super().__init__(seed, schedule)
        self.shape, self.declared, self._plain = shape, declared, name
        self.name = name + DECLARED if declared else name
        self.inline = shape.inline
        self.reward_range = shape.reward.used if declared else shape.reward.range
        self.schema = {**self.reference(), "hash_dims": 0} if declared else {}
        self._past = 0

    @abstractmethod
    def reference(self) -> Mapping[str, Any]:
        """Return the schema of the declared reference, without `hash_dims`."""

    @abstractmethod
    def arrive(self, state: State, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        """Return the request at `step`, of uniform numbers `drawn` (columns,) that belong to this step."""

    def with_shock(self, shock: Shock[State], at: int) -> Self:
        schedule = [*self.schedule, (at, shock)]
        return type(self)(self.seed, schedule, name=self._plain, shape=self.shape, declared=self.declared)

    def in_reference(self) -> Self:
        """Return the declared reference of this world."""
        return type(self)(self.seed, self.schedule, name=self._plain, shape=self.shape, declared=True)

    def generator(self, part: int = 0) -> np.random.Generator:
        """Return a generator of the hidden constants of this seed; each part has numbers of its own."""
        return np.random.Generator(np.random.Philox(key=[self.seed, POPULATION], counter=[0, 0, 0, part]))

    def at(self, step: int) -> Moment:
        state, catalogue = self.state(step), self.catalogue(step)
        user = pick(self._drawn(USERS, step, 1)[0], self.shape.users)
        arrival = self.arrive(state, catalogue, step, user, self._drawn(VISITS, step, self.columns))
        u, v = (self._drawn(of, step, catalogue.width)[catalogue.slots] for of in (CLICKS, AMOUNTS))
        reward = self.shape.reward
        return Moment(
            step,
            Visit(f"u{user}" if arrival.user_id is None else arrival.user_id, arrival.context),
            catalogue,
            reward.expected(arrival.p, arrival.amounts),
            u,
            reward.draw(arrival.p, arrival.amounts, u, v),
            arrival.person,
        )

    def _drawn(self, stream: int, step: int, width: int) -> Array:
        return uniforms(self.seed, stream + self._past, step, width)

    def bots(self, step: int) -> list[Visit]:
        """Return the visits of the bots at `step`, each with the context of some step."""
        count = self.traffic_effect(step).bots
        if count == 0:
            return []
        models = (self.at(pick(drawn, self.shape.steps)) for drawn in uniforms(self.seed, BOTS, step, count).tolist())
        return [Visit(f"bot-{step}-{number}", model.visit.context) for number, model in enumerate(models)]

    def history(self, rows: int) -> Iterator[dict[str, Any]]:
        past = type(self)(self.seed, (), name=self._plain, shape=self.shape, declared=self.declared)
        past._past = PAST
        for row in range(rows):
            moment = past.at(row)
            items = moment.catalogue.items
            shown = items[pick(past._drawn(BOTS, row, 1)[0], len(items))]
            yield {
                "event_id": f"history-{self.seed}-{row}",
                "user_id": moment.visit.user_id,
                "context": moment.visit.context,
                "item_id": shown.id,
                "reward": moment.outcome(shown.id)[1],
                "propensity": 1 / len(items),
            }


def levels(values: Iterable[Any]) -> dict[str, Any]:
    """Declare a field whose values are these, each once."""
    return {"type": "categorical", "levels": [str(value) for value in dict.fromkeys(values)]}


def pick(uniform: float, of: int) -> int:
    """Return the number in [0, of) that a uniform number in [0, 1) selects."""
    return int(uniform * of)
