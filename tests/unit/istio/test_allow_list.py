"""The allow list: typed entries, and nothing that looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.allow_list import (
    DnsScraper,
    SpiffeScraper,
    TrustDomainScraper,
    parse_scrapers,
    parse_scrapers_file,
)
from meshscrape.spiffe.ids import SpiffeId

PROMETHEUS = "spiffe://cluster.local/ns/istio-system/sa/prometheus"


def test_entries_are_typed_and_keep_their_order() -> None:
    """SPIFFE IDs, a whole trust domain, DNS names; spaces around and repetitions are dropped."""
    text = f"dns:prom.example, spiffe:{PROMETHEUS},\n spiffe:spiffe://other.example/*,dns:prom.example"
    assert parse_scrapers(text) == (
        DnsScraper("prom.example"),
        SpiffeScraper(SpiffeId.parse(PROMETHEUS)),
        TrustDomainScraper("other.example"),
    )


def test_a_file_has_entries_on_lines_and_comments() -> None:
    """Entries separated by lines or commas; comments and empty lines say nothing; repetitions are dropped."""
    text = (
        f"# scrapers\n\n  spiffe:{PROMETHEUS}\n dns:a.example, dns:b.example \r\n  # no more\ndns:a.example\n"
    )
    assert parse_scrapers_file(text, "list") == (
        SpiffeScraper(SpiffeId.parse(PROMETHEUS)),
        DnsScraper("a.example"),
        DnsScraper("b.example"),
    )
    assert parse_scrapers_file("", "list") == ()


@pytest.mark.parametrize("line", ["everybody", "dns:a.example dns:b.example", "dns:a.example # x", "dns:a,"])
def test_a_mistake_in_a_file_is_named_with_its_line(line: str) -> None:
    """Nothing of a file with a mistake is used."""
    with pytest.raises(InputError, match=r"^list:3: "):
        parse_scrapers_file(f"dns:a.example\n\n{line}\n", "list")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_list_admits_no_scraper(text: str) -> None:
    """Default deny."""
    assert parse_scrapers(text) == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PROMETHEUS, "not-an-entry"),
        ("cluster.local/ns/a/sa/b", "not-an-entry"),
        ("spiffe:*", "not-an-entry"),
        ("*", "not-an-entry"),
        ("ip:127.0.0.1", "not-an-entry"),
        ("SPIFFE:" + PROMETHEUS, "not-an-entry"),
        ("dns", "not-an-entry"),
        ("spiffe:spiffe://cluster.local", "trust-domain"),
        ("spiffe:spiffe://cluster.local/ns/a/*", "pattern"),
        ("spiffe:spiffe://*/*", "pattern"),
        ("spiffe:spiffe:///*", "not-a-spiffe-id"),
        ("spiffe:spiffe://Cluster.local/*", "not-a-spiffe-id"),
        ("spiffe:spiffe://cluster.local/ns/a/sa/*b", "not-a-spiffe-id"),
        ("spiffe:spiffe://cluster.local/ns/../sa/b", "not-a-spiffe-id"),
        ("spiffe:spiffe://cluster.local/ns/a/sa/b/", "not-a-spiffe-id"),
        ("dns:", "not-a-dns-name"),
        ("dns:*.example", "not-a-dns-name"),
        ("dns:Prom.example", "not-a-dns-name"),
        ("dns:prom.example.", "not-a-dns-name"),
        ("dns:10.0.0.1", "not-a-dns-name"),
        ("dns:-a.example", "not-a-dns-name"),
        ("dns:" + "a" * 64, "not-a-dns-name"),
        ("dns:" + "a." * 127 + "aa", "not-a-dns-name"),
        ("dns:a,,dns:b", "empty-entry"),
        ("dns:a,", "empty-entry"),
    ],
)
def test_malformed_entries_are_refused(text: str, code: str) -> None:
    """Each with the variable's name, what is wrong, and how to write it."""
    with pytest.raises(InputError) as caught:
        parse_scrapers(text)
    assert (caught.value.place.variable, caught.value.code) == ("MESHSCRAPE_SCRAPERS", code)
    assert caught.value.remedy


@given(
    st.lists(
        st.sampled_from([f"spiffe:{PROMETHEUS}", "spiffe:spiffe://td/*", "dns:a", "dns:b-c.example"]),
        unique=True,
    )
)
def test_the_list_survives_being_written_and_read(entries: list[str]) -> None:
    """str() of an entry is the entry."""
    assert [str(scraper) for scraper in parse_scrapers(",".join(entries))] == entries


@given(st.text() | st.text(alphabet="spifednsclu:/.*,-a1"))
def test_arbitrary_text_is_a_list_or_an_input_error(text: str) -> None:
    """And what is accepted is spelled in one way only."""
    try:
        scrapers = parse_scrapers(text)
    except InputError:
        return
    assert parse_scrapers(",".join(map(str, scrapers))) == scrapers
