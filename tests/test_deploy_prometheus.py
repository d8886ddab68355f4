"""deploy/ in a real Prometheus: configuration, alerts, and what the dashboard asks of a running server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx", reason="the 'serve' extra is not installed")
yaml: Any = pytest.importorskip("yaml", reason="the 'test' extra is not installed")
pytest.importorskip("prometheus_client", reason="the 'serve' extra is not installed")
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
if PROMETHEUS is None or PROMTOOL is None:
    pytest.skip("Prometheus is not installed (Debian: prometheus)", allow_module_level=True)

from redis_support import RedisServer, free_port
from serve_api_support import MODEL, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
CASES = DEPLOY / "prometheus" / "alerts_test.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "kvlab.json").read_text())
SCRAPE = "200ms"


def promtool(*words: str) -> str:
    """What Prometheus' own checker says."""
    done = subprocess.run(
        [str(PROMTOOL), *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_one() -> None:
    assert "SUCCESS" in promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_each_alert_speaks_when_it_should_and_only_then() -> None:
    promtool("test", "rules", str(CASES))


def test_each_alert_is_seen_to_speak_and_to_be_silent() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    asked = [case for test in cases for case in test.get("alert_rule_test", [])]
    speaks = {case["alertname"] for case in asked if case["exp_alerts"]}
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert speaks == {rule["alert"] for rule in rules}
    [healthy] = [test for test in cases if "promql_expr_test" in test]
    assert healthy["promql_expr_test"] == [{"expr": "ALERTS", "eval_time": "3h", "exp_samples": []}]
    rows = " ".join(series["series"] for series in healthy["input_series"])
    for rule in rules:
        # A rule whose metrics are not in the rows would be silent in any case; failures have none before the first.
        metric = next(word for word in rule["expr"].replace("(", " ").split() if "kvlab" in word)
        name = metric.split("{")[0].split("[")[0].rstrip(")")
        assert name in rows or name == "kvlab:requests_failed_total", rule["alert"]


class Prometheus:
    """A Prometheus that scrapes a server by the repository's configuration, only more often.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str) -> list[Any]:
        """The samples of a query.

        Raises:
            httpx.HTTPStatusError: it is not a query.
        """
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30)
        answer.raise_for_status()
        samples: list[Any] = answer.json()["data"]["result"]
        return samples

    def alerts(self) -> dict[str, Any]:
        """The alerts that are pending or fire, by name."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).raise_for_status()
        return {each["labels"]["alertname"]: each for each in answer.json()["data"]["alerts"]}


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Starts one."""
    directory.mkdir()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        str(PROMETHEUS),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    started = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            return bool(httpx.get(f"{started.url}/-/ready", timeout=5).status_code == 200)
        except httpx.TransportError:
            return False

    try:
        until(ready)
        yield started
    finally:
        process.terminate()
        process.wait(60)


def test_prometheus_sees_a_server_and_what_becomes_of_its_shared_tier(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with (
        RedisServer(tmp_path / "redis") as shared,
        running(tmp_path, remote=(shared.url,)) as server,
        prometheus(tmp_path / "prometheus", server.url.removeprefix("http://")) as seen,
    ):
        numbers = count()

        def send() -> None:
            # Its head is found here, its end is asked for there.
            prompt = "who is there? " * 10 + f"number {next(numbers)} " * 10
            asked = {"model": MODEL, "prompt": prompt, "max_tokens": 4}
            httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).raise_for_status()

        def shown(query: str) -> bool:
            send()
            return any(float(sample["value"][1]) > 0 for sample in seen.ask(query))

        until(lambda: shown("rate(kvlab:prefix_cache_hits_total[10s])"))
        until(lambda: shown("rate(kvlab:remote_lookups_total[10s])"))
        # Every query of the dashboard is one, and those of what has happened have samples.
        empty = []
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "10s")
                if not seen.ask(query):
                    empty.append(panel["title"])
        assert set(empty) <= {
            "Ends of requests",
            "Errors and refusals a second",
            "Refusals a second",
        }
        # Only what is by design of such a test may be pending: an alert needs minutes to fire.
        assert "KvlabServerLeftAlone" not in seen.alerts()
        shared.stop()
        until(lambda: shown("kvlab:remote_server_up == bool 0"))
        until(lambda: "KvlabServerLeftAlone" in seen.alerts())
        alert = seen.alerts()["KvlabServerLeftAlone"]
        host = f"127.0.0.1:{shared.port}"
        assert alert["labels"]["server"] == host
        assert host in alert["annotations"]["summary"]
    with socket.socket() as nobody:
        assert nobody.connect_ex(("127.0.0.1", shared.port)) != 0
