"""What a probe can see, as plain data. `judges` judges it, and reports show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

_SHOWN = 160


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP response with its body, and how the body ended.

    `end` is "whole" (the whole body was read), "limit" (the probe read as much as it wanted) or "cut" (the
    connection ended before the body).
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    end: Literal["whole", "limit", "cut"] = "whole"
    resumed: bool = False

    def header(self, name: str) -> str:
        """Return the first value of the header `name` (lower case), or the empty string."""
        return next((value for key, value in self.headers if key == name), "")


@dataclass(frozen=True, slots=True)
class TlsAlert:
    """The peer ended TLS with this alert (RFC 8446, section 6, spelled with spaces)."""

    name: str


@dataclass(frozen=True, slots=True)
class TlsFailed:
    """The probe ended TLS for this reason: the peer does not speak TLS, or speaks it wrongly."""

    reason: str


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The peer agreed to this version of TLS."""

    version: str


@dataclass(frozen=True, slots=True)
class Presented:
    """A completed handshake: the server's leaf certificate (DER).

    `distrust` is empty when its chain leads to the trust bundle, else the reason why it does not.
    """

    leaf: bytes = field(repr=False)
    distrust: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """Nothing accepts connections there."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer reset the connection."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer closed the connection without an answer."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Nothing came in time while in `phase`: "connect", "handshake" or "answer"."""

    phase: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The network could not reach the address, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotHttp:
    """Bytes came that are not HTTP."""

    head: bytes


@dataclass(frozen=True, slots=True)
class NotObserved:
    """The probe could not be made, for this reason."""

    reason: str


Observation: TypeAlias = (
    Answered | TlsAlert | TlsFailed | Negotiated | Presented | ConnectionRefused | Reset | Closed | TimedOut
    | Unreachable | NotHttp | NotObserved
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenPorts:
    """The ports of one address that accept connections.

    `own` are the workload's. `outside` are reachable there too, but belong to a process beside the mesh that
    listens on every address of the machine. `how` tells how they were found, `unable` why they could not be
    found.
    """

    own: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    how: str = ""
    unable: str = ""


# Observations of a refusal below HTTP: the peer was there and ended the connection.
CLOSED_BY_PEER = (TlsAlert, Reset, Closed)


def describe(observation: Observation) -> str:
    """Return what was seen as one line without anything that could disturb a terminal."""
    match observation:
        case Answered(status=status, end=end):
            return f"HTTP {status}{_body_head(observation)}{', cut off' if end == 'cut' else ''}"
        case TlsAlert(name=name):
            return f"TLS alert “{name}”"
        case TlsFailed(reason=reason):
            return f"TLS failed: {reason}"
        case Negotiated(version=version):
            return f"the server agreed to {version}"
        case Presented(distrust=distrust):
            return f"a certificate that is not trusted: {distrust}" if distrust else "a trusted certificate"
        case ConnectionRefused():
            return "connection refused"
        case Reset():
            return "connection reset"
        case Closed():
            return "connection closed without an answer"
        case TimedOut(phase=phase):
            return f"no answer in time ({phase})"
        case Unreachable(reason=reason):
            return f"unreachable: {reason}"
        case NotHttp(head=head):
            return f"bytes that are not HTTP: {printable(head)}"
        case NotObserved(reason=reason):
            return reason


def printable(data: bytes | str, limit: int = _SHOWN) -> str:
    """Return the start of untrusted `data` on one line, with everything but printable ASCII replaced."""
    text = data[: limit * 4].decode("ascii", "replace") if isinstance(data, bytes) else data
    text = " ".join(text.split())
    clean = "".join(char if " " <= char <= "~" else "?" for char in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _body_head(answer: Answered) -> str:
    if answer.status == 200 or not answer.body.strip():
        return ""
    return f" ({printable(answer.body)})"
