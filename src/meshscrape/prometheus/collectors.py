"""Convert scrape jobs for vmagent and the OpenTelemetry Collector.

Sources for the supported fields: VictoriaMetrics `lib/promscrape` (strict parsing by default), and the
Collector's `prometheusreceiver`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from meshscrape.kube.yaml_text import dump

Collector = Literal["prometheus", "vmagent", "otel"]
COLLECTORS: tuple[Collector, ...] = ("prometheus", "vmagent", "otel")

# vmagent refuses a configuration with one of these fields. It only supports HTTP/1.1, so it behaves as with
# `enable_http2: false`.
_VMAGENT_GLOBAL = frozenset({"evaluation_interval", "query_log_file", "scrape_failure_log_file"})
_VMAGENT_TOP = frozenset({"rule_files", "alerting", "remote_write", "remote_read", "storage", "tracing"})
_VMAGENT_JOB = frozenset(
    {
        "body_size_limit", "target_limit", "keep_dropped_targets", "scrape_protocols", "enable_http2",
        "fallback_scrape_protocol", "track_timestamps_staleness", "metric_name_validation_scheme",
    }
)  # fmt: skip
# Older versions cannot refuse redirects of discovery. Here discovery is the scrape proxy, which sends none.
_VMAGENT_DISCOVERY = frozenset({"refresh_interval", "follow_redirects"})
# The Collector refuses these sections: it evaluates no rules and exports by its own configuration.
_OTEL_TOP = frozenset({"rule_files", "alerting", "remote_write", "remote_read", "storage", "tracing"})


def collector_config(collector: Collector, config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `config` (a whole prometheus.yml as data) for the collector.

    vmagent gets a file for `-promscrape.config`, the Collector a `receivers` section to merge into its own.
    """
    return _VARIANTS[collector](config)


def collector_text(collector: Collector, config: Mapping[str, Any]) -> str:
    """Return the same as text, with a head that says where it belongs and whether it verifies targets."""
    head = f"# Made by meshscrape. {_PLACES[collector]}\n"
    jobs = config.get("scrape_configs") or ()
    if any(job.get("tls_config", {}).get("insecure_skip_verify") for job in jobs):
        head += "# The scraper does not verify targets: see insecure_skip_verify.\n"
    return head + dump(collector_config(collector, config))


def _prometheus(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


def _vmagent(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = _without(config, _VMAGENT_TOP)
    if "global" in kept:
        kept["global"] = _without(kept["global"], _VMAGENT_GLOBAL)
    kept["scrape_configs"] = [_vmagent_job(job) for job in config.get("scrape_configs", ())]
    return kept


def _vmagent_job(job: Mapping[str, Any]) -> dict[str, Any]:
    kept = _without(job, _VMAGENT_JOB)
    for key, value in kept.items():
        if key.endswith("_sd_configs"):
            kept[key] = [_without(discovery, _VMAGENT_DISCOVERY) for discovery in value]
    return kept


def _otel(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = _without(config, _OTEL_TOP)
    if "global" in kept:
        kept["global"] = _without(kept["global"], frozenset({"evaluation_interval"}))
    return {"receivers": {"prometheus": {"config": _escaped(kept)}}}


def _escaped(value: Any) -> Any:
    """Return `value` with every `$` doubled: the Collector expands `$1` and `${…}` as variables."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: _escaped(nested) for key, nested in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(nested) for nested in value]
    return value


def _without(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}


_VARIANTS: Mapping[Collector, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "prometheus": _prometheus, "vmagent": _vmagent, "otel": _otel,
}  # fmt: skip
_PLACES: Mapping[Collector, str] = {
    "prometheus": "For Prometheus' --config.file.",
    "vmagent": "For vmagent's -promscrape.config.",
    "otel": "Merge it into the Collector's configuration and name the receiver in a pipeline.",
}
