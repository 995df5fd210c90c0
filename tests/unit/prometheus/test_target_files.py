"""Target files for the scrape proxy: what is taken, what is refused and how it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.prometheus.target_files import http_sd, parse_target_file, target_file
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId

ID = "spiffe://cluster.local/ns/default/sa/httpbin"
WHERE = "targets.json"


def _file(*groups: Any) -> bytes:
    return json.dumps(list(groups)).encode()


def _group(address: str = "10.0.0.7:15092", **labels: Any) -> dict[str, Any]:
    return {"targets": [address], "labels": {"__meshscrape_spiffe_id": ID, **labels}}


def test_a_group_gives_a_target_for_each_address() -> None:
    """Address, port, path, identity and labels; the labels that the proxy needs itself are not kept."""
    group = _group(__metrics_path__="/metrics", __scheme__="https", namespace="default")
    group["targets"].append("[fd00::7]:15091")
    first, second = parse_target_file(_file(group), WHERE)
    assert first == Target("10.0.0.7", 15092, SpiffeId.parse(ID), {"namespace": "default"}, "/metrics")
    assert second.authority == "[fd00::7]:15091"


def test_yaml_is_read_too() -> None:
    """The same groups in YAML."""
    assert parse_target_file(yaml.safe_dump([_group()]).encode(), WHERE) == parse_target_file(
        _file(_group()), WHERE
    )


def test_empty_list_has_no_target() -> None:
    """`[]` is a file without targets, not a broken one."""
    assert parse_target_file(b"[]", WHERE) == ()


def test_addresses_are_spelled_in_one_way() -> None:
    """The text that Prometheus will send is the text that the route has."""
    (target,) = parse_target_file(_file(_group("[FD00:0::0007]:15092")), WHERE)
    assert target.authority == "[fd00::7]:15092"


@pytest.mark.parametrize(
    "address",
    ["httpbin:15092", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536", "10.0.0.07:15092",
     "fd00::7:15092", "10.0.0.7:15092/", "u@10.0.0.7:15092",
     "10.0.0.7:15092\n", "0.0.0.0:15092", "[::]:1", "224.0.0.1:1",
     "[fe80::1%eth0]:1", "10.0.0.7:+1", "\uff110.0.0.7:1", "*", ""],
)  # fmt: skip
def test_only_an_ip_address_with_a_port_is_an_address(address: str) -> None:
    """No names, no user information, no zones, nothing that is not one machine."""
    with pytest.raises(InputError, match="group 2"):
        parse_target_file(_file(_group(), _group(address)), WHERE)


@pytest.mark.parametrize(
    "path", ["", "metrics", "/a?b", "/a#b", "/a%2fb", "/a//b", "/a/../b", "/./a", "/a b", "//"]
)
def test_only_a_plain_path_is_a_path(path: str) -> None:
    """What Envoy would normalise or what carries a query cannot be compared as a whole."""
    with pytest.raises(InputError, match="path"):
        parse_target_file(_file(_group(__metrics_path__=path)), WHERE)


@pytest.mark.parametrize(
    "identity", ["", "httpbin", "spiffe://cluster.local", "spiffe://cluster.local/*", f"{ID}\n", f"{ID}/"]
)
def test_only_a_workloads_id_is_an_identity(identity: str) -> None:
    """No pattern, no trust domain, no second spelling."""
    with pytest.raises(InputError):
        parse_target_file(_file(_group(__meshscrape_spiffe_id=identity)), WHERE)


@pytest.mark.parametrize(
    "labels",
    [{"__scheme__": "http"}, {"__param_module": "x"}, {"__address__": "10.0.0.8:1"}, {"a-b": "x"}, {"a": 1}],
)
def test_labels_that_would_mean_another_request_are_refused(labels: dict[str, Any]) -> None:
    """Plain http, parameters, another address: the proxy would do something else than the file says."""
    with pytest.raises(InputError):
        parse_target_file(_file(_group(**labels)), WHERE)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b'[{"targets": "x"}]', b"[{", b"\xff", b"- [", b'[{"targets":[],"x":1}]', b"null"],
)
def test_malformed_list_of_groups_is_refused_with_its_place(data: bytes) -> None:
    """Truncated, binary or foreign content: one line with the file's name."""
    with pytest.raises(InputError) as error:
        parse_target_file(data, WHERE)
    assert WHERE in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b'[{"targets": ["10.0.0.7:1"], "targets": [], "labels": {}}]',
        b"- targets: []\n  targets: []\n",
        b'[{"targets": [], "labels": {"__meshscrape_spiffe_id": "%b", "__meshscrape_spiffe_id": "%b2"}}]'
        % (ID.encode(), ID.encode()),
    ],
    ids=["targets", "YAML", "identity"],
)
def test_refuses_a_repeated_key(data: bytes) -> None:
    """Which of the two counts differs between readers of JSON: the file is not used."""
    with pytest.raises(InputError) as caught:
        parse_target_file(data, WHERE)
    assert caught.value.where.startswith(f"{WHERE}:")


def test_repeated_target_counts_once() -> None:
    """The same address and path twice is a mistake, not two targets."""
    with pytest.raises(InputError, match="twice"):
        parse_target_file(_file(_group(), _group(job="other")), WHERE)


_ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda each: not (each.is_multicast or each.is_unspecified or getattr(each, "scope_id", None))
)
_TARGETS = st.builds(
    Target,
    _ADDRESSES.map(str),
    st.integers(1, 65535),
    st.just(SpiffeId.parse(ID)),
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), st.text(max_size=8), max_size=3),
    st.sampled_from(["/stats/prometheus", "/metrics", "/a/b-c_d.e"]),
)


@given(_TARGETS)
def test_written_targets_are_read_back(target: Target) -> None:
    """The writer's and the reader's idea of a target are the same, whatever the labels' values."""
    assert parse_target_file(json.dumps(target_file([target])).encode(), WHERE) == (target,)


def test_http_sd_sends_prometheus_to_the_proxy() -> None:
    """Plain http, the path always spelled out, the identity as a meta label, the user's labels."""
    target = Target("fd00::7", 15092, SpiffeId.parse(ID), {"pod": "x-0"}, "/metrics")
    assert http_sd([target]) == [
        {
            "targets": ["[fd00::7]:15092"],
            "labels": {
                "pod": "x-0", "__scheme__": "http", "__metrics_path__": "/metrics",
                "__meta_meshscrape_spiffe_id": ID,
            },
        }
    ]  # fmt: skip
