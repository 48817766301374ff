"""Base of all worlds: users, items, and the hidden expectations of their rewards.

A world is a pure function of (seed, schedule of shocks, step). Every number comes from a counter-based generator
(Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). So steps can be computed in any order and
any number of times, and all policies meet the same users and the same draws (common random numbers).

Letters: **n** items of the catalogue, **t** steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Independent streams of random numbers.
USERS, CLICKS, HISTORY, SHOCKS, POPULATION, BOTS, VISITS, AMOUNTS, BROWSING = range(9)
BLOCK = 256  # steps that are drawn at once
COLUMNS = 64  # columns that are drawn at once


@lru_cache(maxsize=128)
def _block(seed: int, stream: int, block: int, chunk: int) -> Array:
    generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, chunk, block]))
    drawn = generator.random((BLOCK, COLUMNS))
    drawn.flags.writeable = False
    return drawn


def uniforms(seed: int, stream: int, step: int, width: int) -> Array:
    """Draw (width,) numbers in [0, 1). Column j depends on (seed, stream, step, j) and not on `width`."""
    block, row = divmod(step, BLOCK)
    chunks = range(-(-width // COLUMNS))
    return np.concatenate([_block(seed, stream, block, chunk)[row] for chunk in chunks])[:width]


@dataclass(frozen=True, slots=True)
class Item:
    """One product, as the service sees it. `slot` is its column of click draws; no other item ever has it."""

    id: str
    slot: int
    features: Mapping[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """The n items on offer, in a fixed order."""

    items: Sequence[Item]

    @cached_property
    def row(self) -> Mapping[str, int]:
        """Item id → its index in every (n,) array."""
        return {item.id: row for row, item in enumerate(self.items)}

    @cached_property
    def slots(self) -> Array:
        """(n,) columns of click draws."""
        return np.array([item.slot for item in self.items])

    @cached_property
    def width(self) -> int:
        """Number of columns that hold all slots."""
        return int(self.slots.max()) + 1


@dataclass(frozen=True, slots=True)
class Deed:
    """What a user did by himself with an item: view, click, cart or buy."""

    item_id: str
    type: str
    user_id: str | None = None  # None: the visitor


class Tie(NamedTuple):
    """That a user knows another one."""

    user: str
    to: str

    @property
    def edge(self) -> dict[str, str]:
        """The tie, in the form of POST /edges."""
        return {"from": self.user, "to": self.to}


@dataclass(frozen=True, slots=True)
class Visit:
    """The observation of a user: all that the service learns about a visitor."""

    user_id: str
    context: Mapping[str, Any]
    deeds: tuple[Deed, ...] = ()  # just before, in order, his own and those of others

    @property
    def activity(self) -> list[dict[str, str]]:
        """The deeds, in the form of POST /activity."""
        return [
            {"user_id": deed.user_id or self.user_id, "item_id": deed.item_id, "type": deed.type} for deed in self.deeds
        ]


@dataclass(frozen=True, slots=True)
class Moment:
    """One step with its hidden part: the expected rewards of all items, and the draws that decide the rewards.

    Where `rewards` is None, a reward is a click: 1 if the item's draw is below its rate, else 0.
    """

    step: int
    visit: Visit
    catalogue: Catalogue
    rates: Array  # (n,), expected rewards; of clicks: probabilities
    click_draws: Array  # (n,), uniform in [0, 1)
    rewards: Array | None = None  # (n,), what each item pays if it is shown
    person: bool = True  # False: a robot, which no figure counts

    @property
    def oracle(self) -> float:
        """The largest expected reward."""
        return float(self.rates.max())

    def best(self, most: int) -> float:
        """The mean expected reward of the `most` best items."""
        return float(np.partition(self.rates, len(self.rates) - most)[-most:].mean())

    @property
    def random(self) -> float:
        """The mean expected reward: that of a uniform choice."""
        return float(self.rates.mean())

    def outcome(self, item_id: str) -> tuple[float, float]:
        """Return (expected reward, reward) of showing this item; both are the same for every policy.

        Raises:
            KeyError: the item is not on offer at this step.
        """
        row = self.catalogue.row[item_id]
        if self.rewards is None:
            return float(self.rates[row]), float(self.click_draws[row] < self.rates[row])
        return float(self.rates[row]), float(self.rewards[row])


@dataclass(frozen=True, slots=True)
class TrafficEffect:
    """Changes of visits and rewards on their way to the service; click rates stay as they are."""

    silent: bool = False  # no reward of a user is sent
    delay: int = 0  # steps by which a reward is late
    bots: int = 0  # that come with each user and click every item they are shown


NO_EFFECT = TrafficEffect()
NO_TIES: frozenset[Tie] = frozenset()
State = TypeVar("State")


@dataclass(frozen=True)
class Shock(Generic[State]):
    """A change of a world's hidden state.

    Args:
        description: the change, as a sentence without its full stop.
        change: (state before, generator, age) → state. `age` counts the steps since the shock, from 0 to `span`. The
            generator starts anew for each age, so all ages see one draw.
        span: steps until the change is complete; 0: at once.
        traffic: effect on the traffic for `span` steps. The state then does not depend on the age.
    """

    name: str
    description: str
    change: Callable[[State, np.random.Generator, int], State]
    span: int = 0
    traffic: TrafficEffect = NO_EFFECT


class World(ABC, Generic[State]):
    """Users, items and hidden expected rewards.

    Args:
        seed: 0 ≤ seed < 2⁶³; determines every number.
        schedule: (step, shock) pairs. A later shock changes the state that earlier ones left.
    """

    name: str
    schema: Mapping[str, Any]  # the feature schema to declare on a loop
    reward_range: tuple[float, float] = (0.0, 1.0)  # to set on a loop
    inline: bool = False  # each request brings its candidates; False: the loop has a catalogue

    def __init__(self, seed: int, schedule: Iterable[tuple[int, Shock[State]]] = ()) -> None:
        self.seed = seed
        self.schedule = tuple(sorted(schedule, key=lambda entry: entry[0]))
        self._after = lru_cache(maxsize=8)(self._fold)  # keeps states that a running shock does not change

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of a loop for this world, in the form of PUT /loops."""
        return {"schema": self.schema, "reward_range": list(self.reward_range)}

    @abstractmethod
    def initial(self) -> State:
        """Return the hidden state before any shock."""

    @abstractmethod
    def catalogue(self, step: int) -> Catalogue:
        """Return the items on offer at `step`: one and the same object as long as they are the same."""

    @abstractmethod
    def at(self, step: int) -> Moment:
        """Return the visit at `step` ≥ 0, with the expected rewards and draws of all items on offer."""

    @abstractmethod
    def bots(self, step: int) -> list[Visit]:
        """Return the visits of the bots that a shock sends at `step`, each with an id of its own."""

    @abstractmethod
    def history(self, rows: int) -> Iterator[dict[str, Any]]:
        """Generate `rows` uniformly random impressions from before any shock, in the form of POST /events."""

    def ties(self, step: int) -> frozenset[Tie]:
        """Return who knows whom at `step`: one and the same object as long as it is the same."""
        return NO_TIES

    def with_shock(self, shock: Shock[State], at: int) -> Self:
        """Return the same world with one more shock, from step `at` on."""
        return type(self)(self.seed, [*self.schedule, (at, shock)])

    def state(self, step: int) -> State:
        """Return the hidden state at `step`."""
        past = [(step - at, shock) for at, shock in self.schedule if at <= step]
        return self._after(tuple(min(age, shock.span) if shock.traffic == NO_EFFECT else 0 for age, shock in past))

    def _fold(self, ages: tuple[int, ...]) -> State:
        """Return the hidden state in which the first shocks have these ages."""
        if not ages:
            return self.initial()
        number = len(ages) - 1
        key, counter = (np.array(of, np.uint64) for of in ([self.seed, SHOCKS], [0, 0, number, 0]))  # lists cost 10 µs
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        return self.schedule[number][1].change(self._after(ages[:-1]), generator, ages[-1])

    def traffic_effect(self, step: int) -> TrafficEffect:
        """Combine the effects of all shocks on the traffic of `step`."""
        running = [shock.traffic for at, shock in self.schedule if at <= step < at + shock.span]
        return TrafficEffect(
            silent=any(effect.silent for effect in running),
            delay=max((effect.delay for effect in running), default=0),
            bots=sum(effect.bots for effect in running),
        )


class UserWorld(World[State]):
    """A world of users who look the same at each visit, and whose rewards are clicks."""

    def __init__(self, seed: int, schedule: Iterable[tuple[int, Shock[State]]] = ()) -> None:
        super().__init__(seed, schedule)
        self._on_offer = self.catalogue_of(self._after(()))

    @abstractmethod
    def catalogue_of(self, state: State) -> Catalogue: ...

    @abstractmethod
    def user_of(self, uniform: float) -> int:
        """Return the user that a uniform number in [0, 1) selects."""

    @abstractmethod
    def visit_of(self, user: int) -> Visit: ...

    @abstractmethod
    def rates_of(self, state: State, user: int) -> Array:
        """Return the (n,) expected click rates of the catalogue's items."""

    def catalogue(self, step: int) -> Catalogue:
        return self._same_catalogue(self.state(step))

    def _same_catalogue(self, state: State) -> Catalogue:
        found = self.catalogue_of(state)
        if found is not self._on_offer and found.items != self._on_offer.items:
            self._on_offer = found
        return self._on_offer

    def at(self, step: int) -> Moment:
        state = self.state(step)
        catalogue = self._same_catalogue(state)
        user = self.user_of(float(uniforms(self.seed, USERS, step, 1)[0]))
        draws = uniforms(self.seed, CLICKS, step, catalogue.width)[catalogue.slots]
        return Moment(step, self.visit_of(user), catalogue, self.rates_of(state, user), draws)

    def bots(self, step: int) -> list[Visit]:
        """Return the visits of the bots at `step`. Each bot has an id of its own and the context of some user."""
        count = self.traffic_effect(step).bots
        if count == 0:
            return []
        models = [self.visit_of(self.user_of(drawn)) for drawn in uniforms(self.seed, BOTS, step, count).tolist()]
        return [Visit(f"bot-{step}-{number}", model.context) for number, model in enumerate(models)]

    def history(self, rows: int) -> Iterator[dict[str, Any]]:
        state = self.initial()
        items = self.catalogue_of(state).items
        n = len(items)
        for row in range(rows):
            user_draw, item_draw, click_draw = uniforms(self.seed, HISTORY, row, 3).tolist()
            user, shown = self.user_of(user_draw), int(item_draw * n)
            visit = self.visit_of(user)
            yield {
                "event_id": f"history-{self.seed}-{row}",
                "user_id": visit.user_id,
                "context": visit.context,
                "item_id": items[shown].id,
                "reward": float(click_draw < self.rates_of(state, user)[shown]),
                "propensity": 1 / n,
            }
