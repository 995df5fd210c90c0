"""Versions are told only where a tag tells them."""

from __future__ import annotations

import pytest

from meshscrape.istio.versions import image_version, parse_version, split_image


@pytest.mark.parametrize(
    ("tag", "numbers", "prerelease", "vendor"),
    [
        ("1.31.0", (1, 31, 0), "", ""),
        ("1.31", (1, 31, 0), "", ""),
        ("1.31.0-distroless", (1, 31, 0), "", ""),
        ("1.31.0-debug", (1, 31, 0), "", ""),
        ("1.31.0-rc.0-distroless", (1, 31, 0), "rc.0", ""),
        ("1.31-alpha.9ad3e4", (1, 31, 0), "alpha.9ad3e4", ""),
        ("1.11.2-asm.17-distroless", (1, 11, 2), "", "asm"),
        ("1.29.2-solo-distroless", (1, 29, 2), "", "solo"),
        ("v1.14.3.47-ga31201346f-aliyun", (1, 14, 3), "", "aliyun"),
        ("v1.18.0.1-g0a1b2c3-aliyun", (1, 18, 0), "", "aliyun"),
        ("1.8.6", (1, 8, 6), "", ""),
    ],
)
def test_tags_of_istio_and_vendors_are_recognised(
    tag: str, numbers: tuple[int, ...], prerelease: str, vendor: str
) -> None:
    """Release, pre-release and vendor are read from the tag; the fourth number is the vendor's own."""
    version = parse_version(tag)
    assert (version.numbers, version.prerelease, version.vendor) == (numbers, prerelease, vendor)


@pytest.mark.parametrize(
    "tag",
    ["latest", "master-20260101", "", "1", "2.6.1", "3.0.0", "20260101", "1.31.0.4", "sha256-abc", "1.x"],
)
def test_tags_without_a_version_are_unknown(tag: str) -> None:
    """A moving tag, another product's numbering or nothing at all is unknown, and compares as unknown."""
    version = parse_version(tag)
    assert not version.known
    assert str(version) == "unknown"
    assert version.at_least("1.1") is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.istio.io/release/proxyv2:1.31.0-distroless", "1.31.0"),
        ("localhost:5000/proxyv2:1.30.1", "1.30.1"),
        ("docker.io/istio/proxyv2:1.30.1@sha256:" + "0" * 64, "1.30.1"),
        ("docker.io/istio/proxyv2@sha256:" + "0" * 64, "unknown"),
        ("localhost:5000/proxyv2", "unknown"),
        ("registry.redhat.io/openshift-service-mesh/istio-proxyv2-rhel9:3.0.1", "unknown"),
        ("registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:v1.18.0.1-g0a1b2c3-aliyun", "1.18.0"),
        ("envoyproxy/envoy:v1.31.0", "unknown"),
        ("docker.io/istio/ztunnel:1.31.0", "unknown"),
        ("cr.agentgateway.dev/agentgateway-proxy:1.31.0", "unknown"),
        ("docker.io/istio/pilot:1.31.0", "1.31.0"),
        ("auto", "unknown"),
    ],
)
def test_version_of_an_image_is_read_only_for_istio(image: str, expected: str) -> None:
    """The version is the tag of a proxyv2 image; a digest alone, and other proxies, tell nothing."""
    assert str(image_version(image)) == expected


def test_comparison_counts_a_pre_release_as_its_release() -> None:
    """1.31.0-rc.0 has what 1.31 has; 1.9 is older than 1.31."""
    assert parse_version("1.31.0-rc.0").at_least("1.31") is True
    assert parse_version("1.30.9").at_least("1.31") is False
    assert parse_version("1.9.0").at_least("1.31") is False
    assert parse_version("1.31.2").at_least("1.31.3") is False


def test_port_of_a_registry_is_not_a_tag() -> None:
    """The colon of `localhost:5000/name` separates a port."""
    assert split_image("localhost:5000/name") == ("localhost:5000/name", "")
    assert split_image("localhost:5000/name:1.2") == ("localhost:5000/name", "1.2")
