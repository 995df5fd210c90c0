"""Sockets of a process, read while the process opens and closes others."""

from __future__ import annotations

import os
import socket
import threading

from meshscrape.system.proc import holders


def test_a_socket_is_found_while_others_are_closed() -> None:
    """A descriptor that goes away while the list is read hides none of the others."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for other in [socket.socket() for _ in range(20)]:
                other.close()

    churning = threading.Thread(target=churn)
    with socket.socket() as kept:
        inode = str(os.fstat(kept.fileno()).st_ino)
        churning.start()
        try:
            found = [dict(holders({inode})).get(os.getpid()) for _ in range(200)]
        finally:
            stop.set()
            churning.join()
    assert found == [{inode}] * 200
