"""Builds activity."""

from __future__ import annotations

from service.records import LoggedActivity


def taken(*, at: int = 10**12, **users: str) -> list[LoggedActivity]:
    """Activity of users, each of whom takes items one after the other: user = "item item"."""
    acts = [(user, item) for user, items in users.items() for item in items.split()]
    return [LoggedActivity(f"1-{n}", user, 1, at, item, "view", 1000) for n, (user, item) in enumerate(acts)]
