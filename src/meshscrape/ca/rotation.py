"""The rotation of a root as a state machine: which root signs, which are trusted, which users lag behind.

Pure. With the old root A and the new one B:

    stage        signs with   bundle   may end when
    distribute   A            A B      every root user trusts B
    issue        B            B A      every certificate in use was issued from B
    withdraw     B            B        no root user trusts A
    finish       B            B        A's key is destroyed (no way back from here)

Each stage has a different bundle, or the same roots in a different order. So a process that watches the
bundle's file notices every stage.

Aborting mirrors the stage and swaps the roots. From "distribute", B is withdrawn at once; from "issue", A
issues again; from "withdraw", A is distributed again. So the way back has the same stages and the same
checks, and every root user trusts every certificate in use at all times.
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
    """The stages of a rotation, in order."""

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
    """One rotation in progress; `old` and `new` are SHA-256 fingerprints of roots."""

    stage: RotationStage
    old: str
    new: str
    started_at: datetime
    aborting: bool = False

    @property
    def signing(self) -> str:
        """Return the root that signs certificates."""
        return self.old if self.stage is RotationStage.DISTRIBUTE else self.new

    @property
    def trusted(self) -> tuple[str, ...]:
        """Return the roots of the bundle, in order."""
        match self.stage:
            case RotationStage.DISTRIBUTE:
                return self.old, self.new
            case RotationStage.ISSUE:
                return self.new, self.old
            case _:
                return (self.new,)

    def advanced(self) -> Rotation:
        """Return the rotation in its next stage. Raise ValueError after the last one.

        Call it only if `unconfirmed` is empty.
        """
        if self.stage is RotationStage.FINISH:
            raise ValueError("a rotation ends with its last stage")
        return replace(self, stage=_ORDER[_ORDER.index(self.stage) + 1])

    def aborted(self) -> Rotation:
        """Return the rotation back to the old root; return an aborting rotation unchanged.

        Raises InputError if the old root's key may already be destroyed.
        """
        if self.aborting:
            return self
        if self.stage is RotationStage.FINISH:
            raise InputError(
                "the old root is already withdrawn: the rotation cannot be aborted any more",
                remedy="run `meshscrape ca rotate` to finish it, then start another rotation",
            )
        return replace(self, stage=_MIRROR[self.stage], old=self.new, new=self.old, aborting=True)

    def reached(self, stage: RotationStage) -> bool:
        """Return whether the rotation is at `stage` or later."""
        return _ORDER.index(self.stage) >= _ORDER.index(stage)


@dataclass(frozen=True, slots=True)
class RootUse:
    """Which roots (by fingerprint) one Envoy or one credential directory uses.

    All of its TLS contexts trust the roots in `trusts`; at least one context trusts those in
    `trusts_anywhere`. `issuers` are the roots that its certificates lead to ("" for an unknown one).
    `problem` says why the user could not be checked. It does not count as confirmed then.
    """

    who: str
    trusts: frozenset[str] = frozenset()
    trusts_anywhere: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    problem: str = ""


def unconfirmed(rotation: Rotation, bundle: Sequence[str], uses: Sequence[RootUse]) -> list[str]:
    """Return why the current stage may not end yet, one line for each user that lags behind.

    `bundle` is the bundle that the running CA has published (fingerprints in order). Only this shows that the
    CA itself is in the current stage.
    """
    if tuple(bundle) != rotation.trusted:
        return ["the CA has not applied this stage yet"]
    return [f"{use.who}: {reason}" for use in uses if (reason := _reason(rotation, use))]


def _reason(rotation: Rotation, use: RootUse) -> str:
    if use.problem:
        return use.problem
    if rotation.new not in use.trusts:
        return "does not trust the new root yet"
    if rotation.stage is RotationStage.DISTRIBUTE:
        return ""
    if use.issuers != {rotation.new}:
        return "still has a certificate of the old root"
    if rotation.stage is not RotationStage.ISSUE and rotation.old in use.trusts_anywhere:
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
    """Return the rotation that `to_json` wrote. Raise InputError naming `where` for anything else."""
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
