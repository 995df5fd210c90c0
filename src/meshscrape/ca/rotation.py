"""The rotation of a root as a state machine: which root signs, which are trusted, who has not followed.

Pure. With the old root A and the new one B:

    stage        signs with   bundle   may end when
    distribute   A            A B      every root user trusts B
    issue        B            B A      every certificate in use was issued from B
    withdraw     B            B        no root user trusts A
    finish       B            B        A's key is destroyed (no way back from here)

Each stage has another bundle, or the same roots in another order. So a process that follows the bundle's file
notices every stage.

Aborting mirrors the stage and swaps the roots: from "distribute" B is withdrawn at once, from "issue" A
issues again, from "withdraw" A is distributed again. So the way back has the same stages with the same
proofs, and every root user trusts every certificate in use at all times.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from meshscrape.errors import InputError

VERSION = 1


class RotationStage(StrEnum):
    """How far a rotation is, in this order."""

    DISTRIBUTE = "distribute"
    ISSUE = "issue"
    WITHDRAW = "withdraw"
    FINISH = "finish"


_ORDER = tuple(RotationStage)
_MIRROR = {
    RotationStage.DISTRIBUTE: RotationStage.WITHDRAW,
    RotationStage.ISSUE: RotationStage.ISSUE,
    RotationStage.WITHDRAW: RotationStage.DISTRIBUTE,
}


@dataclass(frozen=True, slots=True)
class Rotation:
    """One rotation under way; `old` and `new` are SHA-256 fingerprints of roots."""

    stage: RotationStage
    old: str
    new: str
    started_at: datetime
    aborting: bool = False

    @property
    def signing(self) -> str:
        """Return the root that certificates are issued from."""
        return self.old if self.stage is RotationStage.DISTRIBUTE else self.new

    @property
    def trusted(self) -> tuple[str, ...]:
        """Return the bundle, in its order."""
        match self.stage:
            case RotationStage.DISTRIBUTE:
                return self.old, self.new
            case RotationStage.ISSUE:
                return self.new, self.old
            case _:
                return (self.new,)

    def advanced(self) -> Rotation:
        """Return the next stage (only when `unconfirmed` is empty). The last stage raises ValueError."""
        if self.stage is RotationStage.FINISH:
            raise ValueError("a rotation ends with its last stage")
        return replace(self, stage=_ORDER[_ORDER.index(self.stage) + 1])

    def aborted(self) -> Rotation:
        """Return the way back from here; a rotation that is being aborted stays as it is.

        InputError when the old root's key may be gone.
        """
        if self.aborting:
            return self
        if self.stage is RotationStage.FINISH:
            raise InputError(
                "the old root is withdrawn: it is too late to go back",
                remedy="run `meshscrape ca rotate` to finish, and again for another root",
            )
        return replace(self, stage=_MIRROR[self.stage], old=self.new, new=self.old, aborting=True)

    def reached(self, stage: RotationStage) -> bool:
        """Return whether it is at `stage` or further."""
        return _ORDER.index(self.stage) >= _ORDER.index(stage)


@dataclass(frozen=True, slots=True)
class RootUse:
    """Which roots (by fingerprint) one Envoy or one directory of credentials uses.

    All of its TLS contexts trust the roots in `trusts`; at least one context trusts those in
    `trusts_anywhere`. `issuers` are the roots that its certificates lead to ("" for an unknown one).
    `problem` says why it could not be looked at: then it confirms nothing.
    """

    who: str
    trusts: frozenset[str] = frozenset()
    trusts_anywhere: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    problem: str = ""


def unconfirmed(rotation: Rotation, bundle: Sequence[str], seen: Sequence[RootUse]) -> list[str]:
    """Return why the current stage may not end yet, one line for each user that has not followed.

    `bundle` is what the running CA has published (fingerprints in order): nothing else shows that it has
    taken the stage over.
    """
    if tuple(bundle) != rotation.trusted:
        return ["the CA has not taken the stage over yet"]
    return [f"{each.who}: {reason}" for each in seen if (reason := _reason(rotation, each))]


def _reason(rotation: Rotation, seen: RootUse) -> str:
    if seen.problem:
        return seen.problem
    if rotation.new not in seen.trusts:
        return "does not trust the new root yet"
    if rotation.stage is RotationStage.DISTRIBUTE:
        return ""
    if seen.issuers != {rotation.new}:
        return "still has a certificate of the old root"
    if rotation.stage is not RotationStage.ISSUE and rotation.old in seen.trusts_anywhere:
        return "still trusts the old root"
    return ""


def to_json(rotation: Rotation) -> bytes:
    """Return the durable record of a rotation."""
    record = {
        "version": VERSION,
        "stage": rotation.stage.value,
        "old": rotation.old,
        "new": rotation.new,
        "startedAt": rotation.started_at.isoformat(),
        "aborting": rotation.aborting,
    }
    return json.dumps(record, indent=1).encode() + b"\n"


def parse(text: bytes, where: str) -> Rotation:
    """Return the rotation that `to_json` wrote; InputError naming `where` for anything else."""
    try:
        record = json.loads(text)
        if record["version"] != VERSION or not isinstance(record["aborting"], bool):
            raise ValueError
        rotation = Rotation(
            stage=RotationStage(record["stage"]),
            old=_fingerprint(record["old"]),
            new=_fingerprint(record["new"]),
            started_at=datetime.fromisoformat(record["startedAt"]),
            aborting=record["aborting"],
        )
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "this is not the record of a rotation",
            where=where,
            remedy="restore the CA's directory from its backup",
        ) from None
    if rotation.old == rotation.new:
        raise InputError("the record of the rotation names one root twice", where=where)
    return rotation


def _fingerprint(text: object) -> str:
    if not isinstance(text, str) or len(bytes.fromhex(text)) != 32:
        raise ValueError("not a SHA-256 fingerprint")
    return text
