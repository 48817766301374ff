"""What a decision of `linucb` costs with its bounds folded over the catalogue, and without.

    make bench ARGS=tests/benchmarks/test_folded_cost.py

The two take turns on the same requests; the ratio is the median of pairs, the interval that of `test_decision_cost.py`.
Beside it: what the fold itself takes, which a worker pays in a thread, whenever it takes a version or a catalogue.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import pytest

from service.decide.active import ActiveLoop
from service.decide.decision import Request, decide
from tests.benchmarks.test_decision_cost import Case, contexts, interval, loop_of

ROUNDS = 24
SECONDS = 0.05  # of one round of one way, about


def seconds(active: ActiveLoop, requests: list[Request]) -> float:
    """Return the processor time of one decision."""
    started = time.thread_time()
    for request in requests:
        decide(request, active, at=0.0)
    return (time.thread_time() - started) / len(requests)


@pytest.mark.parametrize("n", [50, 1000, 10_000])
@pytest.mark.parametrize("encoder", ["declared", "learned"])
def test_cost(encoder: str, n: int, quick: bool) -> None:
    n = 50 if quick else n  # to teach the policy for 10 000 items takes a minute
    folded = loop_of(Case("linucb", encoder, n))
    [served] = folded.served.values()
    plain = replace(folded, served={"linucb": replace(served, fold=None)})
    assert served.fold is not None
    builds = []
    for _ in range(3):
        started = time.thread_time()
        plain.served["linucb"].folded(folded.catalogue)
        builds.append(time.thread_time() - started)

    requests = [Request(f"d{at}", f"u{at}", context, None, (), 1) for at, context in enumerate(contexts(200, 6))]
    size = {id(way): max(1, min(200, int(SECONDS / seconds(way, requests[:2])))) for way in (plain, folded)}
    same, apart = 0, 0.0
    for request in requests[:50]:
        [[one], [other]] = (decide(request, way, at=0.0)[0].items for way in (plain, folded))
        same += one.id == other.id
        if one.id == other.id:
            apart = max(apart, abs(one.score - other.score), abs(one.propensity - other.propensity))
    pairs = []
    for number in range(2 if quick else ROUNDS):
        order = (plain, folded) if number % 2 else (folded, plain)
        found = {id(way): seconds(way, requests[: size[id(way)]]) for way in order}
        pairs.append((1e6 * found[id(plain)], 1e6 * found[id(folded)]))
    before, after = (statistics.median(of) for of in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    low, high = interval(ratios)
    print(
        f"\n{encoder}, n = {n}: every row {before:.0f} µs, folded {after:.0f} µs, ratio {statistics.median(ratios):.1f}"
        f" (99 % {low:.1f} to {high:.1f}); the fold takes {1e3 * min(builds):.1f} ms and {served.fold.bytes / 1e6:.1f}"
        f" MB; the same item {same} of 50, scores and propensities within {apart:.0e}"
    )
    assert statistics.median(ratios) > 1
