"""`explain` reads a real merged endpoint: the reasons that it names are those of the merge."""

from __future__ import annotations

import asyncio

from meshscrape.agent.merged import PATHS, MergedMetrics
from meshscrape.agent.sources import MergedOptions
from meshscrape.exposition.source import MergeLimits
from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.system.http.client import FetchLimits, fetch
from meshscrape.system.http.server import HttpServer, routes
from meshscrape.verify.explain.scraper import Step
from meshscrape.verify.explain.sources import drops_lines, source_steps
from meshscrape.verify.observations import Answered
from support.addresses import loopback
from support.applications import Behaviour, application, says

FIRST = b"# TYPE shared gauge\nshared 1\n"


async def steps_of(second: Behaviour, **options: object) -> tuple[list[Step], int]:
    """Scrape a pod twice, with a healthy first application and this second one; return what is explained."""
    address = loopback()
    async with application(says(FIRST), address) as first, application(second, address) as odd:
        sources = (ScrapeSource(first), ScrapeSource(odd))
        merged = MergedMetrics(MergedOptions(sources, address, **options), lambda: b"")  # type: ignore[arg-type]
        async with HttpServer(
            routes(dict.fromkeys(PATHS, merged.handle)), addresses=[(address, 0)]
        ) as server:
            url = f"http://{address}:{server.addresses[0][1]}/stats/prometheus"
            limits = FetchLimits(total=20, read=20)
            bodies = [(await fetch(url, limits=limits))[1] for _ in range(2)]
    once, again = (Answered(200, (), body) for body in bodies)
    second_look = again if drops_lines(once) else None
    expected = tuple(f"application:{each}" for each in (first, odd))
    return list(source_steps(once.body, expected, second_look)), odd


def explained(second: Behaviour, **options: object) -> dict[str, tuple[str, str]]:
    """The outcome and the words of each step, the odd application's port spelled PORT."""
    steps, odd = asyncio.run(steps_of(second, **options))
    return {each.name: (each.outcome, each.seen.replace(str(odd), "PORT")) for each in steps}


def test_healthy_pod_has_no_broken_step() -> None:
    """All sources are up, and nothing is left out."""
    found = explained(says(b"# TYPE own gauge\nown 1\n"))
    assert {name: outcome for name, (outcome, _) in found.items()} == {"sources": "ok", "dropped lines": "ok"}


def test_malformed_lines_at_every_scrape_are_a_fault() -> None:
    """The source is up, and what it loses is named all the same."""
    found = explained(says(b"# TYPE own gauge\nown 1\nthis is no line\nnor{this\n"))
    assert found["sources"][0] == "ok"
    assert found["dropped lines"][0] == "broken"
    assert "2 of application:PORT" in found["dropped lines"][1]


def test_refused_source_has_its_true_reason() -> None:
    """A page of HTML, not merely "down"."""
    outcome, words = explained(says(b"<html>no metrics here</html>\n", "text/html"))["sources"]
    assert outcome == "broken"
    assert "application:PORT is down (application:PORT: " in words


def test_families_of_earlier_ports_and_of_prometheus_are_distinguished() -> None:
    """Both are left out; the reason and the family are named."""
    steps, _ = asyncio.run(steps_of(says(b"# TYPE shared gauge\nshared 2\n# TYPE up gauge\nup 1\n")))
    hidden = [each.seen for each in steps if each.name == "left-out families"]
    assert len(hidden) == 2
    assert any("(up): Prometheus adds" in each for each in hidden)
    assert any("(shared): application:" in each and "comes earlier" in each for each in hidden)


def test_families_beyond_the_limit_are_a_fault() -> None:
    """Data is lost at every scrape, although the source is up."""
    many = b"".join(b"# TYPE f%d gauge\nf%d 1\n" % (number, number) for number in range(9))
    steps, _ = asyncio.run(steps_of(says(many), limits=MergeLimits(max_families=4)))
    assert "broken" in {each.outcome for each in steps}
