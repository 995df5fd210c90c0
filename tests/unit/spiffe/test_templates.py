"""SPIFFE IDs of other shapes than Istio's."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.spiffe.templates import IdTemplate

FACTS = ("example.org", "shop", "web", "web-0", {"app": "shop-web", "team": ""})


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/ns/{namespace}/sa/{account}", "/ns/shop/sa/web"),
        ("/k8s/{namespace}/{label:app}", "/k8s/shop/shop-web"),
        ("/pod/{pod}", "/pod/web-0"),
        ("/all", "/all"),
    ],
)
def test_places_are_filled_with_facts_about_the_pod(text: str, path: str) -> None:
    """Namespace, ServiceAccount, name and labels."""
    assert IdTemplate(text).fill(*FACTS) == SpiffeId("example.org", path)


@pytest.mark.parametrize("text", ["/a/{label:none}", "/a/{label:team}"])
def test_a_pod_without_a_fact_has_no_id(text: str) -> None:
    """It is not guessed: such a pod is no target."""
    assert IdTemplate(text).fill(*FACTS) is None


def test_a_value_that_no_id_can_have_gives_none() -> None:
    """A tenant's label cannot add segments or stop the watch of all pods."""
    assert IdTemplate("/a/{label:app}").fill("example.org", "n", "s", "p", {"app": "b/../c d"}) is None


@pytest.mark.parametrize(
    "text",
    ["", "ns/{namespace}", "/ns/{name}", "/ns/{label:}", "/{", "/ns/{namespace", "/a b", "/a/", "/{{pod}}"],
)
def test_a_text_that_can_yield_no_id_is_refused(text: str) -> None:
    """At the start, with one line."""
    with pytest.raises(InputError):
        IdTemplate(text)
