"""Tell before an upgrade of Istio whether the secure ports in use still work with the next version.

`--istio-version NEXT` differs from what the control plane's objects tell: then the cluster is observed as if
every control plane were NEXT and every pod had restarted, and compared with today.
"""

from __future__ import annotations

from meshscrape.istio.versions import IstioVersion, parse_version
from meshscrape.kube.objects import Ref
from meshscrape.observe import observe
from meshscrape.observe.model import Mode
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.choice import chosen_workloads, unfit
from meshscrape.plan.holding import outlook
from meshscrape.plan.judge import new_errors
from meshscrape.plan.model import Decided, Plan, Refused
from meshscrape.plan.workloads import NATIVE_SINCE, Context

# The bootstrap override refers to clusters of Istio's bootstrap. Their names were seen up to this version.
_SEEN = (1, 31)


def note_upgrade(context: Context) -> None:
    """Note for each mode in use whether it fits `--istio-version`, and which workloads need another one."""
    following = parse_version(context.intent.istio_version or "")
    planes = context.observed.control_planes
    if not following.known or not any(
        plane.version.known and plane.version.numbers != following.numbers for plane in planes
    ):
        return
    later = observe(
        outlook(context.inventory, Plan()), istio_version=context.intent.istio_version, upgraded=True
    )
    after = {workload.ref: workload for workload in later.workloads}
    errors = {error.ref: error for error in reversed(new_errors(context.observed, later)) if error.ref}
    fitting: dict[Decided, list[Ref]] = {}
    for workload in chosen_workloads(context):
        for mode in _modes(workload):
            refused = unfit(mode, workload, after.get(workload.ref, workload).versions.after)
            if refused is None and (error := errors.get(workload.ref)):
                refused = Refused(error.code, error.text.rstrip("."), error.remedy.rstrip("."))
            if refused is None:
                fitting.setdefault(mode, []).append(workload.ref)
            else:
                _note_unfit(context, workload, following, mode, refused)
    for mode, refs in sorted(fitting.items()):
        _note_fit(context, following, mode, len(refs))


def _modes(workload: ObservedWorkload) -> list[Decided]:
    """Return the modes in use, including those whose variables a version that is too old ignores."""
    modes: dict[Mode, list[Decided]] = {
        "native": ["native"], "bootstrap": ["bootstrap"], "legacy": ["legacy"],
        "mixed": ["bootstrap" if workload.override and workload.override.listeners else "legacy"],
    }  # fmt: skip
    return modes.get(workload.metrics.mode, [])


def _note_unfit(
    context: Context, workload: ObservedWorkload, following: IstioVersion, mode: Decided, refused: Refused
) -> None:
    context.draft.note(
        workload.ref,
        "upgrade-unfit",
        f"{mode} mode does not work here with Istio {following}: {refused.reason} ({refused.code})",
        f"before the upgrade: {refused.remedy}",
    )


def _note_fit(context: Context, following: IstioVersion, mode: Decided, count: int) -> None:
    remedy = "the upgrade needs no change of them"
    if mode == "legacy" and following.at_least(NATIVE_SINCE):
        remedy = "after the upgrade, a plan moves them to native mode; --mode legacy keeps them"
    elif mode == "bootstrap" and following.numbers and following.numbers[:2] > _SEEN:
        newest = ".".join(map(str, _SEEN))
        remedy = (
            f"the override was not tried beyond {newest}: upgrade one pod first, and look at it with observe"
        )
    workloads = f"{count} workload{'s' * (count != 1)}"
    context.draft.note(None, "upgrade-fits", f"{mode} mode of {workloads} fits Istio {following}", remedy)
