"""`meshscrape ca rotate`: replace the root of a running mesh in confirmed stages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from meshscrape.ca.roots import held_record, published_bundle, read_rotation
from meshscrape.ca.roots_in_use import RootUser
from meshscrape.ca.rotation import Rotation, RotationStage
from meshscrape.ca.rotation_run import NotConfirmed, Progress, RotationRun, look
from meshscrape.cli.output import print_document, say
from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.local.state import read_status

_PATH = click.Path(path_type=Path)
_WORDS = {
    RotationStage.DISTRIBUTE: "trust the new root",
    RotationStage.ISSUE: "have a certificate of the new root",
    RotationStage.WITHDRAW: "no longer trust the old root",
    RotationStage.FINISH: "have followed",
}


@click.command()
@STATE
@click.option(
    "--dir", "directory", type=_PATH, help="The directory of a CA that was not started by `meshscrape up`."
)
@click.option("--envoy", "envoys", type=_PATH, multiple=True, metavar="SOCKET",
              help="With --dir or --state: an Envoy that must follow (repeatable).")  # fmt: skip
@click.option("--credentials", "credentials", type=_PATH, multiple=True, metavar="DIR",
              help="With --dir or --state: credential directory that must follow (repeatable).")  # fmt: skip
@click.option("--to", "until", type=click.Choice([each.value for each in list(RotationStage)[:-1]]),
              help="Stop when this stage is confirmed.")  # fmt: skip
@click.option("--abort", is_flag=True, help="Go back to the old root in the same stages.")
@click.option("--show", is_flag=True, help="Only show the rotation's stage and which users lag behind.")
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    help="Maximum time for each stage.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print no progress to stderr.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
def rotate(
    state: Path | None, directory: Path | None, envoys: tuple[Path, ...], credentials: tuple[Path, ...],
    until: str | None, abort: bool, show: bool, timeout: str, quiet: bool, output: str,
) -> int:  # fmt: skip
    """Replace the root of a running mesh without a failed scrape.

    Stages: distribute (all trust both roots), issue (all get a certificate of the new root), withdraw (the
    old root is no longer trusted, and its key is destroyed). The next stage begins when every Envoy and every
    credential directory has followed. If the command was stopped, run it again to continue, or with --abort
    to go back. Exit codes: 0 done, 1 not confirmed in time, 2 could not run.
    """
    if abort and (until or show):
        raise InputError("--abort cannot be used with --to or --show", remedy="omit one of them")
    patience = parse_duration(timeout, "--timeout").total_seconds()
    own, users = _mesh(state, directory, envoys, credentials)
    report = _reporter(quiet)
    if show:
        return _show(own, users, output)
    with held_record(own) as record:
        if abort and record.present is None:
            say("no rotation is in progress: nothing to abort")
            return _result(own, None, (), output)
        run = RotationRun(own, record, users, patience, report)
        work = run.abort() if abort else run.rotate(RotationStage(until) if until else None)
        try:
            left = asyncio.run(work)
        except NotConfirmed:
            _result(own, record.present, (), output)
            raise
        except KeyboardInterrupt:
            present = record.present
            say(f"stopped in stage {present.stage}; run it again to continue" if present else "stopped")
            return 130
        if not quiet:
            say(_end(left, published_bundle(own)))
        return _result(own, left, (), output)


def _mesh(
    state: Path | None, directory: Path | None, envoys: Sequence[Path], credentials: Sequence[Path]
) -> tuple[Path, Callable[[], Sequence[RootUser]]]:
    """Return the CA's directory, and a function that lists the root users."""
    named = [RootUser(str(each), each.absolute()) for each in envoys]
    named += [RootUser(str(each), None, (each.absolute(),)) for each in credentials]
    if directory is None:
        if named and state is None:
            # The user may have forgotten the --dir of another CA, so do not rotate the default mesh.
            raise InputError(
                "--envoy and --credentials need --dir or --state",
                remedy="name the CA with --dir, or the mesh with --state",
            )
        path = state_path(state)
        own = Path(read_status(path)["ca"]["rootCertificate"]).parent
        return own, lambda: [*root_users(read_status(path)), *named]
    if state is not None:
        raise InputError("--state and --dir both name a CA", remedy="omit one of them")
    if not named:
        raise InputError(
            "nothing can confirm a stage: no root user is named",
            where="--dir",
            remedy="name each Envoy's admin socket with --envoy, each scraper's directory with --credentials",
        )
    return directory, lambda: named


def root_users(document: Mapping[str, Any]) -> list[RootUser]:
    """Return the root users of a status document: each workload with a process, and the scrape proxy."""
    found = [_workload(each) for each in document["workloads"] if _runs(each["pids"])]
    proxy = document.get("scrapeProxy")
    if proxy and proxy.get("adminSocket"):
        found.append(RootUser("scrape proxy", Path(proxy["adminSocket"])))
    return found


def _workload(entry: Mapping[str, Any]) -> RootUser:
    places = [entry["credentials"], entry["outputCertificates"]]
    return RootUser(
        f"{entry['namespace']}/{entry['name']}",
        Path(entry["adminSocket"]) if entry["adminSocket"] else None,
        tuple(Path(each) for each in places if each),
    )


def _runs(pids: Mapping[str, Any]) -> bool:
    return bool(pids["agent"] or pids["envoy"] or pids["application"])


def _reporter(quiet: bool) -> Callable[[Progress], None]:
    """Return a function that prints each change of the progress once."""
    said = ""

    def report(progress: Progress) -> None:
        nonlocal said
        line = _line(progress)
        if line != said and not quiet:
            said = line
            say(line)

    return report


def _line(progress: Progress) -> str:
    rotation, missing = progress.rotation, progress.missing
    stage = f"{'abort, ' if rotation.aborting else ''}{rotation.stage}"
    if len(missing) == 1 and progress.seen != 1:
        return f"{stage}: waiting: {missing[0]}"
    return f"{stage}: {progress.seen - len(missing)} of {progress.seen} {_WORDS[rotation.stage]}"


def _show(own: Path, users: Callable[[], Sequence[RootUser]], output: str) -> int:
    rotation = read_rotation(own)
    if rotation is None:
        if output == "text":
            print("no rotation is in progress")
        return _result(own, None, (), output)
    # This takes no lock, because it only reads, also while another process rotates.
    progress = asyncio.run(look(own, rotation, users()))
    if output == "text":
        print("\n".join([_line(progress), *progress.missing]))
    _result(own, rotation, progress.missing, output)
    return 1 if progress.missing else 0


def _end(left: Rotation | None, bundle: Sequence[str]) -> str:
    if left is not None:
        return f"stage {left.stage} is confirmed; run it again to continue, or with --abort to go back"
    return f"done: the only root is {bundle[0][:16]}…"


def _result(own: Path, rotation: Rotation | None, missing: Sequence[str], output: str) -> int:
    """Print the outcome as a document: the bundle that the CA has published, and the current rotation."""
    if output != "text":
        document: dict[str, Any] = {
            "apiVersion": DOCUMENT_VERSION,
            "kind": "Rotation",
            "roots": list(published_bundle(own)),
            "rotation": None,
        }
        if rotation is not None:
            document["rotation"] = {
                "stage": rotation.stage.value,
                "old": rotation.old,
                "new": rotation.new,
                "startedAt": rotation.started_at.isoformat(),
                "aborting": rotation.aborting,
                "missing": list(missing),
            }
        print_document(document, output)
    return 0
