"""Writes deploy/grafana/quantd.json, the Grafana dashboard, from the table below.

A panel is one line: add it here, run `python tools/grafana_dashboard.py`, commit both. A test
compares the two, and asks a real Prometheus every query (tests/end_to_end/test_dashboard.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "quantd.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: What every selector carries: the servers that are looked at.
I = 'instance=~"$instance"'


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # Grafana's: s, Bps, bytes, percentunit, short, reqps ...
    queries: tuple[Query, ...]
    description: str
    kind: str = "timeseries"  # or "stat"
    stacked: bool = False


def panel(
    title: str, unit: str, description: str, *queries: tuple[str, str], stacked: bool = False
) -> Panel:
    made = tuple(Query(expression, legend) for expression, legend in queries)
    return Panel(title, unit, made, description, stacked=stacked)


def stat(title: str, unit: str, description: str, expression: str, legend: str = "") -> Panel:
    return Panel(title, unit, (Query(expression, legend),), description, kind="stat")


def rate(metric: str, by: str, selector: str = "") -> str:
    chosen = f"{{{I}{', ' + selector if selector else ''}}}"
    return f"sum by ({by}) (rate({metric}{chosen}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "", selector: str = "") -> str:
    grouped = rate(f"{histogram}_bucket", f"le, {by}" if by else "le", selector)
    return f"histogram_quantile({q:g}, {grouped})"


FAULTS = 'code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE"'
STREAMS = "StreamActivations|WatchJob"  # their duration is the client's

GROUPS: dict[str, list[Panel]] = {
    "Overview": [
        stat("Ready", "short", "Servers that are ready, of those that are known.",
             f"sum(quantd_ready{{{I}}})"),
        stat("Version", "short", "What runs.",
             f"count by (version, backends) (quantd_build_info{{{I}}})",
             "{{version}} ({{backends}})"),
        stat("Waiting groups", "short", "Fusion groups that are ready and wait for a device.",
             f"sum(quantd_queue_depth{{{I}}})"),
        stat("Running layers", "short", "Layers on devices now.",
             f"sum(quantd_running_layers{{{I}}})"),
        stat("Activations in", "Bps", "Payload bytes of activations received.",
             f'sum(rate(quantd_received_bytes_total{{{I}, kind="activations"}}'
             "[$__rate_interval]))"),
        stat("Server faults", "percentunit", "RPCs that failed by the server's fault.",
             f"sum(rate(quantd_rpcs_total{{{I}, {FAULTS}}}[$__rate_interval]) or "
             f"0 * rate(quantd_rpcs_total{{{I}}}[$__rate_interval])) / "
             f"sum(rate(quantd_rpcs_total{{{I}}}[$__rate_interval]))"),
        stat("Disk free", "percentunit", "Of the data directory's file system; the least.",
             f"min(quantd_disk_free_bytes{{{I}}} / quantd_disk_bytes{{{I}}})"),
        stat("Up for", "s", "Since the last start; the shortest.",
             f"min(time() - process_start_time_seconds{{{I}}})"),
    ],
    "Traffic": [
        panel("RPCs by method", "reqps", "Finished RPCs a second.",
              (rate("quantd_rpcs_total", "method"), "{{method}}")),
        panel("RPC latency, 99th percentile", "s",
              "Without the streams whose length is the client's choice.",
              (quantile(0.99, "quantd_rpc_duration_seconds", "method",
                        f'method!~".*/({STREAMS})"'), "{{method}}")),
        panel("Open streams", "short", "Streaming RPCs that are open.",
              (f"sum by (kind) (quantd_open_streams{{{I}}})", "{{kind}}"), stacked=True),
        panel("Received", "Bps", "Payload without framing.",
              (rate("quantd_received_bytes_total", "kind"), "{{kind}}"), stacked=True),
        panel("Sent", "Bps", "Payload without framing.",
              (rate("quantd_sent_bytes_total", "kind"), "{{kind}}"), stacked=True),
        panel("Received by tenant", "Bps", "Payload without framing.",
              (rate("quantd_received_bytes_total", "tenant"), "{{tenant}}"), stacked=True),
        panel("Sent by tenant", "Bps", "Payload without framing.",
              (rate("quantd_sent_bytes_total", "tenant"), "{{tenant}}"), stacked=True),
    ],
    "Ingest": [
        panel("Tokens by tenant", "short", "Tokens added to statistics a second, once durable.",
              (rate("quantd_accumulated_tokens_total", "tenant"), "{{tenant}}"), stacked=True),
        panel("Chunk to durable", "s",
              "From the receipt of an activation chunk to its durable acknowledgement. Includes "
              "the wait for the next commit (durability.commit_interval_ms).",
              (quantile(0.5, "quantd_chunk_durable_seconds"), "median"),
              (quantile(0.99, "quantd_chunk_durable_seconds"), "99th percentile")),
        panel("Commit of received bytes, 99th percentile", "s", "One sync of what was received.",
              (quantile(0.99, "quantd_commit_duration_seconds", "kind"), "{{kind}}")),
    ],
    "Queue and fairness": [
        panel("Waiting groups by tenant", "short", "Fusion groups that are ready and wait.",
              (f"sum by (tenant) (quantd_queue_depth{{{I}}})", "{{tenant}}"), stacked=True),
        panel("Queue wait", "s", "From a fusion group being ready to its start.",
              (quantile(0.5, "quantd_queue_wait_seconds"), "median"),
              (quantile(0.9, "quantd_queue_wait_seconds"), "90th percentile"),
              (quantile(0.99, "quantd_queue_wait_seconds"), "99th percentile")),
        panel("Share of the devices by tenant", "percentunit",
              "Device seconds of each tenant, of all that were used: under contention these "
              "follow the configured weights.",
              (f"{rate('quantd_device_seconds_total', 'tenant')} / ignoring (tenant) group_left "
               f"sum(rate(quantd_device_seconds_total{{{I}}}[$__rate_interval]))", "{{tenant}}"),
              stacked=True),
        panel("Queue wait by priority, 90th percentile", "s",
              "From a fusion group being ready to its start.",
              (quantile(0.9, "quantd_queue_wait_seconds", "priority"), "{{priority}}")),
        panel("Groups held by a quota", "short", "Ready, but their tenant has used a quota up.",
              (f"sum by (quota) (quantd_quota_waiting_groups{{{I}}})", "{{quota}}")),
        panel("Preemptions", "short",
              "Times a second that a slot went to another job while its last one had more.",
              (rate("quantd_preemptions_total", "reason"), "{{reason}}")),
        panel("Jobs past their deadline", "short", "Jobs a second.",
              (rate("quantd_expired_jobs_total", "instance"), "{{instance}}")),
        panel("Layers ended by tenant", "short", "Layers a second.",
              (rate("quantd_layers_total", "tenant"), "{{tenant}}"), stacked=True),
    ],
    "Devices": [
        panel("Running layers by device", "short", "Layers on each device now.",
              (f"sum by (instance, device) (quantd_running_layers{{{I}}})",
               "{{instance}} {{device}}")),
        panel("Device time used", "percentunit",
              "Seconds of device time a second; 1 is one slot that is always busy.",
              (rate("quantd_device_seconds_total", "instance"), "{{instance}}")),
        panel("Device memory", "percentunit", "In use, of what the device has.",
              (f"quantd_device_memory_used_bytes{{{I}}} / quantd_device_memory_bytes{{{I}}}",
               "{{instance}} {{device}}")),
        panel("Open sums", "bytes", "Device memory that sums of open streams hold.",
              (f"quantd_open_sum_bytes{{{I}}}", "{{instance}} {{device}}")),
        panel("Sums paged out", "short",
              "A minute, and streams that wait: more open sums than limits.open_sum_bytes holds.",
              (f"60 * rate(quantd_sum_page_outs_total{{{I}}}[$__rate_interval])",
               "{{instance}} {{device}}"),
              (f"quantd_waiting_sums{{{I}}}", "waiting {{instance}} {{device}}")),
        panel("GPU utilisation", "percentunit", "Share of the time in which it computes.",
              (f"quantd_device_utilisation_ratio{{{I}}}", "{{instance}} {{device}}")),
        panel("GPU power", "watt", "Of the whole card.",
              (f"quantd_device_power_watts{{{I}}}", "{{instance}} {{device}}")),
        panel("GPU temperature", "celsius", "Of its processor.",
              (f"quantd_device_temperature_celsius{{{I}}}", "{{instance}} {{device}}")),
    ],
    "Stages": [
        panel("Where a layer's time goes", "s", "Seconds of each stage a second.",
              (rate("quantd_stage_duration_seconds_sum", "stage"), "{{stage}}"), stacked=True),
        panel("Stage, 90th percentile", "s", "Duration of one stage of one layer.",
              (quantile(0.9, "quantd_stage_duration_seconds", "stage"), "{{stage}}")),
        panel("Layer, 90th percentile", "s", "From its start on the device to its stored result.",
              (quantile(0.9, "quantd_layer_duration_seconds", "method, format"),
               "{{method}} {{format}}")),
    ],
    "Errors": [
        panel("RPCs that failed", "reqps", "By method and gRPC status code.",
              (rate("quantd_rpcs_total", "method, code", 'code!="OK"'), "{{method}} {{code}}")),
        panel("Refused requests by reason", "reqps", "The reason in their ErrorInfo.",
              (rate("quantd_rejected_requests_total", "reason"), "{{reason}}")),
        panel("Refused requests by tenant", "reqps", "Without a name: nobody's credential.",
              (rate("quantd_rejected_requests_total", "tenant"), "{{tenant}}")),
        panel("Layers by outcome", "short", "Layers a second.",
              (rate("quantd_layers_total", "outcome"), "{{outcome}}")),
    ],
    "Storage": [
        panel("Stored bytes by tenant", "bytes", "Blobs and staging files.",
              (f"sum by (tenant) (quantd_stored_bytes{{{I}}})", "{{tenant}}"), stacked=True),
        panel("Room on the disk", "bytes", "Of the data directory's file system.",
              (f"quantd_disk_free_bytes{{{I}}}", "{{instance}} free"),
              (f"quantd_disk_bytes{{{I}}}", "{{instance}} in all")),
        panel("Deleted by age", "short", "Jobs, statistics and uploads a second.",
              (rate("quantd_collected_total", "kind"), "{{kind}}")),
        panel("Syncs that failed", "short", "After one of the database, nothing is accepted.",
              (f"sum by (instance) (increase(quantd_sync_failures_total{{{I}}}"
               "[$__rate_interval]))", "{{instance}}")),
        panel("Commits", "short", "Syncs of received bytes a second.",
              (rate("quantd_commit_duration_seconds_count", "kind"), "{{kind}}")),
    ],
    "Process": [
        panel("Processor", "short", "Cores in use.",
              (rate("process_cpu_seconds_total", "instance"), "{{instance}}")),
        panel("Memory", "bytes", "Resident.",
              (f"process_resident_memory_bytes{{{I}}}", "{{instance}}")),
        panel("Open files", "percentunit",
              "Of those the process may open; a listener that runs out of them is lost.",
              (f"process_open_fds{{{I}}} / process_max_fds{{{I}}}", "{{instance}}")),
    ],
}  # fmt: skip

WIDTH = 24  # of Grafana's grid
ACROSS = {"timeseries": 3, "stat": 8}  # panels in a line
HEIGHT = {"timeseries": 8, "stat": 4}


def as_json(made: Panel, identity: int, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
    if made.stacked:
        custom |= {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if made.kind == "stat":
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "name" if "version" in made.queries[0].legend else "auto",
            "colorMode": "none",
        }
    return {
        "id": identity,
        "type": made.kind,
        "title": made.title,
        "description": made.description,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": x,
            "y": y,
            "w": WIDTH // ACROSS[made.kind],
            "h": HEIGHT[made.kind],
        },
        "fieldConfig": {
            "defaults": {
                "unit": made.unit,
                "min": 0,
                "custom": custom if made.kind == "timeseries" else {},
            },
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(made.queries)
        ],
    }


def panels() -> list[dict[str, Any]]:
    laid_out: list[dict[str, Any]] = []
    y = 0
    for title, group in GROUPS.items():
        laid_out.append(
            {
                "id": len(laid_out) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = 0
        for made in group:
            width = WIDTH // ACROSS[made.kind]
            if x + width > WIDTH:
                x, y = 0, y + HEIGHT[made.kind]
            laid_out.append(as_json(made, len(laid_out) + 1, x, y))
            x += width
        y += HEIGHT[group[-1].kind]
    return laid_out


def variable(name: str, label: str, kind: str, query: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "type": kind, "query": query, "hide": 0, **more}


def dashboard() -> dict[str, Any]:
    return {
        "uid": "quantd",
        "title": "quantd",
        "description": "A service that quantizes the layers of large language models.",
        "tags": ["quantd"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                variable("datasource", "Data source", "datasource", "prometheus"),
                variable(
                    "instance",
                    "Server",
                    "query",
                    "label_values(quantd_build_info, instance)",
                    datasource=DATASOURCE,
                    definition="label_values(quantd_build_info, instance)",
                    includeAll=True,
                    multi=True,
                    allValue=".+",
                    refresh=2,
                    sort=1,
                    current={"selected": True, "text": ["All"], "value": ["$__all"]},
                ),
            ]
        },
        "panels": panels(),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
    sys.exit(0)
