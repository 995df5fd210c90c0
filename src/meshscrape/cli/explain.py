"""`meshscrape explain`: why a target is down or refused, or what a code means."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from meshscrape.cli.codes import code_document, explanations
from meshscrape.cli.live import cluster_options
from meshscrape.cli.output import print_document
from meshscrape.cli.status import STATE
from meshscrape.errors import InputError


@click.command()
@click.argument("target", required=False)
@click.option(
    "--code", metavar="CODE",
    help="Explain this code of a pitfall, finding, plan, refusal or alert instead; `list` shows all codes.",
)  # fmt: skip
@STATE
@click.option(
    "--as", "scraper", default="", metavar="NAMESPACE/NAME",
    help="Scrape as this workload.  [default: the mesh's Prometheus]",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, metavar="SECONDS",
    help="Seconds to wait for each connection and each answer.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
@click.option(
    "--proxy", metavar="IP:PORT",
    help="Explain a target of the `meshscrape proxy` that listens here; no mesh is needed.",
)  # fmt: skip
@click.option(
    "--discovery",
    metavar="IP:PORT",
    help="With --proxy: the address of its --discovery.  [default: same IP, port 15095]",
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="With --proxy: the file with its token.  [default: token in the proxy's default --dir]",
)  # fmt: skip
@click.option(
    "--credentials", "credentials", multiple=True, metavar="[TRUST_DOMAIN=]DIR",
    help="With --proxy: the directory of its --credentials (repeatable).",
)  # fmt: skip
@click.option(
    "--kubernetes", is_flag=True,
    help="Explain a pod of a cluster (TARGET is NAMESPACE/POD) by its objects, API server and Prometheus.",
)  # fmt: skip
@cluster_options
def command(
    target: str | None, code: str | None, state: Path | None, scraper: str, timeout: float, output: str,
    proxy: str | None, discovery: str | None, token_file: Path | None, credentials: tuple[str, ...],
    kubernetes: bool,
) -> int:  # fmt: skip
    """Explain why TARGET is down or refused, step by step, and what to do; or what a code means.

    TARGET is a workload (NAME or NAMESPACE/NAME: all its targets), ADDRESS:PORT, or a target's URL as
    Prometheus shows it. With --proxy, explain a target of a scrape proxy that runs without a mesh. With
    --code, explain a code that observe, plan, verify, the scrape proxy or an alert shows; nothing runs.
    Exit codes: 0 healthy (--code: explained), 1 something is wrong, 2 could not run.
    """
    if (code is None) == (target is None):
        raise InputError(
            "no target and no code given" if code is None else "both a target and a code given",
            remedy="give TARGET or --code CODE",
        )
    if code is not None:
        return _explain_code(code, output)
    if kubernetes:
        from meshscrape.cli.explain_target import explain_in_kubernetes

        return explain_in_kubernetes(str(target), output)
    # This needs the extra [envoy]; the explanation of a code does not.
    from meshscrape.cli.explain_target import TargetOptions, explain_target

    options = TargetOptions(state, scraper, timeout, proxy, discovery, token_file, credentials)
    return explain_target(str(target), options, output)


def _explain_code(code: str, output: str) -> int:
    known = explanations()
    if code == "list":
        if output == "text":
            click.echo("\n".join(f"{each.code}  ({each.of})" for each in known.values()))
        else:
            print_document([code_document(each) for each in known.values()], output)
        return 0
    found = known.get(code)
    if found is None:
        near = difflib.get_close_matches(code, known, 3)
        raise InputError(
            f"unknown code {code!a}",
            where="--code",
            remedy=f"did you mean {' or '.join(near)}?" if near else "see --code list",
        )
    if output == "text":
        click.echo(f"{found.code} ({found.of})\n\n{found.text}\n\nfrom {found.page}")
    else:
        print_document(code_document(found), output)
    return 0
