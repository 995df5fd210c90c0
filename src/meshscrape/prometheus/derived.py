"""Derive a secure job from the plaintext job whose targets it takes over.

The kept targets, their labels and the treatment of samples must stay the same, because alerts, dashboards and
autoscalers depend on them. So the derived job first runs the plaintext job's own relabelling, then keeps
exactly the targets that the plaintext job now drops (`drop_secured`), and only replaces their address, path
and scheme. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from meshscrape.istio.names import MERGED_PATH, SECURE_PORT_META
from meshscrape.istio.ports import MERGED, STATS
from meshscrape.prometheus.kubernetes_sd import (
    POD_META,
    ProxyInPod,
    Rule,
    announced,
    camel_rule,
    drop_own_series,
    drop_secured,
    drop_secured_monitor,
    ready,
    transport,
)

# Fields of the plaintext job that the derived job replaces. Credentials for a plaintext server must not go to
# a target whose identity Prometheus cannot verify.
_REPLACED = (
    "job_name", "scheme", "metrics_path", "tls_config", "follow_redirects", "basic_auth", "authorization",
    "oauth2", "bearer_token", "bearer_token_file", "static_configs",
)  # fmt: skip
_REPLACED_IN_MONITOR = (
    "scheme", "path", "tlsConfig", "followRedirects", "basicAuth", "authorization", "oauth2",
    "bearerTokenSecret", "bearerTokenFile",
)  # fmt: skip


# Fields about another proxy. Scrapes through the scrape proxy cannot use one.
_OF_PROXIES = (
    "proxy_url", "no_proxy", "proxy_from_environment", "proxy_connect_header", "http_headers",
    "proxyUrl", "noProxy", "proxyFromEnvironment", "proxyConnectHeader",
)  # fmt: skip


def derived_job(
    job: Mapping[str, Any],
    pool: str,
    certificates: str,
    *,
    proxy: ProxyInPod | None = None,
    annotation: str = SECURE_PORT_META,
    new_job: bool = False,
    keep_own_series: bool = False,
) -> dict[str, Any]:
    """Return the secure job, named `pool`, for the targets that `job` reads in plaintext from proxies.

    The label `job` keeps the plaintext job's name; with `new_job` it is the pool's name. With `proxy`, the
    scrapes go through the scrape proxy, and `certificates` is unused.
    """
    kept = {
        key: value
        for key, value in job.items()
        if key not in _REPLACED
        and not (key.endswith("_sd_configs") and key != "kubernetes_sd_configs")
        and key not in ("relabel_configs", "metric_relabel_configs")
    }
    own = without_drop(job.get("relabel_configs"))
    label = [] if new_job else [_job_label(pool, str(job.get("job_name", "")))]
    dropped = [] if keep_own_series else [drop_own_series()]
    samples = [rule for rule in job.get("metric_relabel_configs") or () if rule not in dropped]
    return {
        "job_name": pool,
        **{key: value for key, value in kept.items() if proxy is None or key not in _OF_PROXIES},
        "metrics_path": MERGED_PATH,
        # A hostile target must not redirect the scraper, which holds a key, to another server.
        "follow_redirects": False,
        **transport(certificates, proxy),
        "relabel_configs": [*label, *own, *taken_over(annotation, proxied=proxy is not None)],
        **({"metric_relabel_configs": [*samples, *dropped]} if samples or dropped else {}),
    }


def derived_endpoint(
    endpoint: Mapping[str, Any],
    names: tuple[str, str],
    *,
    proxy: ProxyInPod | None = None,
    annotation: str = SECURE_PORT_META,
    new_job: bool = False,
    keep_own_series: bool = False,
) -> dict[str, Any]:
    """Return the endpoint of a derived monitor. `names` are the job labels of the derived and the old one.

    With `proxy`, the scrapes go through the scrape proxy; the monitor's scrape class has the token.
    """
    kept = {
        key: value
        for key, value in endpoint.items()
        if key not in _REPLACED_IN_MONITOR and key not in ("relabelings", "metricRelabelings")
    }
    label = [] if new_job else [camel_rule(_job_label(*names))]
    dropped = [] if keep_own_series else [camel_rule(drop_own_series())]
    samples = [rule for rule in endpoint.get("metricRelabelings") or () if rule not in dropped]
    through = {"scheme": "https"} if proxy is None else proxied_endpoint(proxy)
    return {
        **{key: value for key, value in kept.items() if proxy is None or key not in _OF_PROXIES},
        "path": MERGED_PATH,
        **through,
        "followRedirects": False,
        "relabelings": [
            *label,
            *without_drop(endpoint.get("relabelings")),
            *map(camel_rule, taken_over(annotation, proxied=proxy is not None)),
        ],
        **({"metricRelabelings": [*samples, *dropped]} if samples or dropped else {}),
    }


def proxied_endpoint(proxy: ProxyInPod) -> dict[str, Any]:
    """Return the fields of a monitor's endpoint whose scrapes go through the scrape proxy."""
    return {"scheme": "http", "proxyUrl": f"http://{proxy.address}"}


def taken_over(annotation: str = SECURE_PORT_META, *, proxied: bool = False) -> list[Rule]:
    """Return a derived job's last rules, which keep what `drop_secured` drops and use the secure port."""
    present = f"{POD_META}annotationpresent_{annotation}"
    return [
        {
            "action": "keep",
            "source_labels": [present, "__address__"],
            "regex": f"true;.*:({MERGED}|{STATS})",
        },
        # Without this rule, a pod that has ended would be a target that is down.
        {"action": "keep", "source_labels": [f"{POD_META}phase"], "regex": "Running"},
        *([ready()] if proxied else []),
        *announced(annotation),
        _set("__metrics_path__", MERGED_PATH),
        _set("__scheme__", "http" if proxied else "https"),
    ]


def is_derived(rules: Any) -> bool:
    """Return whether relabelling rules (in either spelling) belong to a derived job."""
    keep = taken_over()[0]["regex"]
    present = rules if isinstance(rules, list) else []
    return any(
        isinstance(rule, Mapping) and rule.get("action") == "keep" and rule.get("regex") == keep
        for rule in present
    )


def with_drop(rules: Any, *, camel: bool = False) -> list[Any]:
    """Return a plaintext job's rules with the rule that drops secured pods as the last one."""
    rule = drop_secured_monitor() if camel else drop_secured()
    present = rules if isinstance(rules, list) else []
    return present if rule in present else [*present, rule]


def without_drop(rules: Any) -> list[Any]:
    """Return a plaintext job's rules without the rule that drops secured pods."""
    drops: Sequence[Rule] = (drop_secured(), drop_secured_monitor())
    present: Iterable[Any] = rules if isinstance(rules, list) else ()
    return [rule for rule in present if rule not in drops]


def _job_label(pool: str, name: str) -> Rule:
    # This rule comes first and only replaces the pool's own name, so the job's own rules see the same labels
    # as before.
    return {
        "action": "replace",
        "source_labels": ["job"],
        "regex": "".join(c if c.isalnum() or c in "_-/" else f"\\{c}" for c in pool),
        "target_label": "job",
        "replacement": name.replace("$", "$$"),
    }


def _set(label: str, value: str) -> Rule:
    return {"action": "replace", "target_label": label, "replacement": value}
