"""Certificates for those who scrape: a sidecar that intercepts nothing and writes the files."""

from __future__ import annotations

from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import (
    INCLUDE_INBOUND,
    INCLUDE_OUTBOUND,
    INJECT,
    PROXY_CONFIG_ANNOTATION,
    PROXY_CONTAINER,
    REVISION,
    USER_VOLUME_MOUNT,
)
from meshscrape.kube.objects import Ref, as_list, as_mapping, dig, labels
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.model import Scraper
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.injection import injection_labels
from meshscrape.plan.scrapers import RIGHTS, guarded, new_objects, secured_scrapers
from meshscrape.plan.workloads import Context, default_control_plane, restarts_of
from meshscrape.prometheus import operator, scraper_pod


def plan_credentials(context: Context) -> None:
    """Certificates for the scrapers that are found, or the rights of a new one."""
    if context.intent.prometheus == "existing":
        for scraper in secured_scrapers(context):
            guarded(context, scraper.ref, partial(_credentials, context, scraper))
    elif context.intent.prometheus != "none":
        _check_namespace(context)
        for wanted in new_objects(context):
            if wanted["kind"] in RIGHTS:
                context.draft.ensure(wanted, "the identity of Prometheus, and what it may read")


def _check_namespace(context: Context) -> None:
    """Say that a new Prometheus needs its namespace, where the objects show that it is missing."""
    name = context.intent.prometheus_namespace
    if next(iter(context.inventory.of_kind("Namespace", "")), None) is None:
        return
    ref = Ref("", "Namespace", "", name)
    if context.draft.get(ref) is None:
        context.draft.note(
            ref,
            "it is not among the objects, and the new Prometheus goes there",
            f"kubectl create namespace {name}, or take another one: --prometheus-namespace",
        )


def _credentials(context: Context, scraper: Scraper) -> None:
    if scraper.output_certs and scraper.certs_mount and scraper.injected:
        return
    reason = "gets a workload certificate: a sidecar that intercepts nothing and writes it to memory"
    if scraper.kind == "operator":
        context.draft.edit(
            scraper.ref, partial(_operator_parts, context, scraper.injected), reason, _operated(scraper)
        )
        return
    workload = context.observation.workload(scraper.ref)
    restarts = restarts_of(context, workload) if workload else ()
    if workload and workload.host_network:
        raise InputError(
            "it uses the host's network, where Istio injects nothing",
            remedy="let it run in the pod network, or write a new one: --prometheus addon",
        )

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        _scraper_metadata(context, template, scraper.injected)
        spec = templates.child(template, "spec")
        templates.set_named(spec, "volumes", scraper_pod.volume())
        container = _scraping_container(spec)
        templates.set_named(container, "volumeMounts", scraper_pod.volume_mount())

    context.draft.edit(scraper.ref, change, reason, restarts)


def _operated(scraper: Scraper) -> tuple[str, ...]:
    return (f"StatefulSet prometheus-{scraper.name} of {scraper.namespace}, by the Operator",)


def _scraper_metadata(context: Context, metadata_owner: Mutable, injected: bool) -> None:
    """Labels and annotations of a scraper's pods (K8s metadata below `metadata`)."""
    plane = default_control_plane(context.observation)
    own = labels(metadata_owner)
    if not injected or own.get(INJECT) == "false":
        revision = injection_labels(plane).get(REVISION, "")
        templates.label(metadata_owner, scraper_pod.pod_labels(revision))
    wanted = scraper_pod.pod_annotations()
    config = scraper_pod.proxy_config()
    text = templates.annotation(metadata_owner, PROXY_CONFIG_ANNOTATION)
    wanted[PROXY_CONFIG_ANNOTATION] = templates.with_proxy_config(
        text, config["proxyMetadata"], {k: v for k, v in config.items() if k != "proxyMetadata"}
    )
    mounts = templates.annotation(metadata_owner, USER_VOLUME_MOUNT)
    if mounts:
        wanted[USER_VOLUME_MOUNT] = _merged_mounts(mounts)
    if injected:
        # It is in the mesh already, perhaps on purpose: how it is intercepted stays its own business.
        for key in (INCLUDE_INBOUND, INCLUDE_OUTBOUND):
            if templates.annotation(metadata_owner, key) or key not in _annotations(metadata_owner):
                wanted.pop(key, None)
    templates.annotate(metadata_owner, wanted)


def _annotations(data: Mutable) -> Any:
    return as_mapping(dig(data, "metadata", "annotations"))


def _merged_mounts(text: str) -> str:
    """`userVolumeMount` with our mount in it; a list is understood as well, a map is written."""
    found = load_text(text, USER_VOLUME_MOUNT)
    if isinstance(found, list):
        found = {str(dig(each, "name")): {k: v for k, v in each.items() if k != "name"} for each in found}
    if not isinstance(found, dict):
        raise InputError("neither a map nor a list", where=USER_VOLUME_MOUNT, remedy="correct it")
    return rewrite(text if text.lstrip().startswith("{") else "{}", found | scraper_pod.user_volume_mount())


def _scraping_container(spec: Mutable) -> Mutable:
    """The container that scrapes: by its image, else the first one that is not the proxy."""
    found = [each for each in as_list(spec.get("containers")) if isinstance(each, dict)]
    others = [each for each in found if each.get("name") != PROXY_CONTAINER]
    named = [
        each
        for each in others
        if "reload" not in str(each.get("name"))
        and any(word in str(each.get("image")) for word in ("prometheus:", "/prometheus", "vmagent"))
    ]
    if not others:
        raise InputError("its pod template has no container", remedy="give its manifest as it is applied")
    return (named or others)[0]


def _operator_parts(context: Context, injected: bool, data: Mutable) -> None:
    spec = templates.child(data, "spec")
    parts = operator.prometheus_parts()
    holder: Mutable = {"metadata": spec.get("podMetadata") or {}}
    _scraper_metadata(context, holder, injected)
    spec["podMetadata"] = holder["metadata"]
    for key, by in (("volumes", "name"), ("volumeMounts", "name"), ("scrapeClasses", "name")):
        for item in parts[key]:
            templates.set_named(spec, key, item, by)
