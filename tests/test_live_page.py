"""The live page in a real browser, with requests flowing through an engine."""

from __future__ import annotations

import threading
from itertools import combinations
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from browser import DESK, PHONE
from hf_support import open_store
from kvlab.serve.engine import (
    Chunk,
    EngineOptions,
    GenerationRequest,
    Sampling,
    SequenceState,
    Span,
    TierTokens,
)
from observed import Script, Told, observe

pytest.importorskip("torch", reason="the 'hf' extra is not installed")
from kvlab.serve.engine.engine import Engine
from serve_api_support import running
from serve_support import Answer, byte_tokenizer
from tiny_models import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from browser import Browser
    from kvlab import Store
    from kvlab.serve.engine import Event

TEXT = ("h1", "h2", "h3", "p", "dt", "dd", "b", "code", ".soft", ".none", ".phase", ".count", ".row span",
        ".where span", ".legend span", "#chart text")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store", l1="4MiB", l2="2MiB") as store:
        yield store


@pytest.fixture
def engine(model: Any, store: Store) -> Iterator[Engine]:
    options = EngineOptions(restore="always", max_active=2, max_queue=3, prefill_chunk=64)
    with Engine(model, byte_tokenizer(), store, options) as engine:
        yield engine


def submit(engine: Engine, name: str, prompt: list[int], tokens: int = 3) -> Answer:
    answer = Answer()
    sampling = Sampling(temperature=0.0)
    engine.submit(GenerationRequest(name, np.asarray(prompt, np.int64), tokens, sampling), answer)
    return answer


def live(browser: Browser) -> None:
    browser.wait(lambda: browser.run("return document.body.dataset.link") == "live", "it is live")


def shown(browser: Browser, selector: str) -> list[Any]:
    """The numbers behind what the elements show."""
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.dataset.value)"
    return list(browser.run(script, selector))


def text(browser: Browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)"
    return list(browser.run(script, selector))


def numbers(snapshot: Any) -> dict[str, list[str]]:
    """What the page is to show of a snapshot: for each selector the numbers."""
    totals, tokens = snapshot["totals"], snapshot["totals"]["prompt_tokens"]
    return {
        "#running-count": [len(snapshot["running"])],
        "#waiting-count": [snapshot["waiting_count"]],
        "#generated": [totals["generated_tokens"]],
        "#finished": [totals["finished"]],
        "#share-of": [sum(tokens.values()) - tokens["compute"]],
        "#legend span:last-child": [tokens[name] for name in ("l1", "l2", "l3", "compute")],
        ".tier > .row:first-child > span:last-child": [t["used_bytes"] for t in snapshot["tiers"]],
        ".tier > .row:last-child > span:first-child": [t["hit_tokens"] for t in snapshot["tiers"]],
        ".tier > .row:last-child > span:last-child": [t["read_bytes"] for t in snapshot["tiers"]],
        "#ended > li > .row:last-child > span:first-child": [
            request["prompt_tokens"] for request in snapshot["ended"][:12]
        ],
        "#ended > li > .row:last-child > span:last-child": [
            request["generated_tokens"] for request in snapshot["ended"][:12]
        ],
        "#evictions .count": [each["total"] for each in snapshot["evictions"]],
        "#refusals .count": [each["total"] for each in snapshot["refusals"]],
    }


def test_the_page_shows_what_real_requests_did(
    engine: Engine, store: Store, browser: Browser
) -> None:
    shared = list(range(1, 129))
    with observe(engine, store).serve() as url:
        browser.open(url)
        live(browser)
        for at in range(6):
            submit(engine, f"cmpl-{at}", [*shared, *([at + 1] * 70)]).wait()
        store.flush()
        store.evict("l2")
        submit(engine, "cmpl-restored", [*shared, 250]).wait()
        # With nothing under way the numbers stand still, and the page comes to show them.
        store.flush()

        def same() -> bool:
            wanted = numbers(httpx.get(f"{url}/live/snapshot", timeout=60).json())
            return all(
                shown(browser, each) == [str(n) for n in row] for each, row in wanted.items()
            )

        browser.wait(same, "the page shows the numbers of the snapshot")
        snapshot = httpx.get(f"{url}/live/snapshot", timeout=60).json()
        assert snapshot["totals"]["finished"] == 7
        assert snapshot["totals"]["prompt_tokens"]["l3"] == 128
        assert snapshot["evictions"]
        # The strip of the last prompt: 128 tokens from L3, one computed.
        widths = browser.run(
            """
            const strip = document.querySelector("#ended .strip");
            return [...strip.children].map((part) => [part.dataset.source, part.getBoundingClientRect().width]);
            """
        )
        (first, wide), (last, narrow) = widths
        assert (first, last) == ("l3", "compute")
        assert wide > 20 * narrow > 0
        labels = browser.run(
            "return [...document.querySelectorAll('[role=img], [role=meter]')].map((n) => n.ariaLabel)"
        )
        assert labels
        assert all(labels)
        assert "128 L3" in browser.run("return document.querySelector('#ended .strip').ariaLabel")
        drawn = browser.run(
            "return [...document.querySelectorAll('#chart path')].map((n) => n.getBBox().height)"
        )
        assert max(drawn) > 10
        assert text(browser, "#ended code")[0] == "cmpl-restored"
        # Nothing from elsewhere, and no complaint.
        assert {urlsplit(each).netloc for each in browser.requests()} == {urlsplit(url).netloc}
        assert {urlsplit(each).path for each in browser.requests()} == {"/", "/live"}
        assert browser.complaints() == []


def test_requests_are_seen_while_they_run_and_wait(
    engine: Engine, store: Store, browser: Browser
) -> None:
    with observe(engine, store).serve() as url:
        browser.open(url)
        live(browser)
        # The engine stands still, in the call of a sink, while two answer and two wait.
        seen_by_browser = threading.Event()

        def pause(event: Event) -> None:
            phases = [each.phase for each in engine.snapshot().running]
            if isinstance(event, Chunk) and phases == ["decode", "decode"]:
                assert seen_by_browser.wait(60)

        handles = [
            engine.submit(
                GenerationRequest(
                    f"cmpl-{at}", np.full(80, at + 1), 900, Sampling(temperature=0.0)
                ),
                pause,
            )
            for at in range(4)
        ]

        def seen() -> bool:
            phases = text(browser, "#running .phase")
            return sorted(phases) == ["decode", "decode", "waiting", "waiting"]

        browser.wait(seen, "two run and two wait")
        assert (shown(browser, "#running-count"), shown(browser, "#waiting-count")) == (
            ["2"],
            ["2"],
        )
        for handle in handles:
            handle.cancel()
        seen_by_browser.set()
        browser.wait(lambda: text(browser, "#ended .phase") == ["cancelled"] * 4, "all ended")
        assert text(browser, "#running") == ["No request is running."]
        assert "4 cancelled" in text(browser, "#unfinished")[0]


def busy(script: Script) -> None:
    """Something in every part of the page, with texts that are long, and some that would do harm."""
    for at in range(30):
        end = ("stop", "length", "cancelled", "failed", "rejected", "unadmitted")[at % 6]
        Told(f"chatcmpl-{at:024x}", (512, 256, 64, 16, 300 + at), None, (0.4, 0.1), end).tell(
            script
        )
    hostile = "<img src=x onerror=document.title='owned'>" * 3
    Told(hostile, (16, 0, 0, 0, 9), None, (0.1,), "failed").tell(script)
    spans = (Span(0, 16, "l1"), Span(16, 25, "compute"))
    script.running.append(
        SequenceState(hostile, "decode", 25, 25, 3, TierTokens(l1=16), spans, 1.0)
    )
    script.queued.append(SequenceState("w" * 200, "shared", 70, 0, 0, TierTokens(), (), 1.0))


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "phone"])
def test_the_page_is_readable_everywhere_and_runs_nothing_that_it_shows(
    store: Store, browser: Browser, size: tuple[int, int], dark: bool
) -> None:
    script = Script()
    observed = observe(script, store)
    busy(script)
    with observed.serve() as url:
        browser.open(url, size=size, dark=dark)
        live(browser)
        assert browser.overflow() == []
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(15, 18, 22)" if dark else "rgb(243, 245, 248)")
        contrasts = browser.contrast(*TEXT)
        assert {name: round(least, 1) for name, least in contrasts.items() if least < 4.5} == {}
        assert contrasts.keys() >= {"h2", "code", ".phase", "#chart text"}
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert "<img src=x" in text(browser, "#running code")[0]
        assert "owned" not in browser.driver.title
        assert browser.complaints() == []


# What people without one kind of cones see of linear RGB: Machado et al. 2009, "A Physiologically-based Model for
# Simulation of Color Vision Deficiency", severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def lab(colour: str, deficiency: str) -> Any:
    """The CIELAB coordinates of a colour such as `#0072b2`, as seen with a deficiency."""
    rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(to_xyz) @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_sources_are_told_apart_without_one_kind_of_cones(browser: Browser) -> None:
    names = ["l1", "l2", "l3", "remote", "compute"]
    with observe(Script(), None).serve() as url:
        for dark in (False, True):
            browser.open(url, dark=dark)
            colours = browser.run(
                """
                const style = getComputedStyle(document.documentElement);
                return arguments[0].map((name) => style.getPropertyValue("--" + name).trim());
                """,
                names,
            )
            for deficiency in DEFICIENCIES:
                for (one, first), (two, second) in combinations(
                    zip(names, colours, strict=True), 2
                ):
                    apart = np.linalg.norm(lab(first, deficiency) - lab(second, deficiency))
                    assert apart > 10, (dark, deficiency, one, two, apart)


def test_the_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(
    browser: Browser,
) -> None:
    script = Script()
    with observe(script, None).serve() as url:
        browser.open(url)
        live(browser)
        assert text(browser, "#tier-list") == ["This mode has no cache: every prompt is computed."]
    link = "return document.body.dataset.link"
    browser.wait(lambda: browser.run(link) == "away", "it says that the server is away")
    assert "server away since" in text(browser, "#status")[0]
    again = Script()
    observed = observe(again, None)
    Told("cmpl-after", (0, 0, 0, 0, 9), None, (0.1,), "stop").tell(again)
    with observed.serve(urlsplit(url).port or 0):
        live(browser)
        assert text(browser, "#ended code") == ["cmpl-after"]
        assert text(browser, "#status") == ["live"]


def test_the_whole_server_shows_its_page_to_who_has_a_key(tmp_path: Path, browser: Browser) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-secret team\n", encoding="utf-8")
    keys.chmod(0o600)
    with running(tmp_path, api_keys=keys) as server:
        assert httpx.get(f"{server.url}/live/snapshot").status_code == 401
        sent = {"Authorization": "Bearer sk-secret"}
        messages = [{"role": "user", "content": "secret words " * 9}]
        chat = {"model": "tiny", "messages": messages, "max_tokens": 2}
        for _ in range(2):
            url = f"{server.url}/v1/chat/completions"
            assert httpx.post(url, json=chat, headers=sent, timeout=60).status_code == 200
        # A browser is asked for a password, which is the key; here its address has the answer.
        browser.open(server.url.replace("//", "//me:sk-secret@"))
        live(browser)
        wanted = httpx.get(f"{server.url}/live/snapshot", headers=sent).json()
        assert wanted["totals"]["prompt_tokens"]["l1"] > 0
        assert shown(browser, "#finished") == ["2"]
        assert shown(browser, "#legend span:last-child")[0] == str(
            wanted["totals"]["prompt_tokens"]["l1"]
        )
        assert "secret" not in browser.run("return document.documentElement.outerHTML")
        assert browser.complaints() == []
    browser.wait(
        lambda: browser.run("return document.body.dataset.link") == "away", "the server is away"
    )
