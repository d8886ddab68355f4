"""The essays and the write-up: their length, figures and sources, and what they say in words about numbers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ESSAYS = sorted((ROOT / "docs" / "essays").glob("[0-9]*.md"))
CAPSTONE = ROOT / "docs" / "capstone.md"
NOT_READ = re.compile(r"<!--.*?-->|^```.*?^```|(?<=\])\([^)]*\)", re.DOTALL | re.MULTILINE)


def words(text: str) -> int:
    """As a reader counts them: no marks, no addresses, no diagrams, no rules of tables."""
    return len(re.findall(r"\w[\w'.,/-]*", NOT_READ.sub("", text)))


def pictures(page: Path) -> list[Path]:
    found = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", page.read_text(encoding="utf-8"))
    return [(page.parent / target).resolve() for target in found]


def test_there_are_eight_and_the_list_has_them_all() -> None:
    assert [page.name[:2] for page in ESSAYS] == [f"{number:02}" for number in range(1, 9)]
    listed = (ROOT / "docs" / "essays" / "README.md").read_text(encoding="utf-8")
    for page in ESSAYS:
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"[{title}]({page.name})" in listed


@pytest.mark.parametrize("page", ESSAYS, ids=lambda page: page.stem)
def test_an_essay_is_short_has_a_figure_made_here_and_links_its_sources(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 500 <= words(text) <= 900
    made = {ROOT / "docs" / "figures", ROOT / "docs"}
    assert pictures(page)
    assert all(picture.parent in made and picture.is_file() for picture in pictures(page))
    assert "https://" in text.partition("## Sources")[2] or "Linked above" in text
    assert "TODO" not in text


def test_the_write_up_is_of_a_length_that_is_read_to_the_end() -> None:
    assert 1500 <= words(CAPSTONE.read_text(encoding="utf-8")) <= 2500
    assert all(picture.is_file() for picture in pictures(CAPSTONE))


def measured(name: str) -> Any:
    return json.loads((ROOT / "docs" / "measurements" / f"{name}.json").read_text(encoding="utf-8"))


def row(rows: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    (found,) = (each for each in rows if wanted.items() <= each.items())
    return found


def attention_grows_like_a_square() -> bool:
    fit, longest = measured("attention")["exponents"], measured("attention")["rows"][-1]["seconds"]
    steeper = min(fit["attention"], fit["fused"]) > fit["projections"] + 0.3
    return bool(steeper and longest["fused"] < longest["attention"])


def prefill_is_right_of_the_ridge_and_decode_left() -> bool:
    results = measured("roofline")
    ridge, model = results["machine"]["ridge"], results["model"]
    return bool(model["prefill"][-1]["intensity"] > ridge > 4 * model["decode"][0]["intensity"])


def a_step_is_more_than_its_weights() -> bool:
    step = measured("roofline")["model"]["step"]
    return bool(step["floor"] < step["matrix_products"] < step["whole"])


def rows_share_a_fetch() -> bool:
    one, *_, many = measured("roofline")["sweeps"]["matmul"]
    return bool(many["seconds"] < 0.5 * many["count"] * one["seconds"])


def attention_is_the_slope() -> bool:
    short, *_, long = measured("generation")["smollm2"]
    return bool(long["attention"] > 1.5 * short["attention"])


def waste_doubles_with_the_block() -> bool:
    wasted = [each["wasted"] for each in measured("fragmentation")["paged"]]
    return all(1.7 < b / a < 2.4 for a, b in itertools.pairwise(wasted))


def fewer_heads_are_faster_but_not_by_as_much() -> bool:
    times = measured("kv_heads")["times"]
    many, one = row(times, n_kv_heads=32)["grouped_ms"], row(times, n_kv_heads=1)["grouped_ms"]
    return bool(1.5 < many / one < 32)


def repeating_heads_costs() -> bool:
    eight = row(measured("kv_heads")["times"], n_kv_heads=8)
    return bool(eight["repeated_ms"] > 1.5 * eight["grouped_ms"])


def absorbing_is_more_arithmetic_in_prefill() -> bool:
    work = measured("mla")["prefill_gflop"]
    return bool(work["absorbed"] > 2 * work["expanded once"])


def absorbing_pays_in_decode() -> bool:
    forms = row(measured("mla")["decode"], tokens=4096)["forms"]
    each_step, once, absorbed = (
        forms[form]["ms"] for form in ("expanded every step", "expanded once", "absorbed")
    )
    return bool(absorbed < once < each_step)


def one_sink_is_most_of_it() -> bool:
    arms = measured("sinks")["arms"]
    full, window, one = (
        row(arms, arm=arm)["perplexity_past"] for arm in ("full cache", "0 sinks", "1 sinks")
    )
    return bool(window - one > 0.5 * (window - full))


def the_arrangement_decides_at_two_bits() -> bool:
    rows = measured("quantise")["rows"]
    plain, kivi = (
        {bits: row(rows, scheme=scheme, bits=bits)["kl"] for bits in (8, 2)}
        for scheme in ("per token", "KIVI")
    )
    return bool(max(plain[8], kivi[8]) < 1e-3 and kivi[2] < 0.6 * plain[2])


def positions_are_most_of_the_harm() -> bool:
    arms = measured("blend")["arms"]
    return bool(arms["re-rotated"]["kl"] < 0.5 * arms["as cached"]["kl"])


def a_miss_costs_the_tiers_little_and_the_server_nothing() -> bool:
    plain, server, tiers = (
        json.loads(
            (ROOT / "reports" / f"served_miss_overhead-{mode}.json").read_text(encoding="utf-8")
        )
        for mode in ("generate", "baseline", "nvme")
    )
    key = "median_e2el_ms"
    return bool(server[key] < plain[key] < tiers[key] < 1.1 * plain[key])


def which_matters_more_than_how_many() -> bool:
    arms = measured("blend")["arms"]
    few, drawn, chosen = (arms[arm] for arm in ("first 4", "15 % at random", "15 % by layer 1"))
    return bool(few["kl"] < drawn["kl"] > chosen["kl"] and 9 * few["work"] < drawn["work"])


def what_is_left_does_not_vanish() -> bool:
    arms = measured("blend")["arms"]
    return bool(arms["first 4"]["kl"] > arms["15 % by layer 1"]["kl"] > 0.01)


def gaps_count() -> bool:
    one, *_, everything = measured("prompt_modules")["rows"]
    alone, behind = everything["alone"]["kl"], everything["behind"]["kl"]
    return bool(one["gaps"]["kl"] > alone > behind)


CLAIMS: list[tuple[str, str, Callable[[], bool]]] = [
    ("01", "But every query still meets every key", attention_grows_like_a_square),
    ("02", "stands far to the right", prefill_is_right_of_the_ridge_and_decode_left),
    ("02", "stays below its roof", a_step_is_more_than_its_weights),
    ("02", "rows that share one fetch of the weights cost much less", rows_share_a_fetch),
    ("02", "The first is a constant, the second a slope", attention_is_the_slope),
    ("03", "Twice the K, twice the waste", waste_doubles_with_the_block),
    ("04", "do not make it thirty-two times faster", fewer_heads_are_faster_but_not_by_as_much),
    ("04", "And the gain is easily lost", repeating_heads_costs),
    ("04", "more arithmetic for fewer bytes", absorbing_is_more_arithmetic_in_prefill),
    ("04", "In decode that is the right trade", absorbing_pays_in_decode),
    ("05", "One token of no importance is most of the difference", one_sink_is_most_of_it),
    ("05", "at two bits the arrangement decides", the_arrangement_decides_at_two_bits),
    ("08", "Most of the harm is in the positions", positions_are_most_of_the_harm),
    (
        "08",
        "*which* tokens are computed matters more than how many",
        which_matters_more_than_how_many,
    ),
    ("08", "CacheBlend's choice is better still", what_is_left_does_not_vanish),
    ("08", "the gaps count, too", gaps_count),
    ("capstone", "what they win", a_miss_costs_the_tiers_little_and_the_server_nothing),
]


@pytest.mark.parametrize(
    ("number", "said", "holds"),
    CLAIMS,
    ids=[f"{number}-{holds.__name__}" for number, _, holds in CLAIMS],
)
def test_what_is_said_in_words_was_measured(
    number: str, said: str, holds: Callable[[], bool]
) -> None:
    (page,) = (page for page in [*ESSAYS, CAPSTONE] if page.name.startswith(number))
    assert said in " ".join(page.read_text(encoding="utf-8").split())
    assert holds(), f"{page.name} says {said!r}: measured otherwise"
