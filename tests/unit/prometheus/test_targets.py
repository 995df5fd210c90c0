"""Which endpoints of a workload are targets, and how they are written for Prometheus."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshscrape.istio.scrape_targets import ScrapeSource
from meshscrape.prometheus.targets import (
    APPLICATION_JOB,
    ENVOY_JOB,
    JOBS,
    MERGED_JOB,
    ScrapedWorkload,
    Target,
    by_job,
    file_sd,
    targets_of,
)
from meshscrape.spiffe.ids import SpiffeId

ID = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")
WEB = ScrapedWorkload(
    namespace="shop",
    pod="web-0",
    workload="web",
    spiffe_id=ID,
    address="127.20.1.1",
    secure_merged_port=15092,
    secure_envoy_port=15091,
    sources=(
        ScrapeSource(9080),
        ScrapeSource(9100, "/m"),
        ScrapeSource(9200, "/s", "https"),
        ScrapeSource(7),
    ),
    mtls_ports=frozenset({9080, 9100, 9200}),
)


def test_secure_ports_and_mtls_application_ports_are_targets() -> None:
    """Merged and Envoy statistics each have a job; application ports only where Envoy speaks mutual TLS."""
    found = {job: [target.url for target in targets] for job, targets in targets_of(WEB).items()}
    assert found == {
        MERGED_JOB: ["https://127.20.1.1:15092/stats/prometheus"],
        ENVOY_JOB: ["https://127.20.1.1:15091/stats/prometheus"],
        APPLICATION_JOB: ["https://127.20.1.1:9080/metrics", "https://127.20.1.1:9100/m"],
    }


@pytest.mark.parametrize(
    ("field", "job"), [("secure_merged_port", MERGED_JOB), ("secure_envoy_port", ENVOY_JOB)]
)
def test_port_that_is_off_is_not_a_target(field: str, job: str) -> None:
    """Port 0 means off."""
    assert job not in targets_of(replace(WEB, **{field: 0}))  # type: ignore[arg-type]


def test_every_job_is_present_even_without_targets() -> None:
    """A target file exists for each job, so that the last workload's end empties it."""
    assert by_job([]) == {job: [] for job in JOBS}


def test_targets_expect_the_workloads_identity_and_carry_its_labels() -> None:
    """Address and expected identity belong together."""
    (target,) = targets_of(WEB)[MERGED_JOB]
    assert target.spiffe_id == ID
    assert target.labels == {"namespace": "shop", "pod": "web-0", "workload": "web"}


def test_an_ipv6_address_is_in_brackets() -> None:
    """host:port of an IPv6 address is ambiguous without brackets."""
    target = Target("fd00::1", 15092, ID, {})
    assert target.authority == "[fd00::1]:15092"
    assert file_sd([target])[0]["targets"] == ["[fd00::1]:15092"]


def test_a_path_of_its_own_is_a_label_that_prometheus_understands() -> None:
    """The job's path is the default; other paths go per target."""
    groups = file_sd(targets_of(WEB)[APPLICATION_JOB] + targets_of(WEB)[MERGED_JOB])
    assert [group["labels"].get("__metrics_path__") for group in groups] == ["/metrics", "/m", None]


def test_order_does_not_depend_on_the_workloads_order() -> None:
    """Equal sets of targets give equal files, which are then not written again."""
    other = replace(WEB, address="127.20.1.2", workload="api")
    assert by_job([WEB, other]) == by_job([other, WEB])
