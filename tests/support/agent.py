"""The real agent as a process, with a workload's environment, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from support.addresses import loopback
from support.ca import CaProcess
from support.polling import eventually

NAMESPACE, ACCOUNT = "demo", "web"
SELF = f"spiffe:spiffe://cluster.local/ns/{NAMESPACE}/sa/{ACCOUNT}"


@dataclass(frozen=True, slots=True)
class AgentProcess:
    """`meshscrape agent proxy …`; its workload may scrape itself, so its own credentials open its ports."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log_path: Path

    @property
    def pod(self) -> str:
        return self.environment["INSTANCE_IP"]

    @property
    def inside(self) -> str:
        return self.environment["MESHSCRAPE_INSIDE_ADDRESS"]

    @property
    def state(self) -> Path:
        return Path(self.environment["MESHSCRAPE_AGENT_DIR"])

    @property
    def output(self) -> Path:
        return Path(self.environment["OUTPUT_CERTS"])

    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text()

    def health(self) -> tuple[int, str]:
        """Status and body of the readiness endpoint inside the pod."""
        return self.get(self.inside, 15020, "/healthz/ready")

    def await_ready(self) -> None:
        """Wait until it is ready; fail at once, with its log, when it ends instead."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the agent ended with {self.process.returncode}: {self.log()}")
            return self.health()[0] == 200

        eventually(ready, within=20, what="a ready agent")

    def get(self, address: str, port: int, path: str) -> tuple[int, str]:
        """A plain HTTP GET."""
        connection = http.client.HTTPConnection(address, port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def scrape(
        self, port: int, credentials: Path, path: str = "/stats/prometheus", *, address: str = ""
    ) -> tuple[int, str]:
        """An HTTP GET over mutual TLS to the pod, with the credentials of a directory."""
        context = _context(credentials)
        connection = http.client.HTTPSConnection(address or self.pod, port, timeout=5, context=context)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def served_serial(self, port: int = 15091) -> int:
        """The serial number of the certificate that Envoy shows."""
        pem = ssl.get_server_certificate((self.pod, port), timeout=5)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def metric(self, name: str) -> float:
        """The value of one of the agent's own metrics."""
        text = self.get(self.inside, 15020, "/metrics")[1]
        found = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in {text}"
        return float(found[1])

    def envoy_pid(self) -> int:
        """The process id of its Envoy, 0 while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def ended(self, within: float = 20) -> int:
        """Its exit status, waited for."""
        return self.process.wait(within)

    def stop(self) -> int:
        """TERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


@contextlib.contextmanager
def agent_process(
    directory: Path, ca: CaProcess, role: str = "sidecar", *, prefix: Sequence[str] = (), **changes: str
) -> Iterator[AgentProcess]:
    """The agent of a workload of `ca`'s mesh, killed on leaving; `changes` are environment variables.

    A `prefix` is a command that becomes the agent.

    The token is made in `directory` unless it is there already; an address that is not given is random.
    """
    token = directory / "token"
    if not token.exists():
        token.write_text(ca.token(NAMESPACE, ACCOUNT))
    root = directory / "ca-root.pem"
    root.write_bytes(ca.root_pem)
    environment = {
        "POD_NAMESPACE": NAMESPACE,
        "SERVICE_ACCOUNT": ACCOUNT,
        "POD_NAME": "web-0",
        "INSTANCE_IP": loopback(),
        "MESHSCRAPE_INSIDE_ADDRESS": loopback(),
        "CA_ADDR": ca.address,
        "CA_ROOT_CA": str(root),
        "MESHSCRAPE_TOKEN_PATH": str(token),
        "MESHSCRAPE_AGENT_DIR": str(directory / "agent"),
        "OUTPUT_CERTS": str(directory / "output"),
        "ENVOY_SECURE_METRICS_PORT": "15091",
        "ENVOY_SECURE_MERGED_METRICS_PORT": "15092",
        "MESHSCRAPE_SCRAPERS": SELF,
        "PATH": os.environ["PATH"],
    } | changes
    log_path = directory / f"agent-{len(list(directory.glob('agent-*.log')))}.log"
    with log_path.open("wb") as log:
        command = [*prefix, sys.executable, "-m", "meshscrape", "agent", "proxy", role]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield AgentProcess(process, environment, log_path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _context(credentials: Path) -> ssl.SSLContext:
    # The server's name is a SPIFFE ID, which this client does not check: the agent's tests look at ports.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(credentials / "root-cert.pem")
    context.load_cert_chain(credentials / "cert-chain.pem", credentials / "key.pem")
    return context
