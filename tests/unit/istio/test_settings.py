"""The agent's settings: defaults, meanings, and every way in which they can be wrong."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.allow_list import DnsScraper
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.istio.settings import (
    OWN_VARIABLES,
    AgentSettings,
    InboundPort,
    inbound_to_env,
    parse_inbound,
    parse_settings,
)

POD = {
    "POD_NAME": "httpbin-0",
    "POD_NAMESPACE": "default",
    "SERVICE_ACCOUNT": "httpbin",
    "INSTANCE_IP": "127.1.0.1",
    "MESHSCRAPE_INSIDE_ADDRESS": "127.2.0.1",
}


def settings(role: str = "sidecar", **changes: str) -> AgentSettings:
    """Settings of a pod with `changes`."""
    return parse_settings({**POD, **changes}, role)


def test_the_defaults_are_closed() -> None:
    """Secure ports are off, nobody may scrape, everything else is as in Istio."""
    found = settings()
    assert (found.secure_stats_port, found.secure_merged_port) == (0, 0)
    assert (found.stats_port, found.merged_port, found.health_port) == (15090, 15020, 15021)
    assert (found.scrapers, found.scrapers_ca, found.sources, found.inbound) == ((), None, (), ())
    assert (found.envoy, found.localhost_only, found.merge_envoy) == (True, False, True)
    assert (found.merge_max_bytes, found.merge_max_series) == (256 << 20, 1_000_000)
    assert found.merge_scrape_series is False
    assert (found.secret_ttl, found.grace_ratio, found.grace_jitter) == (timedelta(hours=24), 0.5, 0.01)
    assert (found.key_algorithm, found.ca_address) == ("ECDSA", "istiod.istio-system.svc:15012")
    assert (found.output_certs, found.output_certs_mode) == (None, 0o600)
    assert str(found.spiffe_id) == "spiffe://cluster.local/ns/default/sa/httpbin"
    assert found.workload_name == "httpbin-0"


def test_there_is_one_allow_list() -> None:
    """A file that the agent follows, or a variable: with both, nobody could say which one is in force."""
    found = settings(MESHSCRAPE_SCRAPERS_FILE="/scrapers")
    assert (found.scrapers, found.scrapers_file) == ((), Path("/scrapers"))
    with pytest.raises(InputError) as caught:
        settings(MESHSCRAPE_SCRAPERS_FILE="/scrapers", MESHSCRAPE_SCRAPERS="dns:prom.example")
    assert (caught.value.place.variable, caught.value.code) == ("MESHSCRAPE_SCRAPERS_FILE", "two-lists")


def test_every_variable_has_its_effect() -> None:
    """One value after the other, as it is spelled in the environment."""
    found = settings(
        role="router",
        TRUST_DOMAIN="example.org",
        ISTIO_META_WORKLOAD_NAME="httpbin",
        INSTANCE_IPS="127.1.0.1,::1",
        CA_ADDR="[::1]:15012",
        CA_ROOT_CA="/ca/root.pem",
        SECRET_TTL="1h30m",
        SECRET_GRACE_PERIOD_RATIO="0.3",
        SECRET_GRACE_PERIOD_RATIO_JITTER="0",
        WORKLOAD_RSA_KEY_SIZE="3072",
        OUTPUT_CERTS="/certs",
        ENVOY_PROMETHEUS_PORT="16090",
        STATUS_PORT="16020",
        ENVOY_STATUS_PORT="16021",
        ENVOY_SECURE_METRICS_PORT="15091",
        ENVOY_SECURE_MERGED_METRICS_PORT="16092",
        METRICS_LOCALHOST_ACCESS_ONLY="T",
        PILOT_AGENT_MERGE_ENVOY_STATS="0",
        ISTIO_PROMETHEUS_ANNOTATIONS='{"scrape":"true","port":"9080"}',
        MESHSCRAPE_AGENT_DIR="/agent",
        MESHSCRAPE_CA_WAIT="5s",
        MESHSCRAPE_ENVOY="/envoy",
        MESHSCRAPE_ENVOY_CONCURRENCY="2",
        MESHSCRAPE_INBOUND='[{"port":9080,"mode":"STRICT","name":"http"}]',
        MESHSCRAPE_MERGE_MAX_BYTES="1000000",
        MESHSCRAPE_MERGE_MAX_SERIES="5000",
        MESHSCRAPE_MERGE_SCRAPE_SERIES="true",
        MESHSCRAPE_OUTPUT_CERTS_MODE="0640",
        MESHSCRAPE_RENEWAL_SPREAD="1m",
        MESHSCRAPE_ROUTES="/routes.json",
        MESHSCRAPE_SCRAPERS="dns:prom.example",
        MESHSCRAPE_SCRAPERS_CA="/scrapers.pem",
        MESHSCRAPE_TOKEN_PATH="/token",
    )
    assert found == AgentSettings(
        role="router",
        trust_domain="example.org",
        namespace="default",
        service_account="httpbin",
        pod_name="httpbin-0",
        workload_name="httpbin",
        pod_addresses=("127.1.0.1", "::1"),
        inside_address="127.2.0.1",
        ca_address="[::1]:15012",
        ca_root=Path("/ca/root.pem"),
        ca_wait=timedelta(seconds=5),
        token_path=Path("/token"),
        secret_ttl=timedelta(minutes=90),
        grace_ratio=0.3,
        grace_jitter=0.0,
        renewal_spread=timedelta(minutes=1),
        key_algorithm="RSA",
        rsa_bits=3072,
        state_dir=Path("/agent"),
        output_certs=Path("/certs"),
        output_certs_mode=0o640,
        envoy=True,
        envoy_binary=Path("/envoy"),
        envoy_concurrency=2,
        stats_port=16090,
        merged_port=16020,
        health_port=16021,
        secure_stats_port=15091,
        secure_merged_port=16092,
        localhost_only=True,
        scrapers=(DnsScraper("prom.example"),),
        scrapers_file=None,
        scrapers_ca=Path("/scrapers.pem"),
        sources=(ScrapeSource(9080),),
        merge_envoy=False,
        merge_max_bytes=1_000_000,
        merge_max_series=5_000,
        merge_scrape_series=True,
        inbound=(InboundPort(9080, "STRICT", "http"),),
        routes_file=Path("/routes.json"),
    )


def test_an_empty_capture_list_means_credentials_alone() -> None:
    """Only for sidecars, and only when it is set: Prometheus's pod, as Istio's documentation sets it up."""
    assert settings(INBOUND_CAPTURE_PORTS="").envoy is False
    assert settings(INBOUND_CAPTURE_PORTS="*").envoy is True
    assert settings(role="router", INBOUND_CAPTURE_PORTS="").envoy is True


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_switches_are_read_as_go_reads_them(text: str) -> None:
    """strconv.ParseBool's spellings, both ways; nothing is the default."""
    assert settings(METRICS_LOCALHOST_ACCESS_ONLY=text).localhost_only is True
    off = {"1": "0", "t": "f", "T": "F", "TRUE": "FALSE", "true": "false", "True": "False"}[text]
    assert settings(PILOT_AGENT_MERGE_ENVOY_STATS=off).merge_envoy is False
    assert settings(PILOT_AGENT_MERGE_ENVOY_STATS="").merge_envoy is True


WRONG = [
    ("POD_NAME", "", "not-set"),
    ("POD_NAME", "Upper", "not-a-name"),
    ("POD_NAMESPACE", "", "not-set"),
    ("POD_NAMESPACE", "a.b", "not-a-name"),
    ("POD_NAMESPACE", "../x", "not-a-name"),
    ("SERVICE_ACCOUNT", "", "not-set"),
    ("SERVICE_ACCOUNT", "a/b", "not-a-name"),
    ("SERVICE_ACCOUNT", "a\n", "not-a-name"),
    ("TRUST_DOMAIN", "Cluster.local", "not-a-spiffe-id"),
    ("TRUST_DOMAIN", "a/b", "not-a-spiffe-id"),
    ("INSTANCE_IP", "", "not-set"),
    ("INSTANCE_IP", "localhost", "not-an-address"),
    ("INSTANCE_IP", "0.0.0.0", "no-interface"),
    ("INSTANCE_IP", "::", "no-interface"),
    ("INSTANCE_IP", "fe80::1%eth0", "no-interface"),
    ("INSTANCE_IP", "::ffff:127.0.0.1", "no-interface"),
    ("INSTANCE_IP", "224.0.0.1", "no-interface"),
    ("INSTANCE_IP", "127.0.0.01", "not-an-address"),
    ("INSTANCE_IPS", "127.1.0.1,,::1", "not-an-address"),
    ("INSTANCE_IPS", "::1,0:0::1", "listed-twice"),
    ("MESHSCRAPE_INSIDE_ADDRESS", "10.0.0.1", "not-loopback"),
    ("MESHSCRAPE_INSIDE_ADDRESS", "127.1.0.1", "same-address"),
    ("MESHSCRAPE_INSIDE_ADDRESS", "x", "not-an-address"),
    ("CA_ADDR", "istiod", "not-host-port"),
    ("CA_ADDR", "istiod:0", "not-a-port"),
    ("CA_ADDR", ":15012", "not-a-host"),
    ("CA_ADDR", "::1:15012", "not-host-port"),
    ("CA_ADDR", "[127.0.0.1]:15012", "not-host-port"),
    ("CA_ADDR", "[::x]:15012", "not-an-address"),
    ("CA_ADDR", "127.0.0.300:15012", "not-an-address"),
    ("CA_ADDR", "https://istiod:15012", "not-host-port"),
    ("CA_ADDR", "a b:15012", "not-a-host"),
    ("CA_ROOT_CA", "/a\nb", "control-characters"),
    ("SECRET_TTL", "1d", "not-a-duration"),
    ("SECRET_TTL", "0s", "not-positive"),
    ("SECRET_TTL", "-1h", "not-positive"),
    ("MESHSCRAPE_CA_WAIT", "0", "not-positive"),
    ("SECRET_GRACE_PERIOD_RATIO", "half", "not-a-fraction"),
    ("SECRET_GRACE_PERIOD_RATIO", "nan", "not-a-fraction"),
    ("SECRET_GRACE_PERIOD_RATIO", "1.1", "not-a-fraction"),
    ("SECRET_GRACE_PERIOD_RATIO", "0", "renewal-time"),
    ("SECRET_GRACE_PERIOD_RATIO", "1", "renewal-time"),
    ("SECRET_GRACE_PERIOD_RATIO_JITTER", "0.5", "jitter"),
    ("SECRET_GRACE_PERIOD_RATIO_JITTER", "-0.1", "not-a-fraction"),
    ("ECC_SIGNATURE_ALGORITHM", "ED25519", "unsupported"),
    ("ECC_CURVE", "P521", "unsupported"),
    ("WORKLOAD_RSA_KEY_SIZE", "1024", "unsupported"),
    ("MESHSCRAPE_OUTPUT_CERTS_MODE", "0644", "file-mode"),
    ("MESHSCRAPE_OUTPUT_CERTS_MODE", "0700", "file-mode"),
    ("MESHSCRAPE_OUTPUT_CERTS_MODE", "0040", "file-mode"),
    ("MESHSCRAPE_OUTPUT_CERTS_MODE", "rw", "not-a-file-mode"),
    ("MESHSCRAPE_OUTPUT_CERTS_MODE", "0o600", "not-a-file-mode"),
    ("MESHSCRAPE_ENVOY_CONCURRENCY", "0", "not-a-count"),
    ("ENVOY_PROMETHEUS_PORT", "0", "not-a-port"),
    ("STATUS_PORT", "x", "not-a-port"),
    ("STATUS_PORT", "15021", "reserved-port"),
    ("STATUS_PORT", "15008", "reserved-port"),
    ("ENVOY_STATUS_PORT", "15090", "port-twice"),
    ("ENVOY_SECURE_METRICS_PORT", "65536", "not-a-port"),
    ("ENVOY_SECURE_METRICS_PORT", "15092", "reserved-port"),
    ("ENVOY_SECURE_METRICS_PORT", "15020", "port-twice"),
    ("ENVOY_SECURE_MERGED_METRICS_PORT", "15091", "reserved-port"),
    ("METRICS_LOCALHOST_ACCESS_ONLY", "yes", "not-a-truth-value"),
    ("PILOT_AGENT_MERGE_ENVOY_STATS", "off", "not-a-truth-value"),
    ("MESHSCRAPE_MERGE_MAX_BYTES", "1GB", "not-a-count"),
    ("MESHSCRAPE_MERGE_MAX_SERIES", "0", "not-a-count"),
    ("MESHSCRAPE_MERGE_SCRAPE_SERIES", "2", "not-a-truth-value"),
    ("MESHSCRAPE_SCRAPERS", "prometheus", "not-an-entry"),
    ("ISTIO_PROMETHEUS_ANNOTATIONS", "{", "not-json"),
    ("MESHSCRAPE_INBOUND", "{", "not-json"),
    ("MESHSCRAPE_INBOUND", "{}", "not-a-list"),
    ("MESHSCRAPE_INBOUND", "[1]", "not-a-list"),
    ("MESHSCRAPE_INBOUND", '[{"port":"9080","mode":"STRICT"}]', "not-a-port"),
    ("MESHSCRAPE_INBOUND", '[{"port":true,"mode":"STRICT"}]', "not-a-port"),
    ("MESHSCRAPE_INBOUND", '[{"port":70000,"mode":"STRICT"}]', "not-a-port"),
    ("MESHSCRAPE_INBOUND", '[{"port":15006,"mode":"STRICT"}]', "reserved-port"),
    ("MESHSCRAPE_INBOUND", '[{"port":9080}]', "not-a-mode"),
    ("MESHSCRAPE_INBOUND", '[{"port":9080,"mode":"strict"}]', "not-a-mode"),
    ("MESHSCRAPE_INBOUND", '[{"port":9080,"mode":"STRICT","name":1}]', "not-a-string"),
    ("MESHSCRAPE_INBOUND", '[{"port":9080,"mode":"STRICT","tls":1}]', "unknown-key"),
    (
        "MESHSCRAPE_INBOUND",
        '[{"port":9080,"mode":"STRICT"},{"port":9080,"mode":"DISABLE"}]',
        "listed-twice",
    ),
    ("OUTPUT_CERTS", "/etc/istio/proxy/meshscrape", "own-directory"),
    ("OUTPUT_CERTS", "/etc/istio/proxy/meshscrape/credentials", "own-directory"),
    ("MESHSCRAPE_ROUTES", "/routes.json", "not-a-gateway"),
    ("MESHSCRAPE_SCRAPER", "x", "unknown-setting"),
    ("MESHSCRAPE_X", "", "unknown-setting"),
]


@pytest.mark.parametrize(("name", "value", "code"), WRONG, ids=[f"{n}={v}" for n, v, _ in WRONG])
def test_a_wrong_value_is_one_line_with_the_variables_name(name: str, value: str, code: str) -> None:
    """Place, what is wrong, and a remedy."""
    with pytest.raises(InputError) as caught:
        settings(**{name: value})
    assert (caught.value.place.variable, caught.value.code) == (name, code)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"STATUS_PORT": "9080"}, "MESHSCRAPE_INBOUND"),
        ({"ENVOY_SECURE_METRICS_PORT": "9080"}, "MESHSCRAPE_INBOUND"),
        ({"ENVOY_SECURE_METRICS_PORT": "9100"}, "ISTIO_PROMETHEUS_ANNOTATIONS"),
        ({"ENVOY_STATUS_PORT": "9100"}, "ISTIO_PROMETHEUS_ANNOTATIONS"),
    ],
)
def test_no_two_listeners_share_a_port(changes: dict[str, str], name: str) -> None:
    """Nor does the agent scrape a port of its own."""
    base = {
        "MESHSCRAPE_INBOUND": '[{"port":9080,"mode":"STRICT"}]',
        "ISTIO_PROMETHEUS_ANNOTATIONS": '{"port":"9100"}',
    }
    settings(**base)
    with pytest.raises(InputError) as caught:
        settings(**{**base, **changes})
    assert (caught.value.place.variable, caught.value.code) == (name, "port-twice")


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9090_TCP", "PORT_9090_TCP_ADDR"],
)
def test_variables_of_a_service_of_that_name_are_no_settings(name: str) -> None:
    """Kubernetes sets them in every pod of the namespace."""
    settings(**{f"MESHSCRAPE_PROMETHEUS_{name}": "tcp://10.0.0.1:9090"})


def test_the_two_secure_ports_differ() -> None:
    """One port cannot serve both, whatever its number."""
    with pytest.raises(InputError) as caught:
        settings(ENVOY_SECURE_METRICS_PORT="16091", ENVOY_SECURE_MERGED_METRICS_PORT="16091")
    assert caught.value.place.variable == "ENVOY_SECURE_MERGED_METRICS_PORT"
    assert caught.value.code == "port-twice"


def test_a_secure_port_needs_envoy() -> None:
    """A workload that has credentials alone cannot serve it, and must not pretend to."""
    with pytest.raises(InputError) as caught:
        settings(INBOUND_CAPTURE_PORTS="", ENVOY_SECURE_MERGED_METRICS_PORT="15092")
    assert caught.value.place.variable == "ENVOY_SECURE_MERGED_METRICS_PORT"
    assert caught.value.code == "needs-envoy"


def test_foreign_variables_are_ignored() -> None:
    """The injector sets many that mean nothing here; those of other verbs may be inherited."""
    settings(ISTIO_META_CLUSTER_ID="Kubernetes", PATH="/bin", MESHSCRAPE_PROMETHEUS="/prometheus")


def test_a_gateway_listens_on_one_port() -> None:
    """The agent would otherwise take one of them, and nobody knew which."""
    inbound = '[{"port":8080,"mode":"DISABLE"},{"port":8081,"mode":"DISABLE"}]'
    with pytest.raises(InputError) as caught:
        settings(role="router", MESHSCRAPE_INBOUND=inbound)
    assert (caught.value.place.variable, caught.value.code) == ("MESHSCRAPE_INBOUND", "several-ports")


def test_only_two_roles_exist() -> None:
    """`proxy sidecar` and `proxy router`."""
    with pytest.raises(InputError) as caught:
        settings(role="waypoint")
    assert caught.value.code == "not-a-role"


def test_names_may_be_as_long_as_kubernetes_allows() -> None:
    """253 characters for objects, 63 for namespaces, and no more."""
    longest = {"POD_NAME": ".".join(["a" * 62] * 4) + ".", "POD_NAMESPACE": "n" * 63}
    longest["POD_NAME"] = (longest["POD_NAME"] + "b" * 63)[:253]
    found = settings(**longest)
    assert (len(found.pod_name), len(found.namespace)) == (253, 63)
    for name, value in longest.items():
        with pytest.raises(InputError) as caught:
            settings(**{name: value + "c"})
        assert caught.value.place.variable == name


def test_inbound_ports_survive_the_environment() -> None:
    """What the mesh writes, the agent reads."""
    inbound = (InboundPort(80, "STRICT", "http"), InboundPort(81, "PERMISSIVE"), InboundPort(82, "DISABLE"))
    assert parse_inbound(inbound_to_env(inbound)) == inbound
    assert parse_inbound(inbound_to_env([])) == ()


VARIABLES = sorted(OWN_VARIABLES | {name for name, _, _ in WRONG if not name.startswith("MESHSCRAPE_")})


@given(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.text(max_size=12) | st.sampled_from([value for _, value, _ in WRONG]),
        max_size=3,
    )
)
def test_arbitrary_environments_are_settings_or_an_input_error(env: dict[str, str]) -> None:
    """And no accepted one shares ports or lets others read private keys."""
    try:
        found = settings(**env)
    except InputError as error:
        assert str(error).startswith("environment variable ")
        return
    own = [
        found.stats_port, found.merged_port, found.health_port,
        found.secure_stats_port, found.secure_merged_port,
    ]  # fmt: skip
    listening = [port for port in own if port] + [item.port for item in found.inbound]
    assert len(set(listening)) == len(listening)
    assert not found.output_certs_mode & (stat.S_IRWXO | stat.S_IXUSR | stat.S_IXGRP)
