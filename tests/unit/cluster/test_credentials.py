"""Credentials from hostile files and plugins: an error, in bounded time and memory, without secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.cluster import credentials
from meshscrape.cluster.credentials import Credentials, parse_exec_credential, tls_context
from meshscrape.cluster.kubeconfig import EXEC_VERSIONS, Access, ExecPlugin, Pem, merge, parse_kubeconfig
from meshscrape.errors import InputError, MeshscrapeError, UnauthenticatedError

SERVER = "https://10.0.0.1:6443"
SECRET = "s3cret"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def current(access: Access) -> credentials.Credential:
    return asyncio.run(Credentials(access).current())


def of_plugin(script: str, *, environment: tuple[tuple[str, str], ...] = ()) -> Access:
    plugin = ExecPlugin("sh", ("-c", script), environment)
    return Access(server=SERVER, place="context dev", exec=plugin)


def answer(**status: Any) -> bytes:
    return json.dumps({"apiVersion": EXEC_VERSIONS[0], "status": status}).encode()


def odd_files(directory: Path) -> dict[str, Path]:
    """What may be in the place of a file; to open the pipe would wait for ever."""
    pipe, large, folder = directory / "pipe", directory / "large", directory / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    with large.open("wb") as file:
        file.truncate(1 << 31)
    return {
        "pipe": pipe,
        "device": Path("/dev/zero"),
        "large": large,
        "folder": folder,
        "gone": directory / "no",
    }


def test_odd_files_in_the_place_of_tokens_keys_and_roots_are_refused_at_once(tmp_path: Path) -> None:
    """A named pipe, a device, 2 GiB, a directory, nothing: each is an error that names the file."""
    for path in odd_files(tmp_path).values():
        with pytest.raises(InputError) as refused:
            current(Access(server=SERVER, place="context dev", token_file=str(path)))
        assert str(path) in str(refused.value)
        pem = Pem(path=str(path))
        with pytest.raises(InputError):
            tls_context(Access(server=SERVER, place="context dev", roots=pem), credentials.Credential())
        held = credentials.Credential(certificate=pem, key=pem)
        with pytest.raises(InputError):
            tls_context(Access(server=SERVER, place="context dev"), held)


@pytest.mark.parametrize("token", [f"{SECRET}\nx", f"{SECRET} x", f"{SECRET}\x1b[2J", f"{SECRET}ä"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    """From the kubeconfig, a file or a plugin."""
    file = tmp_path / "token"
    file.write_text(token)
    for access in (
        Access(server=SERVER, place="context dev", token=token),
        Access(server=SERVER, place="context dev", token_file=str(file)),
    ):
        with pytest.raises(InputError) as refused:
            current(access)
        assert SECRET not in str(refused.value)
    with pytest.raises(UnauthenticatedError) as refused_too:
        parse_exec_credential(answer(token=token), EXEC_VERSIONS[0], "plugin")
    assert SECRET not in str(refused_too.value)


@pytest.mark.parametrize(
    "script",
    [
        "yes",
        "exec cat /dev/zero",
        "exit 3",
        "kill -9 $$",
        "exit 0",
        f"echo {SECRET}",
        "exec true <&-",
    ],
)
def test_a_plugin_that_floods_or_fails_is_an_error(script: str) -> None:
    """Without end, without an answer, with a status or a signal; what it printed is not repeated."""
    with pytest.raises(UnauthenticatedError) as refused:
        current(of_plugin(script))
    assert SECRET not in str(refused.value)


def test_a_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it is killed, also when its own child keeps its output open."""
    monkeypatch.setattr(credentials, "PLUGIN_SECONDS", 0.5)
    pid = tmp_path / "pid"
    with pytest.raises(UnauthenticatedError):
        current(of_plugin(f"echo $$ > {pid}; sleep 5 & sleep 60"))
    assert not Path(f"/proc/{pid.read_text().strip()}/exe").exists()


def test_a_plugin_is_ended_with_the_request_that_waits_for_it(tmp_path: Path) -> None:
    """A signal to this process leaves no plugin behind."""
    pid, begun = tmp_path / "pid", tmp_path / "begun"
    os.mkfifo(begun)

    async def interrupted() -> None:
        access = of_plugin(f"echo $$ > {pid}; echo > {begun}; exec sleep 60")
        task = asyncio.create_task(Credentials(access).current())
        await asyncio.to_thread(begun.read_text)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(interrupted())
    assert not Path(f"/proc/{pid.read_text().strip()}/exe").exists()


@pytest.mark.parametrize(
    "plugin",
    [
        ExecPlugin("no\0thing"),
        ExecPlugin("sh", ("-c", "a\0b")),
        ExecPlugin("sh", environment=(("a=b", "x\0"),)),
        ExecPlugin("/"),
        ExecPlugin("sh", ("x" * (1 << 22),)),
    ],
)
def test_a_plugin_that_cannot_be_started_is_an_error_of_the_input(plugin: ExecPlugin) -> None:
    """NUL bytes, variables without a name, a directory, too long."""
    with pytest.raises(InputError):
        current(Access(server=SERVER, place="context dev", exec=plugin))


@pytest.mark.parametrize(
    "printed",
    [
        b"[" * 100_000,
        b'{"status": {"token": "x", "expirationTimestamp": "9999-12-31T23:59:59-14:00"}}',
        b'{"status": {"clientCertificateData": "\\ud800", "clientKeyData": "x"}}',
        b'{"status": "x"}',
        b"\xff",
    ],
)
def test_a_plugins_garbage_is_no_credential(printed: bytes) -> None:
    """Deep nesting, moments out of range, halves of characters."""
    with pytest.raises(UnauthenticatedError):
        parse_exec_credential(printed, EXEC_VERSIONS[0], "plugin")


def test_a_credential_that_has_ended_long_ago_is_asked_for_again() -> None:
    """Also at the first moment that a date can have."""
    printed = answer(token="x", expirationTimestamp="0001-01-01T00:00:00Z").decode()
    access = of_plugin(f"printf '%s' '{printed}'")

    async def twice() -> list[credentials.Credential]:
        held = Credentials(access)
        return [await held.current(), await held.current()]

    first, second = asyncio.run(twice())
    assert first == second and first.until == datetime(1, 1, 1, tzinfo=UTC)


@given(VALUES)
def test_any_answer_of_a_plugin_is_a_credential_or_an_error(status: Any) -> None:
    """Whatever JSON it prints."""
    printed = json.dumps({"apiVersion": EXEC_VERSIONS[0], "status": status}).encode()
    with contextlib.suppress(UnauthenticatedError):
        parse_exec_credential(printed, EXEC_VERSIONS[0], "plugin")


SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "current-context": VALUES | st.just("dev"),
        **{
            kind: VALUES
            | st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "name": VALUES | st.just("dev"),
                        kind[:-1]: VALUES
                        | st.dictionaries(
                            st.sampled_from(
                                ["server", "cluster", "user", "token", "exec", "client-key-data", "proxy-url"]
                            ),
                            VALUES | st.sampled_from(["dev", SERVER, "https://[", "http://u:p@h", "\0"]),
                        ),
                    },
                ),
                max_size=3,
            )
            for kind in ("contexts", "clusters", "users")
        },
    },
)


@given(st.lists(VALUES | SHAPED, min_size=1, max_size=3))
def test_any_kubeconfig_is_an_access_or_an_error(files: list[Any]) -> None:
    """Whatever the files hold, alone or merged: no other exception."""
    path = Path("/home/jane/.kube/config")
    with contextlib.suppress(MeshscrapeError):
        data = files[0] if len(files) == 1 else merge([(path, each) for each in files])[0]
        parse_kubeconfig(data, path)


def test_a_server_with_a_password_is_refused_without_showing_it() -> None:
    """It would be in every message."""
    data = {
        "current-context": "dev",
        "contexts": [{"name": "dev", "context": {"cluster": "east"}}],
        "clusters": [{"name": "east", "cluster": {"server": f"https://jane:{SECRET}@10.0.0.1"}}],
    }
    with pytest.raises(InputError) as refused:
        parse_kubeconfig(data, Path("config"))
    assert SECRET not in str(refused.value)
