"""What a world is: users who come, what they see, and how likely they are to click.

A world is a pure function of (seed, schedule of shocks, step): every number comes from a counter-based generator
(Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so a step can be asked for in any order, by
any number of policies, for ever, and always has the same user and the same luck.

Letters: **n** items of the catalogue, **t** steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

USERS, CLICKS, HISTORY, SHOCKS = range(4)  # streams of random numbers: none shows in another
BLOCK = 256  # steps, and columns, that are drawn at once
COLUMNS = 64


@lru_cache(maxsize=128)
def _block(seed: int, stream: int, block: int, chunk: int) -> Array:
    generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, chunk, block]))
    drawn = generator.random((BLOCK, COLUMNS))
    drawn.flags.writeable = False
    return drawn


def uniforms(seed: int, stream: int, step: int, width: int) -> Array:
    """(width,) numbers in [0, 1): column j depends on (seed, stream, step, j) alone, not on `width`."""
    block, row = divmod(step, BLOCK)
    chunks = range(-(-width // COLUMNS))
    return np.concatenate([_block(seed, stream, block, chunk)[row] for chunk in chunks])[:width]


@dataclass(frozen=True, slots=True)
class Item:
    """One product, as the service sees it. `slot` is its column of luck, never used by another item."""

    id: str
    slot: int
    features: Mapping[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """The n items on offer, in a fixed order."""

    items: tuple[Item, ...]

    @cached_property
    def row(self) -> Mapping[str, int]:
        """Item id → its place in every (n,) array."""
        return {item.id: row for row, item in enumerate(self.items)}

    @cached_property
    def slots(self) -> Array:
        """(n,)"""
        return np.array([item.slot for item in self.items])


@dataclass(frozen=True, slots=True)
class Visit:
    """The observation: all that the service ever gets to know about who came."""

    user_id: str
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """One step with what is hidden: the expected click rates of everything on offer, and the luck."""

    step: int
    visit: Visit
    catalogue: Catalogue
    rates: Array  # (n,), probabilities
    luck: Array  # (n,), uniform in [0, 1)

    @property
    def oracle(self) -> float:
        """The best rate that any choice could have had."""
        return float(self.rates.max())

    @property
    def random(self) -> float:
        """The mean rate of a uniform choice."""
        return float(self.rates.mean())

    def outcome(self, item_id: str) -> tuple[float, bool]:
        """(expected rate, clicked) of showing this item; the same for whoever shows it.

        Raises:
            KeyError: the item is not on offer at this step.
        """
        row = self.catalogue.row[item_id]
        return float(self.rates[row]), bool(self.luck[row] < self.rates[row])


State = TypeVar("State")


@dataclass(frozen=True)
class Shock(Generic[State]):
    """A change of a world's hidden state.

    Args:
        says: what happened, as the middle of a sentence.
        change: (state before, generator, age) → state. `age` counts the steps since the shock struck, 0 to `span`.
        span: steps until it is over; 0: all at once. The generator starts anew for each age, so that all see one draw.
    """

    name: str
    says: str
    change: Callable[[State, np.random.Generator, int], State]
    span: int = 0


class World(ABC, Generic[State]):
    """Users, items and hidden tastes.

    Args:
        seed: 0 ≤ seed < 2⁶³; everything follows from it.
        schedule: (step, shock) pairs; later shocks change what earlier ones left.
    """

    name: ClassVar[str]
    schema: ClassVar[Mapping[str, Any]]  # the feature schema to declare on a loop

    def __init__(self, seed: int, schedule: Iterable[tuple[int, Shock[State]]] = ()) -> None:
        self.seed = seed
        self.schedule = tuple(sorted(schedule, key=lambda entry: entry[0]))
        self._folded: tuple[tuple[int, ...], State] = ((), self.initial())

    @abstractmethod
    def initial(self) -> State:
        """The hidden state before any shock."""

    @abstractmethod
    def catalogue_of(self, state: State) -> Catalogue: ...

    @abstractmethod
    def user_of(self, uniform: float) -> int:
        """The user that a uniform number in [0, 1) stands for."""

    @abstractmethod
    def visit_of(self, user: int) -> Visit: ...

    @abstractmethod
    def rates_of(self, state: State, user: int) -> Array:
        """(n,) expected click rates of the catalogue's items."""

    def struck(self, shock: Shock[State], at: int) -> Self:
        """The same world with one more shock, from step `at` on."""
        return type(self)(self.seed, [*self.schedule, (at, shock)])

    def state(self, step: int) -> State:
        """The hidden state at `step`."""
        ages = tuple(min(step - at, shock.span) for at, shock in self.schedule if at <= step)
        if ages != self._folded[0]:
            state = self.initial()
            for number, (age, (_, shock)) in enumerate(zip(ages, self.schedule, strict=False)):
                generator = np.random.Generator(np.random.Philox(key=[self.seed, SHOCKS], counter=[0, 0, number, 0]))
                state = shock.change(state, generator, age)
            self._folded = (ages, state)
        return self._folded[1]

    def catalogue(self, step: int) -> Catalogue:
        """What is on offer at `step`."""
        return self.catalogue_of(self.state(step))

    def at(self, step: int) -> Moment:
        """Who comes at `step` ≥ 0, and what each item would earn."""
        state = self.state(step)
        catalogue = self.catalogue_of(state)
        user = self.user_of(float(uniforms(self.seed, USERS, step, 1)[0]))
        slots = catalogue.slots
        luck = uniforms(self.seed, CLICKS, step, int(slots.max()) + 1)[slots]
        return Moment(step, self.visit_of(user), catalogue, self.rates_of(state, user), luck)

    def history(self, rows: int) -> Iterator[dict[str, Any]]:
        """`rows` uniformly random impressions from before any shock, as POST /events takes them."""
        state = self.initial()
        items = self.catalogue_of(state).items
        n = len(items)
        for row in range(rows):
            who, what, luck = uniforms(self.seed, HISTORY, row, 3).tolist()
            user, shown = self.user_of(who), int(what * n)
            visit = self.visit_of(user)
            yield {
                "event_id": f"history-{self.seed}-{row}",
                "user_id": visit.user_id,
                "context": visit.context,
                "item_id": items[shown].id,
                "reward": float(luck < self.rates_of(state, user)[shown]),
                "propensity": 1 / n,
            }
