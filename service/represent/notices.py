"""The data contract: what in a loop's data keeps it from being learned, what that means, and what to do.

A notice lives on the newest values alone, so it goes when its fault is over: 256 values of the field later, or, where
the newest values are compared with earlier ones, when the change has become the rule (1024 to 2048 values later).
Thresholds are such that a clean run is silent; `docs/data.md` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.represent.field_profile import NEW_LEVEL, NEW_TYPE, NEWEST, OUTSIDE, Example, FieldProfile
from service.represent.misfits import Side
from service.represent.profile import NEWEST_REWARDS, Kind, Profile

WARM_UP = 200  # records before anything is said
LONG = 512  # values before a field counts as constant, and records before a field counts as new
FAIR = 1000  # requests before users could have come back
SHARE = 0.05  # of the newest values (13 of 256) that must be at fault
NEW_SHARE = 0.08  # of the newest values that must be new levels: long tails bring some all the time
NEW_FOR = 2048  # records for which a field is new
KNOWN = ("levels", "set", "boolean")  # kinds whose levels are told apart
GONE_FOR = 20_000  # records after which nobody waits for a field
USED = 0.25  # of the reward range


@dataclass(frozen=True, slots=True)
class Notice:
    """One fault of the data.

    Attributes:
        code: stable; `CODES` lists all.
        side, path: of the field; None where it is about the loop.
        count: values, requests or items at fault since it began.
        first, last: examples.
        means: one sentence: what is wrong and what it does to learning.
        do: one sentence: what to do.
        needs_person: False where the service has dealt with it by itself.
    """

    code: str
    side: Side | None
    path: str | None
    count: int
    first: Example | None
    last: Example | None
    means: str
    do: str
    needs_person: bool


CODES = {  # code → what it is about
    "unseen_field": "a field came up that was not there before",
    "vanished_field": "a field no longer comes",
    "unseen_levels": "values that the field did not have before, or that its schema does not list",
    "changed_type": "another JSON type than before, or than declared",
    "out_of_range": "numbers far outside what was seen, or outside the declared range",
    "changed_scale": "a number spreads ten times as wide as it did, a tenth as wide, or wholly elsewhere",
    "wrong_size": "vectors of another length than before, or than declared",
    "constant_field": "one value in every request",
    "saturated_field": "nine of ten numbers stand at one end",
    "new_each_time": "another value in nearly every request: an id",
    "clock": "the field rises with time: a clock or a counter",
    "too_many_fields": "more different fields than are kept: ids as names",
    "constant_context": "the context never varies, and users do not come back",
    "users_once": "users are seen once",
    "same_items": "items have features, and nothing tells them apart",
    "narrow_rewards": "rewards use little of their range",
    "constant_rewards": "every reward is the same",
}


def notices_of(profile: Profile, *, reward_range: tuple[float, float], fits: bool = False) -> list[Notice]:
    """Return what is wrong with a loop's data now; those that need a person come first.

    Args:
        reward_range: the loop's.
        fits: the loop fits its schemas to its log, and measures rewards by what was seen of them.
    """
    whole = [*_of_the_loop(profile), *_of_rewards(profile, reward_range, fits)]
    # Where a whole side says nothing, its fields need not say so one by one.
    silent = {notice.side for notice in whole if notice.code in ("constant_context", "same_items")}
    fields = (n for n in _of_fields(profile) if n.code != "constant_field" or n.side not in silent)
    return sorted([*fields, *whole], key=lambda notice: not notice.needs_person)


# ---- fields


def _of_fields(profile: Profile) -> Iterator[Notice]:
    for side, fields in profile.fields.items():
        if profile.records(side) < WARM_UP:
            continue
        left_out, ago = profile.left_out(side)
        if left_out >= 20 and ago < NEWEST:
            yield Notice(
                "too_many_fields",
                side,
                None,
                left_out,
                None,
                None,
                f"The {side} has more than {len(fields)} different fields, so some are not looked at; names that are "
                "made of ids do this.",
                'Send such a name as a value: {"product": "p17"} instead of {"p17": 1}.',
                True,
            )
        for field in fields.values():
            yield from _of_field(profile, field)


def _of_field(profile: Profile, field: FieldProfile) -> Iterator[Notice]:
    records = profile.records(field.side)
    gap = records - field.last
    alive = field.seen / max(1, field.last - field.born)  # share of the records that held it, while it came
    if field.seen >= 100 and alive >= 0.02 and max(100.0, 25 / alive) <= gap <= GONE_FOR:
        yield _notice(
            field,
            "vanished_field",
            gap,
            f"{_name(field)} was in {alive:.0%} of the records and is in none of the last {gap}; what was learned from "
            "it is not used.",
            "Look for a change of the client: was the field renamed or dropped? Send it again under the old name.",
        )
    if gap > NEWEST:
        return
    if field.born >= LONG and records - field.born <= NEW_FOR and field.seen >= 20 and alive >= SHARE:
        yield _notice(
            field,
            "unseen_field",
            field.seen,
            f"{_name(field)} first came after {field.born} records, so nothing was learned from it before.",
            "Nothing, if it is meant: it is taken in when the rows are made anew. Declare it, if the schema is yours. "
            "If a field was renamed, send the old name.",
        )
    if field.seen < WARM_UP:
        return
    kind = profile.kind_of(field.side, field.path)
    yield from _compared(field, kind)
    yield from _useless(profile, field, kind)


def _compared(field: FieldProfile, kind: Kind) -> Iterator[Notice]:
    """What the newest values are, against the earlier ones or the schema."""
    if field.reference is None:
        return
    window, declared = field.newest(), field.reference.declared
    enough = max(8, round(SHARE * window.n))
    marks = field.marks
    said = "its schema" if declared else "the values that came before"
    if NEW_TYPE in marks and field.marked(NEW_TYPE) >= enough:
        types = ", ".join(f"{share:.0%} {name}" for name, share in sorted(window.types.items(), key=lambda p: -p[1]))
        yield _marked(
            field,
            "changed_type",
            NEW_TYPE,
            f"{_name(field)} has another type than {said}: of the newest {window.n} are {types}.",
            'Send the type of before, or declare the field anew. As a level 1 and "1" are the same; as numbers and '
            "lists they are not.",
        )
        return  # what follows from it is no news
    always_new = kind.reason in ("clock", "new_each_time") or _is_mostly_new(field)
    if (
        NEW_LEVEL in marks
        and field.marked(NEW_LEVEL) >= NEW_SHARE * window.n
        and (declared or (kind.type in KNOWN and not always_new))
    ):
        yield _marked(
            field,
            "unseen_levels",
            NEW_LEVEL,
            f"{field.marked(NEW_LEVEL)} of the newest {window.n} values of {_named(field)} are "
            f"{'not listed in its schema' if declared else 'new'}, so nothing was learned from them before.",
            "Check the spelling of the examples. If they are meant, declare them, or leave it to the service.",
        )
    vector = field.share("vector") >= 0.5
    if OUTSIDE in marks and field.marked(OUTSIDE) >= enough and vector:
        yield _marked(
            field,
            "wrong_size",
            OUTSIDE,
            f"Vectors of {_named(field)} have another length than {field.reference.size}; they cannot be compared "
            "with the earlier ones and are left out.",
            "Send vectors of one model only; give those of a new model a name of their own.",
        )
        return
    if always_new:
        return
    outside = field.marked(OUTSIDE) if OUTSIDE in marks else 0
    if field.former_unit and field.seen - field.unit_from <= NEW_FOR and not declared:
        yield _notice(
            field,
            "changed_scale",
            field.seen - field.unit_from,
            f"{_name(field)} spread over {field.former_unit[1]:g} to {field.former_unit[-2]:g} and now spreads over "
            f"{field.unit[1]:g} to {field.unit[-2]:g}: another unit would do this.",
            "Send the old unit, or give the field a new name. Until then a number of either unit counts as the one of "
            "the other that stands at the same place.",
        )
    elif outside >= enough:
        reference = field.reference
        saturated = declared and outside >= window.n / 2
        yield _marked(
            field,
            "saturated_field" if saturated else "out_of_range",
            OUTSIDE,
            f"{outside} of the newest {window.n} values of {_named(field)} lie outside {reference.low:g} to "
            f"{reference.high:g}{', the declared range' if declared else ''}; they count as the nearer end, so they "
            "look alike.",
            "Widen min and max of the field in the schema." if declared else "Check the unit, and the examples.",
        )


def _useless(profile: Profile, field: FieldProfile, kind: Kind) -> Iterator[Notice]:
    """Fields that teach nothing. The service leaves them out by itself, unless a schema declares them."""
    if kind.reason == "clock":
        yield _notice(
            field,
            "clock",
            field.values,
            f"{_name(field)} rises with time, so tomorrow's values were never seen today; it is left out.",
            "Nothing. If the hour or the weekday matters, send it as a field of its own.",
            needs_person=False,
        )
        return
    if kind.reason == "new_each_time":
        yield _notice(
            field,
            "new_each_time",
            field.count_distinct(),
            f"{_name(field)} has another value in {profile.new(field):.0%} of the requests: an id, from which "
            "nothing can be learned; it is left out.",
            "Nothing; or leave it away. The id of a user belongs into `user_id`.",
            needs_person=False,
        )
        return
    window = field.newest()
    present = field.seen >= 0.99 * (profile.records(field.side) - field.born)
    never_varied = field.count_distinct() <= 1 and field.seen >= LONG and not field.share("vector", "set")
    # It changed at every tenth value at least, in the earlier window: then 256 of one kind are no chance.
    stuck = (
        window.n == NEWEST
        and window.distinct == 1
        and len(window.types) == 1
        and not field.share("vector", "set")
        and field.before is not None
        and not field.before.slow
    )
    if present and (never_varied or stuck):
        if profile.items < 2 and field.side == "item":
            return
        value = field.last_example
        yield _notice(
            field,
            "constant_field",
            field.seen if never_varied else NEWEST,
            f"{_name(field)} is {value.value if value else 'the same'} every time"
            f"{'' if never_varied else ' by now, and varied before'}; what never varies explains nothing.",
            "Nothing, if it is meant. Otherwise look why the client always sends the same.",
            needs_person=not never_varied,
        )
    elif kind.type == "number" and window.n == NEWEST and window.at_ends >= 0.9 and window.distinct > 1:
        yield _notice(
            field,
            "saturated_field",
            round(window.at_ends * window.n),
            f"{window.at_ends:.0%} of the newest values of {_named(field)} stand at one end ({window.low:g} or "
            f"{window.high:g}); such values look alike.",
            "Look whether the client cuts the number off; send it as it is.",
        )


def _is_mostly_new(field: FieldProfile) -> bool:
    """Whether a field has a new value nearly each time, so that new levels are no news."""
    window = field.newest()
    return field.levels.full and window.distinct > 0.5 * window.n and field.share("text") > 0.5


# ---- the loop


def _of_the_loop(profile: Profile) -> Iterator[Notice]:
    requests = profile.records("context")
    if requests < WARM_UP:
        return
    returning = profile.returning()
    fields = profile.fields["context"].values()
    varies = any(field.newest().distinct > 1 or field.share("vector", "set") for field in fields)
    partly = any(0.0 < profile.missing(field) < 1.0 for field in fields)
    strangers = returning is None or (returning < SHARE and profile.with_user >= FAIR)
    if requests >= LONG and not varies and not partly and strangers:
        yield Notice(
            "constant_context",
            "context",
            None,
            requests,
            profile.first_user,
            profile.last_user,
            "Every request looks the same: no field of the context varies and no user comes back, so everybody gets "
            "the same items.",
            "Send what you know when you ask: a segment, a page, a device, the hour, or a `user_id` that stays.",
            True,
        )
    if profile.with_user >= FAIR and returning is not None and returning < SHARE:
        yield Notice(
            "users_once",
            None,
            None,
            round(profile.users * profile.users_once()),
            profile.first_user,
            profile.last_user,
            f"Of {profile.users} users {profile.users_once():.0%} were seen once, so nothing can be learned about any "
            "of them.",
            "Send an id that stays with the person as `user_id`, not one of the session or the request.",
            True,
        )
    yield from _same_items(profile)


def _same_items(profile: Profile) -> Iterator[Notice]:
    items, alone, pairs = profile.same_items()
    pair = profile.a_same_pair()
    if profile.events < WARM_UP or items < 3 or not pairs or pair is None or profile.last_at is None:
        return
    example = Example(profile.last_at, f"{pair[0][:36]} and {pair[1][:36]}")
    all_same = pairs == items * (items - 1) // 2
    # Where features tell nearly all items apart, two with the same ones are a slip.
    if all_same or alone >= 0.8 * items:
        yield Notice(
            "same_items",
            "item",
            None,
            pairs,
            example,
            example,
            f"All {items} items have the same features, so those say nothing: each item is learned by its id alone."
            if all_same
            else f"{pairs} pairs of items have the same features, though features tell the others apart.",
            "Send features that differ: category, price, age, words of the title."
            if all_same
            else "Look whether an item stands twice in the catalogue, or lacks its features.",
            True,
        )


def _of_rewards(profile: Profile, reward_range: tuple[float, float], fits: bool) -> Iterator[Notice]:
    rewards = profile.newest_rewards()
    if len(rewards) < LONG:
        return
    low, high = reward_range
    least, most = float(rewards.min()), float(rewards.max())
    if least == most:
        if len(rewards) == NEWEST_REWARDS:
            yield Notice(
                "constant_rewards",
                None,
                None,
                len(rewards),
                profile.first_reward,
                profile.last_reward,
                f"The newest {len(rewards)} rewards are all {least:g}, so there is nothing to learn.",
                "See whether POST /feedback is called, before the wait time is over, with what you want more of.",
                True,
            )
        return
    inner = np.quantile(rewards, (0.002, 0.998))
    used = (most - least) / (high - low)
    inside = float(inner[1] - inner[0]) / (high - low)
    # Two values, such as a rare click, use what they use; only many different ones can leave the range empty.
    if used < USED or (inside < 0.1 and len(np.unique(rewards)) > 2 and inside > 0):
        bottom, top = (least, most) if used < USED else (float(inner[0]), float(inner[1]))
        yield Notice(
            "narrow_rewards",
            None,
            None,
            len(rewards),
            profile.first_reward,
            profile.last_reward,
            f"Rewards lie between {bottom:g} and {top:g}, which is {min(used, inside) if inside else used:.0%} of the "
            f"range {low:g} to {high:g}; "
            f"{'they are measured by what was seen of them' if fits else 'differences of that size look small'}.",
            "Nothing. See that no reward is in another unit than the rest."
            if fits
            else f"Make the loop with a `reward_range` near [{bottom:.3g}, {top:.3g}].",
            not fits,
        )


def _notice(field: FieldProfile, code: str, count: int, means: str, do: str, *, needs_person: bool = True) -> Notice:
    return Notice(code, field.side, field.path, count, field.first_example, field.last_example, means, do, needs_person)


def _marked(field: FieldProfile, code: str, bit: int, means: str, do: str) -> Notice:
    mark = field.marks[bit]
    return Notice(code, field.side, field.path, mark.count, mark.first, mark.last, means, do, True)


def _name(field: FieldProfile) -> str:
    return f"The field `{field.path}` of the {field.side}"


def _named(field: FieldProfile) -> str:
    return f"`{field.path}` of the {field.side}"
