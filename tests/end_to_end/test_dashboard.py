"""deploy/grafana and deploy/prometheus against a real Prometheus that scrapes a real server.

Every query of the dashboard and every alert's expression is asked after real work. It has to return
data, or to be among those that are empty unless there is trouble.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from quantd.v1 import recipe_pb2

from .conftest import REPOSITORY
from .prometheus_server import Prometheus, running_prometheus
from .prometheus_text import parse
from .server_process import Server, eventually
from .wire import (
    activations_like,
    create_job,
    gaussian,
    get_job,
    layer,
    read_artifact,
    sealed_statistic,
    upload,
    wait_for_job,
)

DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
RULES_TEST = DEPLOY / "prometheus" / "rules_test.yml"
DASHBOARD = DEPLOY / "grafana" / "quantd.json"
COLS = 64

#: Panels without data on a server that is well and young, and why.
EMPTY_AT_FIRST = {
    "Deleted by age": "nothing has been kept for as long as retention says",
    "GPU utilisation": "the CPU has none",
    "GPU power": "the CPU has none",
    "GPU temperature": "the CPU has none",
}
#: What Prometheus itself knows about every target.
OF_PROMETHEUS = {"up"}

_NAME = re.compile(r"\b(?:quantd|process)_\w+\b|\bup\b")
_ALERT = re.compile(r"- alert: (\w+)\n\s+expr: (?:\|\n)?(.*?)\n\s+(?:for|labels):", re.DOTALL)


def _dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def _panel_queries() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in _dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def _alerts() -> dict[str, str]:
    return dict(_ALERT.findall(RULES.read_text()))


@dataclass(frozen=True)
class Documented:
    kind: str
    labels: frozenset[str]


def _documented() -> dict[str, Documented]:
    """What docs/metrics.md says, which a C++ test compares with what the program registers. (A
    metric with labels is exported once it has a sample.)"""
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", text, re.M)
    return {
        name: Documented(kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows
    }


def _work(server: Server, round_number: int) -> None:
    """Some of everything that the panels show."""
    name = f"shown-{round_number}"
    sealed_statistic(server.api, name, activations_like(64, COLS, round_number))
    job = create_job(
        server.api,
        [layer("w", 16, COLS, statistic=server.api.statistic_name(name))],
        recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH),
    )
    upload(server.api, job.layers[0].name, gaussian(16, COLS, 1))
    wait_for_job(server.api, job.name)
    read_artifact(server.api, f"{job.name}/artifacts/w.safetensors")
    with pytest.raises(grpc.RpcError):
        get_job(server.api, server.api.job_name("none"))


@pytest.fixture(scope="module")
def watched(
    server: Server, prometheus: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with the configuration and rules of deploy/, faster and aimed at the server, which
    has worked while it was scraped."""
    folder = tmp_path_factory.mktemp("prometheus")
    configured = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    changes = {
        "scrape_interval: 15s": "scrape_interval: 200ms\n  scrape_timeout: 200ms",
        "evaluation_interval: 15s": "evaluation_interval: 200ms",
        "127.0.0.1:7742": server.metrics_address,
        "  - rules.yml": f"  - {RULES}",
    }
    for was, becomes in changes.items():
        assert configured.count(was) == 1, was
        configured = configured.replace(was, becomes)
    config = folder / "prometheus.yml"
    config.write_text(configured)
    with running_prometheus(prometheus, config, folder) as scraped:

        def samples() -> float:
            try:
                (series,) = scraped.ask("count_over_time(quantd_build_info[1h])")
            except (ValueError, OSError):  # no series yet; still starting
                return 0
            return float(series["value"][1])

        eventually(lambda: samples() >= 1, "the first scrape has arrived", 30)
        for round_number in range(3):  # rates need a change between two scrapes of the same series
            _work(server, round_number)
            seen = samples()
            eventually(lambda seen=seen: samples() >= seen + 2, "scrapes go on", 30)
        yield scraped


def _filled_in(expression: str) -> str:
    """As Grafana sends it for "All" servers."""
    return expression.replace("$instance", ".+").replace("$__rate_interval", "10m")


def test_every_panel_shows_data(watched: Prometheus) -> None:
    empty = []
    for title, expression in _panel_queries():
        series = watched.ask(_filled_in(expression))
        # NaN is what a quantile of no observations gives.
        shown = [one for one in series if one["value"][1] not in ("NaN", "+Inf", "-Inf")]
        if not shown and title not in EMPTY_AT_FIRST:
            empty.append((title, expression, series))
    assert not empty


def test_every_alert_evaluates_and_none_fires_on_a_server_that_is_well(
    watched: Prometheus,
) -> None:
    rules = {rule["name"]: rule for rule in watched.rules()}
    assert rules.keys() == _alerts().keys()
    eventually(
        lambda: all(rule["health"] == "ok" for rule in watched.rules()), "every rule was evaluated"
    )
    assert watched.alerts() == []


def test_an_alert_is_raised(watched: Prometheus, server: Server) -> None:
    """When each fires is promtool's to test; here, that trouble gets from the server to an alert:
    somebody asks for another tenant's jobs, again and again."""

    def refusals() -> list[dict[str, Any]]:
        for _ in range(20):
            with pytest.raises(grpc.RpcError):
                get_job(server.api, "tenants/somebody-else/jobs/none")
        return [a for a in watched.alerts() if a["labels"]["alertname"] == "QuantdAuthRefusals"]

    (alert, *_) = eventually(refusals, "the alert is pending", 30)
    assert alert["labels"]["instance"] == server.metrics_address
    assert alert["state"] in ("pending", "firing")


def test_dashboard_and_rules_name_only_what_is_exported(
    watched: Prometheus, server: Server
) -> None:
    scrape = parse(server.metrics())
    documented = _documented()
    assert scrape.types.keys() <= documented.keys()
    labels_of = {name: frozenset[str]() for name in OF_PROMETHEUS}
    for name, metric in documented.items():
        labels_of[name] = metric.labels
        if metric.kind == "histogram":
            labels_of |= {f"{name}_{part}": metric.labels for part in ("sum", "count")}
            labels_of[f"{name}_bucket"] = metric.labels | {"le"}
    expressions = [expression for _, expression in _panel_queries()] + list(_alerts().values())
    expressions += [
        variable["definition"]
        for variable in _dashboard()["templating"]["list"]
        if "definition" in variable
    ]
    for expression in expressions:
        named = set(_NAME.findall(expression))
        assert named, expression
        assert named <= labels_of.keys(), expression
        # Labels, too: {...} and by (...) name those that the series have.
        labels = set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', expression))
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {label.strip() for label in grouped.split(",")}
        known = {"instance", "job"}.union(*(labels_of[name] for name in named))
        assert labels <= known, expression


def test_every_metric_is_shown() -> None:
    """A metric that nobody looks at is forgotten: new ones get a panel."""
    shown = " ".join(expression for _, expression in _panel_queries())
    for name in _documented():
        if name.startswith("quantd_"):
            assert name in shown or name in UNSHOWN, f"{name}: see tools/grafana_dashboard.py"


#: Not on the dashboard, and why.
UNSHOWN = {"quantd_serving": "quantd_ready says more"}


def test_the_dashboard_is_what_its_table_says() -> None:
    path = REPOSITORY / "tools" / "grafana_dashboard.py"
    spec = importlib.util.spec_from_file_location("grafana_dashboard", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["grafana_dashboard"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    assert module.text() == DASHBOARD.read_text(), "run tools/grafana_dashboard.py"


def test_panels_fit_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    identities = set()
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        identities.add(panel["id"])
    assert len(identities) == len(_dashboard()["panels"])


def test_promtool_finds_nothing_in_the_rules(promtool: Callable[..., Any]) -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stderr
    config = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert config.returncode == 0, config.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool: Callable[..., Any]) -> None:
    tested = promtool("test", "rules", RULES_TEST)
    assert tested.returncode == 0, tested.stderr + tested.stdout
    text = RULES_TEST.read_text()
    for alert in _alerts():
        assert re.search(rf"alertname: {alert}, exp_alerts: \[\]", text), f"{alert}: when not?"
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts:\n", text), f"{alert}: when?"


def test_every_alert_has_a_runbook() -> None:
    headings = set(
        re.findall(r"^### (\w+)$", (REPOSITORY / "docs/operations.md").read_text(), re.M)
    )
    assert headings == set(_alerts())
    for name, block in re.findall(
        r"- alert: (\w+)\n(.*?)(?=\n\n|\Z)", RULES.read_text(), re.DOTALL
    ):
        for key in ("summary", "description"):
            assert re.search(rf'{key}: ".+"', block), (name, key)
        assert f'runbook: "docs/operations.md#{name.lower()}"' in block, name
