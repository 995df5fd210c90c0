"""Networks are claimed by one mesh at a time, and workloads keep their addresses."""

from __future__ import annotations

from meshscrape.local.addresses import claim_subnet


def test_two_meshes_get_different_networks() -> None:
    """A claimed network is not given twice while it is held, and is free again afterwards."""
    with claim_subnet() as first:
        with claim_subnet() as second:
            assert first.octet != second.octet
            freed = second.octet
        with claim_subnet() as third:
            assert third.octet <= freed


def test_a_workload_keeps_its_pair_until_it_is_released() -> None:
    """Asking again gives the same addresses; a released pair goes to the next newcomer."""
    with claim_subnet() as subnet:
        web, api = subnet.allocate("shop/web"), subnet.allocate("shop/api")
        assert web != api and subnet.allocate("shop/web") == web
        assert web.pod != web.inside
        subnet.release("shop/web")
        assert subnet.allocate("shop/new") == web
        assert subnet.allocate("shop/api") == api


def test_addresses_are_loopback_addresses_of_the_claimed_network() -> None:
    """Nothing of a mesh is ever outside 127.S.0.0/16."""
    with claim_subnet() as subnet:
        pair = subnet.allocate("a/b")
        for address in (pair.pod, pair.inside, subnet.ca_address):
            assert address.startswith(f"127.{subnet.octet}.")
