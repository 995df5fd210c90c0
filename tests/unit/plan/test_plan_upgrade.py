"""A plan with the version of the next Istio: whether the modes in use still fit."""

from __future__ import annotations

from typing import Any

from meshscrape.plan.model import Plan
from support.objects import (
    SECURE,
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    proxy_config,
    service,
)
from support.planning import planned
from support.scraping_objects import plain_prometheus


def shop(version: str, **workload: Any) -> Any:
    return cluster(
        control_plane(version), injected_namespace(), deployment(**workload), service(), plain_prometheus()
    )


def secured(version: str, mode: str) -> Any:
    before = shop(version)
    return planned(before, mode=mode).apply(before)


def told(plan: Plan, code: str) -> list[str]:
    return [f"{note.text}; {note.remedy}" for note in plan.notes if note.code == code]


def test_the_override_fits_the_next_version() -> None:
    """One line for each mode in use."""
    plan = planned(secured("1.29.2", "bootstrap"), mode="bootstrap", istio_version="1.31.0")
    (line,) = told(plan, "upgrade-fits")
    assert line.startswith("bootstrap mode of 1 workload fits Istio 1.31.0")
    assert told(plan, "upgrade-unfit") == []
    assert plan.changes == ()


def test_an_override_beyond_the_versions_that_were_seen_is_said() -> None:
    """It refers to clusters of Istio's bootstrap, which a later version may rename."""
    plan = planned(secured("1.29.2", "bootstrap"), mode="bootstrap", istio_version="1.33.0")
    assert "was not tried beyond 1.31" in told(plan, "upgrade-fits")[0]


def test_variables_that_wake_up_with_the_upgrade_collide_with_the_override() -> None:
    """A proxy of 1.29 ignores them; one of 1.31 opens a second listener on the override's port."""
    before = shop("1.29.2", annotations=proxy_config(SECURE))
    kept = planned(before, mode="bootstrap", harden=False).apply(before)
    asleep = cluster([_with_variables(each.data) for each in kept])
    plan = planned(asleep, mode="bootstrap", istio_version="1.31.0")
    (line,) = told(plan, "upgrade-unfit")
    assert line.startswith("bootstrap mode does not work here with Istio 1.31.0")


def _with_variables(data: Any) -> Any:
    if data["kind"] == "Deployment" and data["metadata"]["name"] == "httpbin":
        data["spec"]["template"]["metadata"]["annotations"].update(proxy_config(SECURE))
    return data


def test_native_mode_does_not_fit_an_older_version() -> None:
    """A downgrade: the ports would close while Prometheus looks for them."""
    plan = planned(secured("1.31.0", "native"), istio_version="1.30.1")
    (line,) = told(plan, "upgrade-unfit")
    assert "(native-too-old)" in line


def test_legacy_mode_goes_on_and_can_be_left() -> None:
    """The plan after the upgrade moves it."""
    plan = planned(secured("1.29.2", "legacy"), istio_version="1.31.0")
    assert "moves them to native mode" in told(plan, "upgrade-fits")[0]


def test_nothing_is_said_without_another_version() -> None:
    """The version of the objects, or none."""
    for version in ("1.29.2", None):
        plan = planned(secured("1.29.2", "bootstrap"), mode="bootstrap", istio_version=version)
        assert told(plan, "upgrade-fits") == told(plan, "upgrade-unfit") == []
