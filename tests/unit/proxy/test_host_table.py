"""The virtual hosts of all targets: one for each identity and its paths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshscrape.envoy.scrape_proxy import by_authority, encoded_authority, encoded_host
from meshscrape.prometheus.targets import Target
from meshscrape.proxy.host_table import HostTable
from meshscrape.spiffe.ids import SpiffeId


def _target(address: str, account: str = "b", port: int = 15092, path: str = "/metrics") -> Target:
    return Target(address, port, SpiffeId("east.example", f"/ns/a/sa/{account}"), {}, path)


def _table(*targets: Target) -> HostTable:
    table = HostTable()
    for address in {target.address for target in targets}:
        table.put(address, [target for target in targets if target.address == address])
    return table


def _without_order(table: HostTable) -> set[tuple[int, frozenset[int]]]:
    """Each host as its length and its bytes, because a host's addresses have no order."""
    return {(len(host), frozenset(host)) for host in table.encoded()}


def test_addresses_where_the_same_is_expected_share_a_host() -> None:
    """The number of hosts is that of identities, not that of pods."""
    first, second = _target("10.0.0.1"), _target("10.0.0.2")
    authorities = map(encoded_authority, ("10.0.0.1:15092", "10.0.0.2:15092"))
    (expected,) = set(by_authority([first, second]).values())
    assert _without_order(_table(first, second)) == {
        (len(host := encoded_host(expected, authorities)), frozenset(host))
    }


def test_ports_of_one_address_with_other_identities_or_paths_have_hosts_of_their_own() -> None:
    """Pods with the node's network share an address; each keeps its own cluster."""
    targets = [
        _target("10.0.0.1"),
        _target("10.0.0.1", "c", 15093),
        _target("10.0.0.1", port=15094, path="/x"),
    ]
    hosts = _table(*targets).encoded()
    assert len(hosts) == 3
    for host, port in zip(hosts, (b"15092", b"15093", b"15094"), strict=True):
        assert host.count(b"10.0.0.1:") == 1
        assert b"10.0.0.1:" + port in host


_TARGETS = st.lists(
    st.builds(_target, st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]), st.sampled_from("bc"),
              st.just(15092), st.sampled_from(["/metrics", "/stats/prometheus"])),
    unique_by=lambda target: target.address,
)  # fmt: skip


@given(_TARGETS, _TARGETS)
def test_a_changed_table_equals_one_made_anew(before: list[Target], after: list[Target]) -> None:
    """Whatever came and went, no address keeps an old identity and none is lost."""
    table = _table(*before)
    table.encoded()
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        table.put(address, [target for target in after if target.address == address])
    assert sorted(map(sorted, table.encoded())) == sorted(map(sorted, _table(*after).encoded()))
