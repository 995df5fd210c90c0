"""Reading typed values out of environment variables, each error naming its variable."""

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

# As Go's strconv.ParseBool, which Istio reads all of its switches with.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_KUBERNETES_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}\.?", re.ASCII)


def parse_boolean(text: str, where: Where) -> bool:
    """The truth value that `text` spells as Go's strconv.ParseBool reads it; raises InputError at `where`."""
    if text not in TRUE | FALSE:
        raise InputError(f"{shorten(text)} is not a truth value", where=where, remedy="write true or false")
    return text in TRUE


def is_true(text: str | None) -> bool:
    """Return whether Go reads `text` as true; absent and unreadable text is false."""
    return text in TRUE


def check_kubernetes_name(text: str, where: Where) -> str:
    """`text`, when it can name a Kubernetes object (a DNS-1123 subdomain); raises InputError at `where`."""
    if len(text) > 253 or _KUBERNETES_NAME.fullmatch(text) is None:
        raise InputError(
            f"{shorten(text)} cannot name a Kubernetes object",
            where=where,
            remedy="use lower case letters, digits, '-' and '.', beginning and ending with a letter or digit",
        )
    return text


def check_namespace(text: str, where: Where) -> str:
    """`text`, when it can name a Kubernetes namespace (a DNS-1123 label); raises InputError at `where`."""
    if len(text) > 63 or "." in text:
        raise InputError(
            f"{shorten(text)} cannot name a namespace",
            where=where,
            remedy="use at most 63 lower case letters, digits and '-'",
        )
    return check_kubernetes_name(text, where)


def parse_address(text: str, where: Where) -> str:
    """The IPv4 or IPv6 address that `text` spells, in canonical spelling; raises InputError at `where`.

    Addresses that do not name one interface of one host (0.0.0.0, ::, multicast, zones) are refused: a
    listener on them would be reachable in places that nobody named.
    """
    remedy = "write one IPv4 or IPv6 address, such as 127.0.1.1 or ::1"
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InputError(f"{shorten(text)} is not an IP address", where=where, remedy=remedy) from error
    mapped = address.version == 6 and address.ipv4_mapped is not None
    if address.is_unspecified or address.is_multicast or mapped or "%" in text:
        raise InputError(f"{shorten(text)} is not the address of one interface", where=where, remedy=remedy)
    return str(address)


def parse_ca_address(text: str, where: Where) -> str:
    """Return `text` when it is HOST:PORT with a DNS name, an IPv4 or a bracketed IPv6 address as its host."""
    parts = split_host_port(text)
    if parts is None:
        raise InputError(
            f"{shorten(text)} is not HOST:PORT", where=where, remedy="write for example istiod:15012"
        )
    host, port = parts
    parse_port(port, where)
    if ":" in host or host.rpartition(".")[2].isdecimal():
        parse_address(host, where)
    elif len(host) > 253 or _HOST.fullmatch(host) is None:
        raise InputError(
            f"{shorten(host)} is not a host",
            where=where,
            remedy="write a DNS name, an IPv4 address or an IPv6 address in brackets before the port",
        )
    return text


class Environment:
    """Environment variables read by type; a variable that is set to nothing counts as not set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    @staticmethod
    def place(name: str) -> Place:
        """Return the place of the variable, for errors."""
        return Place(variable=name)

    def raw(self, name: str) -> str | None:
        """The value as it is set, or None when the variable is not set at all."""
        return self._variables.get(name)

    def text(self, name: str, default: str = "") -> str:
        """The value, or `default`."""
        return self._variables.get(name) or default

    def required(self, name: str, remedy: str) -> str:
        """The value; raises InputError when it is not set or empty."""
        if value := self._variables.get(name):
            return value
        raise InputError("not set", where=self.place(name), remedy=remedy)

    def name(self, name: str, remedy: str) -> str:
        """The name of a Kubernetes object, required."""
        return check_kubernetes_name(self.required(name, remedy), self.place(name))

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.text(name)
        return parse_boolean(value, self.place(name)) if value else default

    def port(self, name: str, default: int, *, allow_zero: bool = False) -> int:
        """A port number."""
        return parse_port(self.text(name, str(default)), self.place(name), allow_zero)

    def count(self, name: str, default: int, highest: int) -> int:
        """A whole number from 1 to `highest`."""
        text = self.text(name, str(default))
        if re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII) is None or int(text) > highest:
            raise InputError(
                f"{shorten(text)} is not a number from 1 to {highest}",
                where=self.place(name),
                remedy=f"write for example {default}",
            )
        return int(text)

    def path(self, name: str) -> Path | None:
        """A file system path, or None when not set."""
        value = self.text(name)
        if not value:
            return None
        if any(ord(character) < 32 for character in value):
            raise InputError("the path has control characters", where=self.place(name), remedy="remove them")
        return Path(value)

    def duration(self, name: str, default: str) -> timedelta:
        """A duration longer than nothing, in Go's syntax."""
        value = parse_duration(self.text(name, default), self.place(name))
        if value <= timedelta(0):
            raise InputError(
                "not longer than nothing", where=self.place(name), remedy="write for example 24h"
            )
        return value

    def fraction(self, name: str, default: str) -> float:
        """A decimal number from 0 to 1."""
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
            )
        return value
