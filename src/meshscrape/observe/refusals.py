"""Find out why Istio's injector refuses new pods of a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.istio import names
from meshscrape.istio.ports import parse_port, shorten
from meshscrape.istio.proxy_config import parse_proxy_config
from meshscrape.istio.scrape_targets import parse_scrape_targets
from meshscrape.kube.views.proxy import config_annotation

# Lists of ports; only the first accepts `*`.
_PORT_LISTS = (names.INCLUDE_INBOUND, names.EXCLUDE_INBOUND)


@dataclass(frozen=True, slots=True)
class PodRefusal:
    """A reason why new pods are refused. `code` is the code of the pitfall."""

    code: str
    text: str
    remedy: str


def refusals_of(annotations: Mapping[str, str]) -> tuple[PodRefusal, ...]:
    """Return why the injector refuses pods with these annotations."""
    return (*_config(annotations), *_port_lists(annotations), *_targets(annotations))


def _config(annotations: Mapping[str, str]) -> Iterator[PodRefusal]:
    text = str(annotations.get(names.PROXY_CONFIG_ANNOTATION, ""))
    config, problem = config_annotation(annotations)
    # Istio also accepts field names with underscores.
    if not problem and not any("_" in str(key) for key in config):
        try:
            parse_proxy_config(text, names.PROXY_CONFIG_ANNOTATION)
        except InputError as error:
            problem = str(error)
    if problem:
        yield PodRefusal(
            "proxy-config-unreadable",
            f"Istio cannot read the annotation {names.PROXY_CONFIG_ANNOTATION} ({problem}): the injector "
            "refuses new pods, or they start without these settings.",
            "Correct the annotation in the pod template. Values of proxyMetadata are quoted strings.",
        )


def _port_lists(annotations: Mapping[str, str]) -> Iterator[PodRefusal]:
    for name in _PORT_LISTS:
        text = str(annotations.get(name, "")).strip()
        if not text or (text == "*" and name == names.INCLUDE_INBOUND):
            continue
        for port in text.split(","):
            try:
                parse_port(port.strip(), name)
            except InputError:
                yield PodRefusal(
                    "annotation-refused",
                    f"The annotation {name} says {shorten(text)}, and {shorten(port.strip())} is not a "
                    "port: the injector refuses new pods.",
                    "Write a list of ports, such as 8080,9090.",
                )
                break


def _targets(annotations: Mapping[str, str]) -> Iterator[PodRefusal]:
    text = annotations.get(names.SCRAPE_TARGETS)
    if text is None:
        return
    try:
        parse_scrape_targets(str(text))
    except InputError as error:
        yield PodRefusal(
            "annotation-refused",
            f"{error}. From 1.31 on, Istio's injector refuses new pods with such a value.",
            "List the application's own ports as port:path,port:path.",
        )
