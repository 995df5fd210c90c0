"""Who scrapes: its certificate, its jobs over mutual TLS, and what leaves its plaintext jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from meshscrape.errors import InputError
from meshscrape.kubernetes.objects import Ref, as_list, as_mapping, dig, labels, selects
from meshscrape.kubernetes.observe.model import Consumer, Scraper
from meshscrape.kubernetes.plan import templates
from meshscrape.kubernetes.plan.applications import application_ports
from meshscrape.kubernetes.plan.draft import Mutable
from meshscrape.kubernetes.plan.injection import injection_labels
from meshscrape.kubernetes.plan.model import MANAGED_BY, MANAGER
from meshscrape.kubernetes.plan.targets import (
    ABLE,
    PLAINTEXT_PORTS,
    Context,
    default_control_plane,
    restarts_of,
)
from meshscrape.kubernetes.yaml_text import load_text, rewrite
from meshscrape.scrape import kubernetes_sd, operator, scraper_pod
from meshscrape.scrape.prometheus_objects import PrometheusOptions, prometheus_objects
from meshscrape.scrape.targets import ENVOY_JOB

OPERATOR = "monitoring.coreos.com"
_RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
_DROP_REASON = "pods that announce a secure port leave this plaintext job, each as it is recreated"


def plan_credentials(context: Context) -> None:
    """Certificates for the scrapers that are found, or the rights of a new one."""
    if context.intent.prometheus == "existing":
        for scraper in secured_scrapers(context):
            _guarded(context, scraper.ref, partial(_credentials, context, scraper))
    elif context.intent.prometheus != "none":
        for wanted in _new_objects(context):
            if wanted["kind"] in _RIGHTS:
                context.draft.ensure(wanted, "the identity of Prometheus, and what it may read")


def plan_scraping(context: Context) -> set[str]:
    """Jobs over mutual TLS, and plaintext jobs without the secured pods; the consumers moved that way."""
    if context.intent.prometheus == "none":
        return set()
    if context.intent.prometheus == "existing":
        for scraper in secured_scrapers(context):
            _guarded(context, scraper.ref, partial(_jobs, context, scraper))
    else:
        for wanted in _new_objects(context):
            if wanted["kind"] not in _RIGHTS:
                context.draft.ensure(wanted, "Prometheus with the jobs over mutual TLS")
    targets = {target.ref for target in context.targets}
    concerned = [each for each in context.observation.consumers if _concerned(each, targets)]
    return {each.name for each in concerned if _move(context, each)}


def new_prometheus(context: Context) -> PrometheusOptions:
    """The options of a new Prometheus."""
    plane = default_control_plane(context.observation)
    return PrometheusOptions(
        namespace=context.intent.prometheus_namespace,
        revision=injection_labels(plane).get(templates.REVISION, ""),
        namespaces=tuple(sorted(context.intent.namespaces)),
        applications=application_ports(context),
        harden=context.intent.harden,
        network_policy=context.intent.network_policy,
    )


def _new_objects(context: Context) -> tuple[dict[str, Any], ...]:
    kind = context.intent.prometheus
    assert kind in ("addon", "operator")  # noqa: S101 - the callers checked
    return prometheus_objects("addon" if kind == "addon" else "operator", new_prometheus(context))


def secured_scrapers(context: Context) -> list[Scraper]:
    """The scrapers that a plan moves to mutual TLS: those that scrape the targets, else all that could."""
    able = [each for each in context.observation.scrapers if each.kind in ABLE]
    targets = {target.ref for target in context.targets}
    consumers = (each for each in context.observation.consumers if each.certain)
    used = {each.scraper for each in consumers if _concerned(each, targets)}
    return [each for each in able if each.ref in used] or able


def blocks_hardening(consumer: Consumer, workload: Ref) -> bool:
    """Whether a consumer reads this workload's plaintext ports, now or after a restart."""
    if consumer.over != "plaintext":
        return False
    if not consumer.certain and not consumer.matches:
        return True
    ports = (*consumer.ports_of.get(workload, ()), *consumer.ports_after.get(workload, ()))
    return not PLAINTEXT_PORTS.isdisjoint(ports)


def _concerned(consumer: Consumer, targets: set[Ref]) -> bool:
    return any(blocks_hardening(consumer, ref) for ref in targets)


def _guarded(context: Context, ref: Ref, act: Callable[[], None]) -> None:
    try:
        act()
    except InputError as error:
        context.draft.note(ref, str(error), "correct it, or see `--prometheus none`", refused=True)


# -- certificates -----------------------------------------------------------------------------------------


def _credentials(context: Context, scraper: Scraper) -> None:
    if scraper.output_certs and scraper.certs_mount and scraper.injected:
        return
    reason = "gets a workload certificate: a sidecar that intercepts nothing and writes it to memory"
    if scraper.kind == "operator":
        context.draft.edit(scraper.ref, partial(_operator_parts, context), reason, _operated(scraper))
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
    if not injected or own.get(templates.INJECT) == "false":
        revision = injection_labels(plane).get(templates.REVISION, "")
        templates.label(metadata_owner, scraper_pod.pod_labels(revision))
    wanted = scraper_pod.pod_annotations()
    config = scraper_pod.proxy_config()
    text = templates.annotation(metadata_owner, scraper_pod.PROXY_CONFIG)
    wanted[scraper_pod.PROXY_CONFIG] = templates.with_proxy_config(
        text, config["proxyMetadata"], {k: v for k, v in config.items() if k != "proxyMetadata"}
    )
    mounts = templates.annotation(metadata_owner, templates.USER_VOLUME_MOUNT)
    if mounts:
        wanted[templates.USER_VOLUME_MOUNT] = _merged_mounts(mounts)
    if injected:
        # It is in the mesh already, perhaps on purpose: how it is intercepted stays its own business.
        for key in (templates.INCLUDE_INBOUND, templates.INCLUDE_OUTBOUND):
            if templates.annotation(metadata_owner, key) or key not in _annotations(metadata_owner):
                wanted.pop(key, None)
    templates.annotate(metadata_owner, wanted)


def _annotations(data: Mutable) -> Any:
    return as_mapping(dig(data, "metadata", "annotations"))


def _merged_mounts(text: str) -> str:
    """`userVolumeMount` with our mount in it; a list is understood as well, a map is written."""
    found = load_text(text, templates.USER_VOLUME_MOUNT)
    if isinstance(found, list):
        found = {str(dig(each, "name")): {k: v for k, v in each.items() if k != "name"} for each in found}
    if not isinstance(found, dict):
        raise InputError("neither a map nor a list", where=templates.USER_VOLUME_MOUNT, remedy="correct it")
    return rewrite(text if text.lstrip().startswith("{") else "{}", found | scraper_pod.user_volume_mount())


def _scraping_container(spec: Mutable) -> Mutable:
    """The container that scrapes: by its image, else the first one that is not the proxy."""
    found = [each for each in as_list(spec.get("containers")) if isinstance(each, dict)]
    others = [each for each in found if each.get("name") != templates.PROXY]
    named = [
        each
        for each in others
        if "reload" not in str(each.get("name"))
        and any(word in str(each.get("image")) for word in ("prometheus:", "/prometheus", "vmagent"))
    ]
    if not others:
        raise InputError("its pod template has no container", remedy="give its manifest as it is applied")
    return (named or others)[0]


def _operator_parts(context: Context, data: Mutable) -> None:
    spec = templates.child(data, "spec")
    parts = operator.prometheus_parts()
    holder: Mutable = {"metadata": spec.get("podMetadata") or {}}
    _scraper_metadata(context, holder, injected=False)
    spec["podMetadata"] = holder["metadata"]
    for key, by in (("volumes", "name"), ("volumeMounts", "name"), ("scrapeClasses", "name")):
        for item in parts[key]:
            templates.set_named(spec, key, item, by)


# -- jobs -------------------------------------------------------------------------------------------------


def _jobs(context: Context, scraper: Scraper) -> None:
    if scraper.kind == "operator":
        _monitors(context, scraper)
        return
    directory = scraper.certs_mount or scraper_pod.CERTIFICATES
    namespaces = tuple(sorted(context.intent.namespaces))
    options = kubernetes_sd.ClusterJobs(directory, namespaces, application_ports(context))
    wanted = kubernetes_sd.secure_jobs(options)
    if not context.intent.envoy_port:
        wanted = [job for job in wanted if job["job_name"] != ENVOY_JOB]
    if scraper.config is None or context.draft.get(scraper.config) is None:
        raise InputError(
            "its configuration is not among the objects",
            remedy="add the jobs of `meshscrape prometheus-config --for prometheus` yourself",
        )

    def change(config: Mutable) -> None:
        present = as_list(config.get("scrape_configs"))
        by_name = {str(dig(job, "job_name")): job for job in present}
        for job in wanted:
            theirs = by_name.get(job["job_name"])
            if theirs is None:
                present.append(job)
            else:
                theirs.update({key: value for key, value in job.items() if key != "tls_config"})
                theirs.setdefault("tls_config", job["tls_config"])
        config["scrape_configs"] = present

    _edit_config(context, scraper.config, change, "scrapes the secure ports over mutual TLS")


def _edit_config(context: Context, ref: Ref, change: Callable[[Mutable], None], reason: str) -> bool:
    """Change the Prometheus configuration in a ConfigMap; False when none is in it."""
    content = as_mapping(dig(context.object_of(ref), "data"))
    for key, text in content.items():
        if "scrape_configs" not in str(text):
            continue
        config = load_text(str(text), f"{ref}: {key}")
        if not isinstance(config, dict) or "scrape_configs" not in config:
            continue
        change(config)
        written = rewrite(str(text), config)

        def put(data: Mutable, key: str = key, written: str = written) -> None:
            data["data"][key] = written

        context.draft.edit(ref, put, reason)
        return True
    return False


def _monitors(context: Context, scraper: Scraper) -> None:
    """PodMonitors that an existing Prometheus object selects."""
    spec = as_mapping(dig(context.object_of(scraper.ref), "spec"))
    selector = spec.get("podMonitorSelector")
    options = PrometheusOptions(
        namespace=scraper.namespace,
        name=f"meshscrape-{scraper.name}",
        namespaces=tuple(sorted(context.intent.namespaces)),
        labels=as_mapping(as_mapping(selector).get("matchLabels")),
    )
    if selector is None:
        if all(spec.get(f"{kind}Selector") is None for kind in ("serviceMonitor", "scrapeConfig", "probe")):
            raise InputError(
                "it has no selector at all: its configuration is its owner's own Secret",
                remedy="add the jobs of `meshscrape prometheus-config --for prometheus` there",
            )

        def select(data: Mutable) -> None:
            data["spec"]["podMonitorSelector"] = {"matchLabels": {MANAGED_BY: MANAGER}}

        context.draft.edit(scraper.ref, select, "a null podMonitorSelector selects nothing")
    for monitor in operator.pod_monitors(options):
        if monitor["metadata"]["name"].endswith("envoy-metrics") and not context.intent.envoy_port:
            continue
        if selector is not None and not selects(selector, monitor["metadata"]["labels"]):
            raise InputError(
                "its podMonitorSelector cannot be met by labels",
                remedy="let it select app.kubernetes.io/managed-by: meshscrape too",
            )
        context.draft.ensure(monitor, "scrapes the secure ports over mutual TLS")
    for application in application_ports(context):
        wanted = operator.service_monitor(application, options)
        context.draft.ensure(wanted, "scrapes the application's own port over mutual TLS")


def _move(context: Context, consumer: Consumer) -> bool:
    """Take secured pods out of a plaintext job; whether that is (or was already) done."""
    if consumer.ref.kind == "ConfigMap":
        moved = False
        rule = kubernetes_sd.drop_secured()

        def drop(config: Mutable) -> None:
            nonlocal moved
            for job in as_list(config.get("scrape_configs")):
                if isinstance(job, dict) and job.get("job_name") == consumer.job:
                    job["relabel_configs"] = _with_drop(
                        job.get("relabel_configs"), kubernetes_sd.drop_secured()
                    )
                    moved = True

        try:
            _edit_config(context, consumer.ref, drop, _DROP_REASON)
        except InputError as error:
            context.draft.note(consumer.ref, str(error), "correct it first", refused=True)
            return False
        return moved
    if consumer.ref.kind == "PodMonitor" and consumer.ref.group == OPERATOR:
        own = kubernetes_sd.drop_secured_monitor()

        def change(data: Mutable) -> None:
            for endpoint in as_list(dig(data, "spec", "podMetricsEndpoints")):
                endpoint["relabelings"] = _with_drop(endpoint.get("relabelings"), own)

        context.draft.edit(consumer.ref, change, _DROP_REASON)
        return context.draft.get(consumer.ref) is not None
    return False


def _with_drop(rules: Any, rule: Mutable) -> list[Any]:
    present = as_list(rules)
    return present if rule in present else [*present, rule]


def scraper_pods(context: Context) -> Iterable[tuple[str, dict[str, str]]]:
    """Namespace and pod labels of each scraper that may scrape, for NetworkPolicies."""
    if context.intent.prometheus in ("addon", "operator"):
        options = new_prometheus(context)
        own = options.selector
        if context.intent.prometheus == "operator":
            own = {"operator.prometheus.io/name": options.name}
        yield options.namespace, own
        return
    for scraper in secured_scrapers(context):
        if scraper.kind == "operator":
            yield scraper.namespace, {"operator.prometheus.io/name": scraper.name}
            continue
        data = context.object_of(scraper.ref)
        own = dict(as_mapping(dig(data, "spec", "selector", "matchLabels")))
        if own:
            yield scraper.namespace, own
