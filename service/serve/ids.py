"""Decision ids that the service makes: they say in which loop and partition a decision lies.

    01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop      a ULID, the partition, the loop

A client's own id may look like anything else, and lies in the loop that the client names. One of this form is taken
only in the loop that it names, so that a report finds its decision.
"""

from __future__ import annotations

import os
import re
import time

from ulid import ULID

from service.errors import InvalidRequest
from service.loop import LOOP_NAME

DEFAULT_LOOP = "default"
CLOCKS_S = 60.0  # by which the clocks of workers may differ
MADE_HERE = re.compile(rf"[0-9A-HJKMNP-TV-Z]{{26}}\.(?P<partition>0|[1-9][0-9]*)\.(?P<loop>{LOOP_NAME.pattern})")


DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS = [left + right for left in DIGITS for right in DIGITS]  # two digits are ten bits


def new_decision_id(loop: str, *, partition: int = 0) -> str:
    """Make an id; ids sort by the time at which they were made."""
    # A ULID, as the library makes it at twice the cost: 48 bits of milliseconds, then 80 random ones.
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    ulid = "".join([PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
    return f"{ulid}.{partition}.{loop}"


def check_own_id(decision_id: str, loop: str) -> None:
    """Refuse a client's own id that names another loop.

    Raises:
        InvalidRequest: says which loop it names.
    """
    made_here = MADE_HERE.fullmatch(decision_id)
    if made_here and made_here["loop"] != loop:
        raise InvalidRequest("decision_id", f"an id of this form names its loop, {made_here['loop']!r}, not {loop!r}")


def may_come(decision_id: str, loop: str, *, at: float, within_s: float) -> bool:
    """Return whether a decision that is not stored may still be: a client's own, or one answered while Redis was away.

    Args:
        at: now, in unix seconds.
        within_s: seconds that a decision takes from being made to being forgotten.
    """
    made_here = MADE_HERE.fullmatch(decision_id)
    if made_here is None:
        return True
    if made_here["loop"] != loop or made_here["partition"] != "0":
        return False
    try:
        made: float = ULID.from_str(decision_id[:26]).timestamp
    except ValueError:  # of this form, and yet no ULID
        return False
    return at - within_s <= made <= at + CLOCKS_S


def loop_of(decision_id: str, named: str | None) -> str:
    """Return the loop of a decision: the one that the client names, else the one that its id names, else `default`."""
    if named is not None:
        return named
    made_here = MADE_HERE.fullmatch(decision_id)
    return made_here["loop"] if made_here else DEFAULT_LOOP
