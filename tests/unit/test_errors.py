"""Errors carry their place and code as data, and are one line for people."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError, Place, UnavailableError


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(), ""),
        (Place(file="mesh.yaml", line=7), "mesh.yaml:7"),
        (Place(file="mesh.yaml"), "mesh.yaml"),
        (
            Place(file="mesh.yaml", line=7, object="Deployment shop/web", field="spec.replicas"),
            "mesh.yaml:7: Deployment shop/web: spec.replicas",
        ),
        (Place(variable="CA_ADDR"), "environment variable CA_ADDR"),
        (Place(text="127.0.0.1:15012"), "127.0.0.1:15012"),
        (
            Place(text="pod a", annotation="proxy.istio.io/config", field="proxyMetadata.A", text_line=4),
            "pod a: annotation proxy.istio.io/config: proxyMetadata.A: line 4",
        ),
        (Place(variable="CA_ADDR").part("targets[0]"), "environment variable CA_ADDR: targets[0]"),
    ],
)
def test_place_reads_from_the_outside_in(place: Place, text: str) -> None:
    """A place prints the fields that are known, the file first."""
    assert str(place) == text


def test_error_is_one_line_of_place_problem_and_remedy() -> None:
    """What, where and what to do are in one line, in that order of reading."""
    error = InputError(
        "the port is 0", where=Place(variable="PORT"), remedy="set 1 to 65535", code="bad-port"
    )
    assert str(error) == "environment variable PORT: the port is 0; set 1 to 65535"
    assert (error.code, error.place.variable) == ("bad-port", "PORT")


def test_error_keeps_type_and_data_inside_an_outer_place() -> None:
    """`at` fills in what the inner place does not know, and nothing else."""
    inner = InputError(
        "is not a number", where=Place(variable="PORT"), remedy="write digits", code="bad-port"
    )
    outer = inner.at(Place(file="mesh.yaml", line=3, variable="OTHER"))
    assert isinstance(outer, InputError)
    assert outer.place == Place(file="mesh.yaml", line=3, variable="PORT")
    assert (outer.what, outer.remedy, outer.code) == ("is not a number", "write digits", "bad-port")


def test_unavailable_error_carries_the_status() -> None:
    """A caller can tell 401 from 503 without reading the message."""
    assert UnavailableError("refused", status=401).status == 401
    assert UnavailableError("no answer").status == 0
