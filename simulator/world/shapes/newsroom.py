"""A newsroom: articles that live and die, segments that are seen through noise, hours, and a partial shock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels, pick

SEGMENT, SEEN, WRONG = range(3)  # columns of the uniform numbers
PARTS = ("night", "morning", "afternoon", "evening")  # of six hours each


@dataclass(frozen=True, kw_only=True)
class Newsroom(Shape):
    """Constants of a newsroom.

    A click has the probability σ(base + taste[segment, topic] + hours[part of the day, topic] + own - fading × age),
    with normal tastes, hours and own. From `shock_at` on, the tastes of the last `shocked` segments are others.

    Args:
        articles: on offer at a time; `newcomers` replace the oldest ones each `period` decisions.
        misread: share of the visits of which the service sees a segment drawn uniformly.
        decisions_an_hour: decisions from one hour of the day to the next.
        fading: loss of logit from an article's birth to its death.
    """

    steps: int = 8000
    users: int = 2000
    segments: int = 5
    topics: int = 8
    articles: int = 25
    newcomers: int = 3
    period: int = 120
    base: float = -2.4
    taste_sd: float = 1.3
    hours_sd: float = 0.4
    own: float = 0.4
    fading: float = 0.8
    misread: float = 0.15
    decisions_an_hour: int = 50
    shock_at: int = 4000
    shocked: int = 2

    @property
    def changes_at(self) -> int | None:
        return self.shock_at if self.shocked else None


@dataclass(frozen=True, eq=False)
class Desk:
    """The hidden state. `all` are the articles that a run can have, in order of birth."""

    tastes: tuple[Array, Array]  # before and after the shock, each (segments, topics)
    hours: Array  # (parts of the day, topics)
    topic: Array  # (all,)
    own: Array  # (all,)


class NewsroomWorld(ShapedWorld[Desk, Newsroom]):
    """The service sees a segment, the hour, and each article's topic and length in words."""

    def initial(self) -> Desk:
        shape, generator = self.shape, self.generator()
        before = generator.normal(0, shape.taste_sd, (shape.segments, shape.topics))
        after = before.copy()
        after[shape.segments - shape.shocked :] = generator.normal(0, shape.taste_sd, (shape.shocked, shape.topics))
        hours = generator.normal(0, shape.hours_sd, (len(PARTS), shape.topics))
        born = shape.articles + shape.newcomers * (shape.steps // shape.period + 1)
        topic = generator.integers(shape.topics, size=born)
        return Desk((before, after), hours, topic, generator.normal(0, shape.own, born))

    @cached_property
    def _offers(self) -> Any:
        return lru_cache(maxsize=4)(self._offer)

    def _live(self, epoch: int) -> range:
        shape = self.shape
        first = min(epoch * shape.newcomers, len(self.state(0).topic) - shape.articles)
        return range(first, first + shape.articles)

    def _offer(self, epoch: int) -> Catalogue:
        state = self.state(0)
        items = []
        for number in self._live(epoch):
            features: dict[str, Any] = {"topic": f"t{state.topic[number]}"}
            if not self.declared:
                features["words"] = 200 + number * 7919 % 1800
            items.append(Item(f"article-{number}", number % self.shape.articles, features))
        return Catalogue(tuple(items))

    def catalogue(self, step: int) -> Catalogue:
        found: Catalogue = self._offers(step // self.shape.period)
        return found

    def reference(self) -> Mapping[str, Any]:
        shape = self.shape
        return {
            "context": {"segment": levels(f"s{number}" for number in range(shape.segments)), "part": levels(PARTS)},
            "item": {"topic": levels(f"t{number}" for number in range(shape.topics))},
            "crosses": [["segment", "topic"], ["part", "topic"]],
        }

    def arrive(self, state: Desk, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        shape = self.shape
        segment = pick(drawn[SEGMENT], shape.segments)
        seen = pick(drawn[SEEN], shape.segments) if drawn[WRONG] < shape.misread else segment
        hour = step // shape.decisions_an_hour % 24
        live = np.array(self._live(step // shape.period))
        topic = state.topic[live]
        age = (live[-1] - live) / (shape.articles - 1)  # 0 for the youngest, 1 for the oldest
        taste = state.tastes[int(step >= shape.shock_at)][segment]
        logit = shape.base + taste[topic] + state.hours[hour // 6][topic] + state.own[live] - shape.fading * age
        context: dict[str, Any] = {"segment": f"s{seen}"}
        context |= {"part": PARTS[hour // 6]} if self.declared else {"hour": hour, "weekday": step // 1200 % 7}
        return Arrival(context, 1 / (1 + np.exp(-logit)), np.ones(len(live)))


WORLDS: Mapping[str, Newsroom] = {
    "newsroom": Newsroom(about="articles that live and die, noisy segments, hours, a partial shock"),
    "newsroom-calm": Newsroom(about="the same without a shock", near="newsroom", shocked=0),
    "newsroom-busy": Newsroom(
        about="six of 40 articles replaced each 100 decisions, 12 topics",
        near="newsroom",
        articles=40,
        newcomers=6,
        period=100,
        topics=12,
    ),
    "newsroom-all": Newsroom(about="all tastes change at the half", near="newsroom", shocked=5, misread=0.05),
}
