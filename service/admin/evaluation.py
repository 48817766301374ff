"""`rebound evaluate`: would that policy have been better? Reads the log, and asks `service/evaluate`.

A target is a policy at one of its versions, judged by the decisions after what it learned from; or a kind with
parameters that would have learned along, judged before each decision by what it knew then (progressive validation).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from redis.asyncio import Redis

from service.admin.audit import advance
from service.admin.encoders import encoder_for
from service.admin.validation import checked_params
from service.decide.active import UNIFORM, ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.errors import InvalidRequest, NotFound
from service.evaluate.comparison import (
    Comparison,
    Diagnostics,
    Refusal,
    compare,
    propensity_refusal,
    ranked,
    together,
    verdict,
)
from service.evaluate.counterfactual import Opinion, Outcome, evidence, opinion
from service.evaluate.estimators import Evidence
from service.evaluate.propensities import PropensityCheck, PropensityChecker
from service.evaluate.segments import divided, segments_of
from service.learn.trainer import Trainer
from service.records import Decision, Event, LoopRecord, PolicyRecord, order
from service.represent.stored import AnyEncoder
from service.store import event_log, item_store, loop_store, policy_store
from service.store.codec import encoder_of, unpack
from service.store.keys import Keys
from service.store.settled import read_settled, settled_before

REFRESH = 100  # events after which a target that learns along serves anew; a tenth of what it knows while that is less
MOST = 100_000  # newest decisions that are judged, unless another number is given
NO_ROW = np.zeros(0, dtype=np.float32)

WHY = {
    "imported": "imported, not decided here",
    "pending": "rewards still pending",
    "gone": "no longer in the ledger, which holds the candidates",
    "slates": "of several items",
    "outside": "rewards outside the loop's range of now",
    "catalogue": "their catalogue is no longer kept, or differs",
    "learned": "from before the place in the log that it has learned to",
    "older": "older than the newest that were to be judged",
}
REMEDY = {
    "imported": "judge decisions that the service has made",
    "pending": "wait until the loop's wait_time is over",
    "gone": "raise the loop's ledger_time, and judge what is logged from then on",
    "slates": "judge a loop that asks for one item at a time",
    "outside": "judge what is logged from now on",
    "catalogue": "judge sooner after the decisions",
    "learned": "wait for more decisions, name an older version (NAME@VERSION), or judge its kind with --kind, which"
    " learns along",
    "older": "judge more decisions",
}
CODE = {"imported": "no_propensities", "pending": "pending", "learned": "learned_from_them"}

Progress = Callable[[int, int], None]  # (decisions done, decisions in all)


@dataclass(frozen=True)
class Target:
    """What is to be judged: a policy that exists, or a kind with parameters that would have learned along."""

    name: str
    policy: str | None = None
    version: int | None = None  # of the policy; None: the newest
    kind: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def target_of(
    policy: str | None = None,
    version: int | None = None,
    kind: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> Target:
    """Name a target by what it is: `linucb@120`, or `linucb (alpha=0.5)`."""
    if kind is None:
        assert policy is not None, "a target is a policy or a kind"
        return Target(policy if version is None else f"{policy}@{version}", policy=policy, version=version)
    said = ", ".join(f"{key}={value}" for key, value in (params or {}).items())
    return Target(f"{kind} ({said})" if said else kind, kind=kind, params=params or {})


@dataclass(frozen=True)
class Finding:
    """A comparison in units of the reward, or a refusal."""

    comparison: Comparison | None
    refusal: Refusal | None
    diagnostics: Diagnostics | None


@dataclass(frozen=True)
class Judgement(Finding):
    """The answer for one target."""

    target: Target
    left_out: Mapping[str, int]  # reason (a key of `WHY`) -> decisions
    segments: Mapping[str, Finding]  # by the field that was named, if one was


@dataclass(frozen=True)
class Evaluation:
    """All answers, the best first and the refused last."""

    decisions: int  # in the log
    confidence: float  # of each interval; see `together`
    segment_confidence: float  # of each interval of a segment, so that those of all segments and targets hold together
    propensities: Mapping[str, PropensityCheck]
    judgements: Sequence[Judgement]


async def evaluate(
    redis: Redis,
    loop: str,
    targets: Sequence[Target],
    *,
    estimator: str = "ips",
    interval: str = "bootstrap",
    confidence: float = 0.95,
    segment: str | None = None,
    most: int = MOST,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Compare targets with what the loop's policies got.

    Args:
        estimator, interval: see `service/evaluate/comparison.py`.
        confidence: that all differences lie in their intervals at once, in (0, 1).
        most: newest decisions to judge; memory grows with them.
        segment: a field of the context, by whose levels each target is judged, too; see `segments_of`.

    Raises:
        NotFound: there is no such loop, policy or version.
        InvalidRequest: there is no such kind, a parameter is wrong, or no decision has this field.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    run = _Run(redis, record, await _read_log(redis, record, keys, most))
    sources = [await _source(run, target) for target in targets]  # wrong names are found before the work begins
    segments = _segments(run.log, segment)
    each = together(confidence, len(targets))
    each_segment = together(confidence, len(targets) * max(1, len(set(segments))))

    def find(said: Evidence, confidence: float) -> Finding:
        return _found(compare(said, estimator=estimator, interval=interval, confidence=confidence), record)

    found: list[Judgement] = []
    total = len(run.log.outcomes) * len(targets)
    done = 0
    for target, source in zip(targets, sources, strict=True):
        left_out = Counter(run.log.left_out)
        kept, opinions = [], []
        for number, outcome in enumerate(run.log.outcomes):
            said = await source.opinion_of(outcome.decision)
            if isinstance(said, str):
                left_out[said] += 1
            else:
                kept.append(number)
                opinions.append(said)
            done += 1
            progress(done, total)
            await asyncio.sleep(0)  # whoever runs this is to hear of a cancellation
        refusal = propensity_refusal(run.log.checks)
        if refusal is None and not kept:
            refusal = _nothing_left(left_out)
        if refusal is not None:
            found.append(Judgement(None, refusal, None, target, left_out, {}))
            continue
        all_of_it = evidence([run.log.outcomes[number] for number in kept], opinions)
        parts = divided(all_of_it, [segments[number] for number in kept]) if segments else {}
        by_segment = {name: find(part, each_segment) for name, part in parts.items()}
        whole = _with_hint(find(all_of_it, each), left_out, len(kept))
        found.append(Judgement(whole.comparison, whole.refusal, whole.diagnostics, target, left_out, by_segment))
    answered = [(str(number), one.comparison) for number, one in enumerate(found) if one.comparison is not None]
    best_first = [found[int(number)] for number, _ in ranked(answered)]
    refused = [one for one in found if one.comparison is None]
    return Evaluation(run.log.decisions, each, each_segment, run.log.checks, [*best_first, *refused])


def _segments(log: _Log, field: str | None) -> Sequence[str]:
    """Return the segment of each outcome; none where no field is named."""
    if field is None or not log.outcomes:
        return []
    segments = segments_of([outcome.decision.context for outcome in log.outcomes], field)
    if set(segments) == {f"no {field}"}:
        raise InvalidRequest("segment", f"no decision has {field!r} in its context")
    return segments


def _found(answer: Comparison | tuple[Refusal, Diagnostics], loop: LoopRecord) -> Finding:
    if isinstance(answer, Comparison):
        return Finding(answer.in_units(*loop.settings.reward_range), None, answer.diagnostics)
    refusal, diagnostics = answer
    return Finding(None, refusal, diagnostics)


def _with_hint(finding: Finding, left_out: Mapping[str, int], judged: int) -> Finding:
    """Where support is thin, say which decisions would have helped."""
    refusal = finding.refusal
    if refusal is None or refusal.code != "thin_support" or not left_out or max(left_out.values()) <= judged:
        return finding
    most = max(left_out, key=lambda reason: left_out[reason])
    hint = f"{left_out[most]} more were left out: {WHY[most]} ({REMEDY[most]})"
    return replace(finding, refusal=replace(refusal, why=f"{refusal.why}. {hint}"))


def described(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON has it."""
    return {
        "decisions": evaluation.decisions,
        "confidence": evaluation.confidence,
        "segment_confidence": evaluation.segment_confidence,
        "propensities": {
            policy: {"mean": check.mean, "half_width": check.half_width, "passed": check.passed}
            for policy, check in evaluation.propensities.items()
        },
        "answers": [_described(one) for one in evaluation.judgements],
    }


def _described(one: Judgement) -> dict[str, Any]:
    segments = [{"segment": name, **_finding(found)} for name, found in one.segments.items()]
    return {"target": one.target.name, **_finding(one), "left_out": dict(one.left_out), "segments": segments}


def _finding(one: Finding) -> dict[str, Any]:
    found = one.comparison
    return {
        "verdict": found and verdict(found),
        "settled": found is not None and found.settled,
        "refusal": one.refusal and asdict(one.refusal),
        "logged": found and found.logged._asdict(),
        "estimate": found and found.target._asdict(),
        "difference": found and found.difference._asdict(),
        "missing": found and found.missing,
        "diagnostics": one.diagnostics and asdict(one.diagnostics),
    }


def _nothing_left(left_out: Mapping[str, int]) -> Refusal:
    if not left_out:
        return Refusal("no_decisions", "the log holds no decision yet")
    most = max(left_out, key=lambda reason: left_out[reason])
    code = CODE.get(most, "no_decisions")
    return Refusal(code, f"no decision can be judged: {left_out[most]} are {WHY[most]}. To do: {REMEDY[most]}")


# ---- the log


@dataclass(frozen=True)
class _Log:
    decisions: int
    outcomes: Sequence[Outcome]  # in the order of their time
    left_out: Mapping[str, int]
    checks: Mapping[str, PropensityCheck]
    positions: Sequence[str]  # of all events, in order


async def _read_log(redis: Redis, record: LoopRecord, keys: Keys, most: int) -> _Log:
    """Read the `most` newest decisions that can be judged, and count the others."""
    before = await settled_before(redis, keys, wait_ms=record.settings.wait_ms)
    events: dict[str, list[Event]] = {}
    positions: list[str] = []
    left_out: Counter[str] = Counter()
    async for entries in event_log.scan(redis, keys):
        for entry in entries:
            if not isinstance(entry, Event):
                continue
            positions.append(entry.position)
            if entry.source == "import" or not entry.n or not entry.propensity:
                left_out["imported"] += 1
            else:
                kept = replace(entry, x=NO_ROW, context={}, features=None)
                events.setdefault(entry.decision_id, []).append(kept)
                if len(events) > most:
                    del events[next(iter(events))]
                    left_out["older"] += 1
    settled, pending, gone = await read_settled(
        redis, keys, list(events), before=before, ledger_ms=record.settings.ledger_ms
    )
    left_out.update(pending=pending, gone=gone)
    low, high = record.settings.reward_range
    outcomes = []
    checker = PropensityChecker(min((d.exploration_floor for d in settled), default=0.0))
    for decision in sorted(settled, key=lambda d: (d.at, d.decision_id)):
        found = events[decision.decision_id]
        checker.add(found)
        if len(decision.items) > 1:
            left_out["slates"] += 1
        elif not low <= found[0].reward <= high:
            left_out["outside"] += 1
        else:
            outcomes.append(Outcome(decision, (found[0].reward - low) / (high - low)))
    return _Log(len(events) + left_out["older"], outcomes, +left_out, checker.result(confidence=0.999), positions)


# ---- targets


class _Run:
    """What the targets of one evaluation share."""

    def __init__(self, redis: Redis, loop: LoopRecord, log: _Log) -> None:
        self.redis, self.loop, self.log = redis, loop, log
        self.keys = Keys(loop.name, loop.id)
        self._catalogues: dict[tuple[int, str], Catalogue | None] = {}

    async def opinion(self, decision: Decision, served: ServedPolicy) -> Opinion | str:
        """Ask a target; a key of `WHY` where it cannot be asked."""
        assert served.encoder is not None
        catalogue = await self._catalogue(decision.catalogue, served.encoder)
        if catalogue is None:
            return "catalogue"
        said = opinion(decision, catalogue, served, self.loop.settings.reward_range)
        return "catalogue" if said is None else said

    async def _catalogue(self, version: int, encoder: AnyEncoder) -> Catalogue | None:
        place = (version, encoder.version)
        if place not in self._catalogues:
            items = await item_store.kept_items_at(self.redis, self.keys, version)
            if items is None:
                self._catalogues[place] = None
            else:  # decisions come in the order of time, so the last one read is the next one needed
                self._catalogues = {place: Catalogue.of(version, items, encoder)}
        return self._catalogues[place]


class _Frozen:
    """A version of a policy, which knows the log up to a position."""

    def __init__(self, run: _Run, served: ServedPolicy, position: str) -> None:
        self._run, self._served = run, served
        self._from = order(position)[0] / 1000

    async def opinion_of(self, decision: Decision) -> Opinion | str:
        # Decisions from before whose rewards came after are left out, too: they are those that took long.
        return await self._run.opinion(decision, self._served) if decision.at > self._from else "learned"


class _Learning:
    """A policy that would have learned along: it knows what had entered the log before each decision."""

    def __init__(self, run: _Run, record: PolicyRecord) -> None:
        self._run, self._record = run, record
        self._trainer = Trainer.of(run.loop, record)
        self._times = [order(position)[0] / 1000 for position in run.log.positions]
        self._learned = 0
        self._served: ServedPolicy | None = None

    async def opinion_of(self, decision: Decision) -> Opinion | str:
        known = bisect_left(self._times, decision.at)
        if self._served is None or known - self._learned >= max(1, min(REFRESH, self._learned // 10)):
            await self._learn(known)
        assert self._served is not None
        return await self._run.opinion(decision, self._served)

    async def _learn(self, known: int) -> None:
        if known:
            until = self._run.log.positions[known - 1]
            await advance(self._run.redis, self._run.keys, self._trainer, until=until)
        self._learned = known
        encoder = self._trainer.current_encoder
        if known:
            self._served = serving(self._record, known, self._trainer.policy.snapshot(), encoder)
        else:  # a policy without a snapshot chooses uniformly
            self._served = replace(UNIFORM, encoder=encoder)


async def _source(run: _Run, target: Target) -> _Frozen | _Learning:
    if target.policy is None:
        assert target.kind is not None, "a target is a policy or a kind"
        return _Learning(run, _record_of(run.loop, target.kind, target.params))
    policy = await policy_store.read_policy(run.redis, run.keys, target.policy)
    version = policy.version if target.version is None else target.version
    if version == 0:
        encoder = await encoder_for(run.redis, run.loop, policy.encoder)
        return _Frozen(run, replace(UNIFORM, encoder=encoder), "0-0")
    snapshot = await policy_store.read_snapshot(run.redis, run.keys, policy.name, version)
    position = await policy_store.version_position(run.redis, run.keys, policy.name, version)
    if snapshot is None or position is None:
        kept = await policy_store.kept_versions(run.redis, run.keys, policy.name)
        raise NotFound(
            f"version {version} of policy {policy.name!r} is not kept; there are {', '.join(map(str, kept)) or 'none'}",
            code="unknown_version",
        )
    encoder = await encoder_for(run.redis, run.loop, encoder_of(snapshot))
    return _Frozen(run, serving(policy, version, unpack(snapshot), encoder), position)


def _record_of(loop: LoopRecord, kind: str, params: Mapping[str, Any]) -> PolicyRecord:
    """Return the record of a policy as it would have been made when the log began."""
    stored = checked_params(kind, params)
    return PolicyRecord(kind, "", kind, stored, seed=0, retention=loop.settings.retention)
