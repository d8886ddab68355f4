"""deploy/: what dashboard and alerts ask for is what a server shows, and the files fit each other and the docs."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
yaml: Any = pytest.importorskip("yaml", reason="the 'test' extra is not installed")
pytest.importorskip("prometheus_client", reason="the 'serve' extra is not installed")

from prometheus_client.parser import text_string_to_metric_families

from kvlab.cli.serve import serve
from serve_api_support import MODEL, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "remote" / "04_production_deployment.md"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "kvlab.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in RULES for rule in group["rules"]]
QUERIES = {
    f"panel {panel['title']}": [each["expr"] for each in panel["targets"]] for panel in PANELS
}
QUERIES |= {f"alert {rule['alert']}": [rule["expr"]] for rule in ALERTS}
LABELS_OF_PROMETHEUS = {"instance", "job", "le"}
FUNCTIONS = {"avg", "histogram_quantile", "increase", "max", "min", "rate", "sum"}
KEYWORDS = {"by", "offset", "or"}
PAIRS = {")": "(", "]": "[", "}": "{"}


def nobody() -> str:
    """A URL of L4 at which nobody listens: a server with it shows all that it would show."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"redis://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every metric that a server shows, by the names that a query uses."""
    names: dict[str, set[str]] = {}
    with running(tmp_path_factory.mktemp("server"), remote=(nobody(),)) as server:
        asked = {"model": MODEL, "prompt": "who is there?", "max_tokens": 2}
        httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).raise_for_status()
        # A failure has no series before there is one; its labels are what the docs name.
        text = httpx.get(f"{server.url}/metrics").text
    documented = re.findall(
        r"^\| `(kvlab:\w+)` \| \w+ \| ([^|]*)\|",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    labels = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in documented}
    for family in text_string_to_metric_families(text):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        for end in ends.get(family.type, [""]):
            total = family.name + ("_total" if family.type == "counter" else "")
            names[family.name + end] = labels[total]
    return names


def words(query: str) -> Iterator[tuple[str, str]]:
    """The names of a query, each with what stands behind it; what stands in quotes is left out."""
    bare = re.sub(r'"[^"]*"', '""', query)
    for match in re.finditer(r"(?<![\w$:])[a-zA-Z_][\w:]*", bare):
        yield match.group(), bare[match.end() :].lstrip()


def test_there_is_something_to_look_at() -> None:
    assert len(PANELS) > 15
    assert len(ALERTS) > 8
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    assert all(panel["description"] and panel["targets"] for panel in PANELS)


@pytest.mark.parametrize("where", QUERIES)
def test_a_query_asks_for_what_a_server_shows(where: str, shown: dict[str, set[str]]) -> None:
    for query in QUERIES[where]:
        open_brackets: list[str] = []
        for character in re.sub(r'"[^"]*"', "", query):
            if character in PAIRS.values():
                open_brackets.append(character)
            elif character in PAIRS:
                assert open_brackets, query
                assert open_brackets.pop() == PAIRS[character], query
        assert not open_brackets, query
        metrics, labels = set(), set()
        for name, behind in words(re.sub(r"\[[^\]]*\]|offset \w+", "", query)):
            if name.startswith("kvlab:") or name == "up":
                metrics.add(name)
            elif behind.startswith(("(", "by ")):
                assert name in FUNCTIONS | KEYWORDS, (name, query)
            elif name not in KEYWORDS:
                labels.add(name)
        assert metrics, query
        assert metrics - {"up"} <= shown.keys(), query
        known = LABELS_OF_PROMETHEUS.union(*(shown.get(name, set()) for name in metrics))
        assert labels <= known, query
        # A rate of a gauge and a counter as it stands are the two common mistakes.
        for name in metrics - {"up"}:
            counted = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert counted == bool(re.search(rf"(rate|increase)\({re.escape(name)}\b", query)), (
                query
            )


def test_the_choice_of_servers_is_a_label_of_a_metric(shown: dict[str, set[str]]) -> None:
    [choice] = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", choice["query"]["query"]).groups()  # type: ignore[union-attr]
    assert metric in shown
    assert label == choice["name"] == "instance"
    assert all(
        "$instance" in query for panel in PANELS for query in QUERIES[f"panel {panel['title']}"]
    )


def test_every_alert_says_what_to_do() -> None:
    headings = set(re.findall(r"^#+ (\w+)$", GUIDE.read_text(), re.MULTILINE))
    for rule in ALERTS:
        page, anchor = rule["annotations"]["runbook"].split("#")
        assert ROOT / page == GUIDE
        assert anchor == rule["alert"].lower()
        assert rule["alert"] in headings
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_docs_name_metrics_that_there_are(shown: dict[str, set[str]]) -> None:
    for page in GUIDE.parent.glob("*.md"):
        for name in re.findall(r"`(kvlab:\w+)", page.read_text()):
            assert name in shown, page


def test_the_services_find_each_other() -> None:
    services = COMPOSE["services"]
    [job] = PROMETHEUS["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    exposed = re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)
    for target in job["static_configs"][0]["targets"]:
        host, port = target.split(":")
        assert host in services
        assert [port] == exposed
        assert f'"--port", "{port}"' in DOCKERFILE
    named = {name for rule in ALERTS for name in re.findall(r'job="(\w+)"', rule["expr"])}
    assert named == {job["job_name"]}
    sources = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    [source] = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {each["datasource"]["uid"] for each in PANELS} == {source["uid"]}


def test_the_server_understands_its_command_and_the_shared_tier_is_a_service() -> None:
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])
    asked = [*entrypoint, *COMPOSE["services"]["kvlab"]["command"]]
    assert asked[:2] == ["kvlab", "serve"]
    understood = serve.make_context("serve", asked[2:]).params
    [url] = understood["remote"]
    assert urlsplit(url).hostname in COMPOSE["services"]
    assert understood["host"] == "0.0.0.0"  # noqa: S104 (in its container)


def test_a_server_that_is_left_alone_makes_it_degraded_and_ready(tmp_path: Path) -> None:
    with running(tmp_path, remote=(nobody(),)) as server:

        def ready() -> Any:
            answer = httpx.get(f"{server.url}/ready")
            assert answer.status_code == 200
            return answer.json()

        def degraded() -> bool:
            asked = {"model": MODEL, "prompt": "who is there? " * 8, "max_tokens": 1}
            httpx.post(f"{server.url}/v1/completions", json=asked).raise_for_status()
            return bool(ready()["status"] == "degraded")

        until(degraded)
        assert ready()["servers_left_alone"] == 1


def test_what_is_mounted_and_copied_is_there_and_the_docs_name_the_ports() -> None:
    guide = GUIDE.read_text()
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (
                (DEPLOY / source).is_dir()
                if source.startswith(".")
                else source in COMPOSE["volumes"]
            )
            assert known, volume
        for port in service.get("ports", []):
            address, outer, inner = port.split(":")
            assert address == "127.0.0.1"
            assert outer == inner
            assert f"127.0.0.1:{outer}" in guide
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    let_in = set(
        re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    )
    names = {name for line in copied for name in line.split()}
    assert names == let_in
    assert all((ROOT / name).exists() for name in names)
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/kvlab.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert any(path in each for each in COMPOSE["services"]["grafana"]["volumes"])
