"""Read typed values from environment variables; each error names its variable."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio.durations import parse_duration
from meshscrape.istio.host_port import split_host_port
from meshscrape.istio.ports import parse_port, shorten

# The spellings of Go's strconv.ParseBool, with which Istio reads its switches.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_KUBERNETES_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?", re.ASCII)


def parse_boolean(text: str, where: Where) -> bool:
    """Return the truth value that Go's strconv.ParseBool reads in `text`; raise InputError at `where`."""
    if text not in TRUE | FALSE:
        raise InputError(
            f"{shorten(text)} is not a truth value",
            where=where,
            remedy="write true or false",
            code="not-a-truth-value",
        )
    return text in TRUE


def is_false(text: str | None) -> bool:
    """Return whether Go reads a variable as false; unset and unreadable ones are not false."""
    return text in FALSE


def is_true(text: str | None) -> bool:
    """Return whether Go reads `text` as true; absent and unreadable text is false."""
    return text in TRUE


def check_kubernetes_name(text: str, where: Where) -> str:
    """Return `text` if it can name a Kubernetes object (a DNS-1123 subdomain); else raise InputError."""
    if len(text) > 253 or _KUBERNETES_NAME.fullmatch(text) is None:
        raise InputError(
            f"{shorten(text)} cannot name a Kubernetes object",
            where=where,
            remedy="use lower case letters, digits, '-' and '.', beginning and ending with a letter or digit",
            code="not-a-name",
        )
    return text


def check_namespace(text: str, where: Where) -> str:
    """Return `text` if it can name a Kubernetes namespace (a DNS-1123 label); else raise InputError."""
    if len(text) > 63 or "." in text:
        raise InputError(
            f"{shorten(text)} cannot name a namespace",
            where=where,
            remedy="use at most 63 lower case letters, digits and '-'",
            code="not-a-name",
        )
    return check_kubernetes_name(text, where)


def parse_address(text: str, where: Where) -> str:
    """Return the IPv4 or IPv6 address in `text`, in canonical spelling; raise InputError at `where`.

    Addresses that do not name one interface of one host (0.0.0.0, ::, multicast, zones) are refused: a
    listener on them would be reachable from places that the user did not name.
    """
    remedy = "write one IPv4 or IPv6 address, such as 127.0.1.1 or ::1"
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InputError(
            f"{shorten(text)} is not an IP address", where=where, remedy=remedy, code="not-an-address"
        ) from error
    mapped = address.version == 6 and address.ipv4_mapped is not None
    if address.is_unspecified or address.is_multicast or mapped or "%" in text:
        raise InputError(
            f"{shorten(text)} is not the address of one interface",
            where=where,
            remedy=remedy,
            code="no-interface",
        )
    return str(address)


def parse_ca_address(text: str, where: Where) -> str:
    """Return `text` if it is HOST:PORT; else raise InputError.

    The host is a DNS name, an IPv4 address or an IPv6 address in brackets.
    """
    parts = split_host_port(text)
    if parts is None:
        raise InputError(
            f"{shorten(text)} is not HOST:PORT",
            where=where,
            remedy="write for example istiod:15012",
            code="not-host-port",
        )
    host, port = parts
    parse_port(port, where)
    if ":" in host or host.rpartition(".")[2].isdecimal():
        parse_address(host, where)
    elif len(host) > 253 or _HOST.fullmatch(host) is None:
        raise InputError(
            f"{shorten(host)} is not a host name or an IP address",
            where=where,
            remedy="write a DNS name, an IPv4 address or an IPv6 address in brackets before the port",
            code="not-a-host",
        )
    return text


class Environment:
    """Typed access to environment variables. An empty variable counts as not set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    @staticmethod
    def place(name: str) -> Place:
        """Return the place of the variable, for errors."""
        return Place(variable=name)

    def raw(self, name: str) -> str | None:
        """Return the value as it is set, or None when the variable is not set at all."""
        return self._variables.get(name)

    def text(self, name: str, default: str = "") -> str:
        """Return the value, or `default`."""
        return self._variables.get(name) or default

    def required(self, name: str, remedy: str) -> str:
        """Return the value; raise InputError when it is not set or empty."""
        if value := self._variables.get(name):
            return value
        raise InputError("not set", where=self.place(name), remedy=remedy, code="not-set")

    def name(self, name: str, remedy: str) -> str:
        """Return the name of a Kubernetes object, which must be set."""
        return check_kubernetes_name(self.required(name, remedy), self.place(name))

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        value = self.text(name)
        return parse_boolean(value, self.place(name)) if value else default

    def port(self, name: str, default: int, *, allow_zero: bool = False) -> int:
        """Return a port number; 0 only with `allow_zero`."""
        return parse_port(self.text(name, str(default)), self.place(name), allow_zero)

    def count(self, name: str, default: int, highest: int) -> int:
        """Return a whole number from 1 to `highest`."""
        text = self.text(name, str(default))
        if re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII) is None or int(text) > highest:
            raise InputError(
                f"{shorten(text)} is not a number from 1 to {highest}",
                where=self.place(name),
                remedy=f"write for example {default}",
                code="not-a-count",
            )
        return int(text)

    def path(self, name: str) -> Path | None:
        """Return a file system path, or None when the variable is not set."""
        value = self.text(name)
        if not value:
            return None
        if any(ord(character) < 32 for character in value):
            raise InputError(
                "the path has control characters",
                where=self.place(name),
                remedy="remove them",
                code="control-characters",
            )
        return Path(value)

    def duration(self, name: str, default: str) -> timedelta:
        """Return a positive duration, written in Go's syntax."""
        value = parse_duration(self.text(name, default), self.place(name))
        if value <= timedelta(0):
            raise InputError(
                "must be positive",
                where=self.place(name),
                remedy="write for example 24h",
                code="not-positive",
            )
        return value

    def fraction(self, name: str, default: str) -> float:
        """Return a decimal number from 0 to 1."""
        text = self.text(name, default)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1 or not text.isascii() or "_" in text:
            raise InputError(
                f"{shorten(text)} is not a number from 0 to 1",
                where=self.place(name),
                remedy="write for example 0.5",
                code="not-a-fraction",
            )
        return value
