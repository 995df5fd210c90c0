"""Write an inverse plan as kubectl commands: JSON Patches that fail if an object has changed since."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from meshscrape.plan.model import Change, Plan
from meshscrape.plan.patches import json_patch


def kubectl_commands(plan: Plan) -> Iterator[str]:
    """Yield one command for each change, in order, and a comment at the beginning of each phase."""
    for phase in plan.phases:
        changes = [change for change in plan.changes if change.phase == phase]
        if changes:
            yield f"# {phase}: go on when every pod is ready and every target is up"
        yield from map(_command, changes)


def _command(change: Change) -> str:
    kind = f"{change.ref.kind}.{change.ref.group}" if change.ref.group else change.ref.kind
    words = ["kubectl", *(["-n", change.ref.namespace] if change.ref.namespace else [])]
    if change.action == "delete":
        words += ["delete", kind, change.ref.name]
    else:
        assert change.before is not None and change.after is not None  # noqa: S101 - nothing is created
        patch = json.dumps(json_patch(change.before, change.after), separators=(",", ":"))
        words += ["patch", kind, change.ref.name, "--type=json", f"--patch={patch}"]
    return shlex.join(words)
