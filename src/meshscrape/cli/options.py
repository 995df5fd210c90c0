"""Make options of the same form in one line each, and hand several of them over as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from meshscrape.errors import InputError, Place

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def text_of(path: Path, option: str) -> str:
    """Return the text of the file that an option names. Raise InputError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text", where=option, remedy="name another file") from error


@contextmanager
def within_option(option: str) -> Iterator[None]:
    """Name the option in an InputError about its value."""
    try:
        yield
    except InputError as error:
        raise error.at(Place(text=option)) from None


def path_option(*names: str, help: str, metavar: str = "FILE", multiple: bool = False) -> Decorator:
    """Return an option for the path of a file or (with `metavar`) a directory, which need not exist yet."""
    kind = click.Path(path_type=Path)
    return click.option(*names, type=kind, metavar=metavar, multiple=multiple, help=help)


def text_option(*names: str, help: str, metavar: str, multiple: bool = False) -> Decorator:
    """Return an option for a text: empty if it is not given, or a tuple with `multiple`."""
    default = () if multiple else ""
    return click.option(*names, default=default, metavar=metavar, multiple=multiple, help=help)


def seconds_option(name: str, *, default: float, least: float, most: float, help: str) -> Decorator:
    """Return an option for a number of seconds between `least` and `most`."""
    kind = click.FloatRange(least, most)
    return click.option(name, type=kind, default=default, show_default=True, metavar="SECONDS", help=help)


def gathered(options: Sequence[Decorator], name: str, make: Callable[..., Any]) -> Decorator:
    """Return a decorator that adds `options`, and passes on their values as `name=make(**values)`.

    The parameters of `make` have the names of the options.
    """
    keys = inspect.signature(make).parameters

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(**values: Any) -> Any:
            value = make(**{key: values.pop(key) for key in keys})
            return function(**{name: value}, **values)

        command: Callable[..., Any] = wrapped
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
