"""The CA's life: starts, refusals to start, renewal of its own certificate, complete stops, crashes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509

from meshscrape.ca import server_certificate
from meshscrape.ca.authority import open_own
from meshscrape.ca.server_certificate import ServerCertificate
from meshscrape.ca.tokens import TokenIssuer
from meshscrape.cli.ca import command
from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import certificates_to_pem, identity_of, load_certificates
from meshscrape.spiffe.keys import generate_key, key_to_pem
from meshscrape.system.clock import utcnow
from support.ca import CaProcess, TestCa, ca_process
from support.grpc_ca import any_csr, bearer, call, request_bytes
from support.polling import eventually, eventually_async

CSR = any_csr(generate_key())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`meshscrape ca ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshscrape", "ca", *arguments], capture_output=True, text=True, timeout=30
    )


def refused(*arguments: str) -> str:
    """The one line with which a command that must not work ends."""
    done = run(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_an_operators_intermediate(tmp_path: Path) -> None:
    """Leaves below an operator's intermediate come with it and the whole bundle, and renew by mutual TLS."""
    root, old_root = TestCa(), TestCa()
    signer = root.intermediate()
    certificate = certificates_to_pem([signer.signer.certificate])
    bundle = old_root.root_pem + root.root_pem
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key_to_pem(signer.signer.key))
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "root.pem").write_bytes(bundle)
    files = (f"--{name}={tmp_path / name}.pem" for name in ("cert", "key", "root"))
    with ca_process(tmp_path / "ca", *files) as ca:
        chain = call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))
        assert chain[1:] == [certificate, bundle]
        leaf = load_certificates(chain[0], "leaf")[0]
        leaf.verify_directly_issued_by(signer.signer.certificate)
        again = call(ca, request_bytes(CSR), credentials=ca.issue("foo", "bar"))
        assert (
            str(identity_of(load_certificates(again[0], "leaf")[0])) == "spiffe://cluster.local/ns/foo/sa/bar"
        )
        stolen = old_root.workload("foo", "bar")
        assert call(ca, request_bytes(CSR), credentials=stolen), "every root of the bundle is trusted"
        assert not (ca.directory / "ca-key.pem").exists()


@pytest.mark.parametrize(("listen", "host"), [("[::1]:0", "[::1]"), ("127.0.0.1:0", "localhost")])
def test_callers_reach_it_by_ipv6_and_by_name(tmp_path: Path, listen: str, host: str) -> None:
    """An IPv6 address and a name given with --dns are names that the CA proves."""
    with ca_process(tmp_path, "--dns", "localhost", listen=listen) as ca:
        named = dataclasses.replace(ca, address=f"{host}:{ca.address.rsplit(':', 1)[1]}")
        assert named.issue("foo", "bar").certificate
        assert call(named, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))


def test_a_crash_changes_nothing(tmp_path: Path) -> None:
    """After kill -9 the next start has the same root, and certificates from before still renew."""
    with ca_process(tmp_path) as before:
        root, credentials = before.root_pem, before.issue("foo", "bar")
        before.process.kill()
        before.process.wait(10)
    with ca_process(tmp_path, listen=before.address) as after:
        assert after.address == before.address
        assert after.root_pem == root
        assert call(after, request_bytes(CSR), credentials=credentials)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_completely(tmp_path: Path, number: signal.Signals) -> None:
    """With idle connections, in TLS and before it, a signal ends the process with 0 and frees the port."""
    with ca_process(tmp_path) as ca:
        host, port = ca.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))), connected(ca):
            ca.process.send_signal(number)
            assert ca.process.wait(10) == 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
        assert "Traceback" not in ca.log()


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    """The second listener on a port ends with one line that names the port; the first keeps it alone."""
    TokenIssuer.load_or_create(tmp_path / "second")
    with ca_process(tmp_path / "first") as ca:
        line = refused("serve", "--dir", str(tmp_path / "second"), "--listen", ca.address)
        assert line.startswith(f"meshscrape: {ca.address}: the port is taken")
        taken = ("--listen", "127.0.0.1:0", "--metrics", ca.metrics_address)
        assert ca.metrics_address in refused("serve", "--dir", str(tmp_path / "second"), *taken)
        assert call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))


def test_second_ca_in_a_directory_is_refused(tmp_path: Path) -> None:
    """Two processes never sign with one directory's files."""
    with ca_process(tmp_path) as ca:
        line = refused("serve", "--dir", str(tmp_path), "--listen", "127.0.0.1:0")
        assert f"a CA already runs here (pid {ca.process.pid})" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--listen", "localhost:15012"), "not an IP address"),
        (("--listen", "127.0.0.1:99999"), "not a port"),
        (("--listen", "192.0.2.1:0"), "192.0.2.1:0: "),
        (("--listen", "0.0.0.0:0"), "give the names that callers use with --dns"),
        (("--dns", "a b"), "neither a DNS name nor an IP address"),
        (("--trust-domain", "Not/One"), "not a SPIFFE ID"),
        (("--max-ttl", "soon"), "--max-ttl: "),
        (("--default-ttl", "10ms"), "--default-ttl: '10ms' is less than a second"),
        (("--jwks", "missing.json"), "missing.json: cannot read"),
        (("--cert", "cert.pem"), "needs --cert, --key and --root"),
        (("--cert=a.pem", "--key=b.pem", "--root=c.pem"), "b.pem: cannot read"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_unusable_options_keep_the_ca_from_starting(
    tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    """Each bad setting is an error of one line with the place."""
    TokenIssuer.load_or_create(tmp_path)
    whole = ["serve", "--dir", str(tmp_path), "--listen", "127.0.0.1:0", *arguments]
    with pytest.raises(InputError) as caught:
        command.main(whole, standalone_mode=False)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_init_prepares_everything_once(tmp_path: Path) -> None:
    """`ca init` makes root and token key; a second time it leaves them; without it `serve` says to run it."""
    directory = tmp_path / "ca"
    assert "meshscrape ca init" in refused("serve", "--dir", str(directory), "--listen", "127.0.0.1:0")
    assert run("init", "--dir", str(directory)).returncode == 0
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}
    assert {"ca-cert.pem", "ca-key.pem", "root-cert.pem", "jwks.json", "token-issuer-key.pem"} <= set(before)
    command.main(["init", "--dir", str(directory)], standalone_mode=False)
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"} == before
    assert directory.stat().st_mode & 0o777 == 0o700


def test_token_is_for_one_service_account(tmp_path: Path) -> None:
    """`ca token` prints a token and nothing else, or writes it 0600; bad names are one line."""
    printed = run("token", "--dir", str(tmp_path), "demo/httpbin", "--lifetime", "10m")
    claims = jwt.decode(printed.stdout.strip(), options={"verify_signature": False})
    assert claims["sub"] == "system:serviceaccount:demo:httpbin"
    assert claims["aud"] == ["istio-ca"]
    assert claims["exp"] - claims["iat"] == 600
    output = tmp_path / "token"
    assert run("token", "--dir", str(tmp_path), "demo/httpbin", "--output", str(output)).stdout == ""
    assert output.stat().st_mode & 0o777 == 0o600
    assert output.read_text().count(".") == 2
    for account in ("demo", "demo/", "Demo/httpbin", "demo/a/b"):
        with pytest.raises(InputError, match=account):
            command.main(["token", "--dir", str(tmp_path), account], standalone_mode=False)


def test_failed_handshakes_leave_nothing(tmp_path: Path) -> None:
    """Peers that break off their handshake, in whichever way, take no place for longer than that."""
    with ca_process(tmp_path) as ca:
        host, port = ca.address.rsplit(":", 1)
        for number in range(120):
            with socket.create_connection((host, int(port)), 5, source_address=("127.0.0.9", 0)) as tcp:
                if number % 2:
                    tcp.sendall(b"GET / HTTP/1.1\r\n\r\n")
                if number % 3 == 0:
                    # What is not TLS is cut off at once, at times before this.
                    with contextlib.suppress(OSError):
                        tcp.shutdown(socket.SHUT_WR)
                        tcp.recv(1)
        assert call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))
        eventually(lambda: ca.connections() == 0, what="the end of each")
        assert "Traceback" not in ca.log()


def test_broken_http2_costs_its_sender_only(tmp_path: Path) -> None:
    """Garbage and frames out of order end one connection without a stack trace; others are served."""
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS)
    get = b"\x82\x84\x87"
    with ca_process(tmp_path) as ca:
        for broken in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 2000,
            start + frame(HEADERS, 4, 1, b"\xff" * 6),
            start + frame(HEADERS, 5, 1, get) + frame(RESET, 0, 1, b"\0" * 4) * 2,
            start + frame(HEADERS, 5, 1, b"\x84\x87") + frame(RESET, 0, 1, b"\0" * 4),
            start + frame(HEADERS, 5, 1, get + b"\x00\x01a\x01\xff"),
            start + frame(DATA, 1, 1, b"x"),
            start + frame(RESET, 0, 1, b"\0" * 4),
            start + frame(CONTINUATION, 0, 1, b"x"),
            start + frame(PUSH, 4, 1, b"\0\0\0\2" + get),
            start + frame(SETTINGS, 0, 0, b"x"),
        ):
            with connected(ca) as tls:
                tls.sendall(broken)
                tls.settimeout(0.05)
                with contextlib.suppress(OSError):
                    while tls.recv(65536):
                        pass
        assert call(ca, request_bytes(CSR), metadata=bearer(ca.token("foo", "bar")))
        assert "Traceback" not in ca.log()
        eventually(lambda: "protocol while unproven" in ca.log(), within=20, what="the reason in the log")


def test_ca_renews_its_own_certificate_while_it_runs(tmp_path: Path) -> None:
    """When renewal is due, later handshakes meet the new certificate, and an open connection stays open."""
    authority = open_own(tmp_path, "cluster.local", utcnow())

    async def scenario() -> None:
        certificate = ServerCertificate(authority, ["127.0.0.1"], tmp_path)
        due = certificate.renew(utcnow())
        assert utcnow() < due < utcnow() + timedelta(hours=13)
        trusting = ssl.create_default_context(cadata=authority.bundle_pem.decode())

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        async def serial() -> int:
            _, writer = await asyncio.open_connection(*address, ssl=trusting)
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            return x509.load_der_x509_certificate(der).serial_number

        async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificate.context) as server:
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, ssl=trusting)
            first = await serial()
            keeper = asyncio.create_task(certificate.keep(datetime.now(UTC), utcnow))

            async def renewed() -> bool:
                return await serial() != first

            await eventually_async(renewed, within=10, what="another certificate")
            keeper.cancel()
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"
            writer.close()

    asyncio.run(scenario())
    assert (tmp_path / "server.pem").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_does_not_end_the_renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new certificate cannot be written, the CA tries again later."""
    monkeypatch.setattr(server_certificate, "_LONGEST_SLEEP", 0.01)
    directory = tmp_path / "ca"
    directory.mkdir()
    authority = open_own(directory, "cluster.local", utcnow())
    moment = [utcnow()]

    def clock() -> datetime:
        moment[0] += timedelta(seconds=30)
        return moment[0]

    async def scenario() -> None:
        certificate = ServerCertificate(authority, ["127.0.0.1"], tmp_path / "gone")
        keeper = asyncio.create_task(certificate.keep(utcnow(), clock))
        before = moment[0]

        async def tried_again() -> bool:
            assert not keeper.done(), keeper
            return moment[0] > before + timedelta(minutes=5)

        await eventually_async(tried_again, what="further looks at the clock")
        (tmp_path / "gone").mkdir()

        async def renewed() -> bool:
            return (tmp_path / "gone" / "server.pem").exists()

        await eventually_async(renewed, what="the certificate")
        keeper.cancel()

    asyncio.run(scenario())


DATA, HEADERS, RESET, SETTINGS, PUSH, CONTINUATION = 0, 1, 3, 4, 5, 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@contextlib.contextmanager
def connected(ca: CaProcess):  # type: ignore[no-untyped-def]
    """A TLS connection on which nothing was sent yet."""
    host, port = ca.address.rsplit(":", 1)
    context = ssl.create_default_context(cadata=ca.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 10) as tcp,
        context.wrap_socket(tcp, server_hostname=host) as tls,
    ):
        yield tls


def test_stderr_of_a_refused_start_has_no_secret(tmp_path: Path) -> None:
    """A key of the wrong mode is named by its path, and nothing of it is shown."""
    command.main(["init", "--dir", str(tmp_path)], standalone_mode=False)
    os.chmod(tmp_path / "ca-key.pem", 0o644)
    line = refused("serve", "--dir", str(tmp_path), "--listen", "127.0.0.1:0")
    assert f"chmod 600 {tmp_path / 'ca-key.pem'}" in line
    assert "BEGIN" not in line
