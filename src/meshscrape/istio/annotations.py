"""The annotations of a pod that concern its metrics and its proxy.

Nothing here depends on where the pod runs: the same parser reads manifests of a local mesh and pods that
Istio's injector has already rewritten.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio import names, ports
from meshscrape.istio.environment import parse_boolean
from meshscrape.istio.fields import closest, suggestion
from meshscrape.istio.ports import parse_port
from meshscrape.istio.proxy_config import ProxyConfig, parse_proxy_config
from meshscrape.istio.scrape_targets import DEFAULT_PORT, ScrapeSource, make_source, parse_scrape_targets

# In these namespaces every name is known, so an unknown one is a mistake.
_CLOSED = {
    "meshscrape.io": (names.LOCAL_COMMAND, names.BOOTSTRAP_CHECKSUM),
    "prometheus.istio.io": (
        names.MERGE_METRICS,
        names.SCRAPE_TARGETS,
        names.SECURE_PORT,
        names.SECURE_ENVOY_PORT,
    ),
}
# A later Istio may add names to these, so only near misses are mistakes.
_OPEN = (
    names.PROXY_CONFIG_ANNOTATION,
    "proxy.istio.io/overrides",
    names.INCLUDE_INBOUND,
    names.EXCLUDE_INBOUND,
    names.INJECT,
    names.STATUS,
    names.TEMPLATES,
    names.PROMETHEUS_SCRAPE,
    names.PROMETHEUS_PORT,
    names.PROMETHEUS_PATH,
    names.PROMETHEUS_SCHEME,
    "prometheus.io/probe",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    names.INCLUDE_OUTBOUND,
    names.EXCLUDE_OUTBOUND,
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "traffic.sidecar.istio.io/excludeInterfaces",
)
_PREFIXES = (*_CLOSED, "prometheus.io", "proxy.istio.io", "traffic.sidecar.istio.io", "sidecar.istio.io")


@dataclass(frozen=True, slots=True)
class PodAnnotations:
    """What a pod's annotations say.

    `endpoints` are the application's own metrics endpoints. `include_inbound_ports` is None when all ports
    are captured. `injected` is True when Istio's injector made the pod. `local_commands` maps each
    container's name to its command line; the empty name stands for the only container.
    """

    proxy_config: ProxyConfig = field(default_factory=ProxyConfig)
    endpoints: tuple[ScrapeSource, ...] = ()
    merge_metrics: bool = True
    secure_port: int | None = None
    secure_envoy_port: int | None = None
    include_inbound_ports: tuple[int, ...] | None = None
    exclude_inbound_ports: tuple[int, ...] = ()
    inject: bool | None = None
    injected: bool = False
    templates: tuple[str, ...] = ()
    local_commands: Mapping[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[ScrapeSource, ...]:
        """Return the endpoints that the agent merges: none when merging is off."""
        return self.endpoints if self.merge_metrics else ()


def parse_annotations(annotations: Mapping[str, str], where: Where = "") -> PodAnnotations:
    """Return what the `annotations` of a pod say; `where` names the pod in errors.

    Annotations that do not concern metrics or the proxy are ignored. Raises InputError naming the annotation
    for values that cannot be used and for names that look misspelt.
    """
    for name in annotations:
        _refuse_misspelt(name, where)
    config_place = _place(where, names.PROXY_CONFIG_ANNOTATION)
    config = parse_proxy_config(annotations.get(names.PROXY_CONFIG_ANNOTATION, ""), config_place)
    merge = _boolean(annotations, names.MERGE_METRICS, where) is not False
    # Without merging, the annotations may lead Prometheus to a port of the proxy itself; that is not a
    # mistake.
    agents = {config.status_port or ports.MERGED} if merge else ports.RESERVED
    return PodAnnotations(
        proxy_config=config,
        endpoints=_endpoints(annotations, agents, where),
        merge_metrics=merge,
        secure_port=_port(annotations, names.SECURE_PORT, where),
        secure_envoy_port=_port(annotations, names.SECURE_ENVOY_PORT, where),
        include_inbound_ports=_ports(annotations, names.INCLUDE_INBOUND, where),
        exclude_inbound_ports=_ports(annotations, names.EXCLUDE_INBOUND, where) or (),
        inject=_boolean(annotations, names.INJECT, where),
        injected=names.STATUS in annotations,
        templates=tuple(
            filter(None, (part.strip() for part in annotations.get(names.TEMPLATES, "").split(",")))
        ),
        local_commands=_local_commands(annotations, where),
    )


def _refuse_misspelt(name: str, where: Where) -> None:
    prefix, slash, _ = name.partition("/")
    known = _CLOSED.get(prefix)
    if known is not None:
        if name not in known and not name.startswith(f"{names.LOCAL_COMMAND}."):
            raise InputError(
                "unknown annotation",
                where=_place(where, name),
                remedy=suggestion(name, known, 0.85),
                code="unknown-annotation",
            )
        return
    if not slash:
        return
    near = closest(prefix, _PREFIXES, 0.9) if prefix not in _PREFIXES else None
    if near is None and prefix in _PREFIXES and name not in _OPEN:
        near = closest(name, [other for other in _OPEN if other.startswith(f"{prefix}/")], 0.92)
    if near:
        raise InputError(
            "unknown annotation",
            where=_place(where, name),
            remedy=f"did you mean {near}?",
            code="unknown-annotation",
        )


def _endpoints(annotations: Mapping[str, str], agents: Set[int], where: Where) -> tuple[ScrapeSource, ...]:
    """Return the application's endpoints, as the injector understands the annotations.

    The rules are Istio's. Every value of `scrape` except false counts as true. A list of targets wins over
    the single endpoint. A port of `agents` means that the injector or the user has already pointed the
    annotations at the agent; then they say nothing about the application.
    """
    targets = annotations.get(names.SCRAPE_TARGETS)
    listed = parse_scrape_targets(targets, _place(where, names.SCRAPE_TARGETS)) if targets is not None else ()
    scrape = _boolean(annotations, names.PROMETHEUS_SCRAPE, where)
    port = annotations.get(names.PROMETHEUS_PORT, "")
    path = annotations.get(names.PROMETHEUS_PATH, "")
    if scrape is False:
        return ()
    if listed:
        return listed
    if port in map(str, agents) or (not port and path == names.MERGED_PATH):
        return ()
    if not port and not scrape:
        return ()
    for name, value in (
        (names.PROMETHEUS_PORT, port),
        (names.PROMETHEUS_PATH, path),
        (names.PROMETHEUS_SCHEME, annotations.get(names.PROMETHEUS_SCHEME, "")),
    ):
        # Check each annotation alone first, so that the error names the wrong one.
        make_source(
            value if name == names.PROMETHEUS_PORT and value else DEFAULT_PORT,
            value if name == names.PROMETHEUS_PATH else "",
            value if name == names.PROMETHEUS_SCHEME else "",
            _place(where, name),
        )
    return (
        make_source(
            port or DEFAULT_PORT,
            path,
            annotations.get(names.PROMETHEUS_SCHEME, ""),
            _place(where, names.PROMETHEUS_PORT),
        ),
    )


def _local_commands(annotations: Mapping[str, str], where: Where) -> dict[str, str]:
    commands = {}
    for name, value in annotations.items():
        if name != names.LOCAL_COMMAND and not name.startswith(f"{names.LOCAL_COMMAND}."):
            continue
        place = _place(where, name)
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise InputError(
                f"not a command line ({error})", where=place, remedy="close the quote", code="not-a-command"
            ) from error
        if not words:
            raise InputError(
                "the command is empty",
                where=place,
                remedy="write the program and its arguments",
                code="empty-command",
            )
        if "\0" in value:
            raise InputError(
                "the command has a NUL character", where=place, remedy="remove it", code="nul-character"
            )
        commands[name.removeprefix(names.LOCAL_COMMAND).removeprefix(".")] = value
    return commands


def _place(where: Where, name: str) -> Place:
    return replace(Place.of(where), annotation=name)


def _boolean(annotations: Mapping[str, str], name: str, where: Where) -> bool | None:
    value = annotations.get(name)
    return None if value is None else parse_boolean(value, _place(where, name))


def _port(annotations: Mapping[str, str], name: str, where: Where) -> int | None:
    value = annotations.get(name)
    return None if value is None else parse_port(value, _place(where, name))


def _ports(annotations: Mapping[str, str], name: str, where: Where) -> tuple[int, ...] | None:
    value = annotations.get(name)
    if value is None or value.strip() == "*":
        return None
    return tuple(parse_port(part.strip(), _place(where, name)) for part in value.split(",") if part.strip())
