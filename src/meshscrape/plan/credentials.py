"""Give scrapers a certificate: a sidecar that intercepts no traffic writes the files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from meshscrape.errors import InputError
from meshscrape.istio.names import (
    INCLUDE_INBOUND,
    INCLUDE_OUTBOUND,
    INJECT,
    OPERATED_BY,
    PROXY_CONFIG_ANNOTATION,
    REVISION,
    TLS_MODE,
    USER_VOLUME,
    USER_VOLUME_MOUNT,
)
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, Ref, as_list, as_mapping, dig, labels
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.model import Scraper
from meshscrape.observe.mounts import certs_volume
from meshscrape.observe.scrapers import operated_template
from meshscrape.observe.volumes import named_items
from meshscrape.plan import templates
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.injection import injection_labels
from meshscrape.plan.model import Missing, Refused
from meshscrape.plan.proxy_pod import restarted_by_operator, scraping_container
from meshscrape.plan.scrape_proxy import proxy_in
from meshscrape.plan.scrapers import RIGHTS, new_objects, new_prometheus_ref, secured_scrapers
from meshscrape.plan.workloads import Context, default_control_plane, restarts_of
from meshscrape.prometheus import operator, scraper_pod

_REASON = "gets a workload certificate: a sidecar that intercepts nothing and writes it to memory"


def plan_credentials(context: Context) -> None:
    """Plan certificates for the existing scrapers, or the identity and rights of a new one."""
    if context.intent.prometheus == "existing":
        for scraper in secured_scrapers(context):
            if scraper.ref in context.held.scrapers:
                continue
            if refused := context.draft.whole(partial(_credentials, context, scraper)):
                missing = Missing(refused.code, f"{scraper.ref}: {refused.reason}", refused.remedy)
                context.held.scrapers[scraper.ref] = (missing,)
    elif context.intent.prometheus != "none" and new_prometheus_ref(context) not in context.held.scrapers:
        _check_namespace(context)
        for new_object in new_objects(context):
            if new_object["kind"] in RIGHTS:
                context.draft.ensure(new_object, "the identity of Prometheus and its read permissions")


def _check_namespace(context: Context) -> None:
    """Note that a new Prometheus needs its namespace, if the objects show that it is missing."""
    name = context.intent.prometheus_namespace
    if next(iter(context.inventory.of_kind("Namespace", "")), None) is None:
        return
    ref = Ref("", "Namespace", "", name)
    if context.draft.get(ref) is None:
        context.draft.note(
            ref,
            "namespace-unknown",
            "the new Prometheus needs this namespace, and it is not among the given objects",
            f"kubectl create namespace {name}, or choose another one: --prometheus-namespace",
        )


def _credentials(context: Context, scraper: Scraper) -> Refused | None:
    if scraper.ambient:
        return Refused(
            "ambient-scraper",
            "it is in ambient mode: ztunnel carries its scrapes, and with a sidecar it would not",
            "scrape through ztunnel, with an AuthorizationPolicy for the metrics port; or scrape outside "
            "ambient mode: --prometheus addon",
        )
    if proxy := proxy_in(context, scraper):
        # The proxy follows the jobs, which come later (`plan_scrape_proxies`).
        if isinstance(proxy, Refused):
            return proxy
        return None if scraper.kind == "operator" else _unsuitable(context, scraper)
    _note_interception(context, scraper)
    if scraper.kind == "operator":
        context.draft.edit(
            scraper.ref, partial(_operated, context, scraper), _REASON, restarted_by_operator(scraper)
        )
        return None
    workload = context.observation.workload(scraper.ref)
    if refused := _unsuitable(context, scraper):
        return refused
    restarts = restarts_of(context, workload) if workload else ()
    context.draft.edit(scraper.ref, partial(_deployed, context, scraper), _REASON, restarts)
    return None


def _unsuitable(context: Context, scraper: Scraper) -> Refused | None:
    """Return why a scraper's pod template cannot get a certificate."""
    workload = context.observation.workload(scraper.ref)
    if workload and workload.host_network:
        return Refused(
            "host-network",
            "it uses the host's network, where Istio does not inject sidecars",
            "run it in the pod network, or use a new Prometheus: --prometheus addon",
        )
    template = templates.template_of(clone(context.object_of(scraper.ref)))
    if scraping_container(templates.child(template, "spec")) is None:
        return Refused("no-container", "its pod template has no container", "give its complete manifest")
    return None


def _note_interception(context: Context, scraper: Scraper) -> None:
    """Say what a scraper loses whose sidecar intercepts its traffic now, and will not any more."""
    if not (scraper.intercepts_inbound or scraper.intercepts_outbound):
        return
    services = _services_of(context, scraper)
    named = f" of {', '.join(services)}" if services else ""
    context.draft.note(
        scraper.ref,
        "interception-ends",
        f"its sidecar will intercept no traffic: STRICT mutual TLS no longer protects its own port{named}. "
        "Its own requests (Alertmanager, remote write) leave in plaintext, and STRICT services refuse them",
        "admit its clients with a NetworkPolicy and let those services accept its plaintext, or use a new "
        "Prometheus: --prometheus addon",
    )


def _services_of(context: Context, scraper: Scraper) -> list[str]:
    """Return the Services that lead to a scraper's pods, as NAMESPACE/NAME."""
    workload = context.observation.workload(scraper.ref)
    if workload:
        return [f"{manifest.ref.namespace}/{manifest.ref.name}" for manifest in workload.services]
    data = context.inventory.get(scraper.ref)
    made = {
        **(labels(operated_template(data)) if data else {}),
        OPERATED_BY: scraper.name,
        # As the Operator labels the pods that it makes of a Prometheus object.
        "prometheus": scraper.name,
    }
    return [
        f"{service.ref.namespace}/{service.ref.name}"
        for service in context.inventory.of_kind("Service", "")
        if service.ref.namespace == scraper.namespace
        and (selector := as_mapping(dig(service.data, "spec", "selector")))
        and all(made.get(str(key)) == str(value) for key, value in selector.items())
    ]


def _deployed(context: Context, scraper: Scraper, data: Mutable) -> None:
    """Add the certificate to the pod template of a Prometheus."""
    template = templates.template_of(data)
    spec = templates.child(template, "spec")
    own = _certificates_of(scraper, template)
    _scraper_metadata(context, template, scraper, own)
    if scraper.certs_mount:
        return
    _declare(template, spec, own)
    if container := scraping_container(spec):
        templates.set_named(container, "volumeMounts", scraper_pod.volume_mount(own.volume, own.directory))


@dataclass(frozen=True, slots=True)
class _Certificates:
    """Where a scraper's proxy writes its certificate; `mounted`: the proxy already mounts the volume."""

    directory: str
    volume: str
    mounted: bool


def _certificates_of(scraper: Scraper, template: Mutable) -> _Certificates:
    """Return where the scraper's certificate is mounted; reuse a volume that is mounted there already."""
    directory = scraper.output_certs or scraper_pod.CERTIFICATES
    mounted = certs_volume(template, objects.annotations(template), directory)
    return _Certificates(directory, mounted[0] if mounted else scraper_pod.VOLUME, mounted is not None)


def _declare(template: Mutable, spec: Mutable, own: _Certificates) -> None:
    """Declare the volume in the template, in an annotation if the user already has one there."""
    if any(dig(volume, "name") == own.volume for volume in as_list(spec.get("volumes"))):
        return
    declared = dict(named_items(templates.annotation(template, USER_VOLUME)).items).get(own.volume)
    volume = {"name": own.volume, **declared} if declared else scraper_pod.volume(own.volume)
    templates.set_named(spec, "volumes", volume)


def _scraper_metadata(context: Context, owner: Mutable, scraper: Scraper, own: _Certificates) -> None:
    """Set the labels and annotations of a scraper's pods (Kubernetes metadata below `metadata`)."""
    required = {INCLUDE_INBOUND: "", INCLUDE_OUTBOUND: ""}
    intercepted = any(objects.annotations(owner).get(key) != value for key, value in required.items())
    if scraper.injected and labels(owner).get(INJECT) != "false":
        if intercepted:
            # The sidecar does not intercept inbound traffic, so clients must not use mutual TLS to it.
            templates.label(owner, {TLS_MODE: "disabled"})
            templates.annotate(owner, required)
        if scraper.output_certs and scraper.certs_mount:
            return
    else:
        revision = injection_labels(default_control_plane(context.observation)).get(REVISION, "")
        templates.label(owner, scraper_pod.pod_labels(revision))
    config = scraper_pod.proxy_config(directory=own.directory)
    text = templates.annotation(owner, PROXY_CONFIG_ANNOTATION)
    required[PROXY_CONFIG_ANNOTATION] = templates.with_proxy_config(
        text, config["proxyMetadata"], {k: v for k, v in config.items() if k != "proxyMetadata"}
    )
    if not own.mounted:
        mounts = templates.annotation(owner, USER_VOLUME_MOUNT) or "{}"
        required[USER_VOLUME_MOUNT] = _merged_mounts(mounts, own)
    templates.annotate(owner, required)


def _merged_mounts(text: str, own: _Certificates) -> str:
    """Return `userVolumeMount` (a map) with our mount added; `text` may be a map or a list."""
    mounts = load_text(text, USER_VOLUME_MOUNT)
    if isinstance(mounts, list):
        mounts = {
            str(dig(mount, "name")): {k: v for k, v in mount.items() if k != "name"} for mount in mounts
        }
    if not isinstance(mounts, dict):
        raise InputError("neither a map nor a list", where=USER_VOLUME_MOUNT, remedy="correct it")
    merged = mounts | scraper_pod.user_volume_mount(own.volume, own.directory)
    return rewrite(text if text.lstrip().startswith("{") else "{}", merged)


def _operated(context: Context, scraper: Scraper, data: Mutable) -> None:
    """Add a certificate to the pods of a Prometheus object, and a scrape class that uses it."""
    spec = templates.child(data, "spec")
    template = operated_template(Manifest(scraper.ref, data))
    own = _certificates_of(scraper, template)
    owner: Mutable = {"metadata": spec.get("podMetadata") or {}}
    _scraper_metadata(context, owner, scraper, own)
    spec["podMetadata"] = owner["metadata"]
    if not scraper.certs_mount:
        _declare(owner, spec, own)
        templates.set_named(spec, "volumeMounts", scraper_pod.volume_mount(own.volume, own.directory))
    templates.set_named(spec, "scrapeClasses", operator.scrape_class(scraper.certs_mount or own.directory))
