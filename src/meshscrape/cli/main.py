"""The command line: find the verb's module, turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from meshscrape import __version__
from meshscrape.cli.complaints import complain, usage_line
from meshscrape.cli.words import VARIABLE
from meshscrape.errors import MeshscrapeError

GROUPS = {
    "Mesh on this machine": {
        "up": "Start a mesh on this machine and show it until Ctrl-C.",
        "down": "Stop the running mesh.",
        "status": "Show the running mesh.",
        "verify": "Prove from outside which clients can read which ports.",
        "explain": "Explain why a target is up, down or refused, and what to do.",
        "listeners": "Show the listeners of a workload's running Envoy.",
        "curl": "Send a request with the credentials of a workload.",
    },
    "Cluster": {
        "observe": "Report what a cluster contains and which pitfalls apply.",
        "plan": "Show what must change in a cluster, as a diff.",
        "render": "Write the changed objects as files.",
        "apply": "Apply the plan to a cluster, phase by phase, with proof after each.",
        "remove": "Take back what meshscrape wrote, phase by phase, with proof after each.",
        "rbac": "Write the roles that a verb needs in a cluster.",
    },
    "Prometheus": {
        "prometheus-config": "Write scrape jobs or a complete Prometheus.",
        "rules": "Write the alerting and recording rules.",
        "dashboard": "Write the Grafana dashboard.",
    },
    "Services": {
        "agent": "Run the agent next to a workload.",
        "ca": "Run the certificate authority, or prepare its files.",
        "proxy": "Run the scrape proxy next to Prometheus.",
    },
    "Other": {
        "completion": "Write the completion script of a shell.",
        "schema": "Write the JSON Schema of a document that is printed.",
        "version": "Show what is installed, with versions.",
    },
}
VERBS = {verb: text for group in GROUPS.values() for verb, text in group.items()}
# Packages that a smaller installation does not have, and the extra that installs them.
_EXTRAS = {
    "cryptography": "envoy", "envoy": "envoy", "grpclib": "envoy", "google": "envoy", "h11": "envoy",
    "jwt": "envoy", "flask": "local", "gunicorn": "local", "httpbin": "local", "prometheus_client": "local",
}  # fmt: skip
TRACEBACK = "MESHSCRAPE_TRACEBACK"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _without_colour(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"


# Accepted before and after the verb.
_NO_COLOR = click.Option(
    ["--no-color", "no_color"], is_flag=True, expose_value=False, is_eager=True, callback=_without_colour,
    help="Write no colours, as with NO_COLOR=1 in the environment.",
)  # fmt: skip


class LazyVerbs(click.Group):
    """A group that imports only the verb that runs, so that an agent does not load the planner."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help text."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command, None for an unknown name."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"meshscrape.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        if not any(each.name == _NO_COLOR.name for each in command.params):
            command.params.append(_NO_COLOR)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs grouped by purpose."""
        width = max(len(verb) for verb in VERBS)
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), text) for verb, text in verbs.items()])


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshscrape")
def meshscrape() -> None:
    """Mutual TLS for Prometheus scraping in a service mesh, proven end to end.

    Exit codes: 0 fine; 1 findings, or changes that are pending or held back; 2 could not run;
    130 interrupted.
    """


meshscrape.params.append(_NO_COLOR)


def main(program: str = "meshscrape") -> None:
    """Run the command line and exit; an error is one line on stderr and an exit code.

    `program` is how the user calls it, for the usage lines.
    """
    _replace_closed_streams()
    try:
        code = meshscrape.main(prog_name=program, complete_var=VARIABLE, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        _leave(2)
    except click.UsageError as error:
        complain(usage_line(error))
        _leave(2)
    except (click.Abort, KeyboardInterrupt):
        _leave(130)
    except MeshscrapeError as error:
        complain(str(error))
        _leave(error.exit_code)
    except BrokenPipeError:
        _leave(141)
    except SystemExit as leaving:
        # click exits with 1 if the reader of the output has gone, but 1 means findings here. It exits with 0
        # after it completed a word for a shell.
        _leave(141 if leaving.code else 0)
    except ModuleNotFoundError as error:
        complain(_not_installed(error))
        _leave(MeshscrapeError.exit_code)
    except OSError as error:
        complain(_system_error(error))
        _leave(MeshscrapeError.exit_code)
    except Exception as error:
        complain(_bug(error))
        _leave(MeshscrapeError.exit_code)
    _leave(code if isinstance(code, int) else 0)


def _not_installed(error: ModuleNotFoundError) -> str:
    """Return one line about a package that belongs to an extra, with the command that installs it."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return _bug(error)
    return (
        f"the package {package} is not installed; "
        f"install what this verb needs, in a checkout of meshscrape: pip install '.[{_EXTRAS[package]}]'"
    )


def _system_error(error: OSError) -> str:
    """Return one line about an error of the operating system that no verb handled."""
    # Such an error names no file when writing to an open file fails; nearly always that is standard output.
    if error.errno in _DISK_FULL and not error.filename:
        return f"the output cannot be written: {error.strerror}; make room"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def _bug(error: Exception) -> str:
    """Return one line about a bug of meshscrape; with MESHSCRAPE_TRACEBACK, also print the traceback."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    said = " ".join(str(error).split())[:200]
    return (
        f"internal error at {place}: {type(error).__name__}: {said}; "
        f"this is a bug of meshscrape: please report what it prints with {TRACEBACK}=1"
    )


def _replace_closed_streams() -> None:
    """Replace standard streams that were closed before the start by the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open until the process ends)


def _leave(code: int) -> NoReturn:
    """Flush the output and exit with `code`, or with 2 and one line if the output cannot be written.

    Python itself would print a traceback and exit with 120. If the reader has gone, the code is unchanged.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _silence(stream.fileno())
        except OSError as error:
            _silence(stream.fileno())
            if stream is sys.stdout:
                complain(f"the output cannot be written: {error.strerror}; make room")
            code = MeshscrapeError.exit_code
    sys.exit(code)


def _silence(descriptor: int) -> None:
    """Redirect a broken stream to the null device, to discard what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
