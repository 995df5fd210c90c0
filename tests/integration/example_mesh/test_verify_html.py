"""The page of `verify --html` in a real browser: laid out as meant, in light and dark, and loads nothing."""

from __future__ import annotations

import json
import re
import shutil
import stat
import struct
import subprocess
import zlib
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from meshscrape.verify.check import PlannedCheck
from meshscrape.verify.findings import Outcome
from meshscrape.verify.html.page import page
from support.mesh import Up
from support.reports import NOW, STYLE, mesh_of, report_of, result

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the page with")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--window-size=1240,1000", "--password-store=basic", "--use-mock-keychain",
)  # fmt: skip

# Put into a copy of the page: what a person would see wrong. Labels that leave the picture or cover each
# other, a page wider than its window, contrast below the 4.5 of WCAG.
LOOK = """
<script>
const all = (selector) => [...document.querySelectorAll(selector)];
const box = (node) => node.getBoundingClientRect();
const linear = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
function luminance(colour) {
  const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => linear(part / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(node) {
  const style = getComputedStyle(node);
  const colour = node.namespaceURI.endsWith('svg') ? style.fill : style.color;
  const [light, dark] = [luminance(colour), luminance(ground)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}
function cover([, a], [, b]) {
  const beside = a.right <= b.left + 1 || b.right <= a.left + 1;
  return !beside && a.bottom > b.top + 4 && b.bottom > a.top + 4;
}
const ground = getComputedStyle(document.body).backgroundColor;
const frame = box(document.querySelector('.scroll svg'));
const labels = all('.scroll svg text').map((node) => [node.textContent, box(node)]);
const shown = (node) => node.tagName !== 'title' && node.textContent.trim() && !node.children.length;
const leaves = all('body *').filter(shown);
document.title = JSON.stringify({
  texts: labels.length,
  ground,
  overlaps: labels.flatMap((a, i) =>
    labels.slice(i + 1).filter((b) => cover(a, b)).map((b) => [a[0], b[0]])),
  outside: labels.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1),
  weak: leaves.filter((node) => contrast(node) < 4.5).map((node) => node.textContent),
  scrolls: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  bars: all('.life svg').map((node) => box(node).width),
});
</script>
"""


def chromium(tmp_path: Path, page_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a fresh profile."""
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments, f"file://{page_file}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def looked_at(tmp_path: Path, text: str, *arguments: str) -> dict[str, Any]:
    """What the layout of a page is, measured by the browser."""
    instrumented = tmp_path / "instrumented.html"
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy".*?/>', "", text)
    instrumented.write_text(without_policy.replace("</main>", f"</main>{LOOK}"))
    dom = chromium(tmp_path, instrumented, "--dump-dom", *arguments).stdout
    found = re.search(r"<title>(\{.*?\})</title>", dom, re.DOTALL)
    assert found, dom[:500]
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


def hostile_lengths() -> str:
    """A page with the longest names that Kubernetes has, and something of every outcome."""

    def judge(planned: PlannedCheck) -> tuple[Outcome, str] | None:
        if planned.workload.endswith("b" * 63):
            return {
                "unlisted-workload": ("failed", "HTTP 200"),
                "expired-certificate": ("skipped", "could not be checked: no CA"),
                "sources": ("failed", "application:9080 is down"),
            }.get(planned.check.name)  # type: ignore[return-value]
        return None

    mesh = mesh_of(["a", "b" * 63, "m" * 63])
    hidden = result("exposed-metrics", "failed", f"default/{'b' * 63}", "127.9.1.3:9464", "metrics")
    return page(report_of(mesh, judge, hidden), NOW, STYLE)


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_the_intended_layout(tmp_path: Path, scheme: str) -> None:
    """No label covers another or leaves the picture, nothing is wider than the window, all is legible."""
    arguments = ["--force-dark-mode"] if scheme == "dark" else []
    seen = looked_at(tmp_path, hostile_lengths(), *arguments)
    assert seen["texts"] > 40
    assert seen["overlaps"] == []
    assert seen["outside"] == []
    assert seen["weak"] == []
    assert seen["scrolls"] is False
    assert set(seen["bars"]) == {330}
    assert seen["ground"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


@browser
def test_narrow_window_scrolls_only_the_picture(tmp_path: Path) -> None:
    """On a telephone the text wraps; the picture keeps a size that can be read."""
    seen = looked_at(tmp_path, hostile_lengths(), "--window-size=500,900")
    assert seen["scrolls"] is False
    assert seen["overlaps"] == []


@browser
def test_browser_shows_a_running_mesh(tmp_path: Path, example_mesh: Up) -> None:
    """The page as verify writes it, with its policy: drawn, nothing refused, nothing asked for."""
    example_mesh.wait_until_up()
    file = tmp_path / "report.html"
    done = example_mesh.run("verify", "--html", str(file), "--skip", "expired-certificate")
    assert done.returncode == 0, done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    picture = tmp_path / "page.png"
    said = chromium(tmp_path, file, f"--screenshot={picture}").stderr
    assert not re.search(r"Refused to|Content.Security.Policy|net::ERR|CONSOLE", said), said
    width, height, corner, size = png(picture)
    assert (width, height) == (1240, 1000)
    assert corner == (255, 255, 255)
    # A blank page of this size is some 5 kB.
    assert size > 40_000


def test_unwritable_page_is_reported_before_the_checks(tmp_path: Path, example_mesh: Up) -> None:
    """Exit code 2, one line."""
    done = example_mesh.run("verify", "--html", str(tmp_path / "absent/report.html"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--html" in done.stderr


def png(path: Path) -> tuple[int, int, tuple[int, ...], int]:
    """Width, height, the colour of the first pixel and the size of a PNG (8 bits per channel)."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    at, pixels = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        pixels += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    # The first pixel of the first line is stored as it is, whatever the line's filter.
    return width, height, tuple(zlib.decompress(pixels)[1:4]), len(data)
