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

USERS, CLICKS, HISTORY, SHOCKS, BIRTH, BOTS = range(6)  # streams of random numbers: none shows in another
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

    @cached_property
    def width(self) -> int:
        """Columns of luck that hold all slots."""
        return int(self.slots.max()) + 1


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


@dataclass(frozen=True, slots=True)
class Traffic:
    """How visits and rewards reach the service, while tastes are what they were."""

    silent: bool = False  # no reward of a person's is sent
    delay: int = 0  # steps that a reward comes late
    bots: int = 0  # that come with each person, and click whatever they are shown


CALM = Traffic()
State = TypeVar("State")


@dataclass(frozen=True)
class Shock(Generic[State]):
    """A change of a world's hidden state.

    Args:
        says: what happened, as the middle of a sentence.
        change: (state before, generator, age) → state. `age` counts the steps since the shock struck, 0 to `span`.
        span: steps until it is over; 0: all at once. The generator starts anew for each age, so that all see one draw.
        traffic: what it does to the traffic for `span` steps; the state then does not depend on the age.
    """

    name: str
    says: str
    change: Callable[[State, np.random.Generator, int], State]
    span: int = 0
    traffic: Traffic = CALM


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
        self._after = lru_cache(maxsize=8)(self._fold)  # what a running shock leaves alone is not made anew
        self._offered = self.catalogue_of(self._after(()))

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
        struck = [(step - at, shock) for at, shock in self.schedule if at <= step]
        return self._after(tuple(min(age, shock.span) if shock.traffic == CALM else 0 for age, shock in struck))

    def _fold(self, ages: tuple[int, ...]) -> State:
        """The hidden state when the first shocks have these ages."""
        if not ages:
            return self.initial()
        number = len(ages) - 1
        key, counter = (np.array(of, np.uint64) for of in ([self.seed, SHOCKS], [0, 0, number, 0]))  # lists cost 10 µs
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        return self.schedule[number][1].change(self._after(ages[:-1]), generator, ages[-1])

    def catalogue(self, step: int) -> Catalogue:
        """What is on offer at `step`."""
        return self._on_offer(self.state(step))

    def _on_offer(self, state: State) -> Catalogue:
        """One and the same object while the same items are on offer, whatever else drifts."""
        found = self.catalogue_of(state)
        if found is not self._offered and found.items != self._offered.items:
            self._offered = found
        return self._offered

    def at(self, step: int) -> Moment:
        """Who comes at `step` ≥ 0, and what each item would earn."""
        state = self.state(step)
        catalogue = self._on_offer(state)
        user = self.user_of(float(uniforms(self.seed, USERS, step, 1)[0]))
        luck = uniforms(self.seed, CLICKS, step, catalogue.width)[catalogue.slots]
        return Moment(step, self.visit_of(user), catalogue, self.rates_of(state, user), luck)

    def traffic(self, step: int) -> Traffic:
        """What all shocks together do to the traffic of `step`."""
        running = [shock.traffic for at, shock in self.schedule if at <= step < at + shock.span]
        return Traffic(
            silent=any(traffic.silent for traffic in running),
            delay=max((traffic.delay for traffic in running), default=0),
            bots=sum(traffic.bots for traffic in running),
        )

    def bots(self, step: int) -> list[Visit]:
        """The bots of `step`: each under an id of its own, looking like some user."""
        count = self.traffic(step).bots
        if count == 0:
            return []
        looks = [self.visit_of(self.user_of(drawn)) for drawn in uniforms(self.seed, BOTS, step, count).tolist()]
        return [Visit(f"bot-{step}-{number}", look.context) for number, look in enumerate(looks)]

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
