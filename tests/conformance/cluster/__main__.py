"""`python -m conformance.cluster build|up`: build the programs; run a cluster with Istio."""

from __future__ import annotations

import signal
import sys
import threading
import time

from conformance.cluster import machine, programs
from conformance.cluster.istio import Installer
from conformance.cluster.processes import running


def up() -> None:
    """Start the cluster and keep it until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    began = time.monotonic()
    # With everything built, the scenarios of the whole tier can run on it too.
    whole = all(programs.program(what.name).exists() for what in programs.WHOLE)
    with running(whole=whole) as cluster:
        print(f"The API server answers after {time.monotonic() - began:.1f} s.", flush=True)
        installer = Installer(cluster.kubeconfig)
        installer.gateway_api()
        installer.operator_crds()
        installer.istiod()
        print(f"Istio is ready after {time.monotonic() - began:.1f} s.")
        print(f"  export KUBECONFIG={cluster.kubeconfig}")
        print(f"  export PATH={programs.program('kubectl').parent}:$PATH   # kubectl of the same version")
        print(f"Logs: {cluster.logs}. Ctrl-C stops everything.", flush=True)
        while not stop.wait(0.5):
            if cluster.process.poll() is not None:
                raise RuntimeError(f"the cluster ended by itself; see {cluster.logs}/node.log")


def main() -> None:
    """Run the command that is named on the command line."""
    try:
        machine.check()  # before half an hour of building
        if sys.argv[1:] == ["build"]:
            programs.build()
        elif sys.argv[1:] == ["build", "all"]:
            programs.build((*programs.PROGRAMS, *programs.WHOLE))
        elif sys.argv[1:] == ["up"]:
            up()
        else:
            sys.exit("usage: python -m conformance.cluster build|build all|up")
    except (machine.MachineError, RuntimeError) as error:
        sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
