"""Make requests from inside a pod and print what came back. A stock Python image can run it.

Standard input: a JSON list of requests. Standard output: a JSON list of answers, in the same order.
"""

import hashlib
import http.client
import json
import socket
import ssl
import sys
from typing import Any


def connect(request: dict[str, Any]) -> socket.socket:
    """Return a connection, encrypted unless the request is for plaintext."""
    address = (request["host"], request["port"])
    plain = socket.create_connection(address, request.get("timeout", 5))
    if not request.get("tls", True):
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if request.get("ca"):
        context.load_verify_locations(request["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
    if request.get("newest") == "TLSv1.1":
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    if request.get("certificate"):
        context.load_cert_chain(request["certificate"], request["key"])
    return context.wrap_socket(plain)


def fingerprint(stream: socket.socket) -> str:
    """Return the digest of the server's certificate; empty without TLS."""
    if not isinstance(stream, ssl.SSLSocket):
        return ""
    return hashlib.sha256(stream.getpeercert(binary_form=True) or b"").hexdigest()


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Return the status, the body's beginning and the server's certificate, or the kind of failure."""
    try:
        stream = connect(request)
        peer = fingerprint(stream)
        connection = http.client.HTTPConnection(request["host"], request["port"])
        connection.sock = stream
        # putrequest sends the path as it is: `..` stays.
        connection.putrequest(request.get("method", "GET"), request.get("path", "/stats/prometheus"))
        for name, value in request.get("headers", {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        text = body.decode(errors="replace")
        seen = {"status": answer.status, "size": len(body), "body": text[: request.get("keep", 300)]}
        return {**seen, "peer": peer}
    except ConnectionRefusedError as error:
        return {"failure": "refused", "error": str(error)}
    except TimeoutError as error:
        return {"failure": "timeout", "error": str(error)}
    except ssl.SSLError as error:
        return {"failure": "tls", "error": str(error)}
    except (OSError, http.client.HTTPException) as error:
        return {"failure": "closed", "error": repr(error)}


json.dump([ask(request) for request in json.load(sys.stdin)], sys.stdout)
