"""What a person should know about a service and its data, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from service.admin.profile import ProfileReply
from service.admin.status import STALE_S, LoopStatus

Level = Literal["good", "note", "bad"]
ENOUGH = 50  # decisions, or feedback, before shares of them mean something

RUNGS = {
    "learner_down": (
        "No learner has been heard of in the last 10 s: serving goes on from the last snapshots, and nothing is "
        "learned.",
        "Start one: `rebound serve` does by itself, else `rebound learn`.",
    ),
    "store_down": (
        "Redis does not answer: decisions are made from memory, and feedback is refused.",
        "Start Redis again; workers go on by themselves.",
    ),
    "store_lost": (
        "Redis lost its data: workers serve what they had, and nothing is learned.",
        "Restore a backup, or restart the workers and the learner to begin anew.",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about the service, or about a loop.

    Attributes:
        level: `bad` needs a person; `note` is good to know; `good` is as it should be.
        loop: None: it is about the service.
    """

    level: Level
    loop: str | None
    says: str
    do: str = ""
    code: str = ""  # of a notice


@dataclass(frozen=True)
class Seen:
    """What was looked at."""

    where: str
    rung: str | None  # None: nothing runs here; the data were read from their folder
    workers: int
    loops: dict[str, LoopStatus]
    profiles: dict[str, ProfileReply]


def examine(seen: Seen) -> list[Finding]:
    """Return what there is to say, about the service first."""
    found = []
    if seen.rung in RUNGS:
        found.append(Finding("bad", None, *RUNGS[seen.rung]))
    elif seen.rung is not None:
        found.append(Finding("good", None, f"The service is up: {seen.workers} API workers and a learner."))
    if not seen.loops and seen.rung != "store_down":
        found.append(Finding("note", None, "There is no loop.", "PUT /loops/{loop} makes one."))
    for name, status in seen.loops.items():
        found += _of_loop(name, status, seen.profiles.get(name), running=seen.rung is not None)
    return found


def _of_loop(name: str, status: LoopStatus, profile: ProfileReply | None, *, running: bool) -> Iterator[Finding]:
    if status.problem is not None:
        yield Finding("bad", name, f"The loop cannot be read: {status.problem}.", f"DELETE /loops/{name} removes it.")
        return
    if not status.events:
        yield Finding(
            "note",
            name,
            "There are no events yet, so there is nothing to learn from.",
            "Call /recommend and /feedback.",
        )
    elif not status.policies:
        yield Finding("bad", name, "There is no policy, so items are drawn evenly.", "POST /policies makes one.")
    elif status.learning:
        yield Finding("good", name, f"It learns: {status.events:,} events; {', '.join(status.policies)} keeps up.")
    yield from _of_feedback(name, status)
    for policy, found in status.policies.items():
        if running and found.lag and (found.snapshot_age_s or STALE_S) >= STALE_S:
            yield Finding(
                "bad",
                name,
                f"The policy {policy} has {found.lag:,} events to learn and has published nothing for 10 s.",
                "See the learner's log.",
            )
    for misfit, count in sorted(status.misfits.items(), key=lambda pair: -pair[1])[:5]:
        side, rest = misfit.split("/", 1)
        field, reason = rest.rsplit("/", 1)
        yield Finding(
            "note",
            name,
            f"{count:,} values of `{field}` of the {side} did not fit: {reason.replace('_', ' ')}.",
            "The schema or the client can change; docs/api.md says what each reason means.",
        )
    if profile is None:
        return
    for notice in profile.notices:
        yield Finding("bad" if notice.needs_person else "note", name, notice.means, notice.do, notice.code)


def _of_feedback(name: str, status: LoopStatus) -> Iterator[Finding]:
    settled = status.joined + status.defaulted
    if status.dead_letters:
        yield Finding(
            "bad",
            name,
            f"{status.dead_letters:,} entries of the log could not be learned and were set aside.",
            "`rebound dead-letters list` says why. Once that is mended, `rebound dead-letters retry` has them learned.",
        )
    if status.decisions >= ENOUGH and settled >= ENOUGH and not status.joined:
        yield Finding(
            "bad",
            name,
            f"Of {status.decisions:,} decisions none got any feedback, so every reward is the default.",
            "Call POST /feedback with the decision's id, within the loop's `wait_time`.",
        )
    if status.late >= ENOUGH and status.late > 0.1 * (status.joined + status.late):
        yield Finding(
            "bad",
            name,
            f"{status.late:,} reports came after the deadline, beside {status.joined:,} in time; late ones are not "
            "learned from.",
            "Raise the loop's `wait_time` above the time that users take.",
        )
    lost = status.rejected + status.unknown
    if lost >= ENOUGH and lost > 0.1 * (status.joined + lost):
        yield Finding(
            "bad",
            name,
            f"{lost:,} reports named a decision or an item that is not known.",
            "Send the `decision_id` and an id of `items` as /recommend returned them.",
        )
