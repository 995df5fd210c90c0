"""Read the objects for the verbs about a cluster."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import click

from meshscrape.cli.live import FILES, cluster_options, live_inventory, refuse_cluster_options
from meshscrape.errors import InputError, Place
from meshscrape.kube.manifests import SKIPPED, Notice, load_manifests
from meshscrape.kube.objects import Inventory, Manifest, load_inventory

_SUFFIXES = (".yaml", ".yml", ".json")
# Files of kustomize and Helm, which are stored next to manifests and are not objects of a cluster.
_OTHERS = ("kustomization.yaml", "kustomization.yml", "Chart.yaml", "values.yaml")
_MIB = 1024 * 1024
_DEFAULT_LIMIT = 1024
_LIMIT = "meshscrape.input-limit"
_EXAMPLE = "meshscrape.example"
_STANDARD_INPUT = "standard input"


def files_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the input: `-f FILE` or plain arguments with their limit, or a cluster."""
    limit = click.option(
        "--input-limit",
        type=click.IntRange(min=1),
        default=_DEFAULT_LIMIT,
        show_default=True,
        metavar="MIB",
        expose_value=False,
        callback=_keep_limit,
        help="Largest file or stream to read, in MiB.",
    )
    named = click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        metavar="FILE",
        help="Manifests, a directory of them, a dump (kubectl get … -A -o yaml), or - for standard input; "
        "repeatable, the same as FILE. Default: read the cluster.",
    )
    plain = click.argument(
        "plain", nargs=-1, metavar="[FILE]...", type=click.Path(allow_dash=True), expose_value=False,
        callback=_keep_plain,
    )  # fmt: skip
    example = click.option(
        "--example",
        is_flag=True,
        expose_value=False,
        callback=_keep_example,
        help="Read the small cluster that comes with meshscrape.",
    )
    return plain(named(example(limit(cluster_options(function)))))


def _keep_example(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[_EXAMPLE] = value


def _keep_plain(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    context.meta[FILES] = value


def _keep_limit(context: click.Context, parameter: click.Parameter, value: int) -> int:
    context.meta[_LIMIT] = value * _MIB
    return value


def read_inventory(names: Sequence[str]) -> Inventory:
    """Return the objects in files, in directories (their *.yaml, *.yml and *.json, at any depth), and in `-`.

    Documents that are not objects of a cluster are skipped, and of repeated keys the last one counts; each
    case gives one line on standard error. `names` are the files of `-f`; plain arguments come after them.
    Without both, return the objects of the cluster that the options choose. Raises InputError with the place
    for unreadable input, and if there is no object.
    """
    names = named_files(names)
    if not names:
        return live_inventory()
    refuse_cluster_options()
    with _told() as notices:
        inventory = load_inventory(manifest for name in names for manifest in _manifests(name, notices))
    if not len(inventory):
        where = ", ".join(_STANDARD_INPUT if name == "-" else name for name in names)
        raise InputError(
            "contains no object", where=where, remedy="give manifests or a dump", code="no-objects"
        )
    return inventory


def named_files(names: Sequence[str]) -> tuple[str, ...]:
    """Return the files of `-f`, the plain arguments, and that of --example; empty to read a cluster."""
    context = click.get_current_context(silent=True)
    names = (*names, *(context.meta.get(FILES, ()) if context else ()))
    if context and context.meta.get(_EXAMPLE):
        if names:
            raise InputError("it is read alone", where="--example", remedy="leave out the files")
        return (str(files("meshscrape.cli").joinpath("example", "cluster.yaml")),)
    return names


def manifests_in(directory: Path) -> Iterator[Manifest]:
    """Return the objects in the files of a directory, at any depth, with notices like `read_inventory`."""
    with _told() as notices:
        yield from _manifests(str(directory), notices)


@contextmanager
def _told() -> Iterator[list[Notice]]:
    """Provide a list of notices, and write one line for each to standard error in the end."""
    notices: list[Notice] = []
    try:
        yield notices
    finally:
        for notice in notices:
            word = "" if notice.code == SKIPPED else "warning: "
            click.echo(f"meshscrape: {word}{notice}", err=True)


def _manifests(name: str, notices: list[Notice]) -> Iterator[Manifest]:
    path = Path(name)
    if name == "-":
        yield from _read(_standard_input(), _STANDARD_INPUT, notices)
        return
    if path.is_dir():
        yield from _directory(path, notices)
        return
    try:
        _refuse_device(path.stat().st_mode, name)
        stream = path.open("rb")
    except OSError as error:
        raise _unreadable(error, name) from error
    with stream:
        yield from _read(stream, name, notices)


def _directory(directory: Path, notices: list[Notice]) -> Iterator[Manifest]:
    """Return the objects in the files of a directory. A file that vanishes meanwhile is left out."""
    for file in _files(directory, notices):
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                continue
            stream = file.open("rb")
        except FileNotFoundError as error:
            notices.append(_left_out(str(file), str(error.strerror)))
            continue
        except OSError as error:
            raise _unreadable(error, str(file)) from error
        with stream:
            yield from _read(stream, str(file), notices)


def _standard_input() -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("is closed", where=_STANDARD_INPUT, remedy="redirect a file or a pipe to it")
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except io.UnsupportedOperation:
        return sys.stdin.buffer  # A stream in memory.
    if not sys.stdin.isatty():
        _refuse_device(mode, _STANDARD_INPUT)
    return sys.stdin.buffer


def _refuse_device(mode: int, where: str) -> None:
    """Raise InputError unless it is a file, a pipe or a directory: reading a device may never end."""
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise InputError(
            "a device cannot be read", where=where, remedy="give a file, a pipe or a directory", code="device"
        )


def _read(stream: BinaryIO, where: str, notices: list[Notice]) -> Iterator[Manifest]:
    """Return the objects in the text of a stream; read at most the limit."""
    context = click.get_current_context(silent=True)
    limit = context.meta.get(_LIMIT, _DEFAULT_LIMIT * _MIB) if context else _DEFAULT_LIMIT * _MIB
    bounded = io.BufferedReader(_Bounded(stream, limit, where))
    try:
        # Some Windows editors begin a file with a byte order mark.
        yield from load_manifests(io.TextIOWrapper(bounded, encoding="utf-8-sig"), where, notices)
    except OSError as error:
        raise _unreadable(error, where) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", where=where, remedy="give YAML or JSON") from error


class _Bounded(io.RawIOBase):
    """A stream that raises InputError if more than `limit` bytes are read."""

    def __init__(self, stream: BinaryIO, limit: int, where: str) -> None:
        super().__init__()
        self._stream = stream
        self._left = limit
        self._limit = limit
        self._where = where

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer)) if hasattr(self._stream, "read1") else self._stream.read()
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise InputError(
                f"larger than {self._limit // _MIB} MiB",
                where=Place(file=self._where),
                remedy="give a smaller file, or raise --input-limit",
                code="too-large",
            )
        return len(data)


def _unreadable(error: OSError, where: str) -> InputError:
    return InputError(
        f"cannot be read: {error.strerror}", where=where, remedy="give a file, a pipe or a directory"
    )


def _files(directory: Path, notices: list[Notice]) -> list[Path]:
    """Return what has a manifest's name in a directory, at any depth, without hidden files and directories.

    Directories that cannot be read are left out with a notice, and so are file systems of the kernel
    (/proc, /sys), which have no manifests and change while they are read.
    """
    files: list[Path] = []
    device = directory.stat().st_dev

    def unreadable(error: OSError) -> None:
        # A directory that has vanished has no files.
        if not isinstance(error, FileNotFoundError) and error.errno != errno.ESRCH:
            notices.append(_left_out(str(error.filename), str(error.strerror)))

    def enters(below: Path) -> bool:
        try:
            kernel = below.stat().st_dev != device and os.statvfs(below).f_blocks == 0
        except OSError:
            return True
        if kernel:
            notices.append(_left_out(str(below), "it is a file system of the kernel"))
        return not kernel

    for place, directories, names in os.walk(directory, onerror=unreadable):
        shown = (name for name in directories if not name.startswith("."))
        directories[:] = [name for name in shown if enters(Path(place, name))]
        files += (
            Path(place, name)
            for name in names
            if Path(name).suffix in _SUFFIXES and name not in _OTHERS and not name.startswith(".")
        )
    return sorted(files)


def _left_out(where: str, reason: str) -> Notice:
    return Notice(Place(file=where), f"left out: {reason}", SKIPPED)
