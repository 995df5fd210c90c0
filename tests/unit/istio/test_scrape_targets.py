"""The application's metrics endpoints, as annotation and as the agent's variable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio import ports
from meshscrape.istio.scrape_targets import (
    ScrapeSource,
    parse_prometheus_annotations_env,
    parse_scrape_targets,
    sources_to_env,
)

free_ports = st.integers(1, 65535).filter(lambda port: port not in ports.RESERVED)
paths = st.from_regex(r"/[A-Za-z0-9._~/-]{0,20}(\?[a-z]=[a-z]%20)?", fullmatch=True)
sources = st.builds(ScrapeSource, port=free_ports, path=paths, scheme=st.sampled_from(["http", "https"]))
lists_of_sources = st.lists(sources, max_size=5, unique_by=lambda source: (source.port, source.path)).map(
    tuple
)


@settings(max_examples=50)
@given(lists_of_sources)
def test_sources_survive_the_environment(declared: tuple[ScrapeSource, ...]) -> None:
    """What the injector writes, the agent reads, in the same order."""
    assert parse_prometheus_annotations_env(sources_to_env(declared)) == declared


@settings(max_examples=50)
@given(lists_of_sources.filter(bool))
def test_sources_survive_the_annotation(declared: tuple[ScrapeSource, ...]) -> None:
    """port:path,port:path has no scheme, and keeps everything else."""
    text = ",".join(f"{source.port}:{source.path}" for source in declared)
    assert parse_scrape_targets(text) == tuple(ScrapeSource(s.port, s.path) for s in declared)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ('{"scrape":"true","path":"/m","port":"9080"}', (ScrapeSource(9080, "/m"),)),
        ('{"scrape":"","path":"","port":"9080"}', (ScrapeSource(9080),)),
        ('{"scrape":"true","path":"","port":""}', (ScrapeSource(80),)),
        ('{"scrape":"false","path":"/m","port":"9080"}', ()),
        ('{"scrape":"true","port":"9443","scheme":"https"}', (ScrapeSource(9443, scheme="https"),)),
        (
            '{"scrape":"true","path":"/x","port":"1","targets":[{"port":"9080","path":""},{"port":"9090","path":"/m"}]}',
            (ScrapeSource(9080), ScrapeSource(9090, "/m")),
        ),
        ('{"port":"9080","targets":[]}', (ScrapeSource(9080),)),
        ('{"port":"9080","targets":null}', (ScrapeSource(9080),)),
    ],
)
def test_the_variable_is_read_as_istio_reads_it(text: str, expected: tuple[ScrapeSource, ...]) -> None:
    """pilot-agent's defaults; targets win; false means none."""
    assert parse_prometheus_annotations_env(text) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x", "not-json"),
        ("[]", "not-an-object"),
        ("null", "not-an-object"),
        ('{"port":9080}', "not-a-string"),
        ('{"port":"15020"}', "reserved-port"),
        ('{"port":"9080","prot":"1"}', "unknown-key"),
        ('{"port":"9080","port":"9081"}', "not-json"),
        ('{"port":"9080","scheme":"ftp"}', "not-a-scheme"),
        ('{"targets":{}}', "not-a-list"),
        ('{"targets":{"port":"1"}}', "not-a-list"),
        ('{"targets":[1]}', "not-an-object"),
        ('{"targets":[{"path":"/m"}]}', "no-port"),
        ('{"targets":[{"port":"1","scrape":"true"}]}', "unknown-key"),
        (
            '{"targets":[{"port":"9080"},{"port":"15090","path":"/m"}]}',
            "reserved-port",
        ),
        ('{"targets":[{"port":"9080"},{"port":"9080","path":"/metrics"}]}', "listed-twice"),
        (json.dumps({"targets": [{"port": str(n)} for n in range(1, 66)]}), "too-many"),
        ("[" * 100_000, "not-json"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(text: str, code: str) -> None:
    """Every mistake is an InputError with the variable's name."""
    with pytest.raises(InputError) as caught:
        parse_prometheus_annotations_env(text)
    assert (caught.value.place.variable, caught.value.code) == ("ISTIO_PROMETHEUS_ANNOTATIONS", code)


def test_the_annotation_is_read_as_istio_reads_it() -> None:
    """A missing path is /metrics; spaces and empty entries do not matter."""
    assert parse_scrape_targets(" 9080 , 9090: /m ,,9100:/a:b,") == (
        ScrapeSource(9080),
        ScrapeSource(9090, "/m"),
        ScrapeSource(9100, "/a:b"),
    )


@pytest.mark.parametrize("port", sorted(ports.RESERVED))
def test_no_target_is_a_port_of_the_data_plane(port: int) -> None:
    """Scraping the merged port would loop, the admin API would leak."""
    with pytest.raises(InputError) as caught:
        parse_scrape_targets(f"9080:/metrics,{port}:/metrics")
    assert caught.value.code == "reserved-port"


@pytest.mark.parametrize(
    "path", ["metrics", "/a b", "/a#b", "/a\r\nHost: x", "/é", "/a%2", "/a%zz", "/" + "a" * 2048, '/"', "/\\"]
)
def test_paths_cannot_carry_anything_else_into_a_request(path: str) -> None:
    """No spaces, control characters, fragments, half escapes."""
    with pytest.raises(InputError) as caught:
        parse_prometheus_annotations_env(json.dumps({"port": "9080", "path": path}))
    assert caught.value.code == "not-a-path"


@pytest.mark.parametrize(
    "text", ["", " ", ",", ":/metrics", "x:/metrics", "015020:/metrics", "9080:/m,9080:/m"]
)
def test_an_annotation_that_cannot_be_used_is_named(text: str) -> None:
    """The annotation's name is the place."""
    with pytest.raises(InputError) as caught:
        parse_scrape_targets(text)
    assert caught.value.place.annotation == "prometheus.istio.io/scrape-targets"


def test_one_source_is_written_as_older_agents_understand_it() -> None:
    """No targets and no scheme unless they are needed."""
    assert json.loads(sources_to_env([ScrapeSource(9080, "/m")])) == {
        "scrape": "true", "path": "/m", "port": "9080",
    }  # fmt: skip
    assert sources_to_env([]) == ""


@settings(max_examples=50)
@given(st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["scrape", "path", "port", "scheme", "targets", "x"]), inner
    ),
).map(json.dumps))  # fmt: skip
def test_arbitrary_values_are_sources_or_an_input_error(text: str) -> None:
    """No value of the variable or the annotation gets anything else out of the parsers."""
    for parse in (parse_prometheus_annotations_env, parse_scrape_targets):
        try:
            found = parse(text)
        except InputError:
            continue
        assert not {source.port for source in found} & ports.RESERVED
