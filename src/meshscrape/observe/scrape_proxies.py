"""Find the scrape proxy in a scraper's pod, and the jobs that go through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meshscrape.kube import objects
from meshscrape.observe.declared_jobs import DeclaredJob
from meshscrape.observe.model import NO_PROXY, ObservedScrapeProxy

# The address of `meshscrape proxy` without --listen.
_LISTEN = "127.0.0.1:15094"


def scrape_proxy_of(template: Any) -> ObservedScrapeProxy:
    """Return the scrape proxy in a pod template.

    `NO_PROXY` is also for one that knows its pods by a selector, and one without certificate files.
    """
    for container in objects.containers(template):
        words = [str(word) for word in objects.as_list(container.get("args"))]
        if words[:1] != ["proxy"] or "--kubernetes" not in words or "envoy" in _values(words, "--role"):
            continue
        directories = [each.rpartition("=")[2] for each in _values(words, "--credentials")]
        if any(_values(words, "--selector")) or not all(_mounted(container, each) for each in directories):
            continue
        namespaces = (*_values(words, "-n"), *_values(words, "--namespace"))
        return ObservedScrapeProxy(next(_values(words, "--listen"), _LISTEN), tuple(sorted(set(namespaces))))
    return NO_PROXY


def is_proxied(job: DeclaredJob) -> bool:
    """Return whether a job's scrapes go through a scrape proxy in its scraper's pod that knows its pods."""
    proxy = job.scraper.scrape_proxy if job.scraper else NO_PROXY
    return bool(proxy.address) and proxy_url(job) == f"http://{proxy.address}" and _knows(proxy, job)


def proxy_url(job: DeclaredJob) -> str:
    """Return the HTTP proxy of a job; empty without one."""
    raw: Mapping[str, Any] = job.raw
    return str(raw.get("proxy_url") or raw.get("proxyUrl") or "")


def _knows(proxy: ObservedScrapeProxy, job: DeclaredJob) -> bool:
    if not proxy.namespaces:
        return True
    return not (job.elsewhere or job.static) and all(
        each.namespaces and set(each.namespaces) <= set(proxy.namespaces) for each in job.discoveries
    )


def _mounted(container: Mapping[str, Any], directory: str) -> bool:
    """Return whether a directory of the container is in a volume; a relative one may be anywhere."""
    paths = (
        str(objects.dig(mount, "mountPath", default="")).rstrip("/")
        for mount in objects.as_list(container.get("volumeMounts"))
    )
    return not directory.startswith("/") or any(
        path and (directory == path or directory.startswith(f"{path}/")) for path in paths
    )


def _values(words: Sequence[str], name: str) -> Iterator[str]:
    """Return the values of an option, written as one word or two."""
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            yield word.partition("=")[2]
        elif word == name and index + 1 < len(words):
            yield words[index + 1]
