"""Encode route configurations in protobuf's binary form, which Envoy reads from files named `*.pb`.

With ten thousand pods, Envoy would spend half of its time for a new file on reading JSON. In binary form, the
bytes of one host can also be kept while other hosts change. Only the fields that the scrape proxy's routes
use are here. Their numbers are those of Envoy's `route.proto` and `route_components.proto` (config/route/v3)
and `discovery.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

_TYPE = "@type"
Message = Literal["RouteConfiguration", "VirtualHost", "Route", "RouteMatch", "RouteAction", "DirectResponse"]
_TEXT, _NUMBER, _DURATION, _ENUM = "text", "number", "duration", "enum"
# The fields of each message: number and kind, or the message inside.
_FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "RouteConfiguration": {
        "name": (1, _TEXT),
        "virtual_hosts": (2, "VirtualHost"),
        "response_headers_to_add": (4, "HeaderValueOption"),
        "response_headers_to_remove": (5, _TEXT),
        "request_headers_to_remove": (8, _TEXT),
    },
    "VirtualHost": {"name": (1, _TEXT), "domains": (2, _TEXT), "routes": (3, "Route")},
    "Route": {
        "match": (1, "RouteMatch"),
        "route": (2, "RouteAction"),
        "direct_response": (7, "DirectResponse"),
        "name": (14, _TEXT),
    },
    "RouteMatch": {"prefix": (1, _TEXT), "path": (2, _TEXT)},
    "RouteAction": {"cluster": (1, _TEXT), "timeout": (8, _DURATION)},
    "DirectResponse": {"status": (1, _NUMBER)},
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, _ENUM)},
    "HeaderValue": {"key": (1, _TEXT), "value": (2, _TEXT)},
}
# The values of `HeaderValueOption.append_action` (`config/core/v3/base.proto`).
_ENUM_VALUES = {
    "APPEND_IF_EXISTS_OR_ADD": 0,
    "ADD_IF_ABSENT": 1,
    "OVERWRITE_IF_EXISTS_OR_ADD": 2,
    "OVERWRITE_IF_EXISTS": 3,
}


def encode(message: Message, resource: Mapping[str, Any]) -> bytes:
    """Return `resource`, a protobuf `message`, in binary form.

    Raises KeyError for a field that is not in the table above.
    """
    return _message(message, resource)


def domain(authority: str) -> bytes:
    """Return the domain `authority` as an encoded field of a virtual host (see `virtual_host`)."""
    return _field(*_FIELDS["VirtualHost"]["domains"], authority)


def virtual_host(resource: Mapping[str, Any], domains: Iterable[bytes]) -> bytes:
    """Return a virtual host with these domains (see `domain`) as a field of its route configuration."""
    return _bytes(2, b"".join((_message("VirtualHost", resource), *domains)))


def discovery_response(type_url: str, version: str, resource: Iterable[bytes]) -> bytes:
    """Return a DiscoveryResponse with one resource of type `type_url`, whose bytes are given in parts."""
    body = b"".join(resource)
    packed = _bytes(1, type_url.encode()) + _bytes(2, body)
    return b"".join((_bytes(1, version.encode()), _bytes(2, packed), _bytes(4, type_url.encode())))


def _message(message: str, resource: Mapping[str, Any]) -> bytes:
    fields = _FIELDS[message]
    return b"".join(
        _field(*fields[name], element)
        for name, value in resource.items()
        if name != _TYPE
        for element in (value if isinstance(value, list) else (value,))
    )


def _field(number: int, kind: str, value: Any) -> bytes:
    match kind:
        case "text":
            return _bytes(number, str(value).encode())
        case "number":
            return _varint(number << 3) + _varint(int(value))
        case "enum":
            return _varint(number << 3) + _varint(_ENUM_VALUES[value])
        case "duration":
            seconds, _, fraction = str(value).removesuffix("s").partition(".")
            nanos = int(f"{fraction:0<9}"[:9])
            parts = ((8, int(seconds)), (16, nanos))
            return _bytes(number, b"".join(_varint(tag) + _varint(part) for tag, part in parts if part))
    return _bytes(number, _message(kind, value))


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
