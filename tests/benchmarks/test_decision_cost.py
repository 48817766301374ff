"""CPU of one decision, request to record, of this checkout and, in turns with it, of another one.

    make bench ARGS=tests/benchmarks/test_decision_cost.py
    COMPARE_WITH=../rebound-0.1 make bench ARGS=tests/benchmarks/test_decision_cost.py
    make bench-compare REF=HEAD~1

Each checkout plays the same requests in a process of its own. It says the processor time of its thread. Their
decisions are compared, too: the same item, and how far its propensity is from the other's.

A ratio has changed beyond noise where the 99 % interval of the median of its pairs lies more than SAME away from 1: two
processes of the same code differ by some percent, for as long as they live.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.decide.active import ActiveLoop, serving
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.loop import LoopSettings
from service.policies import KINDS, new_policy
from service.represent.encoder import Encoder
from service.represent.fit import Raw, fit
from service.represent.learned import LearnedEncoder
from service.represent.profile import Profile
from service.represent.schema import FeatureSchema
from service.represent.stored import AnyEncoder
from tests.builders import batch_of, policy_of

HERE = Path(__file__).parents[2]
EVENTS = 2000  # that the policies have learned
ROUNDS = 24
SECONDS = 0.04  # of one round, about
SAME = 0.05  # by which the costs of the same code may differ from process to process
PERSONAS, CATEGORIES = [f"persona-{i}" for i in range(4)], [f"category-{i}" for i in range(5)]
DECLARED = {
    "context": {
        "persona": {"type": "categorical", "levels": PERSONAS},
        "hour": {"type": "numeric", "min": 0, "max": 23},
        "device": {"type": "categorical", "levels": ["phone", "tablet", "desktop"]},
        "basket": {"type": "numeric", "min": 0, "max": 10},
    },
    "item": {
        "category": {"type": "categorical", "levels": CATEGORIES},
        "price": {"type": "numeric", "min": 0, "max": 100},
        "brand": {"type": "categorical", "levels": [f"brand-{i}" for i in range(7)]},
    },
    "crosses": [["persona", "category"]],
    "hash_dims": 0,
}


class Case(NamedTuple):
    """What is decided: by a policy of this kind, on rows of this encoder, among n items, all of them sent or none."""

    kind: str
    encoder: str
    n: int
    sent: str = ""  # "": the catalogue; "ids"; "features": the same ones each time; "new": others each time

    def __str__(self) -> str:
        return f"{self.kind}, {self.encoder}, n = {self.n}{self.sent and f', {self.sent} sent'}"


CASES = [
    *(
        Case(kind, encoder, n)
        for n in (50, 1000, 10_000)
        for kind, encoder in [
            ("popularity", "declared"),
            ("linucb", "declared"),
            ("linucb", "learned"),
            ("adaptive", "declared"),
            ("adaptive", "learned"),
            ("adaptive", "hashed"),
        ]
    ),
    *(
        Case("adaptive", encoder, 50, sent)
        for sent in ("ids", "features", "new")
        for encoder in ("declared", "learned", "hashed")
    ),
    Case("linucb", "declared", 50, "features"),
]


def contexts(size: int, seed: int) -> list[dict[str, Any]]:
    """Draw contexts of 9 fields."""
    rng = np.random.default_rng(seed)
    return [
        {
            "persona": PERSONAS[rng.integers(4)],
            "hour": int(rng.integers(24)),
            "device": ["phone", "tablet", "desktop"][rng.integers(3)],
            "basket": int(rng.integers(10)),
            "country": "abcde"[rng.integers(5)],
            "weekday": int(rng.integers(7)),
            "referrer": f"site-{rng.integers(6)}",
            "member": bool(rng.integers(2)),
            "age": round(float(rng.uniform(18, 80)), 1),
        }
        for _ in range(size)
    ]


def items(size: int) -> dict[str, dict[str, Any]]:
    """Make items of 4 fields."""
    return {
        f"sku-{i:05d}": {
            "category": CATEGORIES[i % 5],
            "price": i % 97 + i % 7 / 8,
            "brand": f"brand-{i % 7}",
            "colour": f"colour-{i * i % 11}",
        }
        for i in range(size)
    }


def history(catalogue: dict[str, dict[str, Any]]) -> list[Raw]:
    """Draw random impressions; the reward depends on persona and category, and a little on the price."""
    rng, ids = np.random.default_rng(5), list(catalogue)
    found = []
    for context in contexts(EVENTS, 5):
        item = ids[rng.integers(len(ids))]
        features = catalogue[item]
        fits = PERSONAS.index(context["persona"]) == CATEGORIES.index(features["category"])
        chance = 0.15 + 0.4 * fits - 0.001 * features["price"]
        reward = float(rng.random() < chance)
        found.append(Raw(context, item, features, f"user-{rng.integers(400)}", reward))
    return found


def encoder_of(name: str, records: Sequence[Raw]) -> AnyEncoder:
    if name == "learned":
        profile = Profile()
        for step, one in enumerate(records):
            profile.add(
                context=one.context, item=one.item, features=one.features, user=one.user, reward=one.reward, at=step
            )
        return LearnedEncoder(fit(list(records), profile).schema)
    return Encoder(FeatureSchema.model_validate(DECLARED if name == "declared" else {}))


def loop_of(case: Case) -> ActiveLoop:
    """Make the active loop of a case, whose policy has learned a history."""
    catalogue = items(case.n)
    records = history(catalogue)
    encoder = encoder_of(case.encoder, records)
    kind = KINDS[case.kind]
    policy = new_policy(case.kind, encoder.d, encoder.layout, kind.Params(), seed=1)
    block = encoder.items([one.features for one in records], [one.item for one in records])
    x = np.concatenate([encoder.encode(one.context, block.take([at])) for at, one in enumerate(records)])
    rewards, shown, users = zip(*((one.reward, one.item, one.user) for one in records), strict=True)
    policy.update(batch_of(x[:, : policy.d], rewards, shown, user=users))  # some kinds know the first layer alone
    served = serving(policy_of(kind=case.kind), 1, policy.snapshot(), encoder)
    encoded = Catalogue.of(1, dict(sorted(catalogue.items())), encoder)
    if hasattr(served, "folded"):  # a checkout to compare with may lack it
        served = served.folded(encoded)
    return ActiveLoop("shop", "1", LoopSettings(), encoder, encoded, {case.kind: 1.0}, {case.kind: served}, 1)


class Player:
    """Plays the requests of one case."""

    def __init__(self, case: Case) -> None:
        self._active, self._number = loop_of(case), 0
        sent: list[tuple[str, Any]] = list(self._active.catalogue.features.items())
        self._requests = [
            Request(
                f"decision-{at}",
                f"user-{at % 500}",
                context,
                None
                if not case.sent
                else [(item, None) for item, _ in sent]
                if case.sent == "ids"
                # As parsed JSON is: equal, and never the same objects.
                else json.loads(json.dumps(sent)),
                (),
                1,
            )
            for at, context in enumerate(contexts(200, 6))
        ]
        self._new = case.sent == "new"
        gc.collect()
        gc.freeze()  # the histories of this process are no part of a decision

    def _next(self) -> Request:
        request = self._requests[self._number % 200]
        self._number += 1
        if self._new:
            sent = request.candidates or ()
            own = [(item, {**(features or {}), "price": self._number % 9973 / 101}) for item, features in sent]
            request = replace(request, candidates=own)
        return request

    def decisions(self, size: int) -> list[list[tuple[str, float, float]]]:
        """Decide and return the slates."""
        found = [decide(self._next(), self._active, at=0.0)[0] for _ in range(size)]
        return [[(item.id, item.score, item.propensity) for item in one.items] for one in found]

    def seconds(self, size: int) -> float:
        """Return the processor time of one decision."""
        requests = [self._next() for _ in range(size)]
        started = time.thread_time()
        for request in requests:
            decide(request, self._active, at=0.0)
        return (time.thread_time() - started) / size


def serve() -> None:
    """Answer orders, one a line, as JSON: a case, then numbers of decisions to time, "=" and a number to make them."""
    player: Player | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, list):
            player, answer = Player(Case(*order)), None
        else:
            assert player is not None
            answer = player.seconds(order) if isinstance(order, int) else player.decisions(int(order[1:]))
        print(json.dumps(answer), flush=True)


class Checkout:
    """A process that plays with the code of one checkout."""

    def __init__(self, path: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(path)}
        python = path / ".venv" / "bin" / "python"
        command = [str(python) if python.exists() else sys.executable, __file__]
        self._process = subprocess.Popen(
            command, env=env, cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def test_decision_cost(quick: bool) -> None:
    paths = {"this": HERE}
    if other := os.environ.get("COMPARE_WITH"):
        paths["other"] = (HERE / other).resolve()
    checkouts = {name: Checkout(path) for name, path in paths.items()}
    wanted = os.environ.get("CASES", "")
    changed = []
    print("\nmicroseconds of CPU per decision, medians of rounds in turns")
    for case in CASES:
        if wanted not in str(case):
            continue
        for play in checkouts.values():
            play(case)
        size = max(1, int(SECONDS / max(play(2) for play in checkouts.values())))
        found: dict[str, list[float]] = {name: [] for name in checkouts}
        for number in range(1 if quick else ROUNDS):
            for name in sorted(checkouts, reverse=number % 2 == 1):
                found[name].append(1e6 * checkouts[name](size))
        line = f"{case!s:45} this {statistics.median(found['this']):7.0f}"
        if other:
            ratios = [a / b for a, b in zip(found["other"], found["this"], strict=True)]
            line += f"  other {statistics.median(found['other']):7.0f}  other / this {statistics.median(ratios):5.2f}"
            low, high = interval(ratios)
            line += f" ({min(ratios):.2f} to {max(ratios):.2f}), 99 % {low:.2f} to {high:.2f}  "
            line += compare(*(p("=100") for p in checkouts.values()))
            if low > 1 + SAME or high < 1 - SAME:
                changed.append(f"{case}: {'cheaper' if low > 1 else 'dearer'}, {statistics.median(ratios):.2f}")
        print(line, flush=True)
        assert statistics.median(found["this"]) > 0
    for play in checkouts.values():
        play.close()
    if other:
        print("\nother / this, changed beyond noise:", *changed or ["nothing"], sep="\n  ")


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 99 % interval of a median: from the k-th smallest to the k-th largest, of any distribution.

    The median lies below the k-th smallest of N with the probability that fewer than k of N fair coins show heads.
    """
    ordered, n = sorted(ratios), len(ratios)
    k = sum(sum(math.comb(n, heads) for heads in range(at + 1)) <= 0.005 * 2**n for at in range(n))
    return (ordered[k - 1], ordered[-k]) if k else (-math.inf, math.inf)


def compare(one: list[Any], other: list[Any]) -> str:
    """Say how far two series of slates are apart."""
    pairs = list(zip(one, other, strict=True))
    same = [(a[0], b[0]) for a, b in pairs if a[0][0] == b[0][0]]
    apart = max((max(abs(a[1] - b[1]), abs(a[2] - b[2])) for a, b in same), default=0.0)
    return f"other items {len(pairs) - len(same)} of {len(pairs)}, scores and propensities within {apart:.0e}"


if __name__ == "__main__":
    serve()
