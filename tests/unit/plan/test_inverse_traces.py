"""What meshscrape wrote into the objects of others, taken back place by place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from meshscrape.envoy import override
from meshscrape.istio import names
from meshscrape.plan.inverse import traces
from meshscrape.plan.inverse.taking import Taking
from meshscrape.prometheus import operator, scrape_proxy_pod, scraper_pod
from meshscrape.prometheus.config import plain_job
from meshscrape.prometheus.derived import derived_job
from meshscrape.prometheus.kubernetes_sd import drop_secured, drop_secured_monitor
from meshscrape.prometheus.targets import MERGED_JOB, PROXY_JOB
from support.objects import env

CONFIG, VOLUME = names.PROXY_CONFIG_ANNOTATION, "meshscrape-bootstrap"
MOUNTED = f"{override.DIRECTORY}/{override.BOOTSTRAP_FILE}"
SHUT = {names.METRICS_LOCALHOST_ACCESS_ONLY: "true"}
OPEN = {names.ENVOY_SECURE_MERGED_METRICS_PORT: "16000", names.ENVOY_SECURE_METRICS_PORT: "15091"}
ANNOUNCED = {
    names.SECURE_PORT: "16000", names.SECURE_ENVOY_PORT: "15091", names.BOOTSTRAP_CHECKSUM: "0a",
}  # fmt: skip
TEMPLATE = ("spec", "template")


def after(
    data: Any, take: Callable[[Taking], None], original: Any = None, written: bool | None = None
) -> tuple[Any, list[str]]:
    """Return the data that is left, and the names of what was kept."""
    taking = Taking(copy.deepcopy(data), original, lambda _: written)
    take(taking)
    return taking.data, taking.kept


def configured(**variables: str) -> dict[str, str]:
    return {CONFIG: yaml.safe_dump({"proxyMetadata": variables})}


def workload(annotations: Any, variables: Any = (), **spec: Any) -> Any:
    """An object with a pod template, whose proxy has these variables and one of its own."""
    proxy = {"name": "istio-proxy", "env": [*env(dict(variables)), *env({"mine": "x"})]}
    template = {
        "metadata": {"annotations": {"a": "b", **annotations}},
        "spec": {"containers": [proxy], **spec},
    }
    return {"spec": {"template": copy.deepcopy(template)}}


def test_takes_the_closing_of_plaintext_ports_back() -> None:
    """From the annotation and from the proxy's environment, where they say `true`."""

    def take(taking: Taking) -> None:
        traces.take_hardening(taking, TEMPLATE)

    assert after(workload(configured(**SHUT), SHUT), take) == (workload({}), [])
    theirs = {names.METRICS_LOCALHOST_ACCESS_ONLY: "yes"}
    assert after(workload(configured(**theirs), theirs), take) == (workload(configured(**theirs), theirs), [])


def take_listeners(taking: Taking) -> None:
    traces.take_listeners(taking, TEMPLATE, ("80",))


def test_takes_the_secure_ports_back() -> None:
    """Those that are announced and Istio's own; variables, volumes and announcements."""
    off = dict.fromkeys(OPEN, "0")
    notes = ANNOUNCED | configured(**OPEN) | {
        names.BOOTSTRAP_OVERRIDE: VOLUME,
        names.EXCLUDE_INBOUND: "80,15091,15092,16000",
        names.INCLUDE_INBOUND: "8080,15091",
    }  # fmt: skip
    mounted = workload(
        notes,
        off | {names.ISTIO_BOOTSTRAP_OVERRIDE: MOUNTED},
        volumes=[{"name": VOLUME}, {"name": "other"}],
    )
    proxy = mounted["spec"]["template"]["spec"]["containers"][0]
    proxy["volumeMounts"] = [{"name": VOLUME, "mountPath": "/v"}]
    left, kept = after(mounted, take_listeners)
    assert left == workload({names.INCLUDE_INBOUND: "8080"}, volumes=[{"name": "other"}])
    assert kept == []


def test_ports_and_overrides_of_others_stay() -> None:
    """A port that is neither announced nor Istio's, and an override of another name."""
    theirs = dict.fromkeys(OPEN, "17000")
    notes = configured(**theirs) | {names.BOOTSTRAP_OVERRIDE: "theirs", names.EXCLUDE_INBOUND: "17000"}
    data = workload(notes, theirs, volumes=[{"name": "other"}])
    assert after(data, take_listeners) == (data, [])


def test_a_default_opens_the_ports_that_it_says() -> None:
    """Its variables go with the values that they have, or zero, and with no others."""
    merged, envoy = names.ENVOY_SECURE_MERGED_METRICS_PORT, names.ENVOY_SECURE_METRICS_PORT
    tests = traces.opened({"spec": {"environmentVariables": {merged: "16000", "other": "1"}}})
    answers = {name: [ours(value) for value in ("16000", "0", "1")] for name, ours in tests.items()}
    assert answers == {merged: [True, True, False], envoy: [True, True, False]}


def overlaid(template: Any) -> Any:
    """A ConfigMap with the overlay of a Gateway's Deployment."""
    return {"data": {"deployment": yaml.safe_dump({"spec": {"template": template}})}}


@pytest.mark.parametrize("listeners", [True, False])
def test_takes_an_overlay_back(listeners: bool) -> None:
    """One phase of it; what is empty then goes, and a proxy without settings."""

    def take(taking: Taking) -> None:
        traces.take_overlay(taking, (), listeners=listeners)

    def template(variables: dict[str, str], *others: Any) -> Any:
        proxy = {"name": "istio-proxy", "env": env(variables)}
        return {"spec": {"containers": [proxy, *others]}}

    own, other = (OPEN, SHUT) if listeners else (SHUT, OPEN)
    own = own if not listeners else dict.fromkeys(OPEN, "15092")
    assert after(overlaid(template(own)), take) == ({"data": {"deployment": ""}}, [])
    app = {"name": "app", "env": env({"x": "1"})}
    left, _ = after(overlaid(template(own, app)), take)
    assert yaml.safe_load(left["data"]["deployment"]) == {
        "spec": {"template": {"spec": {"containers": [app]}}}
    }
    left, _ = after(overlaid(template(own | other)), take)
    (proxy,) = yaml.safe_load(left["data"]["deployment"])["spec"]["template"]["spec"]["containers"]
    assert proxy["env"] == env(other)
    kept = after(overlaid(template(own)), take, written=False)[1]
    assert kept == list(own)


def test_an_overlay_is_again_what_its_original_says() -> None:
    """A setting of the original stays; without an overlay there, everything of meshscrape's goes."""

    def take(taking: Taking) -> None:
        traces.take_overlay(taking, (), listeners=False)

    shut = overlaid({"spec": {"containers": [{"name": "istio-proxy", "env": env(SHUT)}]}})
    assert after(shut, take, shut, False) == (shut, [])
    assert after(shut, take, {"data": {}}, False) == ({"data": {"deployment": ""}}, [])
    assert after({"data": {}}, take) == ({"data": {}}, [])
    for text in ("", "- a list\n"):
        assert after({"data": {"deployment": text}}, take)[0] == {"data": {"deployment": text}}


def test_the_text_of_an_overlay_is_one_field() -> None:
    """So its managed fields tell about all of it."""
    asked = []
    overlay = overlaid({"spec": {"containers": [{"name": "istio-proxy", "env": env(SHUT)}]}})
    taking = Taking(overlay, None, lambda path: bool(asked.append(path)))
    traces.take_overlay(taking, (), listeners=False)
    assert asked == [("data", "deployment")]


COPIED = {"a": "b"}


@pytest.mark.parametrize(
    ("annotations", "original", "left"),
    [
        (ANNOUNCED, None, None),
        (ANNOUNCED | COPIED, None, None),
        (ANNOUNCED | COPIED, {"spec": {"infrastructure": {"annotations": COPIED}}}, COPIED),
        (ANNOUNCED | COPIED | {"x": "y"}, None, COPIED | {"x": "y"}),
        ({}, None, {}),
    ],
    ids=["alone", "with copies", "as they were", "with others", "empty"],
)
@pytest.mark.parametrize("beside", [{}, {"parametersRef": {"name": "mine"}}], ids=["only", "beside"])
def test_takes_the_announcement_of_a_gateway_back(
    annotations: Any, original: Any, left: Any, beside: Any
) -> None:
    """With the annotations that the plan had copied from the Gateway itself."""
    metadata = {"annotations": COPIED | {"c": "d"}}
    gateway = {
        "metadata": metadata,
        "spec": {"x": 1, "infrastructure": {"annotations": annotations, **beside}},
    }
    rest = beside | ({} if left is None else {"annotations": left})
    expected = {"metadata": metadata, "spec": {"x": 1, **({"infrastructure": rest} if rest else {})}}
    assert after(gateway, traces.take_infrastructure, original) == (expected, [])
    bare = {"metadata": metadata, "spec": {}}
    assert after(bare, traces.take_infrastructure) == (bare, [])


def test_takes_the_settings_of_an_asm_gateway_back() -> None:
    """Phase by phase."""
    variables = OPEN | {names.ISTIO_BOOTSTRAP_OVERRIDE: MOUNTED}
    notes = {"a": "b"} | ANNOUNCED | configured(**SHUT)
    spec = {
        "env": [*env(SHUT), *env(variables), *env({"mine": "x"})],
        "podAnnotations": notes,
        "configVolumes": [{"name": VOLUME}, {"name": "other"}],
    }
    shut, kept = after({"spec": spec}, lambda taking: traces.take_asm(taking, listeners=True))
    assert kept == []
    assert shut == {
        "spec": {
            "env": env(SHUT | {"mine": "x"}),
            "podAnnotations": {"a": "b", **configured(**SHUT)},
            "configVolumes": [{"name": "other"}],
        }
    }
    left, _ = after(shut, lambda taking: traces.take_asm(taking, listeners=False))
    assert left["spec"]["env"] == env({"mine": "x"})
    assert left["spec"]["podAnnotations"] == {"a": "b"}


def scraper(*, operated: bool, volume: str = scraper_pod.VOLUME) -> Any:
    """A scraper's pod with meshscrape's certificate and scrape proxy, and with things of its own."""
    mounts = [
        {"name": "scrape-proxy-token", "mountPath": scrape_proxy_pod.TOKEN_DIRECTORY},
        {"name": volume, "mountPath": scraper_pod.CERTIFICATES},
        {"name": "own", "mountPath": "/own"},
    ]
    metadata = {
        "labels": scraper_pod.pod_labels("canary") | {"own": "x"},
        "annotations": scraper_pod.pod_annotations(harden=True) | {"own": "x"},
    }
    spec = {
        "initContainers": [{"name": name} for name in (*scrape_proxy_pod.CONTAINERS, "own")],
        "volumes": [{"name": name} for name in (*scrape_proxy_pod.VOLUMES, volume, "own")],
    }
    if not operated:
        container = {"name": "prometheus", "volumeMounts": mounts}
        return {"spec": {"template": {"metadata": metadata, "spec": spec | {"containers": [container]}}}}
    classes = [{"name": name} for name in (operator.SCRAPE_CLASS, operator.PROXY_SCRAPE_CLASS, "own")]
    return {"spec": spec | {"podMetadata": metadata, "volumeMounts": mounts, "scrapeClasses": classes}}


def take_certificate(operated: bool) -> Callable[[Taking], None]:
    if operated:
        return traces.take_operated_certificate
    return lambda taking: traces.take_certificate(taking, TEMPLATE)


@pytest.mark.parametrize("operated", [True, False])
def test_takes_a_scrapers_certificate_and_proxy_back(operated: bool) -> None:
    """What the scraper's owner added stays."""
    left, kept = after(scraper(operated=operated), take_certificate(operated))
    revision = {names.REVISION: "canary"}
    metadata = {"labels": {"own": "x"} | revision, "annotations": {"own": "x"}}
    own = [{"name": "own"}]
    spec: Any = {"initContainers": own, "volumes": own}
    mounts = [{"name": "own", "mountPath": "/own"}]
    # Nothing shows that meshscrape chose the revision.
    assert kept == [names.REVISION]
    if operated:
        assert left == {
            "spec": spec | {"podMetadata": metadata, "volumeMounts": mounts, "scrapeClasses": own}
        }
    else:
        spec["containers"] = [{"name": "prometheus", "volumeMounts": mounts}]
        assert left == {"spec": {"template": {"metadata": metadata, "spec": spec}}}


@pytest.mark.parametrize("operated", [True, False])
def test_a_scrapers_own_certificate_stays(operated: bool) -> None:
    """If it lies in another volume than meshscrape's; the scrape proxy goes all the same."""
    data = scraper(operated=operated, volume="own-certs")
    left, kept = after(data, take_certificate(operated))
    pod = left["spec"] if operated else left["spec"]["template"]["spec"]
    mounts = pod["volumeMounts"] if operated else pod["containers"][0]["volumeMounts"]
    assert [mount["name"] for mount in mounts] == ["own-certs", "own"]
    assert [volume["name"] for volume in pod["volumes"]] == ["own-certs", "own"]
    assert pod["initContainers"] == [{"name": "own"}]
    place = (left["spec"], "podMetadata") if operated else (left["spec"]["template"], "metadata")
    before = data["spec"]["podMetadata"] if operated else data["spec"]["template"]["metadata"]
    assert (place[0][place[1]], kept) == (before, [])


def annotated(annotations: Any, labels: Any = None) -> dict[str, Any]:
    """A scraper's pod template with meshscrape's volume."""
    metadata = {"annotations": annotations, "labels": labels or {"own": "x"}}
    return {"spec": {"template": {"metadata": metadata, "spec": {"volumes": [{"name": scraper_pod.VOLUME}]}}}}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ({scraper_pod.VOLUME: {"mountPath": "/a"}}, None),
        ({scraper_pod.VOLUME: {}, "own": {"mountPath": "/b"}}, {"own": {"mountPath": "/b"}}),
        ({"own": {"mountPath": "/b"}}, {"own": {"mountPath": "/b"}}),
        (["a list"], ["a list"]),
    ],
    ids=["ours", "with another", "another", "a list"],
)
def test_takes_its_mount_out_of_the_annotation(text: Any, left: Any) -> None:
    notes = {names.USER_VOLUME_MOUNT: json.dumps(text), "own": "x"}
    data, kept = after(annotated(notes), take_certificate(operated=False))
    written = data["spec"]["template"]["metadata"]["annotations"].get(names.USER_VOLUME_MOUNT)
    assert (written and json.loads(written), kept) == (left, [])
    numbered = annotated({names.USER_VOLUME_MOUNT: 7, "own": "x"})
    assert (
        after(numbered, take_certificate(operated=False))[0]["spec"]["template"]["metadata"]
        == (numbered["spec"]["template"]["metadata"])
    )


def test_settings_of_a_scrapers_sidecar_with_other_values_stay() -> None:
    config = {"proxyMetadata": {names.OUTPUT_CERTS: "/own"}, "holdApplicationUntilProxyStarts": False}
    notes = {names.INCLUDE_INBOUND: "80", names.INCLUDE_OUTBOUND: "*", CONFIG: yaml.safe_dump(config)}
    data = annotated(notes, {names.INJECT: "false", names.TLS_MODE: "istio", "own": "x"})
    left, kept = after(data, take_certificate(operated=False))
    assert (left["spec"]["template"]["metadata"], kept) == (data["spec"]["template"]["metadata"], [])


@pytest.mark.parametrize(("written", "goes"), [(True, True), (None, False), (False, False)])
def test_labels_of_injection_go_only_if_meshscrape_wrote_them(written: bool | None, goes: bool) -> None:
    """Without a record, they are the user's."""
    labels = {names.INJECT: "true", names.REVISION: "canary", names.NAMESPACE_INJECTION: "enabled"}
    data = {"metadata": {"labels": {**labels, "own": "x"}}}
    left, kept = after(data, lambda taking: traces.take_labels(taking, ()), written=written)
    assert left == ({"metadata": {"labels": {"own": "x"}}} if goes else data)
    assert kept == ([] if goes else list(labels))
    off = {"metadata": {"labels": {names.INJECT: "false", names.NAMESPACE_INJECTION: "disabled"}}}
    assert after(off, lambda taking: traces.take_labels(taking, ()), written=True) == (off, [])


PLAIN: dict[str, Any] = {"job_name": "pods", "relabel_configs": [{"action": "keep"}]}
DERIVED = derived_job(PLAIN, f"{MERGED_JOB}/pods", "/certs")
OWN = plain_job(PROXY_JOB, scrape_proxy_pod.DISCOVERY, scrape_proxy_pod.IN_POD.token_file)
SECURE = {"job_name": MERGED_JOB, "scheme": "https"}
PROXIED = {"job_name": MERGED_JOB, "proxy_url": f"http://{scrape_proxy_pod.IN_POD.address}"}
DROPPING = {**PLAIN, "relabel_configs": [{"action": "keep"}, drop_secured()]}
ONLY_DROPPING = {"job_name": "all", "relabel_configs": [drop_secured()]}


def jobs_left(*jobs: Any, original: Any = None, written: bool | None = None) -> tuple[list[Any], list[str]]:
    """Return the jobs that stay, and the names of those that are kept for want of a proof."""
    config: dict[str, Any] = {"scrape_configs": copy.deepcopy(list(jobs))}
    before = None if original is None else {"scrape_configs": list(original)}
    kept = traces.take_jobs(config, before, written=written)
    return config["scrape_configs"], kept


def test_takes_the_jobs_that_only_a_plan_writes() -> None:
    """And the rules that drop secured pods; whatever is not a job stays for its owner to see."""
    assert jobs_left(DROPPING, DERIVED, "no job", OWN, ONLY_DROPPING) == (
        [PLAIN, "no job", {"job_name": "all"}],
        [],
    )
    assert jobs_left({"job_name": "none", "relabel_configs": []}) == (
        [{"job_name": "none", "relabel_configs": []}], [],
    )  # fmt: skip


@pytest.mark.parametrize(
    "job",
    [
        {"job_name": MERGED_JOB},
        {"job_name": MERGED_JOB, "scheme": "http", "proxy_url": "http://elsewhere:1"},
        {"job_name": "mine", "scheme": "https"},
        {"job_name": f"mine/{MERGED_JOB}", "scheme": "https"},
        {"scheme": "https"},
    ],
    ids=["plaintext", "another proxy", "another name", "a name behind a slash", "no name"],
)
def test_other_jobs_stay(job: Any) -> None:
    """Even if meshscrape wrote the configuration last."""
    assert jobs_left(job, written=True) == ([job], [])
    assert jobs_left(job, original=[]) == ([job], [])


@pytest.mark.parametrize(
    "job", [SECURE, PROXIED, {**OWN, "scheme": "https"}], ids=["secure", "proxied", "own"]
)
def test_secure_jobs_need_a_proof(job: Any) -> None:
    """Managed fields or an original; a job that was there before is again as it was."""
    assert jobs_left(job, PLAIN) == ([job, PLAIN], [job["job_name"]])
    assert jobs_left(job, PLAIN, written=False) == ([job, PLAIN], [job["job_name"]])
    assert jobs_left(job, PLAIN, written=True) == ([PLAIN], [])
    assert jobs_left(job, PLAIN, original=[PLAIN]) == ([PLAIN], [])
    before = {**job, "params": {}}
    assert jobs_left(job, PLAIN, original=[PLAIN, before]) == ([before, PLAIN], [])


def test_takes_the_rules_out_of_monitors() -> None:
    """Of the endpoints that have them, and no more than those."""
    keep = {"action": "keep"}
    spec = {
        "podMetricsEndpoints": [
            {"port": "a", "relabelings": [keep, drop_secured_monitor()]},
            {"port": "b", "relabelings": [drop_secured_monitor()]},
            {"port": "c", "relabelings": []},
            "no endpoint",
        ]
    }
    monitor: Any = {"spec": spec}
    traces.take_rules(monitor, "endpoints")
    assert monitor == {"spec": spec}
    traces.take_rules(monitor, "podMetricsEndpoints")
    assert monitor["spec"]["podMetricsEndpoints"] == [
        {"port": "a", "relabelings": [keep]}, {"port": "b"}, {"port": "c", "relabelings": []}, "no endpoint",
    ]  # fmt: skip
