"""`meshscrape proxy`: the scrape proxy next to a Prometheus."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshscrape.cli.options import gathered, path_option, seconds_option, text_option, within_option
from meshscrape.cli.proxy_sources import ChosenSources, source_options, sources_of
from meshscrape.errors import InputError
from meshscrape.istio.names import MESHSCRAPE_ENVOY, MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION

if TYPE_CHECKING:
    from meshscrape.proxy.options import ProxyOptions

DEFAULT_LISTEN = "127.0.0.1:15094"
DEFAULT_DISCOVERY = "127.0.0.1:15095"


def default_directory() -> Path:
    """Return `$XDG_STATE_HOME/meshscrape-proxy`, by default `~/.local/state/meshscrape-proxy`."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "meshscrape-proxy"


@dataclass(frozen=True, slots=True)
class Serving:
    """The values of the options that are not about the sources, each under its option's name."""

    credentials: tuple[str, ...]
    aliases: tuple[str, ...]
    listen: str
    discovery: str
    directory: Path | None
    token_file: Path | None
    role: str
    share: str
    share_with: tuple[str, ...]
    share_token: bool
    remote: bool
    wait: float
    workers: int

    @property
    def own(self) -> Path:
        """Return the proxy's own directory."""
        return self.directory or default_directory()

    @property
    def token(self) -> Path:
        """Return the file of the jobs' bearer token."""
        return self.token_file or self.own / "token"


_SERVING = (
    text_option(
        "--credentials", metavar="[TRUST_DOMAIN=]DIR", multiple=True,
        help="Directory with certificate and key (shown to targets) and roots (verify targets), for targets "
        "of TRUST_DOMAIN; by default the certificate's own. Files: cert-chain.pem, key.pem, root-cert.pem; "
        "or tls.crt, tls.key, ca.crt; or svid.pem, svid_key.pem, svid_bundle.pem. Repeatable.",
    ),
    text_option(
        "--trust-domain-alias", "aliases", metavar="[TRUST_DOMAIN=]NAME", multiple=True,
        help="Another trust domain that targets' certificates may have while the trust domain is renamed. "
        "TRUST_DOMAIN defaults to that of the first --credentials. Repeatable.",
    ),
    click.option(
        "--listen", default=DEFAULT_LISTEN, show_default=True, metavar="IP:PORT", help="Address for scrapes."
    ),
    click.option(
        "--discovery", default=DEFAULT_DISCOVERY, show_default=True, metavar="IP:PORT",
        help="Address for HTTP SD (/targets/JOB) and /metrics.",
    ),
    path_option(
        "--dir", "directory", metavar="DIR",
        help="The proxy's own directory.  [default: $XDG_STATE_HOME/meshscrape-proxy]",
    ),
    path_option(
        "--token-file",
        help="File with the bearer token of the jobs; created (0600) if missing.  [default: token, in --dir]",
    ),
    click.option(
        "--role", type=click.Choice(["all", "routes", "envoy"]), default="all", show_default=True,
        help="Run Envoy and what keeps its routes together, or each as a process of its own with the same "
        "--dir. An Envoy of its own goes on when the other process dies.",
    ),
    text_option(
        "--share", metavar="IP:PORT",
        help="Tell other scrape proxies (--follow) the targets here, over mutual TLS with the first "
        "--credentials. Its own SPIFFE ID may ask.",
    ),
    text_option(
        "--share-with", metavar="SPIFFE_ID", multiple=True,
        help="With --share: this SPIFFE ID may ask too. Repeatable.",
    ),
    click.option(
        "--share-token", is_flag=True,
        help="Make the token file readable by every user (0644): for a volume that only the containers of "
        "Prometheus's pod mount.",
    ),
    click.option("--remote", is_flag=True, help="Allow addresses that other machines can reach."),
    seconds_option(
        "--wait", default=60.0, least=0, most=3600, help="Seconds to wait for the credentials at the start."
    ),
    click.option(
        "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Envoy's threads."
    ),
)  # fmt: skip


@click.command()
@gathered(_SERVING, "serving", Serving)
@source_options
@click.option(
    "--check",
    is_flag=True,
    help="Do not run. Exit with 0 if the proxy at --discovery is ready, else with 1: for a pod's probe.",
)
def command(serving: Serving, chosen: ChosenSources, check: bool) -> int:
    """Run the scrape proxy until SIGTERM: it verifies the SPIFFE ID of each target that Prometheus scrapes.

    `meshscrape prometheus-config --proxy` writes the scrape jobs. docs/scrape-proxy.md has the rest.
    Exit codes: 0 stopped by a signal (--check: ready), 1 (--check) not ready, 2 could not run.
    """
    if check:
        return _checked(serving.discovery, serving.token)
    from meshscrape.proxy.run import run, run_envoy

    if serving.role == "envoy":
        run_envoy(serving.own, _envoy(), serving.workers, serving.wait)
    options = _options(serving, chosen)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s proxy: %(message)s"
    )
    run(options)
    return 0


def _options(serving: Serving, chosen: ChosenSources) -> ProxyOptions:
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.proxy.options import ProxyOptions
    from meshscrape.spiffe.ids import SpiffeId

    if not serving.credentials:
        raise InputError("there are no credentials", remedy="give --credentials DIR")
    with within_option("--credentials"):
        credentials = [domain_and_directory(text) for text in serving.credentials]
    with within_option("--trust-domain-alias"):
        aliases = [_alias(text) for text in serving.aliases]
    with within_option("--share-with"):
        share_with = [SpiffeId.parse(text) for text in serving.share_with]
    return ProxyOptions(
        listen=parse_host_port(serving.listen, "--listen"),
        discovery=parse_host_port(serving.discovery, "--discovery"),
        directory=serving.own,
        token_file=serving.token,
        credentials=credentials,
        sources=sources_of(chosen, serving.own, credentials, serving.wait),
        aliases=aliases,
        share=parse_host_port(serving.share, "--share") if serving.share else None,
        share_with=share_with,
        share_token=serving.share_token,
        separate_envoy=serving.role == "routes",
        remote=serving.remote,
        workers=serving.workers,
        patience=serving.wait,
        requests_per_connection=_requests_per_connection(),
        envoy=_envoy(),
    )


def _envoy() -> Path | None:
    """Return the Envoy that the environment names; None for the one of the package."""
    named = os.environ.get(MESHSCRAPE_ENVOY)
    return Path(named) if named else None


def _checked(discovery: str, token_file: Path) -> int:
    from meshscrape.istio.host_port import parse_host_port
    from meshscrape.proxy.readiness import why_not_ready

    reason = why_not_ready(parse_host_port(discovery, "--discovery"), token_file)
    if reason:
        print(f"not ready: {reason}", file=sys.stderr)
    return 1 if reason else 0


def _requests_per_connection() -> int:
    """Return how many requests a connection to a target may carry; 0 sets no limit."""
    requests = os.environ.get(MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION, "0")
    if not requests.isdecimal():
        raise InputError(
            f"{requests!a} is not a number of requests", where=MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION
        )
    return int(requests)


def _alias(text: str) -> tuple[str, str]:
    from meshscrape.spiffe.ids import check_trust_domain

    domain, equals, alias = text.partition("=")
    return (
        (check_trust_domain(domain), check_trust_domain(alias)) if equals else ("", check_trust_domain(text))
    )


def domain_and_directory(text: str) -> tuple[str, Path]:
    """Split `[TRUST_DOMAIN=]DIR`; the name is empty if missing. Raise InputError for an invalid name."""
    from meshscrape.spiffe.ids import check_trust_domain

    name, equals, path = text.partition("=")
    return (check_trust_domain(name), Path(path)) if equals and "/" not in name else ("", Path(text))
