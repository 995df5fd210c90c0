"""Who is expected at which address, from whole lists of targets."""

from __future__ import annotations

from meshscrape.prometheus.targets import Target
from meshscrape.proxy.expectations import Expectations
from meshscrape.spiffe.ids import SpiffeId


def target(
    address: str, account: str = "web", path: str = "/metrics", port: int = 1, *, ready: bool = True
) -> Target:
    """A target of a ServiceAccount."""
    identity = SpiffeId.parse(f"spiffe://cluster.local/ns/default/sa/{account}")
    return Target(address, port, identity, {}, path, ready=ready)


def test_tells_only_what_changed() -> None:
    """Targets that are the same objects as before are no change, wherever they are in the list."""
    first, second, third = target("10.0.0.1"), target("10.0.0.2"), target("10.0.0.3", "other")
    expected = Expectations()
    assert expected.update([first, second]).added == (first, second)
    changed = expected.update([third, first])
    assert changed.addresses == {"10.0.0.2", "10.0.0.3"}
    assert (changed.added, changed.removed) == ((third,), (second,))
    assert expected.update([first, third]).addresses == frozenset()
    assert (expected.at("10.0.0.1"), expected.at("10.0.0.2")) == ((first,), ())
    assert {str(each).rpartition("/")[2] for each in expected.identities} == {"web", "other"}
    expected.update([])
    assert (len(expected), expected.identities) == (0, frozenset())


def test_nobody_is_scraped_where_two_identities_are_expected() -> None:
    """Every target of the port goes, of whichever path; other ports and addresses stay."""
    clear, hers, his = target("10.0.0.1"), target("10.0.0.2"), target("10.0.0.2", "other", "/x")
    beside = target("10.0.0.2", port=2)
    expected = Expectations()
    expected.update([clear, hers, his, beside])
    assert expected.contested == ("10.0.0.2:1",)
    assert expected.at("10.0.0.2") == (beside,)
    assert expected.at("10.0.0.1") == (clear,)
    expected.update([clear, his, beside])
    assert expected.contested == ()
    assert expected.at("10.0.0.2") == (his, beside)


def test_one_identity_at_an_address_is_no_contradiction() -> None:
    """The same identity may be expected there by several jobs and at several paths."""
    expected = Expectations()
    expected.update([target("10.0.0.1"), target("10.0.0.1", path="/x"), target("10.0.0.1")])
    assert expected.contested == ()
    assert len(expected.at("10.0.0.1")) == 3


def test_a_target_that_is_not_ready_contests_none_that_is() -> None:
    """The address of a pod that was never ready again may be another pod's by now."""
    ready, coming = target("10.0.0.1"), target("10.0.0.1", "other", ready=False)
    expected = Expectations()
    expected.update([coming])
    assert expected.at("10.0.0.1") == (coming,)
    expected.update([coming, ready])
    assert (expected.contested, expected.at("10.0.0.1")) == ((), (ready,))
    expected.update([coming])
    assert expected.at("10.0.0.1") == (coming,)


def test_two_identities_that_are_not_ready_have_no_route() -> None:
    """Until one of them is; meanwhile nobody expects a scrape there, so this is no contradiction."""
    first, second = target("10.0.0.1", ready=False), target("10.0.0.1", "other", ready=False)
    beside = target("10.0.0.1", "other", port=2, ready=False)
    expected = Expectations()
    expected.update([first, second, beside])
    assert (expected.contested, expected.at("10.0.0.1")) == ((), (beside,))
