"""`rebound evaluate` and its use case, on the log of a real service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service import cli
from service.admin.evaluation import Evaluation, Judgement, Target, evaluate
from service.errors import InvalidRequest, NotFound
from service.settings import Settings
from service.store.connection import connect
from tests.waiting import until, until_async

pytestmark = pytest.mark.anyio


@dataclass
class Shop:
    """A loop in which p000 is clicked, and nothing else."""

    name: str
    client: httpx.Client
    redis_url: str
    sent: int = 0
    early: int = 0  # version of the shadow

    def traffic(self, decisions: int, *, k: int = 1, answered: bool = True) -> None:
        """Make decisions, each of another user, and give each item its reward."""
        loop = {"loop": self.name}
        for _ in range(decisions):
            self.sent += 1
            context = {"device": {"os": "ab"[self.sent % 2]}}
            body = loop | {"user_id": f"u{self.sent}", "context": context, "k": k}
            decision = self.client.post("/recommend", json=body).raise_for_status().json()
            for item in decision["items"] if answered else []:
                reward = float(item["id"] == "p000")
                sent = loop | {"decision_id": decision["decision_id"], "item_id": item["id"], "reward": reward}
                self.client.post("/feedback", json=sent).raise_for_status()

    def policy(self, name: str, *, kind: str = "popularity") -> None:
        self.client.post("/policies", params={"loop": self.name}, json={"name": name, "kind": kind}).raise_for_status()

    def learned(self, name: str) -> int:
        """Wait until a policy has learned the log; return its version."""
        path, params = f"/policies/{name}", {"loop": self.name}

        def done() -> bool:
            found = self.client.get(path, params=params).json()
            return bool(found["lag"] == 0 and found["version"] > 0)

        until(done, f"{name} has learned")
        version: int = self.client.get(path, params=params).json()["version"]
        return version

    async def judge(self, *targets: Target, **options: object) -> Evaluation:
        redis = connect(self.redis_url, name="test", timeout_s=5)
        try:
            return await evaluate(redis, self.name, targets, **options)  # type: ignore[arg-type]  # of several types
        finally:
            await redis.aclose()

    async def judge_one(self, target: Target, **options: object) -> Judgement:
        [found] = (await self.judge(target, **options)).judgements
        return found


@pytest.fixture
def shop(make_loop: Callable[..., str], client: httpx.Client, settings: Settings) -> Shop:
    return Shop(make_loop(policy=None, items=4, fit_schema=False), client, str(settings.redis_url))


@pytest.fixture(scope="module")
def busy(service: str, settings: Settings) -> Iterator[Shop]:
    """A shop with 300 decisions, and a shadow with a version that knows the first 100. Then an item was deleted."""
    with httpx.Client(base_url=service, timeout=30, verify=False) as client:
        name = f"t-{uuid4().hex[:12]}"
        client.put(f"/loops/{name}", json={"fit_schema": False}).raise_for_status()
        items = [{"id": f"p00{number}"} for number in range(4)]
        client.post("/items", params={"loop": name}, json={"items": items}).raise_for_status()
        shop = Shop(name, client, str(settings.redis_url))
        shop.policy("popularity")
        shop.traffic(100)
        shop.early = shop.learned("popularity")
        shop.traffic(200)
        shop.learned("popularity")
        client.delete("/items/p003", params={"loop": name}).raise_for_status()
        yield shop
        client.delete(f"/loops/{name}")


LEARNS = Target("learns", kind="popularity")
RANDOM = Target("random", kind="random")


async def test_a_kind_that_would_have_learned_along_is_better(busy: Shop) -> None:
    found = await busy.judge(RANDOM, LEARNS)
    assert [one.target.name for one in found.judgements] == ["learns", "random"]
    assert found.confidence == pytest.approx(0.975)
    assert found.decisions == 300
    learns, random = (one.comparison for one in found.judgements)
    assert learns is not None
    assert random is not None
    assert learns.difference.low > 0.3
    assert learns.target.estimate < 1.2
    assert learns.logged.estimate == pytest.approx(random.target.estimate)
    assert random.difference.estimate == pytest.approx(0, abs=1e-12)
    assert learns.diagnostics.decisions == 300
    assert all(not one.left_out for one in found.judgements), "a deleted item is still in the catalogue of then"


async def test_segments_are_judged_by_themselves_and_share_the_error(busy: Shop) -> None:
    found = await busy.judge(RANDOM, LEARNS, segment="device.os")
    assert found.segment_confidence == pytest.approx(1 - 0.05 / 4)
    learns, random = found.judgements
    for one in (learns, random):
        assert list(one.segments) == ["device.os = a", "device.os = b"]
        sizes = [part.diagnostics and part.diagnostics.decisions for part in one.segments.values()]
        assert sizes == [150, 150]
    assert random.comparison is not None
    parts = [part.comparison for part in random.segments.values() if part.comparison is not None]
    assert random.comparison.target.estimate == pytest.approx(sum(part.target.estimate for part in parts) / 2)
    assert all(part.logged.half_width > random.comparison.logged.half_width for part in parts)
    with pytest.raises(InvalidRequest, match=r"no decision has 'device\.os\.x'"):
        await busy.judge(RANDOM, segment="device.os.x")


async def test_the_newest_decisions_are_judged(busy: Shop) -> None:
    found = await busy.judge(RANDOM, most=120)
    assert found.decisions == 300
    [random] = found.judgements
    assert random.left_out == {"older": 180}
    assert random.comparison is not None
    assert random.comparison.diagnostics.decisions == 120


async def test_an_answer_is_the_same_every_time(busy: Shop) -> None:
    assert await busy.judge_one(LEARNS) == await busy.judge_one(LEARNS)


async def test_a_policy_is_judged_by_what_it_has_not_learned(busy: Shop) -> None:
    found = await busy.judge_one(Target("newest", policy="popularity"))
    assert found.refusal is not None
    assert found.refusal.code == "learned_from_them"
    assert "--kind" in found.refusal.why
    older = await busy.judge_one(Target("older", policy="popularity", version=busy.early))
    assert older.left_out == {"learned": 100}
    assert older.comparison is not None
    assert older.comparison.diagnostics.decisions == 200
    assert older.comparison.difference.low > 0.3
    with pytest.raises(NotFound, match="version 9999"):
        await busy.judge_one(Target("none", policy="popularity", version=9999))


async def test_what_waits_for_its_reward_is_not_judged(shop: Shop) -> None:
    """An early reward behind a decision that still waits is left out as well: else clicks would come first."""
    shop.traffic(60)
    shop.traffic(1, answered=False)
    shop.traffic(20)
    found = await shop.judge_one(RANDOM)
    assert found.left_out == {"pending": 20}
    assert found.comparison is not None
    assert found.comparison.diagnostics.decisions == 60


async def test_slates_are_counted(shop: Shop) -> None:
    shop.traffic(10)
    shop.traffic(15, k=2)
    found = await shop.judge_one(RANDOM)
    assert found.left_out == {"slates": 15}
    assert found.refusal is not None
    assert found.refusal.code == "thin_support"
    assert "15 more were left out: of several items" in found.refusal.why


async def test_decisions_that_left_the_ledger_are_counted(shop: Shop) -> None:
    shop.client.put(f"/loops/{shop.name}", json={"wait_time": 0.5, "ledger_time": 0.001}).raise_for_status()
    shop.traffic(3)

    async def gone() -> bool:
        return (await shop.judge_one(RANDOM)).left_out == {"gone": 3}

    await until_async(gone, "the decisions leave the ledger")
    found = await shop.judge_one(RANDOM)
    assert found.refusal is not None
    assert "ledger_time" in found.refusal.why


async def test_an_empty_log_and_wrong_names_are_told(shop: Shop) -> None:
    found = await shop.judge_one(RANDOM)
    assert found.refusal is not None
    assert found.refusal.code == "no_decisions"
    with pytest.raises(InvalidRequest, match="there is no kind"):
        await shop.judge_one(Target("x", kind="magic"))
    with pytest.raises(InvalidRequest, match=r"params\.wings"):
        await shop.judge_one(Target("x", kind="popularity", params={"wings": 2}))
    with pytest.raises(NotFound):
        await shop.judge_one(Target("x", policy="nobody"))


@pytest.fixture
def rebound(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command on a wide terminal."""
    monkeypatch.setattr(cli, "console", Console(width=250))

    def run(shop: Shop, *words: str) -> Result:
        return CliRunner().invoke(cli.app, ["evaluate", "--loop", shop.name, "--redis", shop.redis_url, *words])

    return run


def test_the_command_answers_in_plain_words_and_in_json(
    busy: Shop, rebound: Callable[..., Result], tmp_path: Path
) -> None:
    done = rebound(busy, "--kind", "popularity", "--params", '{"half_life": 1000}')
    assert done.exit_code == 0, done.output
    assert "popularity (half_life=1000)" in done.output
    assert "better by" in done.output
    report = tmp_path / "week.html"
    segments = ("--segment", "device.os", "--confidence", "0.9999")
    done = rebound(busy, "--kind", "popularity", *segments, "--report", str(report))
    assert "popularity would have been better by" in report.read_text()
    assert "device.os = b" in report.read_text()
    assert "device.os = b" in done.output
    assert "each interval of a segment holds with 0.99995" in done.output
    done = rebound(busy, "--kind", "popularity", "--json", "--interval", "anytime")
    [answer] = json.loads(done.output)["answers"]
    assert answer["settled"] is True
    assert answer["difference"]["low"] > 0
    assert answer["diagnostics"]["decisions"] == 300


def test_a_refusal_is_a_sentence_and_exit_code_1(shop: Shop, rebound: Callable[..., Result]) -> None:
    shop.traffic(3)
    done = rebound(shop, "--kind", "random")
    assert done.exit_code == 1
    assert "refused: 3 decisions of 3 users" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name what to judge"),
        (["--policy", "a@b"], "NAME@VERSION"),
        (["--params", "{}"], "more --params than --kind"),
        (["--kind", "random", "--params", "{"], "--params {"),
        (["--kind", "random", "--params", "[]"], "expected a JSON object"),
        (["--kind", "random", "--estimator", "magic"], "switch-dr"),
        (["--kind", "random", "--interval", "magic"], "anytime"),
        (["--kind", "random", "--estimator", "dr", "--interval", "anytime"], "--estimator ips only"),
        (["--kind", "linucb", "--report", "week.pdf"], ".html or .png"),
    ],
)
def test_wrong_words_are_refused(words: list[str], why: str) -> None:
    done = CliRunner().invoke(cli.app, ["evaluate", *words])
    assert done.exit_code == 2
    assert why in done.output
