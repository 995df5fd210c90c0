"""Take back what meshscrape wrote into the objects of others, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshscrape.envoy import override
from meshscrape.istio import names
from meshscrape.istio.ports import SECURE_MERGED, SECURE_STATS
from meshscrape.kube import objects
from meshscrape.kube.objects import as_list, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.injection_template import OVERRIDE_NAME, VOLUME
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.inverse.taking import Taking, Test, one_of
from meshscrape.prometheus import operator, scrape_proxy_pod, scraper_pod
from meshscrape.prometheus.config import plain_job
from meshscrape.prometheus.derived import is_derived, without_drop
from meshscrape.prometheus.targets import JOBS, PROXY_JOB

HARDENED: Mapping[str, Test] = {names.METRICS_LOCALHOST_ACCESS_ONLY: one_of("true")}
_OVERLAY = "deployment"


def take_hardening(taking: Taking, path: tuple[str, ...]) -> None:
    """Take back the closing of the plaintext ports from the pod template at `path`."""
    taking.proxy_config((*path, "metadata", "annotations"), HARDENED)
    taking.env((*path, "spec"), HARDENED)


def take_listeners(taking: Taking, path: tuple[str, ...], everywhere: Iterable[str]) -> None:
    """Take back the secure ports and their announcement from the pod template at `path`.

    `everywhere` are the ports that the mesh excludes from interception.
    """
    notes = (*path, "metadata", "annotations")
    present = as_mapping(dig(taking.data, *notes))
    ports = _ports(present)
    taking.proxy_config(notes, _variables(ports))
    taking.env((*path, "spec"), _variables(ports) | _override(taking, (*path, "spec", "volumes")))
    if present.get(names.BOOTSTRAP_OVERRIDE) == OVERRIDE_NAME:
        taking.key(notes, names.BOOTSTRAP_OVERRIDE)
    taking.mount((*path, "spec"), VOLUME)
    taking.item((*path, "spec"), "volumes", VOLUME)
    _announcements(taking, notes)
    taking.ports(notes, names.EXCLUDE_INBOUND, ports, everywhere)
    taking.ports(notes, names.INCLUDE_INBOUND, (str(SECURE_STATS),))


def _ports(present: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the secure ports that a template announces, and Istio's own."""
    announced = (present.get(key) for key in (names.SECURE_PORT, names.SECURE_ENVOY_PORT))
    return tuple(dict.fromkeys((str(SECURE_STATS), str(SECURE_MERGED), *map(str, filter(None, announced)))))


def opened(config: objects.Object) -> dict[str, Test]:
    """Return the variables by which a ProxyConfig object opens secure ports, with the values to accept."""
    said = as_mapping(dig(config, "spec", "environmentVariables"))
    values = {str(said[name]) for name in _variables(()) if name in said}
    return _variables(values)


def _variables(ports: Iterable[str]) -> dict[str, Test]:
    # "0": bootstrap mode turns Istio's own listeners off.
    accepted = one_of("0", *ports)
    return {
        names.ENVOY_SECURE_MERGED_METRICS_PORT: accepted,
        names.ENVOY_SECURE_METRICS_PORT: accepted,
    }


def _override(taking: Taking, volumes: tuple[str, ...]) -> dict[str, Test]:
    """Return the variable that names the override, if the proxy has the volume that a plan mounts for it."""
    mounted = any(dig(volume, "name") == VOLUME for volume in as_list(dig(taking.data, *volumes)))
    path = f"{override.DIRECTORY}/{override.BOOTSTRAP_FILE}"
    return {names.ISTIO_BOOTSTRAP_OVERRIDE: one_of(path)} if mounted else {}


def _announcements(taking: Taking, path: tuple[str, ...]) -> None:
    for key in (names.SECURE_PORT, names.SECURE_ENVOY_PORT, names.BOOTSTRAP_CHECKSUM):
        taking.key(path, key)


def take_overlay(taking: Taking, everywhere: Iterable[str], *, listeners: bool) -> None:
    """Take back what a ConfigMap with the overlay of a Gateway's Deployment contains: one of both phases."""
    overlay, today = _overlay(taking.data), _overlay(taking.data)
    if not isinstance(overlay, dict):
        return
    inner = Taking(
        overlay,
        None if taking.original is None else (_overlay(taking.original) or {}),
        lambda _: taking.written(("data", _OVERLAY)),
        recorded=taking.recorded,
    )
    if listeners:
        take_listeners(inner, ("spec", "template"), everywhere)
    else:
        take_hardening(inner, ("spec", "template"))
    taking.kept += inner.kept
    if overlay == today:
        return
    pruned = _without_empty(overlay, today)
    data = taking.data["data"]
    data[_OVERLAY] = rewrite(data[_OVERLAY], pruned) if pruned else ""


def _overlay(config_map: objects.Object | None) -> Any:
    text = dig(config_map, "data", _OVERLAY)
    return load_text(text, _OVERLAY) if isinstance(text, str) else None


def _without_empty(value: Any, today: Any) -> Any:
    """Return an overlay without the empty mappings and lists that settings leave behind.

    `today` is the overlay with the settings: what is empty there stays.
    """
    if value == today:
        return value
    if isinstance(value, dict):
        known = as_mapping(today)
        settings = {key: _without_empty(item, known.get(key)) for key, item in value.items()}
        return {key: item for key, item in settings.items() if item not in ({}, []) or item == known.get(key)}
    if isinstance(value, list):
        same = {str(dig(item, "name")): item for item in as_list(today)}
        items = [_without_empty(item, same.get(str(dig(item, "name")))) for item in value]
        # Omit a proxy container that sets nothing any more.
        return [item for item in items if item != {"name": names.PROXY_CONTAINER}]
    return value


def take_infrastructure(taking: Taking) -> None:
    """Take back the announcement from a Gateway of the Gateway API whose pods get annotations from it."""
    path = ("spec", "infrastructure", "annotations")
    before = len(as_mapping(dig(taking.data, *path)))
    _announcements(taking, path)
    left = as_mapping(dig(taking.data, *path))
    own = {key: value for key, value in objects.annotations(taking.data).items() if key in left}
    copied = all(taking.written((*path, key)) is not False for key in left)
    if taking.original is None and left and len(left) < before and left == own and copied:
        # The plan had copied them, because Istio no longer did.
        infrastructure = taking.data["spec"]["infrastructure"]
        del infrastructure["annotations"]
        if not infrastructure:
            del taking.data["spec"]["infrastructure"]


def take_asm(taking: Taking, *, listeners: bool) -> None:
    """Take back what an IstioGateway of ASM contains: one of both phases."""
    notes = ("spec", "podAnnotations")
    if not listeners:
        taking.proxy_config(notes, HARDENED)
        taking.list_env(("spec",), HARDENED)
        return
    ports = _ports(as_mapping(dig(taking.data, *notes)))
    taking.list_env(("spec",), _variables(ports) | _override(taking, ("spec", "configVolumes")))
    _announcements(taking, notes)
    taking.item(("spec",), "configVolumes", VOLUME)


def take_certificate(taking: Taking, path: tuple[str, ...]) -> None:
    """Take back a scraper's certificate from the pod template at `path` (of a Deployment or similar)."""
    spec = (*path, "spec")
    taking.mount(spec, scrape_proxy_pod.TOKEN_VOLUME)
    _scrape_proxy(taking, spec)
    if not _has_volume(taking, spec):
        return
    _scraper_metadata(taking, (*path, "metadata"))
    taking.mount(spec, scraper_pod.VOLUME)
    taking.item(spec, "volumes", scraper_pod.VOLUME)


def take_operated_certificate(taking: Taking) -> None:
    """Take back a scraper's certificate and its scrape class from a Prometheus object of the Operator."""
    taking.item(("spec",), "scrapeClasses", operator.SCRAPE_CLASS)
    taking.item(("spec",), "scrapeClasses", operator.PROXY_SCRAPE_CLASS)
    taking.item(("spec",), "volumeMounts", scrape_proxy_pod.TOKEN_DIRECTORY, by="mountPath")
    _scrape_proxy(taking, ("spec",))
    if not _has_volume(taking, ("spec",)):
        return
    _scraper_metadata(taking, ("spec", "podMetadata"))
    taking.item(("spec",), "volumeMounts", scraper_pod.CERTIFICATES, by="mountPath")
    taking.item(("spec",), "volumes", scraper_pod.VOLUME)


def _scrape_proxy(taking: Taking, spec: tuple[str, ...]) -> None:
    """Take the containers and volumes of the scrape proxy out of the pod specification at `spec`."""
    for name in scrape_proxy_pod.CONTAINERS:
        taking.item(spec, "initContainers", name)
    for volume in scrape_proxy_pod.VOLUMES:
        taking.item(spec, "volumes", volume)


def _has_volume(taking: Taking, spec: tuple[str, ...]) -> bool:
    """Return whether a scraper has the volume that meshscrape gives it; else its certificate is its own."""
    volumes = as_list(dig(taking.data, *spec, "volumes"))
    return any(dig(volume, "name") == scraper_pod.VOLUME for volume in volumes)


def _scraper_metadata(taking: Taking, path: tuple[str, ...]) -> None:
    notes, marks = (*path, "annotations"), (*path, "labels")
    taking.key(marks, names.INJECT, one_of("true"))
    taking.key(marks, names.REVISION, recorded=True)
    taking.key(marks, names.TLS_MODE, one_of("disabled"))
    taking.key(notes, names.INCLUDE_INBOUND, one_of(""))
    taking.key(notes, names.INCLUDE_OUTBOUND, one_of(""))
    taking.proxy_config(
        notes,
        {names.OUTPUT_CERTS: one_of(scraper_pod.CERTIFICATES), **HARDENED},
        {"holdApplicationUntilProxyStarts": lambda value: value is True},
    )
    text = dig(taking.data, *notes, names.USER_VOLUME_MOUNT)
    mounts = load_text(text, names.USER_VOLUME_MOUNT) if isinstance(text, str) else None
    if isinstance(mounts, dict) and set(mounts) == {scraper_pod.VOLUME}:
        taking.key(notes, names.USER_VOLUME_MOUNT)
    elif isinstance(mounts, dict):
        left = {key: value for key, value in mounts.items() if key != scraper_pod.VOLUME}
        dig(taking.data, *notes)[names.USER_VOLUME_MOUNT] = rewrite(str(text), left)


def take_labels(taking: Taking, path: tuple[str, ...]) -> None:
    """Take back the labels at `path` that brought pods into the mesh, where meshscrape is shown to be it."""
    taking.key((*path, "metadata", "labels"), names.INJECT, one_of("true"), recorded=True)
    taking.key((*path, "metadata", "labels"), names.REVISION, recorded=True)
    taking.key((*path, "metadata", "labels"), names.NAMESPACE_INJECTION, one_of("enabled"), recorded=True)


def take_jobs(config: Mutable, original: Any, *, written: bool | None) -> list[str]:
    """Take the secure jobs, and the rules that drop secured pods, out of a Prometheus configuration.

    Return the names of the secure jobs that stay, because nothing shows that meshscrape wrote them. A job
    that is derived from a plaintext job is recognised by its rules, and the scrape proxy's own job by being
    exactly what a plan writes; `written` decides about the others.
    """
    known = {dig(job, "job_name"): job for job in as_list(dig(original, "scrape_configs"))}
    left, kept = [], []
    for job in as_list(config.get("scrape_configs")):
        name = str(dig(job, "job_name"))
        if not isinstance(job, dict):
            left.append(job)
        elif not _is_secure(job, name):
            _without_rule(job, "relabel_configs")
            left.append(job)
        elif name in known:
            left.append(known[name])
        elif original is not None or written is True or _is_planned(job):
            continue
        else:
            kept.append(name)
            left.append(job)
    config["scrape_configs"] = left
    return kept


def _is_secure(job: Mapping[str, Any], name: str) -> bool:
    proxied = job.get("proxy_url") == f"http://{scrape_proxy_pod.IN_POD.address}"
    return name == PROXY_JOB or (name.partition("/")[0] in JOBS and (job.get("scheme") == "https" or proxied))


def _is_planned(job: Mapping[str, Any]) -> bool:
    own = plain_job(PROXY_JOB, scrape_proxy_pod.DISCOVERY, scrape_proxy_pod.IN_POD.token_file)
    return is_derived(job.get("relabel_configs")) or job == own


def take_rules(monitor: Mutable, field: str) -> None:
    """Take the rules that drop secured pods out of a PodMonitor or ServiceMonitor."""
    for endpoint in as_list(dig(monitor, "spec", field)):
        if isinstance(endpoint, dict):
            _without_rule(endpoint, "relabelings")


def _without_rule(holder: Mutable, key: str) -> None:
    rules = as_list(holder.get(key))
    left = without_drop(rules)
    if len(left) == len(rules):
        return
    if left:
        holder[key] = left
    else:
        del holder[key]
