"""Label selectors as kubectl spells them."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.kube.objects import selects
from meshscrape.kube.selectors import parse_selector, selector_text

POD = {"app": "httpbin", "tier": "web", "empty": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app=httpbin", True), ("app==httpbin", True), ("app = other", False), ("app!=other", True),
        ("app=httpbin,tier=db", False), ("tier in (web, db)", True), ("tier notin (web,db)", False),
        ("app", True), ("nope", False), ("!nope", True), ("empty=", True), ("gone!=x", True),
        ("app in (httpbin),!nope", True),
    ],
)  # fmt: skip
def test_selectors_mean_the_same_as_in_kubectl(text: str, expected: bool) -> None:
    """Equality, sets, existence, and their conjunction."""
    assert selects(parse_selector(text), POD) is expected


@pytest.mark.parametrize("text", ["", "a=b=c", "app in httpbin", "-x=1", "a=b,", "app in (b;c)"])
def test_mistakes_are_refused(text: str) -> None:
    """What kubectl would refuse is refused, naming the option."""
    with pytest.raises(InputError, match="--selector"):
        parse_selector(text)


@pytest.mark.parametrize("text", ["", "a in (x)", "a in (x),b notin (y,z),c,!d"])
def test_a_selector_has_one_text(text: str) -> None:
    """What a request's labelSelector says is parsed to the same selector."""
    selector = parse_selector(text) if text else {}
    assert selector_text(selector) == text


def test_match_labels_come_first() -> None:
    selector = {"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}
    assert selector_text(selector) == "a=x,b"
