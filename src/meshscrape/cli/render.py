"""`meshscrape render`: write the changed objects as files, for GitOps."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshscrape.cli.intent import intent_options, make_plan
from meshscrape.cli.output import say
from meshscrape.errors import InputError
from meshscrape.plan.model import PHASES, Phase
from meshscrape.plan.render.diff import summary
from meshscrape.plan.render.files import HEAD, OVERVIEW, plan_files, plan_stream
from meshscrape.plan.render.kustomize import kustomize_files


@click.command()
@intent_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a directory per phase into DIR.",
)
@click.option(
    "--phase",
    type=click.Choice(PHASES),
    help="Print this phase as one YAML stream instead. Apply it after the earlier phases have taken effect.",
)
@click.option("--kustomize", is_flag=True, help="Write overlays with patches, one per phase (needs --out).")
@click.option(
    "--base",
    default="../../base",
    show_default=True,
    metavar="PATH",
    help="Path of your own kustomization, relative to a phase's directory.",
)
def command(out: Path | None, phase: Phase | None, kustomize: bool, base: str, **options: Any) -> int:
    """Write the changed objects as files, one directory per phase, in the order to apply them.

    The same objects and options give the same bytes. Exit codes: 0 written, 2 error.
    """
    if kustomize and out is None:
        raise InputError("--kustomize writes several files", remedy="add --out DIR")
    if (out is None) == (phase is None):
        raise InputError(
            "all phases in one stream would be applied at once, without their gates",
            remedy=f"write all with --out DIR, or print one with --phase ({', '.join(PHASES)})",
        )
    _, plan = make_plan(**options)
    if phase is not None:
        sys.stdout.write(plan_stream(plan, phase))
    elif out is not None:
        write_directory(out, kustomize_files(plan, base) if kustomize else plan_files(plan))
    for note in plan.notes:
        if note.refused:
            say(f"refused: {note.ref}: {note.text}; {note.remedy}")
    for gate in plan.gates:
        for missing in () if gate.planned else gate.waits_for:
            say(f"held back: {gate.phase} of {len(gate.workloads)}: {missing.text}; {missing.remedy}")
    say(summary(plan))
    return 0


def write_directory(directory: Path, files: Mapping[str, str]) -> None:
    """Make `directory` contain exactly `files`; if writing fails, restore its previous content.

    Raises InputError for an existing directory with files that `render` did not write.
    """
    overview = directory / OVERVIEW
    if directory.exists() and not (overview.is_file() and overview.read_text().startswith(HEAD)):
        if not directory.is_dir() or any(directory.iterdir()):
            raise InputError(
                "contains files that `render` did not write" if directory.is_dir() else "is not a directory",
                where=str(directory),
                remedy="name a new or empty directory",
            )
        directory.rmdir()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
            fresh = Path(temporary) / "new"
            for name, text in files.items():
                path = fresh / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            _swap(fresh, directory, Path(temporary) / "old")
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", where=str(directory), remedy="choose another directory"
        ) from error


def _swap(fresh: Path, directory: Path, aside: Path) -> None:
    if directory.exists():
        directory.rename(aside)
    try:
        fresh.rename(directory)
    except OSError:
        if aside.exists():
            aside.rename(directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)
