"""Write what could not run as one line on standard error, also the usage errors of click."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import click


def complain(text: str) -> None:
    """Write one line about what could not run to standard error."""
    print(f"meshscrape: {one_line(text)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return `text` on one line; characters that a terminal would obey become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def usage_line(error: click.UsageError) -> str:
    """Return one line about a usage error: where, what, and what to do."""
    place = _place(error)
    return f"{place + ': ' if place else ''}{_what(error)}; {_remedy(error)}"


def _place(error: click.UsageError) -> str:
    """Return the longest name of the option, or the name of the argument; empty for neither."""
    if isinstance(error, click.NoSuchOption | click.BadOptionUsage):
        return error.option_name
    parameter = error.param if isinstance(error, click.BadParameter) else None
    return _name(parameter) if parameter else ""


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    # An optional argument has brackets, `[FILE]...`, and an argument with choices has `{bash|zsh}`.
    name = parameter.human_readable_name.strip("[].")
    return str(parameter.name).upper() if name.startswith("{") else name


def _what(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        return "there is no such option"
    if isinstance(error, click.MissingParameter):
        return "it is missing"
    verb, message = _unknown_verb(error), error.message
    if verb:
        return f"there is no verb {verb!a}"
    if isinstance(error, click.BadOptionUsage):
        return "it takes no value" if _takes_no_value(error) else "it needs a value"
    value, is_not, _ = message.partition(" is not ")
    if is_not and isinstance(error, click.BadParameter) and error.param:
        if isinstance(error.param.type, click.Choice):
            return f"{value} is not one of its values"
        if number := _number(error.param.type):
            return f"{value} is not {number}"
    return (message[:1].lower() + message[1:]).rstrip(".")


def _number(kind: click.ParamType[Any]) -> str:
    """Return what a number must be, in words; empty for another kind of parameter."""
    if kind.name.partition(" ")[0] not in ("integer", "float"):
        return ""
    what = "a whole number" if kind.name.startswith("integer") else "a number"
    least = getattr(kind, "min", None)
    most = getattr(kind, "max", None)
    if least is not None and most is not None:
        return f"{what} from {least:g} to {most:g}"
    return f"{what} of at least {least:g}" if least is not None else what


def _takes_no_value(error: click.BadOptionUsage) -> bool:
    # click has no other sign for `--flag=VALUE`.
    return "does not take a value" in error.message


def _unknown_verb(error: click.UsageError) -> str:
    # click has a type of its own for this error since 8.4.
    name = getattr(error, "command_name", "")
    return name if isinstance(name, str) else ""


def _remedy(error: click.UsageError) -> str:
    """Return the near names, the choices or the form of the value; else where they are written."""
    near = _near(error)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if isinstance(error, click.BadOptionUsage):
        return f"write {error.option_name}{'' if _takes_no_value(error) else ' VALUE'}"
    parameter = error.param if isinstance(error, click.BadParameter) else None
    if parameter and isinstance(parameter.type, click.Choice):
        return f"choose from {', '.join(map(str, parameter.type.choices))}"
    if isinstance(error, click.MissingParameter) and isinstance(parameter, click.Option):
        return f"give {_name(parameter)} {parameter.metavar or parameter.type.name.upper()}"
    if parameter and isinstance(parameter.type, click.Path):
        return "correct the path"
    return f"see `{error.ctx.command_path} --help`" if error.ctx else "see --help"


def _near(error: click.UsageError) -> list[str]:
    """Return names or values that exist and are like the unknown one."""
    if error.ctx is None:
        return []
    command = error.ctx.command
    if isinstance(error, click.NoSuchOption):
        options = [
            name for parameter in command.params if isinstance(parameter, click.Option)
            for name in (*parameter.opts, *parameter.secondary_opts)
        ]  # fmt: skip
        return difflib.get_close_matches(error.option_name, [*options, "--help"], 3)
    if (name := _unknown_verb(error)) and isinstance(command, click.Group):
        return difflib.get_close_matches(name, command.list_commands(error.ctx), 3)
    if isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.Choice):
        value = error.message.partition(" is not ")[0].strip("'")
        return difflib.get_close_matches(value, list(map(str, error.param.type.choices)), 3)
    return []
