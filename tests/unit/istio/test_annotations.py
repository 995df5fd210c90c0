"""Pod annotations: what they mean for metrics and proxy, and which are mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio import names
from meshscrape.istio.annotations import PodAnnotations, parse_annotations
from meshscrape.istio.names import (
    EXCLUDE_INBOUND,
    INCLUDE_INBOUND,
    INJECT,
    LOCAL_COMMAND,
    MERGE_METRICS,
    PROMETHEUS_PATH,
    PROMETHEUS_PORT,
    PROMETHEUS_SCHEME,
    PROMETHEUS_SCRAPE,
    PROXY_CONFIG_ANNOTATION,
    SCRAPE_TARGETS,
    SECURE_ENVOY_PORT,
    SECURE_PORT,
    STATUS,
    TEMPLATES,
)
from meshscrape.istio.proxy_config import parse_proxy_config
from meshscrape.istio.scrape_targets import ScrapeSource


def test_a_pod_without_annotations_has_istios_defaults() -> None:
    """Merging is on, nothing is merged, everything is captured."""
    assert parse_annotations({}) == PodAnnotations()
    assert parse_annotations({"example.com/anything": "else", "plain": "x"}) == PodAnnotations()


@pytest.mark.parametrize(
    ("annotations", "sources"),
    [
        ({PROMETHEUS_SCRAPE: "true", PROMETHEUS_PORT: "9080"}, [ScrapeSource(9080)]),
        (
            {PROMETHEUS_SCRAPE: "1", PROMETHEUS_PORT: "9080", PROMETHEUS_PATH: "/m"},
            [ScrapeSource(9080, "/m")],
        ),
        (
            {PROMETHEUS_SCRAPE: "true", PROMETHEUS_PORT: "9443", PROMETHEUS_SCHEME: "https"},
            [ScrapeSource(9443, scheme="https")],
        ),
        ({PROMETHEUS_SCRAPE: "true"}, [ScrapeSource(80)]),
        ({PROMETHEUS_PORT: "9080"}, [ScrapeSource(9080)]),
        ({PROMETHEUS_SCRAPE: "false", PROMETHEUS_PORT: "9080"}, []),
        ({PROMETHEUS_SCRAPE: "false", SCRAPE_TARGETS: "9080:/metrics"}, []),
        ({PROMETHEUS_PATH: "/metrics"}, []),
        ({PROMETHEUS_SCRAPE: "true", PROMETHEUS_PORT: "9080", MERGE_METRICS: "false"}, []),
        ({PROMETHEUS_PORT: "15090", MERGE_METRICS: "false"}, []),
        (
            {PROMETHEUS_PORT: "9080", SCRAPE_TARGETS: "9090:/m,9100"},
            [ScrapeSource(9090, "/m"), ScrapeSource(9100)],
        ),
        ({PROMETHEUS_SCRAPE: "true", PROMETHEUS_PORT: "15020", PROMETHEUS_PATH: "/stats/prometheus"}, []),
        ({PROMETHEUS_SCRAPE: "true", PROMETHEUS_PATH: "/stats/prometheus", SECURE_PORT: "15092"}, []),
        ({PROMETHEUS_PORT: "15999", PROXY_CONFIG_ANNOTATION: "statusPort: 15999"}, []),
    ],
)
def test_sources_are_what_the_injector_would_give_to_the_agent(
    annotations: dict[str, str], sources: list[ScrapeSource]
) -> None:
    """Istio's reading of prometheus.io/* and of the list; a rewritten pod says nothing of its application."""
    assert parse_annotations(annotations).sources == tuple(sources)


def test_endpoints_that_are_not_merged_are_still_known() -> None:
    """Prometheus scrapes them itself then, as the annotations ask."""
    parsed = parse_annotations({PROMETHEUS_PORT: "9080", MERGE_METRICS: "false"})
    assert (parsed.endpoints, parsed.sources) == ((ScrapeSource(9080),), ())
    assert parse_annotations({PROMETHEUS_PORT: "15090", MERGE_METRICS: "false"}).endpoints == ()


def test_every_annotation_is_parsed() -> None:
    """Ports, switches, templates, ProxyConfig, local commands."""
    parsed = parse_annotations(
        {
            SECURE_PORT: "15092",
            SECURE_ENVOY_PORT: "15091",
            INCLUDE_INBOUND: "9080, 9090",
            EXCLUDE_INBOUND: "9100",
            INJECT: "true",
            TEMPLATES: "gateway,custom",
            STATUS: "{}",
            LOCAL_COMMAND: "gunicorn --bind '$(INSIDE_ADDRESS):9080' app",
            PROXY_CONFIG_ANNOTATION: 'proxyMetadata:\n  SECRET_TTL: "1h"\nconcurrency: 2\n',
        }
    )
    assert (parsed.secure_port, parsed.secure_envoy_port) == (15092, 15091)
    assert (parsed.include_inbound_ports, parsed.exclude_inbound_ports) == ((9080, 9090), (9100,))
    assert (parsed.inject, parsed.injected, parsed.templates) == (True, True, ("gateway", "custom"))
    assert parsed.local_commands[""] == "gunicorn --bind '$(INSIDE_ADDRESS):9080' app"
    assert parsed.proxy_config.metadata == {"SECRET_TTL": "1h"}
    assert parsed.proxy_config.raw["concurrency"] == 2


@pytest.mark.parametrize(("value", "ports"), [("*", None), ("", ()), ("80", (80,))])
def test_capture_of_all_ports_differs_from_capture_of_none(value: str, ports: tuple[int, ...] | None) -> None:
    """A star is all ports, empty is none: a sidecar for credentials alone."""
    assert parse_annotations({INCLUDE_INBOUND: value}).include_inbound_ports == ports


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (PROMETHEUS_SCRAPE, "yes", "not-a-truth-value"),
        (MERGE_METRICS, "TrUe", "not-a-truth-value"),
        (PROMETHEUS_PORT, "99999", "not-a-port"),
        (PROMETHEUS_PORT, "15090", "reserved-port"),
        (SCRAPE_TARGETS, "15092:/metrics", "reserved-port"),
        (SCRAPE_TARGETS, "", "no-target"),
        (SECURE_PORT, "0", "not-a-port"),
        (SECURE_ENVOY_PORT, "https", "not-a-port"),
        (EXCLUDE_INBOUND, "80;81", "not-a-port"),
        (INJECT, "enabled", "not-a-truth-value"),
        (LOCAL_COMMAND, "sh -c 'sleep", "not-a-command"),
        (LOCAL_COMMAND + ".app", " ", "empty-command"),
        (LOCAL_COMMAND, "serve\0", "nul-character"),
        (PROXY_CONFIG_ANNOTATION, "a: [", "not-yaml"),
        (PROXY_CONFIG_ANNOTATION, "a: b\n---\nc: d", "several-documents"),
        (PROXY_CONFIG_ANNOTATION, "statusPort: http", "not-a-number"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_at_its_annotation(name: str, value: str, code: str) -> None:
    """The error knows the pod's place and the annotation's name."""
    with pytest.raises(InputError) as caught:
        parse_annotations({name: value}, "pod default/x")
    assert caught.value.place.text == "pod default/x"
    assert (caught.value.place.annotation, caught.value.code) == (name, code)


@pytest.mark.parametrize(("path", "scheme"), [("metrics", "http"), ("/metrics", "ftp")])
def test_the_error_names_the_annotation_that_is_wrong(path: str, scheme: str) -> None:
    """Of port, path and scheme, which belong together."""
    wrong = PROMETHEUS_SCHEME if scheme == "ftp" else PROMETHEUS_PATH
    with pytest.raises(InputError) as caught:
        parse_annotations({PROMETHEUS_PORT: "9080", PROMETHEUS_PATH: path, PROMETHEUS_SCHEME: scheme})
    assert caught.value.place.annotation == wrong


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("prometheus.istio.io/secure-prot", "did you mean prometheus.istio.io/secure-port?"),
        ("prometheus.istio.io/whatever", "known are"),
        ("meshscrape.io/local-comand", "did you mean meshscrape.io/local-command?"),
        ("meshscrape.io/x", "known are"),
        ("prometheus.isto.io/secure-port", "did you mean prometheus.istio.io?"),
        ("meshscrap.io/local-command", "did you mean meshscrape.io?"),
        ("proxy.istio.io/confg", "did you mean proxy.istio.io/config?"),
        ("traffic.sidecar.istio.io/excludeInboundPort", "did you mean"),
    ],
)
def test_misspelt_annotations_are_refused(name: str, remedy: str) -> None:
    """They would otherwise do nothing, silently."""
    with pytest.raises(InputError) as caught:
        parse_annotations({name: "1"})
    assert (caught.value.place.annotation, caught.value.code) == (name, "unknown-annotation")
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "name",
    [
        "prometheus.io/probe", "prometheus.io/interval", "prometheus.io/scrape-slow",
        "sidecar.istio.io/proxyCPU", "sidecar.istio.io/userVolume",
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        "istio.io/rev", "networking.istio.io/tunnel", "inject.istio.io/templates", "proxy.istio.io/overrides",
        "kubectl.kubernetes.io/default-container", "topology.istio.io/subzone",
    ],
)  # fmt: skip
def test_foreign_annotations_are_ignored(name: str) -> None:
    """Istio's own and the customs of Prometheus users are not mistaken for typing errors."""
    assert parse_annotations({name: "anything"}).sources == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("proxyMetadata:\n  A: 1\n", "not-a-string"),
        ("proxyMetadata:\n  A: true\n", "not-a-string"),
        ("proxyMetadata:\n  A:\n", "not-a-string"),
        ("proxyMetadata: x\n", "not-a-mapping"),
        ("proxyMetdata:\n  A: b\n", "unknown-field"),
        ("proxyMetadata:\n  A: b\n  A: c\n", "repeated-key"),
        ("- 1", "no-object"),
    ],
)
def test_proxy_config_is_read_strictly(text: str, code: str) -> None:
    """Environment variables are strings; a misspelt field would leave a port open or closed unnoticed."""
    with pytest.raises(InputError) as caught:
        parse_proxy_config(text, "here")
    assert caught.value.code == code
    assert caught.value.place.text == "here"
    assert caught.value.place.text_line > 0


def test_unknown_proxy_config_fields_are_kept() -> None:
    """A later Istio may know them."""
    assert parse_proxy_config("somethingNew: {a: 1}").raw == {"somethingNew": {"a": 1}}
    assert parse_proxy_config("").raw == {}


known_names = st.sampled_from(
    [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str) and "/" in value]
)


@given(
    st.dictionaries(
        known_names | st.text(max_size=20) | st.text("prometheus.istio.io/", max_size=30),
        st.sampled_from(["true", "false", "9080", "15020", "9080:/m", "/m", "proxyMetadata: {A: b}"])
        | st.text(max_size=40),
        max_size=6,
    )
)
def test_arbitrary_annotations_are_parsed_or_an_input_error(annotations: dict[str, str]) -> None:
    """Annotations are written by anybody who may create a pod: no text of theirs breaks the parser."""
    try:
        parsed = parse_annotations(annotations, "pod")
    except InputError as error:
        assert str(error).startswith("pod")
        assert error.remedy
        return
    assert all(source.path.startswith("/") for source in parsed.sources)
