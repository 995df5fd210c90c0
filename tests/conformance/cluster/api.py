"""A small client of the Kubernetes API for the stand-in kubelet: JSON over TLS with a client certificate."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

Object = dict[str, Any]


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Requests to one API server; every thread keeps one connection open."""

    def __init__(self, host: str, port: int, ca: Path, certificate: Path, key: Path) -> None:
        self.host, self.port = host, port
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._tls.load_cert_chain(certificate, key)
        self._local = threading.local()

    def request(
        self, method: str, path: str, body: Any = None, content: str = "application/json", **query: str
    ) -> Any:
        """Send one request and return the parsed answer. A broken connection is opened again once."""
        if query:
            path += "?" + urlencode(query)
        data = None if body is None else json.dumps(body).encode()
        try:
            status, text = self._send(method, path, data, content)
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            status, text = self._send(method, path, data, content)
        try:
            value = json.loads(text) if text else None
        except ValueError:
            value = {"message": text.decode(errors="replace")}
        if status >= 400:
            raise ApiError(status, (value or {}).get("message", ""))
        return value

    def _send(self, method: str, path: str, data: bytes | None, content: str) -> tuple[int, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection(self.host, self.port, context=self._tls, timeout=30)
            self._local.connection = connection
        connection.request(method, path, data, {"Content-Type": content, "Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def find(self, path: str) -> Object | None:
        """Return the object, or None when there is none."""
        try:
            return cast(Object, self.request("GET", path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Object]:
        """Return the objects of a list, from the API server's cache."""
        return cast(list[Object], self.request("GET", path, resourceVersion="0")["items"])

    def post(self, path: str, body: Object) -> Any:
        """Create an object."""
        return self.request("POST", path, body)

    def merge(self, path: str, body: Object) -> Any:
        """Apply a JSON merge patch."""
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str, body: Object) -> Any:
        """Delete an object."""
        return self.request("DELETE", path, body)
