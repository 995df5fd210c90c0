"""SPIFFE IDs: what is one, and everything that only looks like one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import MAX_ID_BYTES, SpiffeId, check_trust_domain, workload_id

TRUST_DOMAINS = st.text("abcxyz019.-_", min_size=1, max_size=40)
SEGMENTS = st.text("abcXYZ019.-_", min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))
PATHS = st.lists(SEGMENTS, max_size=6).map(lambda segments: "".join(f"/{segment}" for segment in segments))
# An independent statement of the rule, for the whole string at once.
GRAMMAR = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+)*\Z")
WHOLE = "spiffe://cluster.local/ns/foo/sa/bar"


@given(TRUST_DOMAINS, PATHS)
def test_spelling_and_parsing_are_inverse(trust_domain: str, path: str) -> None:
    """Every valid ID is spelled in exactly one way, and that spelling parses to the same ID."""
    spiffe_id = SpiffeId(trust_domain, path)
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id


@given(st.one_of(st.text(max_size=60), st.text("spife:/.%aA-_\n\0é", max_size=40).map("spiffe://".__add__)))
def test_accepts_exactly_the_grammar(text: str) -> None:
    """Whatever the text, the parser agrees with the specification's grammar."""
    try:
        accepted = str(SpiffeId.parse(text)) == text
    except InputError:
        accepted = False
    assert accepted == bool(GRAMMAR.match(text))


@given(st.integers(0, len(WHOLE)), st.sampled_from("\n\r\t \0%:@?#\\*[]é\uff0f\u24d0"))
def test_one_foreign_character_anywhere_is_refused(position: int, character: str) -> None:
    """No place in an ID takes a character from outside the alphabet, the end included."""
    with pytest.raises(InputError):
        SpiffeId.parse(WHOLE[:position] + character + WHOLE[position:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///ns/foo/sa/bar",
        "SPIFFE://cluster.local/ns/foo/sa/bar",
        "https://cluster.local/ns/foo/sa/bar",
        "spiffe:/cluster.local/ns/foo",
        "spiffe://Cluster.local/ns/foo/sa/bar",
        "spiffe://cluster.local:443/ns/foo",
        "spiffe://user@cluster.local/ns/foo",
        "spiffe://cluster.local/",
        "spiffe://cluster.local/ns/foo/",
        "spiffe://cluster.local//ns",
        "spiffe://cluster.local/ns/./sa",
        "spiffe://cluster.local/ns/../sa",
        "spiffe://cluster.local/ns/%66oo/sa/bar",
        "spiffe://cluster.local/ns/foo/sa/bar\n",
        "spiffe://cluster.local/ns/foo/sa/bar?x",
        "spiffe://cluster.local/ns/foo/sa/bar#x",
        "spiffe://cluster.local/*",
        " spiffe://cluster.local/ns/foo",
    ],
)
def test_malformed_ids_are_refused(text: str) -> None:
    """Each of these is outside the specification, and the error is one line that shows what was written."""
    with pytest.raises(InputError) as caught:
        SpiffeId.parse(text)
    assert "\n" not in str(caught.value)
    assert "not a SPIFFE ID" in str(caught.value)


def test_length_is_bounded() -> None:
    """2048 bytes are an ID, 2049 are not; a trust domain has at most 255."""
    start = "spiffe://a/"
    assert SpiffeId.parse(start + "b" * (MAX_ID_BYTES - len(start)))
    with pytest.raises(InputError):
        SpiffeId.parse(start + "b" * (MAX_ID_BYTES - len(start) + 1))
    assert check_trust_domain("a" * 255)
    with pytest.raises(InputError):
        check_trust_domain("a" * 256)


def test_an_invalid_id_cannot_be_built() -> None:
    """The constructor checks as the parser does: no invalid ID can exist."""
    with pytest.raises(InputError):
        SpiffeId("cluster.local", "ns/foo")
    with pytest.raises(InputError):
        SpiffeId("cluster.local\n", "")


def test_workload_parts() -> None:
    """Namespace and service account come from the /ns/N/sa/S form alone."""
    spiffe_id = workload_id("cluster.local", "foo", "bar.baz")
    assert str(spiffe_id) == "spiffe://cluster.local/ns/foo/sa/bar.baz"
    assert (spiffe_id.namespace, spiffe_id.service_account) == ("foo", "bar.baz")
    for path in ("", "/ns/foo", "/ns/foo/sa/bar/x", "/x/foo/sa/bar", "/ns/foo/x/bar"):
        other = SpiffeId("cluster.local", path)
        assert (other.namespace, other.service_account) == (None, None)


@pytest.mark.parametrize(
    ("namespace", "service_account"),
    [
        ("Foo", "bar"),
        ("foo/sa/x", "bar"),
        ("foo.bar", "bar"),
        ("", "bar"),
        ("-foo", "bar"),
        ("f" * 64, "bar"),
        ("foo", ""),
        ("foo", "bar/"),
        ("foo", "bar\n"),
        ("foo", "a..b"),
        ("foo", "B"),
        ("foo", ".".join(["a" * 63] * 4)),
    ],
)
def test_workload_names_are_kubernetes_names(namespace: str, service_account: str) -> None:
    """What Kubernetes would not take as a name never becomes part of an identity."""
    with pytest.raises(InputError):
        workload_id("cluster.local", namespace, service_account)
