"""Edit an object by taking fields back, and note what stays because another manager wrote it."""

from __future__ import annotations

from collections.abc import Callable

from meshscrape.errors import InputError
from meshscrape.kube.objects import Object, Ref
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.inverse.evidence import Evidence, FieldPath, wrote
from meshscrape.plan.inverse.record import overwritten_in
from meshscrape.plan.inverse.taking import Taking
from meshscrape.plan.model import Refused
from meshscrape.plan.workloads import Context


def take_fields(
    context: Context,
    ref: Ref,
    evidence: Evidence,
    take: Callable[[Taking], None],
    reason: str,
    restarts: tuple[str, ...] = (),
    *,
    quiet: bool = False,
) -> None:
    """Let `take` take fields back from an object; without `quiet`, note what it keeps."""
    kept: list[str] = []

    def change(data: Mutable) -> None:
        before = context.inventory.get(ref)
        written = _writer(before.data if before else data)
        original = evidence.original(ref)
        # Where originals were recorded, meshscrape changed no other objects.
        recorded = original is None and bool(evidence.originals)
        taking = Taking(data, original, written, recorded=recorded, overwritten=overwritten_in(data))
        take(taking)
        kept.extend(taking.kept)

    try:
        context.draft.edit(ref, change, reason, restarts)
    except InputError as error:
        # The text belongs to the object's owner. It must not keep everything else from being taken back.
        place = f"{error.place}: " if error.where else ""
        refused = Refused("unreadable", f"{place}{error.what}", error.remedy or "correct it")
        context.draft.refuse(ref, refused)
        return
    if kept and not quiet:
        context.draft.note(
            ref,
            "not-recorded",
            f"it is not shown that meshscrape wrote {', '.join(sorted(set(kept)))}, so it stays",
            "give the recorded objects (--originals DIR, the directory `originals` of render), or remove it "
            "by hand",
        )


def _writer(data: Object) -> Callable[[FieldPath], bool | None]:
    return lambda path: wrote(data, path)
