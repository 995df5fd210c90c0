"""Pitfalls in the settings of single proxies: ports, versions, hardening, overrides, volumes."""

from __future__ import annotations

from collections.abc import Iterator

from meshscrape.istio import names
from meshscrape.istio.environment import is_true
from meshscrape.istio.ports import read_port
from meshscrape.observe.model import Pitfall
from meshscrape.observe.mounts import doubled_mounts
from meshscrape.observe.pitfalls.facts import Facts
from meshscrape.observe.pitfalls.prometheus import mounted_twice
from meshscrape.observe.volumes import named_items
from meshscrape.observe.workload import ObservedWorkload


def proxy_pitfalls(facts: Facts) -> Iterator[Pitfall]:
    """Return all pitfalls of single proxies."""
    for workload in facts.workloads:
        if workload.in_mesh:
            yield from _envoy(workload)
            yield from _versions(workload)
            yield from _hardening(workload)
            yield from _intercepted(workload)
            yield from _announced(workload)
            yield from _volumes(workload)
            yield from _mounted_twice(workload)


def _envoy(workload: ObservedWorkload) -> Iterator[Pitfall]:
    if workload.envoy_missing:
        yield Pitfall(
            "no-envoy",
            "info",
            workload.ref,
            f"No Envoy runs here ({workload.envoy_missing}): no secure metrics port can open, and the agent "
            "serves its metrics in plain text.",
            "Leave it as it is, or restrict port 15020 with a NetworkPolicy.",
        )
    elif not workload.stats_merged:
        yield Pitfall(
            "stats-not-merged",
            "info",
            workload.ref,
            f"{names.PILOT_AGENT_MERGE_ENVOY_STATS} is false: the merged metrics lack Envoy's statistics, "
            "which only 15090 and 15091 serve.",
            "Open 15091 (ENVOY_SECURE_METRICS_PORT) too before you close 15090.",
        )


def _versions(workload: ObservedWorkload) -> Iterator[Pitfall]:
    after = workload.versions.after
    asked = [
        name
        for name in (names.ENVOY_SECURE_MERGED_METRICS_PORT, names.ENVOY_SECURE_METRICS_PORT)
        if read_port(workload.env.get(name))
    ]
    if asked and after.at_least("1.31") is False:
        yield Pitfall(
            "native-unsupported",
            "error",
            workload.ref,
            f"{' and '.join(asked)} is set, but the proxy is {after}: only proxies from 1.31 on know it. It "
            "is ignored silently, and no secure port opens.",
            "Upgrade the control plane and restart the pods, or use the mode bootstrap or legacy.",
        )
    if after.at_least("1.22") is False:
        asked_too = (
            names.METRICS_LOCALHOST_ACCESS_ONLY in workload.env
            or names.METRICS_LOCALHOST_ACCESS_ONLY in workload.proxy_metadata
        )
        yield Pitfall(
            "hardening-unsupported",
            "warning" if asked_too else "info",
            workload.ref,
            f"The proxy is {after}: {names.METRICS_LOCALHOST_ACCESS_ONLY} exists from 1.22 on"
            + (", so setting it changes nothing." if asked_too else "."),
            "Closing 15090 and 15020 is impossible here; upgrade, or restrict them with a NetworkPolicy.",
        )
    if not after.known:
        yield Pitfall(
            "version-unknown",
            "info",
            workload.ref,
            f"Its pods run {workload.versions.now}; these objects do not show the version after a restart."
            if workload.versions.now.known
            else "These objects do not show the proxy's version, now or after a restart.",
            "Add the control plane's objects (namespace istio-system) to the dump, or give --istio-version.",
        )


def _place_of_hardening(workload: ObservedWorkload) -> str:
    """Return where the variable of hardening is written: the pod's annotation, or a default for it."""
    if names.METRICS_LOCALHOST_ACCESS_ONLY in workload.annotations.get(names.PROXY_CONFIG_ANNOTATION, ""):
        return f"the pod annotation {names.PROXY_CONFIG_ANNOTATION}"
    return "its ProxyConfig, or of defaultConfig in the mesh configuration"


def _hardening(workload: ObservedWorkload) -> Iterator[Pitfall]:
    written = workload.proxy_metadata.get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    value = workload.env.get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    if workload.metrics.half_hardened == "15090" and is_true(value) and written is not None:
        yield Pitfall(
            "hardening-not-exact",
            "error",
            workload.ref,
            f"{names.METRICS_LOCALHOST_ACCESS_ONLY} is {written!r}: port 15020 is closed by any true "
            f"value, but port 15090 only "
            'by exactly "true", so it stays open.',
            f'Write {names.METRICS_LOCALHOST_ACCESS_ONLY}: "true" in proxyMetadata of '
            f"{_place_of_hardening(workload)}.",
        )
    elif workload.metrics.half_hardened == "15090":
        yield Pitfall(
            "half-hardened",
            "error",
            workload.ref,
            f"{names.METRICS_LOCALHOST_ACCESS_ONLY} is in the container's environment alone: that "
            f"closes 15020, while 15090 reads proxyMetadata and stays open to every client.",
            f"Set it in the pod annotation {names.PROXY_CONFIG_ANNOTATION} (proxyMetadata) too.",
        )
    elif workload.metrics.half_hardened == "15020":
        yield Pitfall(
            "half-hardened",
            "error",
            workload.ref,
            f"{names.METRICS_LOCALHOST_ACCESS_ONLY} is in proxyMetadata alone: that closes 15090, while "
            "15020 reads the process environment, which nothing sets on this proxy, and stays open to every "
            "client.",
            "Set it as a variable of the container istio-proxy too.",
        )


def _intercepted(workload: ObservedWorkload) -> Iterator[Pitfall]:
    legacy = {port.port for port in workload.legacy}
    for port in workload.metrics.listening:
        captured = workload.interception.captured and str(port) not in workload.interception.exclude
        if workload.interception.include is not None and str(port) not in workload.interception.include:
            captured = False
        if port not in legacy and captured and workload.mtls.of(port) == "STRICT":
            yield Pitfall(
                "strict-intercepts-secure-port",
                "error",
                workload.ref,
                f"mTLS is STRICT and port {port} is not excluded from interception: the sidecar ends the "
                "scraper's mTLS before the secure listener, which then gets plain text and closes the "
                "connection.",
                f"Add {port} to the pod annotation traffic.sidecar.istio.io/excludeInboundPorts.",
            )
        if port in legacy and workload.kind == "sidecar" and not captured:
            yield Pitfall(
                "legacy-port-excluded",
                "error",
                workload.ref,
                f"A Sidecar serves metrics on {port}, but that port is not intercepted (annotation "
                "excludeInboundPorts or includeInboundPorts): nothing listens there.",
                f"Remove {port} from excludeInboundPorts, or use another port for the Sidecar's ingress.",
            )


def _announced(workload: ObservedWorkload) -> Iterator[Pitfall]:
    listening = workload.metrics.listening
    for name, text in (
        ("secure-port", workload.metrics.announced),
        ("secure-envoy-port", workload.metrics.announced_envoy),
    ):
        if text is not None and read_port(text) not in listening:
            yield Pitfall(
                "secure-port-without-listener",
                "error",
                workload.ref,
                f"The annotation prometheus.istio.io/{name} says {text}, but nothing opens that port here: "
                "the target is discovered and stays down.",
                "Open the port (see the plan), or remove the annotation.",
            )
    announced = read_port(workload.metrics.announced)
    if workload.metrics.merged and announced in listening and announced != workload.metrics.merged:
        yield Pitfall(
            "secure-port-mismatch",
            "warning",
            workload.ref,
            f"The annotation prometheus.istio.io/secure-port says {announced}, but the merged metrics are on "
            f"{workload.metrics.merged}: a value that is there is never overwritten by the injector.",
            f"Remove the annotation from the pod template, or write {workload.metrics.merged}.",
        )
    on_pods = any(names.SECURE_PORT in pod.annotations for pod in workload.running)
    if workload.metrics.merged in listening and announced is None and not on_pods:
        yield Pitfall(
            "secure-port-not-announced",
            "warning",
            workload.ref,
            f"The merged metrics are on {workload.metrics.merged}, but no annotation says so: the injector, "
            "which writes it for injected pods of 1.31, does not touch this one.",
            f'Add prometheus.istio.io/secure-port: "{workload.metrics.merged}" to the pod template.',
        )
    if workload.metrics.envoy in listening and not workload.metrics.announced_envoy:
        yield Pitfall(
            "secure-envoy-port-not-announced",
            "warning",
            workload.ref,
            f"Envoy's statistics are on {workload.metrics.envoy}, but nothing in Istio ever sets "
            "prometheus.istio.io/secure-envoy-port: the job that looks for it finds nothing.",
            f'Add prometheus.istio.io/secure-envoy-port: "{workload.metrics.envoy}" to the pod template.',
        )
    native = [port for port in (workload.metrics.merged, workload.metrics.envoy) if port in listening]
    if native:
        yield _any_identity(workload, native)


def _any_identity(workload: ObservedWorkload, native: list[int]) -> Pitfall:
    return Pitfall(
        "native-any-identity",
        "info",
        workload.ref,
        f"Istio's own listener on {', '.join(map(str, native))} accepts every identity of the mesh: any "
        "workload may read these metrics, and an AuthorizationPolicy does not apply there.",
        "Use the mode bootstrap for a list of allowed scrapers, or a NetworkPolicy.",
    )


def _volumes(workload: ObservedWorkload) -> Iterator[Pitfall]:
    for name in (names.USER_VOLUME, names.USER_VOLUME_MOUNT):
        form = named_items(str(workload.annotations.get(name, ""))).form
        if form and workload.is_gateway:
            yield Pitfall(
                "user-volume-on-gateway",
                "warning",
                workload.ref,
                f"The annotation {name} does nothing on a gateway: no gateway template reads it.",
                "Declare volume and mount in the pod template, on a container istio-proxy.",
            )
        elif form == "unreadable":
            yield Pitfall(
                "user-volume-unreadable",
                "error",
                workload.ref,
                f"The annotation {name} is not JSON: Istio logs that and mounts nothing.",
                'Write a map by name: {"istio-certs": {"mountPath": "/etc/istio-certs"}}.',
            )
        elif form == "list":
            yield Pitfall(
                "user-volume-list",
                "info",
                workload.ref,
                f"The annotation {name} is a list, as much documentation has it. Istio's template expects a "
                "map by name; the list works only because the last of two equal keys wins.",
                "Write a map by name, or declare the mount on a container istio-proxy of the pod template.",
            )


def _mounted_twice(workload: ObservedWorkload) -> Iterator[Pitfall]:
    for path in doubled_mounts(workload.template, workload.annotations):
        yield mounted_twice(workload.ref, path)
