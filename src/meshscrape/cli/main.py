"""The `meshscrape` command: finds the verb's module, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import NoReturn

import click

from meshscrape import __version__
from meshscrape.errors import MeshscrapeError

VERBS = {
    "agent": "Run the agent beside a workload: certificate, Envoy, health, merged metrics.",
    "ca": "Run the mesh's certificate authority, or prepare its files.",
    "curl": "Make a request with a workload's credentials.",
    "dashboard": "Write a Grafana dashboard of the secured scraping.",
    "explain": "Say why a target is down or refused, step by step, and what to do.",
    "listeners": "Show the listeners of a workload, read from its running Envoy.",
    "observe": "Tell from manifests or a dump what a cluster has, and what will bite.",
    "plan": "Tell what must change in a cluster, as a readable diff.",
    "proxy": "Run the scrape proxy beside a Prometheus: it checks whom it scrapes.",
    "prometheus-config": "Write the scrape jobs for Prometheus.",
    "render": "Write the changed objects as files for GitOps.",
    "rules": "Write the alerting rules.",
    "status": "Show the running mesh.",
    "up": "Start a mesh on this machine and show it until Ctrl-C.",
    "verify": "Prove from outside who may scrape what.",
}


class LazyVerbs(click.Group):
    """Imports only the verb that runs: an agent does not pay for the mesh's table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"meshscrape.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshscrape")
def meshscrape() -> None:
    """Mutual TLS for Prometheus scraping in a service mesh, proven end to end.

    Exit codes: 0 done, 1 findings (verify, up --check), 2 could not run, 130 interrupted.
    """


def main() -> None:
    """Run the command line; a MeshscrapeError is one line on stderr and its exit code."""
    try:
        code = meshscrape.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        _leave(2)
    except click.Abort:
        _leave(130)
    except KeyboardInterrupt:
        _leave(130)
    except MeshscrapeError as error:
        print(f"meshscrape: {error}", file=sys.stderr)
        _leave(error.exit_code)
    except BrokenPipeError:
        _leave(141)
    except SystemExit:
        # click's own way out when nobody reads any more; its code would say "findings".
        _leave(141)
    except Exception:
        # A mistake of ours is shown whole; Python's own exit code for it would say "findings".
        traceback.print_exc()
        _leave(MeshscrapeError.exit_code)
    _leave(code if isinstance(code, int) else 0)


def _leave(code: int) -> NoReturn:
    """Exit with `code`, also when nobody reads the output any more (Python would make it 120 then)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
