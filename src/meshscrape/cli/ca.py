"""`meshscrape ca`: run the certificate authority, prepare its files, issue tokens, rotate its root."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from pathlib import Path

import click

from meshscrape.ca.authority import OperatorFiles
from meshscrape.ca.run import CaOptions, RunningCa, open_authority, serve_ca
from meshscrape.ca.service import Lifetimes
from meshscrape.ca.storage import JWKS
from meshscrape.ca.tokens import LOCAL_ISSUER, TokenIssuer
from meshscrape.cli.ca_rotate import rotate
from meshscrape.errors import InputError
from meshscrape.istio.durations import parse_duration
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.system import life
from meshscrape.system.clock import utcnow
from meshscrape.system.files import DirectoryLock, private_dir, write_atomic

_PATH = click.Path(path_type=Path)
_DIRECTORY = click.option(
    "--dir", "directory", type=_PATH, required=True, help="The CA's own directory (created 0700 if missing)."
)
_TRUST_DOMAIN = click.option(
    "--trust-domain", default="cluster.local", show_default=True, help="The trust domain of the mesh."
)


@click.group()
def command() -> None:
    """Run the mesh's certificate authority, prepare its files, replace its root."""


command.add_command(rotate)


@command.command()
@_DIRECTORY
@_TRUST_DOMAIN
def init(directory: Path, trust_domain: str) -> None:
    """Create a self-signed root and a key for local tokens; keep existing files."""
    private_dir(directory)
    lock = DirectoryLock(directory, "a CA")
    authority = open_authority(CaOptions(directory, trust_domain=trust_domain))
    write_atomic(directory / ROOTS_FILE, authority.bundle_pem, 0o644)
    TokenIssuer.load_or_create(directory)
    lock.release()
    print(f"root bundle: {directory / ROOTS_FILE}\ntoken keys:  {directory / JWKS}")


@command.command()
@_DIRECTORY
@click.argument("account", metavar="NAMESPACE/SERVICE_ACCOUNT")
@click.option(
    "--lifetime",
    default="1h",
    show_default=True,
    help="How long the token is valid, for example 10m or 1h30m.",
)
@click.option("--output", type=_PATH, help="Write the token here (0600) instead of to stdout.")
def token(directory: Path, account: str, lifetime: str, output: Path | None) -> None:
    """Issue a service account token as Kubernetes does, signed with the key in the CA's directory."""
    namespace, slash, service_account = account.partition("/")
    if not slash:
        raise InputError(f"{account!a} is not NAMESPACE/SERVICE_ACCOUNT", remedy="write it like demo/httpbin")
    life = _positive(lifetime, "--lifetime")
    try:
        issued = TokenIssuer.load_or_create(directory).issue(namespace, service_account, utcnow(), life)
    except InputError as error:
        raise InputError(error.what, where=error.where or f"{account!a}", remedy=error.remedy) from None
    if output:
        write_atomic(output, issued.encode(), 0o600)
    else:
        print(issued)


@command.command()
@_DIRECTORY
@_TRUST_DOMAIN
@click.option(
    "--listen",
    default="127.0.0.1:15012",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Address to issue certificates at. Port 0: any free port; [::]: IPv6 only.",
)
@click.option(
    "--dns",
    "names",
    multiple=True,
    metavar="NAME",
    help="A DNS name or IP address that callers use for the CA (repeatable).",
)
@click.option(
    "--jwks", type=_PATH, help="The JSON Web Key Set to verify tokens with [default: DIR/jwks.json]."
)
@click.option("--issuer", default=LOCAL_ISSUER, show_default=True, help="The issuer that tokens must name.")
@click.option(
    "--default-ttl",
    default="24h",
    show_default=True,
    help="Lifetime of certificates if the caller requests none.",
)
@click.option("--max-ttl", default="24h", show_default=True, help="Maximum lifetime of certificates.")
@click.option(
    "--cert", type=_PATH, help="Your own CA certificate (root or intermediate) instead of a self-signed root."
)
@click.option("--key", type=_PATH, help="The private key of --cert (mode 0600).")
@click.option("--chain", type=_PATH, help="The intermediates above --cert, if any.")
@click.option("--root", type=_PATH, help="The root bundle with the root of --cert's chain.")
@click.option(
    "--metrics", metavar="ADDRESS:PORT", help="Serve the CA's own metrics here in plaintext [default: off]."
)
@click.option(
    "--metrics-token",
    type=_PATH,
    help="Require the bearer token in this file (created 0600 if missing) for --metrics [default: no token].",
)
def serve(
    directory: Path,
    trust_domain: str,
    listen: str,
    names: tuple[str, ...],
    jwks: Path | None,
    issuer: str,
    default_ttl: str,
    max_ttl: str,
    cert: Path | None,
    key: Path | None,
    chain: Path | None,
    root: Path | None,
    metrics: str | None,
    metrics_token: Path | None,
) -> None:
    """Serve CreateCertificate until SIGTERM, SIGINT or SIGHUP.

    The key set is read again when its file changes. A CA given with --cert is read once, at the start.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    # Any peer can cause log lines of this library, without a limit.
    logging.getLogger("grpclib").setLevel(logging.CRITICAL)
    options = CaOptions(
        directory=directory,
        listen=listen,
        trust_domain=trust_domain,
        jwks=jwks,
        issuer=issuer,
        names=names,
        lifetimes=Lifetimes(_positive(default_ttl, "--default-ttl"), _positive(max_ttl, "--max-ttl")),
        operator=_operator(cert, key, chain, root),
        metrics=metrics,
        metrics_token=metrics_token,
    )
    life.run(serve_ca(options, _say_ready))
    print("meshscrape ca: stopped", file=sys.stderr)


def _say_ready(ca: RunningCa) -> None:
    measured = f", metrics on {ca.metrics_address}" if ca.metrics_address else ""
    print(
        f"meshscrape ca: listening on {ca.address}, root {ca.root_bundle}{measured}",
        file=sys.stderr,
        flush=True,
    )


def _operator(
    certificate: Path | None, key: Path | None, chain: Path | None, root: Path | None
) -> OperatorFiles | None:
    if certificate and key and root:
        return OperatorFiles(certificate, key, chain, root)
    if certificate or key or chain or root:
        raise InputError("your own CA needs --cert, --key and --root", remedy="only --chain is optional")
    return None


def _positive(text: str, option: str) -> timedelta:
    life = parse_duration(text, option)
    if life < timedelta(seconds=1):
        raise InputError(f"{text!a} is less than a second", where=option, remedy="write 1s or more")
    return life
