"""`/console` in a real browser: it shows what the routes say, runs no script but its own, and asks nobody else."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from service.settings import Settings
from tests.browser import Visit, visit
from tests.conftest import Worker
from tests.simulator.browser import Chromium, Page
from tests.waiting import until

FOLDER = Path(__file__).parents[2] / "service/console"
MARKUP = '<img src=x onerror="console.log(1)"><script>console.log(2)</script>'
FIGURE = r"<dt>{}</dt><dd>([^<]+)"


def decide(client: httpx.Client, loop: str, count: int) -> None:
    """Make decisions whose ids and contexts hold markup; every second one is rewarded, the others wait."""
    for number in range(count):
        asked = {"loop": loop, "user_id": MARKUP, "context": {MARKUP: MARKUP if number % 2 else number}}
        decision = client.post("/recommend", json=asked).json()
        if number % 2:
            report = {"decision_id": decision["decision_id"], "reward": 1}
            client.post("/feedback", json=report).raise_for_status()


def figure(seen: Visit, term: str) -> float:
    found = re.search(FIGURE.format(term), seen.dom)
    assert found, seen.dom[-3000:]
    return float(found[1].replace(",", "").rstrip(" %"))


def settled(client: httpx.Client, loop: str) -> int:
    return sum(bin["settled"] for bin in client.get(f"/loops/{loop}/history").json()["bins"])


def pictures(seen: Visit) -> list[str]:
    return re.findall(r'<svg class="picture".*?</svg>', seen.dom, re.DOTALL)


def test_the_page_of_a_loop_follows_its_traffic(
    service: str, client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(wait_time=600, policy="random", fit_schema=False)
    for text in ("spring campaign", MARKUP):
        client.post(f"/loops/{loop}/marks", json={"text": text}).raise_for_status()
    client.put(f"/items/{quote(MARKUP, safe='')}", params={"loop": loop}, json={"features": {MARKUP: MARKUP}})
    decide(client, loop, 12)
    until(lambda: settled(client, loop) == 6, "the history counts them")
    seen = visit(f"{service}/console#/loops/{loop}?last=600", within_ms=5000)
    assert seen.console == []
    assert {url.startswith(service) for url in seen.requested} == {True}
    asked = [url for url in seen.requested if f"/loops/{loop}/history?from=" in url]
    assert len(asked) >= 3, "it asks again and again"
    assert figure(seen, "Decisions") == 12
    assert figure(seen, "Settled") == 50
    assert 'class="line all dashed"' in seen.dom or 'class="dot all"' in seen.dom
    assert 'class="bar settled"' in seen.dom
    assert "spring campaign" in seen.dom
    assert MARKUP not in seen.dom, "markup in notes, ids and features is text"
    assert "&lt;img src=x" in seen.dom

    decide(client, loop, 8)
    until(lambda: settled(client, loop) == 10, "the history counts them")
    later = visit(f"{service}/console#/loops/{loop}?last=600", within_ms=500)
    assert figure(later, "Decisions") == 20
    assert pictures(later) != pictures(seen), "the curve moves"


def test_the_overview_names_each_loop_and_what_needs_a_person(
    service: str, client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(policy=None)
    seen = visit(f"{service}/console", within_ms=1000)
    assert seen.console == []
    assert f'href="#/loops/{loop}"' in seen.dom
    assert "There is no policy: choices are random" in seen.dom
    assert "Not learning yet" in seen.dom
    paths = {re.sub(r"[?].*", "", url.removeprefix(service)) for url in seen.requested}
    assert {"/console", "/status", *(f"/console/{file.name}" for file in FOLDER.glob("*.js"))} <= paths


class Person:
    """Somebody who reads a page of the console, types, and presses what it offers."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def goes(self, address: str) -> None:
        self._page.evaluate(f"location.hash = {json.dumps(address)}")

    def reads(self, *texts: str) -> str:
        """Return the page's text when it holds all of these."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = str(self._page.evaluate("document.querySelector('main').innerText"))
            return all(text in seen for text in texts)

        until(there, f"the page says {texts}")
        return seen

    def is_told_that_it_is_done(self) -> None:
        """By all workers, or not yet by one that another test has just stopped."""
        said = "document.querySelector('main').innerText"
        done = ("Done: ", "Stored, but not every worker serves it yet.")
        until(lambda: any(text in self._page.evaluate(said) for text in done), "the change is acknowledged")

    def types(self, field: str, value: str) -> None:
        said = f"document.getElementById({json.dumps(field)})"
        self._page.evaluate(f"{said}.value = {json.dumps(value)}")
        self._page.evaluate(f"{said}.dispatchEvent(new Event('input', {{bubbles: true}}))")

    def presses(self, selector: str) -> None:
        self._page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def shells(self) -> list[list[str]]:
        """Return the words of each call that the page shows for a shell: the way back, then what it would send."""
        lines = self._page.evaluate(
            "[...document.querySelectorAll('.ask code, .ask pre')].map((one) => one.textContent)"
        )
        return [shlex.split(line) for line in lines]


def test_a_person_asks_why_and_changes_who_serves(
    service: str, client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(wait_time=600, policy="random", fit_schema=False)
    params = {"loop": loop}
    client.post("/policies", params=params, json={"kind": "popularity"}).raise_for_status()
    arms = {"control": {"policy": "random", "share": 0.5}, "popular": {"policy": "popularity", "share": 0.5}}
    body = {"arms": arms, "unit": "decision", "guardrails": {"shown": 0.5}}
    client.put("/experiments/which", params=params, json=body).raise_for_status()
    decide(client, loop, 2)
    made = client.get(f"/users/{quote(MARKUP, safe='')}", params=params).json()["decisions"]
    rewarded = next(one["decision"] for one in made if one["status"] == "rewarded")

    with Chromium() as chromium:
        page = chromium.open(f"{service}/console#/loops/{loop}/decisions", width=390)
        person = Person(page)
        person.reads("Enter the id that POST /recommend answered")
        person.types("find-user", MARKUP)
        person.presses("#find-user + button")
        person.reads(f"User {MARKUP}", "Rewarded", "Waits for a reward")
        person.goes(f"#/loops/{loop}/decisions?{urlencode({'id': rewarded['decision_id']})}")
        why = person.reads(
            f"Decision {rewarded['decision_id']}", "chose 1 of 10 items", "yes (first)", f"{MARKUP}\n{MARKUP}"
        )
        assert rewarded["items"][0]["id"] in why
        assert f"{100 * rewarded['items'][0]['propensity']:.3g} %" in why
        assert f"arm {rewarded['experiment']['arm']}: 50 % of all units" in why
        person.goes(f"#/loops/{loop}/decisions?id=none")
        person.reads("Not found", "no decision 'none'", "ledger_time")

        person.goes(f"#/loops/{loop}/policies")
        person.reads("Serves 100 %", "Shadow", "Kept versions")
        person.goes(f"#/loops/{loop}/policies?do=activate&policy=popularity")
        person.reads("100 % of them move to it", "Serve as now (random 100 %)")
        back, sent = person.shells()
        person.presses(".ask button")
        person.reads("This conflicts with what is there (409)", "end that first")
        person.goes(f"#/loops/{loop}/experiments")
        person.reads("nothing can be said yet", "running: open", "Left to the traffic")
        person.goes(f"#/loops/{loop}/experiments?name=which&do=end")
        person.reads("whichever arm did better")
        person.presses(".ask button")
        person.is_told_that_it_is_done()
        assert client.get("/experiments/which", params=params).json()["status"] == "ended"

        person.goes(f"#/loops/{loop}/policies?do=activate&policy=popularity")
        person.reads("100 % of them move to it")
        person.presses(".ask button")
        person.is_told_that_it_is_done()
        assert client.get("/traffic", params=params).json() == {"popularity": 1}
        for line, traffic in ((back, {"random": 1}), (sent, {"popularity": 1})):
            subprocess.run([*line, "--fail", "--silent"], check=True, capture_output=True)
            assert client.get("/traffic", params=params).json() == traffic, "the call for the shell does the same"

        person.goes(f"#/loops/{loop}/policies?do=create")
        person.reads("It serves nobody until you activate or release it.")
        person.types("param-alpha", "-1")
        person.presses(".ask button")
        person.reads("The request is not valid (422)", "params.alpha: Input should be greater than or equal to 0")
        assert page.errors == []
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert {url.startswith(service) for url in page.requests} == {True}


def test_a_person_asks_why_it_was_shown_and_what_would_be_if(
    service: str, client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(items=0, policy="lin_ts", fit_schema=False, wait_time=600)
    params = {"loop": loop}
    client.post("/policies", params=params, json={"kind": "random"}).raise_for_status()
    items = [{"id": item, "features": {MARKUP: item[-1], "kind": item}} for item in (f"{MARKUP}a", f"{MARKUP}b")]
    client.post("/items", params=params, json={"items": items}).raise_for_status()
    events = [
        {
            **{"event_id": f"{loop}{number}", "user_id": MARKUP, "item_id": f"{MARKUP}{'ab'[number % 2]}"},
            **{"context": {"taste": "ab"[number // 2 % 2], "__proto__": MARKUP, MARKUP: number}, "propensity": 0.5},
            "reward": float(number % 2 == number // 2 % 2),
        }
        for number in range(80)
    ]
    client.post("/events", params=params, json={"events": events}).raise_for_status()
    asked = {"loop": loop, "user_id": MARKUP, "context": {"taste": "a", MARKUP: 3}}

    def decision() -> dict[str, Any]:
        found: dict[str, Any] = client.post("/recommend", json=asked).json()
        return found

    until(lambda: decision()["version"] > 0, "the policy serves what it learned")
    until(lambda: client.get("/policies/lin_ts", params=params).json()["lag"] == 0, "it has learned all")
    until(lambda: decision()["items"][0]["score"] > 0.5, "and serves it")
    until(lambda: len(client.get(f"/loops/{loop}/profile").json()["fields"]) > 3, "the profile knows the fields")
    made = decision()

    with Chromium() as chromium:
        page = chromium.open(f"{service}/console#/loops/{loop}/decisions", width=390)
        person = Person(page)
        person.goes(f"#/loops/{loop}/decisions?{urlencode({'id': made['decision_id']})}")
        why = person.reads(
            "Why", "every candidate", f"taste × {MARKUP}", "Chance of the first place", "the item itself"
        )
        assert f"{MARKUP}a" in why
        person.presses("main section p a[href*='/try']")
        person.reads("What it would show", "lin_ts would serve this request", "Would serve it", "Shadow", "50 %")
        assert page.evaluate("document.getElementById('try-user').value") == MARKUP
        assert page.evaluate("document.getElementById('try-taste').value") == "a"
        person.types("try-taste", "b")
        person.reads("was ", f"most likely show {MARKUP}b")
        person.types("request", json.dumps({**asked, "context": {"taste": "a"}}))
        person.reads(f"most likely show {MARKUP}a")
        assert page.evaluate("document.getElementById('try-taste').value") == "a"
        person.types("request", "{")
        until(lambda: "not the JSON" in page.evaluate("document.getElementById('wrong').textContent"), "it says so")
        person.types("request", json.dumps({**asked, "candidates": []}))
        person.reads("No candidate is eligible", "none is left")
        assert page.errors == []
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert {url.startswith(service) for url in page.requests} == {True}


def test_with_keys_it_asks_for_one_and_shows_nothing_before(settings: Settings) -> None:
    with Worker(Settings(redis_url=settings.redis_url, admin_keys="admin-secret"), learner=False) as url:
        seen = visit(f"{url}/console", within_ms=1000)
        assert '<input type="password"' in seen.dom
        assert "#/loops/" not in seen.dom
        assert [line for line in seen.console if "401" not in line] == []
        page = httpx.get(f"{url}/console")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe" not in policy
    assert "<script>" not in page.text
    assert " style=" not in page.text


def test_the_files_are_small_and_no_others_are_served(client: httpx.Client) -> None:
    size = 0
    for file in FOLDER.iterdir():
        if file.name != "index.html":
            reply = client.get(f"/console/{file.name}")
            assert reply.status_code == 200
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert (
                client.get(f"/console/{file.name}", headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
            )
        size += len(gzip.compress(file.read_bytes()))
    assert size <= 40_000  # ours: issue 19 allows 300 kB
    for name in ("", "none.js", "..%2Fapi%2Fapp.py", "index.html"):
        assert client.get(f"/console/{name}").status_code == 404, name


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.js")), ids=lambda file: file.name)
def test_scripts_make_no_markup_of_text(file: Path) -> None:
    """Every name and note is set as text, and nothing is fetched but from where the page came."""
    found = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?:", file.read_text()
    )
    assert [word for word in found if not (file.name == "dom.js" and word == "http:")] == []
