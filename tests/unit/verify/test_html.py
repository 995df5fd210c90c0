"""The page of a report: well-formed, self-contained, harmless whatever a mesh is called, and complete."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from html.parser import HTMLParser
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from meshscrape.verify.check import PlannedCheck
from meshscrape.verify.findings import Outcome, Report
from meshscrape.verify.html.markup import Markup, element, fit, shorten
from meshscrape.verify.html.page import empty_page, page
from support.reports import NOW, STYLE, certificate, mesh_of, report_of, result

HOSTILE = '<script>alert("1")</script>\'"&amp;]]>\x00\x1b[2J\u202e\ud800'
CLEAN = report_of(mesh_of(["httpbin"]))


def tree(text: str) -> Element:
    """The page as XML: it is well-formed as that, too."""
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text.partition("\n")[2])


def words(node: Element) -> str:
    """All text below a node."""
    return " ".join("".join(node.itertext()).split())


def one_unlisted(planned: PlannedCheck) -> tuple[Outcome, str] | None:
    return ("failed", "default/other: HTTP 200") if planned.check.name == "unlisted-workload" else None


class Elements(HTMLParser):
    """Every element and attribute as an HTML parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_nothing_is_loaded_and_nothing_runs() -> None:
    """No element that loads or runs, no inline style or handler, and a policy that forbids both."""
    text = page(CLEAN, NOW, STYLE)
    seen = Elements(text)
    assert not seen.names & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "a",
        "base",
        "image",
    }
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert not seen.attributes & {"style", "src", "href", "xlink:href", "srcset", "action"}
    assert not re.search(r"url\(|@import|https?://", text)
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = tree(text).find("./head/meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert policy.get("content", "").startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_hostile_names_and_answers_are_text() -> None:
    """What a workload is called and what a target answers cannot become markup, nor turn text around."""
    mesh = mesh_of(["httpbin"])
    workload = replace(mesh.workloads[0], name=HOSTILE)
    hostile = replace(mesh, workloads=(workload, mesh.workloads[1]), trust_domain=HOSTILE)
    bad = result("paths", "failed", f"default/{HOSTILE}", f"{HOSTILE}:1", HOSTILE)
    report = replace(report_of(hostile, one_unlisted, bad), scraper=HOSTILE)
    report = replace(report, certificates=(certificate(HOSTILE, HOSTILE, HOSTILE),))
    text = page(report, NOW, STYLE, HOSTILE)
    assert Elements(text).names == Elements(page(report_of(mesh, one_unlisted, bad), NOW, STYLE)).names
    assert "<script" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", text)
    assert 'alert("1")' in words(tree(text))
    text.encode()


def test_every_finding_is_told_in_full() -> None:
    """Severity as a word and a sign, check, workload, target, seen, expected, remedy."""
    report = report_of(mesh_of(["httpbin"]), one_unlisted)
    root = tree(page(report, NOW, STYLE))
    cards = [words(each) for each in root.iter("section")]
    assert len(cards) == len(report.findings) == 2
    for card, finding in zip(cards, report.findings, strict=True):
        assert card.startswith("✗ HOLE unlisted-workload default/httpbin")
        for part in (finding.target, finding.seen, finding.expected, finding.remedy):
            assert part in card
    assert "✗ 2 findings" in words(root)


def test_every_check_is_in_a_table() -> None:
    """One row each; what has findings is open at once."""
    report = report_of(
        mesh_of(["httpbin", "other"]), lambda p: one_unlisted(p) if "other" in p.workload else None
    )
    details = list(tree(page(report, NOW, STYLE)).iter("details"))
    rows = [row for each in details for row in each.iter("tr")]
    assert len(rows) - len(details) == len(report.checks)
    assert [each.get("open") for each in details] == [None, "open", None]


def test_results_are_words_and_signs_not_colours() -> None:
    """Every outcome has its own word."""
    outcomes: list[Outcome] = ["passed", "failed", "skipped", "blocked", "noted"]
    more = [result("paths", each, "default/httpbin", "127.9.1.2:1", "x") for each in outcomes]
    text = words(tree(page(replace(CLEAN, checks=tuple(more)), NOW, STYLE)))
    for word in ("✓ ok", "✗ FAILED", "? UNCHECKED", "- blocked", "! note"):
        assert word in text


def picture(report: Report) -> list[str]:
    """The texts of the picture, in order."""
    svg = tree(page(report, NOW, STYLE)).find(".//div[@class='scroll']/svg")
    assert svg is not None
    return [words(each) for each in svg.iter("text")]


def test_picture_shows_the_results_of_every_client() -> None:
    """Scraper, proxy, ports; what the scraper gets and what everybody else does not."""
    texts = picture(report_of(mesh_of(["httpbin"]), one_unlisted))
    assert [t for t in texts if "rometheus" in t][:2] == ["Prometheus", "istio-system/prometheus"]
    assert {"scrape proxy", "checks each SPIFFE ID", "default/httpbin", "15092", "15091"} <= set(texts)
    assert texts.count("mutual TLS, identity checked") == 3
    assert texts.count("✗ unlisted-workload") == 2
    assert texts.count("✓ closed (1 check)") == 2


def test_without_a_proxy_the_picture_says_that_servers_are_not_checked() -> None:
    """The direct way is drawn as what it is."""
    texts = picture(report_of(mesh_of(["httpbin"], proxied=False)))
    assert "mutual TLS, server unchecked" in texts
    assert "scrape proxy" not in texts


def test_an_unannounced_port_is_drawn() -> None:
    """It is a port of the workload like any other, and everybody gets in."""
    hidden = result("exposed-metrics", "failed", "default/httpbin", "127.9.1.2:9464", "metrics")
    texts = picture(report_of(mesh_of(["httpbin"]), lambda _: None, hidden))
    at = texts.index("9464")
    assert texts[at + 1] == "not announced"
    assert texts[at + 2] == "✗ exposed-metrics"


def test_a_large_mesh_shows_what_is_wrong_first() -> None:
    """The picture is bounded, says what it leaves out, and leaves out clean workloads first."""
    names = [f"w-{number}" for number in range(200)]
    report = report_of(mesh_of(names), lambda p: one_unlisted(p) if p.workload == "default/w-199" else None)
    texts = picture(report)
    assert next(each for each in texts if each.startswith("default/")) == "default/w-199"
    assert "and 140 more workloads, 0 of them with findings: see “Every check”" in texts


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (-3600, 3600, "✓ 1h 0m left (50%)"),
        (-3600, 60, "! 1m 0s left (2%): renewal is overdue"),
        (-3600, -90, "✗ ended 1m 30s ago"),
        (86400, 172800, "✗ begins in 1d 0h"),
        (-90 * 86400, 365 * 86400, "✓ 365d 0h left (80%)"),
    ],
)
def test_a_certificate_s_life_is_said_in_words(begin: int, end: int, said: str) -> None:
    """Beside the bar, and as the bar's own text."""
    life = replace(
        certificate("spiffe://a/b"),
        not_before=NOW + timedelta(seconds=begin),
        not_after=NOW + timedelta(seconds=end),
    )
    root = tree(page(replace(CLEAN, certificates=(life,)), NOW, STYLE))
    [bar] = [each for each in root.iter("div") if each.get("class") == "life"]
    assert said in words(bar)
    svg = bar.find("svg")
    assert svg is not None
    assert svg.get("aria-label") == f"spiffe://a/b: {said}"


def test_one_certificate_on_several_ports_is_one_bar() -> None:
    """The soonest end on top."""
    early = replace(certificate("spiffe://a/early"), not_after=NOW + timedelta(hours=1))
    same = [certificate("spiffe://a/late", target=f"127.9.1.1:{port}") for port in (15091, 15092)]
    root = tree(page(replace(CLEAN, certificates=(*same, early)), NOW, STYLE))
    bars = [words(each) for each in root.iter("div") if each.get("class") == "life"]
    assert len(bars) == 2
    assert "a/early" in bars[0]
    assert "server, 127.9.1.1:15091, 127.9.1.1:15092" in bars[1]


def test_a_run_that_could_not_be_made_is_the_headline() -> None:
    """What an earlier run saw is still there, and called older; without one nothing is claimed."""
    text = words(tree(page(CLEAN, NOW, STYLE, "no mesh is running")))
    assert "The last run could not be made: no mesh is running. What follows is older." in text
    assert "✓ No findings" not in text
    empty = words(tree(empty_page("no mesh is running", NOW, STYLE)))
    assert "could not be made" in empty
    assert "everything that was expected" not in empty


def test_text_is_escaped_and_markup_is_not() -> None:
    """Only what this program itself made is taken as markup."""
    assert element("p", "<b>", Markup("<b></b>"), class_='"') == '<p class="&quot;">&lt;b&gt;<b></b></p>'
    assert element("meta", name="a") == '<meta name="a" />'


def test_labels_are_shortened_to_the_room_they_have() -> None:
    """Wide letters sooner than narrow ones, and not without need."""
    wide, narrow = fit("m" * 63, 200), fit("i" * 63, 200)
    assert len(wide) < len(narrow) < 63
    assert fit("default/httpbin", 200) == "default/httpbin"
    assert fit("default/httpbin", 0) == "…"


def test_long_names_keep_both_ends() -> None:
    """The middle is what can be missed."""
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abcde", 5) == "abcde"
