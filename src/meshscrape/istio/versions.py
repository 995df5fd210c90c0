"""Versions of Istio's proxies and control planes, as image tags spell them.

These forms of tags are recognised: `1.31.0`, `1.31.0-rc.0-distroless`, `1.31-alpha.<hash>`, Google's
`1.11.2-asm.17`, Solo's `1.29.2-solo`, Alibaba Cloud's `v1.14.3.47-ga31201346f-aliyun` (the fourth number is
their own patch). A tag without a version (`latest`) and a digest give an unknown version; it is never
guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VARIANTS = ("-distroless", "-debug")
# Only 1.x: OpenShift Service Mesh numbers its images 2.x and 3.x, which are not Istio's numbers.
_TAG = re.compile(
    r"v?(?P<numbers>1\.[0-9]{1,3}(?:\.[0-9]{1,4}){0,2})(?:-(?P<suffix>[A-Za-z0-9][A-Za-z0-9._-]*))?"
)
_ALIYUN = re.compile(r"(?:g[0-9a-f]+-)?aliyun")
_PRERELEASE = re.compile(r"(?:alpha|beta|rc|dev)(?:[.-].*)?")
_PROXY_IMAGE = re.compile(r"(?:.*[-_.])?proxy(?:v2)?(?:[-_.].*)?")
_OTHER_PROXIES = ("ztunnel", "agentgateway", "envoy")


@dataclass(frozen=True, slots=True)
class IstioVersion:
    """A version; `numbers` is None when it is unknown. `text` is the tag or image that it was read from.

    `prerelease` is `rc.0` and the like; `vendor` is `aliyun`, `asm` (Google's), `solo` or another suffix.
    """

    text: str = ""
    numbers: tuple[int, int, int] | None = None
    prerelease: str = ""
    vendor: str = ""

    @property
    def known(self) -> bool:
        """Return whether the version is known."""
        return self.numbers is not None

    def at_least(self, version: str) -> bool | None:
        """Return whether this is `version` (`1.31`, `1.22.3`) or newer; None when it is unknown.

        A pre-release counts as its release: it has the same features, although they may still change.
        """
        if self.numbers is None:
            return None
        wanted = tuple(int(part) for part in version.split("."))
        return self.numbers[: len(wanted)] >= wanted

    def __str__(self) -> str:
        if self.numbers is None:
            return "unknown"
        spelled = ".".join(map(str, self.numbers))
        return spelled + (f"-{self.prerelease}" if self.prerelease else "")


UNKNOWN = IstioVersion()


def parse_version(tag: str) -> IstioVersion:
    """Return the version that an image tag (or `--istio-version`) spells; unknown when it spells none."""
    rest = tag.strip()
    for variant in _VARIANTS:
        rest = rest.removesuffix(variant)
    match = _TAG.fullmatch(rest)
    if match is None:
        return IstioVersion(text=tag)
    parts = [int(part) for part in match["numbers"].split(".")]
    suffix = match["suffix"] or ""
    aliyun = _ALIYUN.fullmatch(suffix)
    if len(parts) == 4 and not aliyun:
        return IstioVersion(text=tag)
    major, minor, patch = (*parts, 0, 0)[:3]
    prerelease = suffix if _PRERELEASE.fullmatch(suffix) else ""
    vendor = "aliyun" if aliyun else "" if prerelease else suffix.partition(".")[0].partition("-")[0]
    return IstioVersion(tag, (major, minor, patch), prerelease, vendor)


def split_image(image: str) -> tuple[str, str]:
    """Return repository and tag of an image reference; the tag is empty when it has none."""
    name = image.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    # A colon before the last slash is a registry's port.
    if not colon or "/" in tag:
        return name, ""
    return repository, tag


def image_version(image: str) -> IstioVersion:
    """Return the Istio version of an image; unknown when it is neither Istio's proxy nor istiod.

    The number of `envoyproxy/envoy:v1.31.0` is a version of Envoy. ztunnel and agentgateway contain no Envoy.
    """
    repository, tag = split_image(image)
    name = repository.rpartition("/")[2]
    if name.startswith(_OTHER_PROXIES) or not (_PROXY_IMAGE.fullmatch(name) or name.startswith("pilot")):
        return IstioVersion(text=image)
    version = parse_version(tag)
    return version if version.known else IstioVersion(text=image)
