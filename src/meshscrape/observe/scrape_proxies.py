"""Find the scrape proxy in a scraper's pod, and the jobs that go through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshscrape.kube import objects
from meshscrape.observe.declared_jobs import DeclaredJob

# The address of `meshscrape proxy` without --listen.
_LISTEN = "127.0.0.1:15094"
# With one of these options the proxy knows only a part of the cluster's pods.
_PARTIAL = ("-n", "--namespace", "--selector")


def scrape_proxy_of(template: Any) -> str:
    """Return the address of the scrape proxy in a pod template; empty without one that knows all pods."""
    for container in objects.containers(template):
        words = [str(word) for word in objects.as_list(container.get("args"))]
        if words[:1] != ["proxy"] or "--kubernetes" not in words or _option(words, "--role") == "envoy":
            continue
        if not any(word.partition("=")[0] in _PARTIAL for word in words):
            return _option(words, "--listen") or _LISTEN
    return ""


def is_proxied(job: DeclaredJob) -> bool:
    """Return whether a job's scrapes go through the scrape proxy next to its scraper."""
    proxy = job.scraper.scrape_proxy if job.scraper else ""
    raw: Mapping[str, Any] = job.raw
    return bool(proxy) and (raw.get("proxy_url") or raw.get("proxyUrl")) == f"http://{proxy}"


def _option(words: Sequence[str], name: str) -> str:
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and index + 1 < len(words):
            return words[index + 1]
    return ""
