"""Run a whole CA: its files, its port and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from meshscrape.ca.admission import Limits
from meshscrape.ca.authenticators import JwksFile, TokenAuthenticator
from meshscrape.ca.authority import Authority, OperatorFiles, open_operators
from meshscrape.ca.metrics import Metrics
from meshscrape.ca.root_follower import RootFollower
from meshscrape.ca.roots import open_present, record_state
from meshscrape.ca.server import BACKLOG, RECEIVE_BUFFER
from meshscrape.ca.server_certificate import own_names
from meshscrape.ca.service import CertificateService, Lifetimes
from meshscrape.ca.storage import JWKS
from meshscrape.ca.tokens import LOCAL_ISSUER
from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port, parse_host_port
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.spiffe.ids import check_trust_domain
from meshscrape.system.bearer import carries, load_token
from meshscrape.system.clock import utcnow
from meshscrape.system.files import DirectoryLock, private_dir
from meshscrape.system.http.server import HttpServer, Request, Response, routes
from meshscrape.system.net import listen_tcp
from meshscrape.system.tasks import background

log = logging.getLogger(__name__)

_EXAMPLE = "127.0.0.1:15012"
_ENDS_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class CaOptions:
    """The options of one CA process.

    `directory` belongs to it alone (0700); `listen` and `metrics` are `ADDRESS:PORT` (port 0: any free one);
    `metrics_token` is the file of the bearer token that requests for metrics need (None: they need none);
    `names` are the DNS names and IP addresses that callers use; `jwks` is the token issuer's key set
    (None: `jwks.json` in the directory); `operator` replaces the self-signed root; `limits` bound the
    connections.
    """

    directory: Path
    listen: str = "127.0.0.1:15012"
    trust_domain: str = "cluster.local"
    jwks: Path | None = None
    issuer: str = LOCAL_ISSUER
    names: tuple[str, ...] = ()
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    operator: OperatorFiles | None = None
    metrics: str | None = None
    metrics_token: Path | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class RunningCa:
    """A started CA: where it listens (`address`, `metrics_address`: HOST:PORT), and its bundle's file."""

    address: str
    root_bundle: Path
    metrics_address: str | None
    authority: Authority


@contextlib.asynccontextmanager
async def running_ca(options: CaOptions) -> AsyncIterator[RunningCa]:
    """Start the CA, and stop it completely on leaving the context. Raise InputError if it cannot start."""
    check_trust_domain(options.trust_domain)
    host, port = parse_listen(options.listen)
    names = own_names(options.names, host)
    metrics_at = parse_listen(options.metrics) if options.metrics else None
    private_dir(options.directory)
    async with contextlib.AsyncExitStack() as stack:
        lock = DirectoryLock(options.directory, "a CA")
        stack.callback(lock.release)
        state = record_state(options.directory)
        authority = open_authority(options)
        tokens = _token_authenticator(options)
        metrics = Metrics(authority.not_after)
        service = CertificateService(authority, tokens, options.lifetimes, metrics, utcnow)
        metrics_address = None
        if metrics_at:
            token = load_token(options.metrics_token) if options.metrics_token else None
            endpoint = await stack.enter_async_context(_metrics_endpoint(metrics, metrics_at, token))
            metrics_address = host_port(*endpoint.addresses[0])
        listening = listen_tcp(host, port, BACKLOG, receive_buffer=RECEIVE_BUFFER)
        address = host_port(*listening.getsockname()[:2])
        reopen = partial(open_authority, options)
        roots = RootFollower(options.directory, names, service, metrics, reopen, state, options.limits)
        stack.callback(roots.stop)
        tasks = await stack.enter_async_context(background())
        roots.start(listening, authority, tasks)
        if options.operator is None:
            tasks.start(roots.follow, "following the rotation")
        yield RunningCa(address, options.directory / ROOTS_FILE, metrics_address, authority)


async def serve_ca(options: CaOptions, ready: Callable[[RunningCa], None] = lambda ca: None) -> None:
    """Run the CA until this task is cancelled; call `ready` when it listens."""
    async with running_ca(options) as ca:
        ready(ca)
        await asyncio.Event().wait()


def open_authority(options: CaOptions) -> Authority:
    """Return the signing CA of `options`; create its files if it is self-signed and new."""
    now = utcnow()
    if options.operator:
        authority = open_operators(options.operator, options.trust_domain, now)
    else:
        authority = open_present(options.directory, options.trust_domain, now)
    if authority.not_after - now < _ENDS_SOON:
        log.warning("the CA's chain ends at %s", f"{authority.not_after:%Y-%m-%dT%H:%M:%SZ}")
    return authority


def parse_listen(text: str) -> tuple[str, int]:
    """Parse `127.0.0.1:15012` or `[::1]:15012` into address and port (0 to 65535), else raise InputError."""
    host, port = parse_host_port(text, allow_zero=True, example=_EXAMPLE)
    try:
        return str(ip_address(host)), port
    except ValueError:
        raise InputError(
            f"{host!a} is not an IP address", where=f"{text!a}", remedy=f"write {_EXAMPLE}"
        ) from None


def _token_authenticator(options: CaOptions) -> TokenAuthenticator:
    path = options.jwks or options.directory / JWKS
    if options.jwks is None and not path.exists():
        raise InputError(
            "the key set for verifying tokens is missing",
            where=str(path),
            remedy="run meshscrape ca init, or give --jwks and --issuer",
        )
    return TokenAuthenticator(JwksFile(path), options.issuer, options.trust_domain)


def _metrics_endpoint(metrics: Metrics, at: tuple[str, int], token: str | None) -> HttpServer:
    async def answer(request: Request) -> Response:
        if token is not None and not carries(request, token):
            return Response(401, b"no bearer token, or another\n", headers={"WWW-Authenticate": "Bearer"})
        return Response(200, metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return HttpServer(routes({"/metrics": answer}), addresses=[at])
