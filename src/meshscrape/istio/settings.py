"""The settings of an agent, from environment variables: Istio's where Istio has them, else MESHSCRAPE_*."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast, get_args

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio import names, ports
from meshscrape.istio.allow_list import Scraper, parse_scrapers
from meshscrape.istio.environment import Environment, check_namespace, parse_address, parse_ca_address
from meshscrape.istio.ports import parse_port, refuse_reserved, shorten
from meshscrape.istio.scrape_targets import ScrapeSource, parse_prometheus_annotations_env
from meshscrape.spiffe.ids import SpiffeId, check_trust_domain, workload_id

Role = Literal["sidecar", "router"]
KeyAlgorithm = Literal["ECDSA", "RSA"]
InboundMode = Literal["STRICT", "PERMISSIVE", "DISABLE"]

OWN_PREFIX = "MESHSCRAPE_"
OWN_VARIABLES = frozenset(
    {
        names.MESHSCRAPE_AGENT_DIR,
        names.MESHSCRAPE_CA_WAIT,
        names.MESHSCRAPE_ENVOY,
        names.MESHSCRAPE_ENVOY_CONCURRENCY,
        names.MESHSCRAPE_INBOUND,
        names.MESHSCRAPE_INSIDE_ADDRESS,
        names.MESHSCRAPE_MERGE_MAX_BYTES,
        names.MESHSCRAPE_MERGE_MAX_SERIES,
        names.MESHSCRAPE_MERGE_SCRAPE_SERIES,
        names.MESHSCRAPE_OUTPUT_CERTS_MODE,
        names.MESHSCRAPE_RENEWAL_SPREAD,
        names.MESHSCRAPE_ROUTES,
        names.MESHSCRAPE_SCRAPERS,
        names.MESHSCRAPE_SCRAPERS_CA,
        names.MESHSCRAPE_SCRAPERS_FILE,
        names.MESHSCRAPE_TOKEN_PATH,
    }
)
# Variables of other verbs, which an agent may inherit and does not use.
_FOREIGN_VARIABLES = frozenset({names.MESHSCRAPE_PROMETHEUS, names.MESHSCRAPE_PROMTOOL})

# Kubernetes sets such variables for every Service of the namespace: meshscrape-prometheus is one.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?)$")

_INBOUND_PLACE = Place(variable=names.MESHSCRAPE_INBOUND)
_RSA_SIZES = ("2048", "3072", "4096")
_INJECTED = "set it (in a pod, the injector sets it)"


@dataclass(frozen=True, slots=True)
class InboundPort:
    """A port of the application (of a gateway: where it listens) and the mTLS mode of its connections."""

    port: int
    mode: InboundMode
    name: str = ""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """All settings of an agent. A port of 0 is off. Directories may not exist yet."""

    role: Role
    trust_domain: str
    namespace: str
    service_account: str
    pod_name: str
    workload_name: str
    pod_addresses: tuple[str, ...]
    inside_address: str
    ca_address: str
    ca_root: Path
    ca_wait: timedelta
    token_path: Path
    secret_ttl: timedelta
    grace_ratio: float
    grace_jitter: float
    renewal_spread: timedelta
    key_algorithm: KeyAlgorithm
    rsa_bits: int
    state_dir: Path
    output_certs: Path | None
    output_certs_mode: int
    envoy: bool
    envoy_binary: Path | None
    envoy_concurrency: int
    stats_port: int
    merged_port: int
    health_port: int
    secure_stats_port: int
    secure_merged_port: int
    localhost_only: bool
    scrapers: tuple[Scraper, ...]
    scrapers_file: Path | None
    scrapers_ca: Path | None
    sources: tuple[ScrapeSource, ...]
    merge_envoy: bool
    merge_max_bytes: int
    merge_max_series: int
    merge_scrape_series: bool
    inbound: tuple[InboundPort, ...]
    routes_file: Path | None

    @property
    def spiffe_id(self) -> SpiffeId:
        """Return the workload's identity."""
        return workload_id(self.trust_domain, self.namespace, self.service_account)


def parse_settings(env: Mapping[str, str], role: str) -> AgentSettings:
    """Return the settings that `env` spells for an agent started as `proxy sidecar` or `proxy router`.

    Names and meanings are those of Istio's pilot-agent; only MESHSCRAPE_* variables are meshscrape's own.
    Unlike in Istio, keys are ECDSA unless an RSA size is given, and with an empty INBOUND_CAPTURE_PORTS the
    agent runs no Envoy. Raises InputError naming the variable for values that cannot be used, for ports that
    collide, and for unknown MESHSCRAPE_* variables.
    """
    if role not in get_args(Role):
        raise InputError(
            f"{shorten(role)} is not a role",
            where="proxy",
            remedy="write sidecar or router",
            code="not-a-role",
        )
    _refuse_unknown(env)
    settings = _read(Environment(env), cast(Role, role))
    _check_ports(settings)
    _check_files(settings)
    return settings


def parse_inbound(json_text: str, where: Where = _INBOUND_PLACE) -> tuple[InboundPort, ...]:
    """Return the ports of `[{"port": 9080, "mode": "STRICT", "name": "http"}]`; `name` may be left out.

    Empty text is no port. Raises InputError at `where` for unknown keys and modes, and for reserved and
    repeated ports.
    """
    if not json_text.strip():
        return ()
    remedy = 'write [{"port": 9080, "mode": "STRICT", "name": "http"}]'
    try:
        items = json.loads(json_text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", where=where, remedy=remedy, code="not-json") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError("not a list of objects", where=where, remedy=remedy, code="not-a-list")
    place = Place.of(where)
    inbound = tuple(_inbound_port(item, place.part(f"[{index}]")) for index, item in enumerate(items))
    numbers = [item.port for item in inbound]
    for number in numbers:
        if numbers.count(number) > 1:
            raise InputError(
                f"port {number} is listed twice",
                where=where,
                remedy="list each port once",
                code="listed-twice",
            )
    return inbound


def inbound_to_env(inbound: Iterable[InboundPort]) -> str:
    """Return the value of MESHSCRAPE_INBOUND that declares `inbound`; empty for none."""
    items = [{"port": item.port, "mode": item.mode, "name": item.name} for item in inbound]
    return json.dumps(items) if items else ""


def _read(environment: Environment, role: Role) -> AgentSettings:
    """Return what each variable says, without comparing one with another."""
    # As in Istio's sample for Prometheus's pod: the sidecar gets a certificate and nothing else.
    envoy = not (role == "sidecar" and environment.raw(names.INBOUND_CAPTURE_PORTS) == "")
    algorithm, rsa_bits = _key_parameters(environment)
    ratio, jitter = _grace(environment)
    pod_addresses, inside_address = _addresses(environment)
    pod_name = environment.name(names.POD_NAME, _INJECTED)
    return AgentSettings(
        role=role,
        trust_domain=_trust_domain(environment),
        namespace=_namespace(environment),
        service_account=environment.name(names.SERVICE_ACCOUNT, _INJECTED),
        pod_name=pod_name,
        workload_name=environment.text(names.ISTIO_META_WORKLOAD_NAME, pod_name),
        pod_addresses=pod_addresses,
        inside_address=inside_address,
        ca_address=_ca_address(environment),
        ca_root=environment.path(names.CA_ROOT_CA) or Path("/var/run/secrets/istio/root-cert.pem"),
        ca_wait=environment.duration(names.MESHSCRAPE_CA_WAIT, "60s"),
        token_path=environment.path(names.MESHSCRAPE_TOKEN_PATH)
        or Path("/var/run/secrets/tokens/istio-token"),
        secret_ttl=environment.duration(names.SECRET_TTL, "24h"),
        grace_ratio=ratio,
        grace_jitter=jitter,
        renewal_spread=environment.duration(names.MESHSCRAPE_RENEWAL_SPREAD, "10s"),
        key_algorithm=algorithm,
        rsa_bits=rsa_bits,
        # In an injected pod this is a volume in memory: keys do not touch the node's disk.
        state_dir=environment.path(names.MESHSCRAPE_AGENT_DIR) or Path("/etc/istio/proxy/meshscrape"),
        output_certs=environment.path(names.OUTPUT_CERTS),
        output_certs_mode=_file_mode(environment, names.MESHSCRAPE_OUTPUT_CERTS_MODE),
        envoy=envoy,
        envoy_binary=environment.path(names.MESHSCRAPE_ENVOY),
        envoy_concurrency=environment.count(names.MESHSCRAPE_ENVOY_CONCURRENCY, 1, 1024),
        stats_port=environment.port(names.ENVOY_PROMETHEUS_PORT, ports.STATS),
        merged_port=environment.port(names.STATUS_PORT, ports.MERGED),
        health_port=environment.port(names.ENVOY_STATUS_PORT, ports.HEALTH),
        secure_stats_port=environment.port(names.ENVOY_SECURE_METRICS_PORT, 0, allow_zero=True),
        secure_merged_port=environment.port(names.ENVOY_SECURE_MERGED_METRICS_PORT, 0, allow_zero=True),
        localhost_only=environment.flag(names.METRICS_LOCALHOST_ACCESS_ONLY, False),
        scrapers=parse_scrapers(environment.text(names.MESHSCRAPE_SCRAPERS)),
        scrapers_file=environment.path(names.MESHSCRAPE_SCRAPERS_FILE),
        scrapers_ca=environment.path(names.MESHSCRAPE_SCRAPERS_CA),
        sources=parse_prometheus_annotations_env(environment.text(names.ISTIO_PROMETHEUS_ANNOTATIONS)),
        merge_envoy=environment.flag(names.PILOT_AGENT_MERGE_ENVOY_STATS, True),
        merge_max_bytes=environment.count(names.MESHSCRAPE_MERGE_MAX_BYTES, 256 << 20, 999_999_999),
        merge_max_series=environment.count(names.MESHSCRAPE_MERGE_MAX_SERIES, 1_000_000, 999_999_999),
        merge_scrape_series=environment.flag(names.MESHSCRAPE_MERGE_SCRAPE_SERIES, False),
        inbound=parse_inbound(environment.text(names.MESHSCRAPE_INBOUND)),
        routes_file=environment.path(names.MESHSCRAPE_ROUTES),
    )


def _namespace(environment: Environment) -> str:
    name = environment.required(names.POD_NAMESPACE, _INJECTED)
    return check_namespace(name, environment.place(names.POD_NAMESPACE))


def _ca_address(environment: Environment) -> str:
    address = environment.text(names.CA_ADDR, "istiod.istio-system.svc:15012")
    return parse_ca_address(address, environment.place(names.CA_ADDR))


def _inbound_port(item: Mapping[str, object], where: Where) -> InboundPort:
    for key in item:
        if key not in ("port", "mode", "name"):
            raise InputError(
                f"unknown key {shorten(key)}",
                where=where,
                remedy="known are port, mode, name",
                code="unknown-key",
            )
    number, mode, name = item.get("port"), item.get("mode"), item.get("name", "")
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError("port is not a number", where=where, remedy='write "port": 9080', code="not-a-port")
    if mode not in get_args(InboundMode):
        raise InputError(
            f"{shorten(mode)} is not a mode",
            where=where,
            remedy="write STRICT, PERMISSIVE or DISABLE",
            code="not-a-mode",
        )
    if not isinstance(name, str):
        raise InputError(
            "name is not a string", where=where, remedy='write "name": "http"', code="not-a-string"
        )
    parse_port(str(number), where)
    refuse_reserved(number, where)
    return InboundPort(number, cast(InboundMode, mode), name)


def _refuse_unknown(env: Mapping[str, str]) -> None:
    for name in sorted(env):
        if name.startswith(OWN_PREFIX) and _SERVICE_LINK.search(name):
            continue
        if name.startswith(OWN_PREFIX) and name not in OWN_VARIABLES | _FOREIGN_VARIABLES:
            near = difflib.get_close_matches(name, OWN_VARIABLES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(OWN_VARIABLES))}"
            raise InputError(
                "unknown setting", where=Environment.place(name), remedy=remedy, code="unknown-setting"
            )


def _trust_domain(environment: Environment) -> str:
    text = environment.text(names.TRUST_DOMAIN, "cluster.local")
    try:
        return check_trust_domain(text)
    except InputError as error:
        raise InputError(
            error.what,
            where=environment.place(names.TRUST_DOMAIN),
            remedy=error.remedy,
            code=error.code,
        ) from error


def _addresses(environment: Environment) -> tuple[tuple[str, ...], str]:
    name = names.INSTANCE_IPS if environment.text(names.INSTANCE_IPS) else names.INSTANCE_IP
    place = environment.place(name)
    text = environment.required(name, _INJECTED)
    pod = tuple(parse_address(part.strip(), place) for part in text.split(","))
    if len(set(pod)) != len(pod):
        raise InputError(
            "an address is listed twice", where=place, remedy="list each address once", code="listed-twice"
        )
    inside_place = environment.place(names.MESHSCRAPE_INSIDE_ADDRESS)
    inside = parse_address(environment.text(names.MESHSCRAPE_INSIDE_ADDRESS, "127.0.0.1"), inside_place)
    if not ipaddress.ip_address(inside).is_loopback:
        raise InputError(
            f"{inside} is not a loopback address",
            where=inside_place,
            remedy="write one from 127.0.0.0/8 or ::1, because what listens there is not protected",
            code="not-loopback",
        )
    if inside in pod:
        raise InputError(
            f"{inside} is the pod's address too",
            where=inside_place,
            remedy="use two different addresses",
            code="same-address",
        )
    return pod, inside


def _key_parameters(environment: Environment) -> tuple[KeyAlgorithm, int]:
    algorithm = environment.text(names.ECC_SIGNATURE_ALGORITHM)
    size = environment.text(names.WORKLOAD_RSA_KEY_SIZE)
    if algorithm not in ("", "ECDSA"):
        raise InputError(
            f"{shorten(algorithm)} is not supported",
            where=environment.place(names.ECC_SIGNATURE_ALGORITHM),
            remedy="write ECDSA, or set WORKLOAD_RSA_KEY_SIZE instead for an RSA key",
            code="unsupported",
        )
    if environment.text(names.ECC_CURVE, "P256") != "P256":
        raise InputError(
            f"{shorten(environment.text(names.ECC_CURVE))} is not supported",
            where=environment.place(names.ECC_CURVE),
            remedy="write P256 or remove it",
            code="unsupported",
        )
    if size and size not in _RSA_SIZES:
        raise InputError(
            f"{shorten(size)} is not a supported key size",
            where=environment.place(names.WORKLOAD_RSA_KEY_SIZE),
            remedy=f"write one of {', '.join(_RSA_SIZES)}",
            code="unsupported",
        )
    # As in Istio, a named elliptic curve algorithm wins over a size.
    return ("RSA" if size and not algorithm else "ECDSA"), int(size or 2048)


def _grace(environment: Environment) -> tuple[float, float]:
    ratio = environment.fraction(names.SECRET_GRACE_PERIOD_RATIO, "0.5")
    jitter = environment.fraction(names.SECRET_GRACE_PERIOD_RATIO_JITTER, "0.01")
    if not 0 < ratio < 1:
        raise InputError(
            "certificates would be renewed at once, or only after they expire",
            where=environment.place(names.SECRET_GRACE_PERIOD_RATIO),
            remedy="write a number between 0 and 1, for example 0.5",
            code="renewal-time",
        )
    if jitter >= min(ratio, 1 - ratio):
        raise InputError(
            "the jitter could move renewal beyond the certificate's life",
            where=environment.place(names.SECRET_GRACE_PERIOD_RATIO_JITTER),
            remedy=f"write a number below {min(ratio, 1 - ratio):g}",
            code="jitter",
        )
    return ratio, jitter


def _file_mode(environment: Environment, name: str) -> int:
    text = environment.text(name, "0600")
    if re.fullmatch(r"0?[0-7]{3}", text, re.ASCII) is None:
        raise InputError(
            f"{shorten(text)} is not a file mode",
            where=environment.place(name),
            remedy="write 0600 or 0640",
            code="not-a-file-mode",
        )
    mode = int(text, 8)
    if mode & ~0o660 or not mode & 0o400:
        raise InputError(
            f"mode {text} is not suitable for private keys",
            where=environment.place(name),
            remedy="write 0600, or 0640 to let one group read",
            code="file-mode",
        )
    return mode


def _check_ports(settings: AgentSettings) -> None:
    """Raise InputError for two listeners on one port, and for a reserved port used for another purpose."""
    listeners = (
        (names.ENVOY_PROMETHEUS_PORT, settings.stats_port, ports.STATS),
        (names.STATUS_PORT, settings.merged_port, ports.MERGED),
        (names.ENVOY_STATUS_PORT, settings.health_port, ports.HEALTH),
        (names.ENVOY_SECURE_METRICS_PORT, settings.secure_stats_port, ports.SECURE_STATS),
        (names.ENVOY_SECURE_MERGED_METRICS_PORT, settings.secure_merged_port, ports.SECURE_MERGED),
    )
    taken: dict[int, str] = {}
    for name, port, own in listeners:
        if not port:
            continue
        place = Environment.place(name)
        if port in taken:
            raise InputError(
                f"port {port} is already taken by {taken[port]}",
                where=place,
                remedy="use another port",
                code="port-twice",
            )
        if port != own:
            refuse_reserved(port, place)
        taken[port] = name
    secure = settings.secure_stats_port or settings.secure_merged_port
    if secure and not settings.envoy:
        raise InputError(
            f"port {secure} needs Envoy, and an empty INBOUND_CAPTURE_PORTS turns Envoy off",
            where=Environment.place(next(name for name, port, _ in listeners if port == secure)),
            remedy="set it to 0, or remove INBOUND_CAPTURE_PORTS",
            code="needs-envoy",
        )
    _check_application_ports(settings, taken)


def _check_files(settings: AgentSettings) -> None:
    """Raise InputError for files that exclude each other, and for routes of a sidecar."""
    if settings.scrapers_file is not None and settings.scrapers:
        raise InputError(
            "there are two allow lists",
            where=Environment.place(names.MESHSCRAPE_SCRAPERS_FILE),
            remedy="remove MESHSCRAPE_SCRAPERS, or write its entries into the file",
            code="two-lists",
        )
    certificates, own = settings.output_certs, settings.state_dir
    if certificates is not None and (certificates == own or own in certificates.parents):
        raise InputError(
            "the directory is inside the agent's own directory",
            where=Environment.place(names.OUTPUT_CERTS),
            remedy="write a directory outside MESHSCRAPE_AGENT_DIR",
            code="own-directory",
        )
    if settings.routes_file is not None and settings.role != "router":
        raise InputError(
            "only gateways have routes",
            where=Environment.place(names.MESHSCRAPE_ROUTES),
            remedy="remove it, or start the agent as a router",
            code="not-a-gateway",
        )


def _check_application_ports(settings: AgentSettings, taken: Mapping[int, str]) -> None:
    if settings.role == "router" and len(settings.inbound) > 1:
        raise InputError(
            f"{len(settings.inbound)} ports are listed for a gateway",
            where=Environment.place(names.MESHSCRAPE_INBOUND),
            remedy="list the one port where it listens",
            code="several-ports",
        )
    declared = [(names.MESHSCRAPE_INBOUND, item.port) for item in settings.inbound]
    declared += [(names.ISTIO_PROMETHEUS_ANNOTATIONS, source.port) for source in settings.sources]
    for name, port in declared:
        if port in taken:
            raise InputError(
                f"port {port} is already taken by {taken[port]}",
                where=Environment.place(name),
                remedy="use another port for one of the two",
                code="port-twice",
            )
