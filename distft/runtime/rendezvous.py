"""How ranks that were started by themselves (srun, submitit) find each other: no shell, no `scontrol`, no fixed port.

Rank 0 lets the system choose the port of its store, and answers on the first free one of a few ports that follow from
what all ranks know. The others ask at these ports, and believe only an answer that names their own start: another
job's rank 0 may sit at the same port, or the last incarnation of this one.
"""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch.distributed import HashStore, Store, TCPStore

from distft.errors import DistftError
from distft.runtime.env import Ranks

LOWEST, COUNT = 20000, 10000  # below the ports that Linux gives to outgoing connections
CANDIDATES = 16
PATIENCE_S = 0.3


@contextmanager
def meet(ranks: Ranks, timeout_s: float) -> Iterator[Store | None]:
    """The store over which all ranks form their group; None: torchrun has one. Rank 0 answers until the block ends.

    Every rank calls it. Raises DistftError where the ranks don't find each other within `timeout_s`.
    """
    if ranks.launcher == "none":
        yield HashStore()
    elif ranks.launcher == "torchrun":
        os.environ.update(MASTER_ADDR=ranks.master_addr, MASTER_PORT=str(ranks.master_port))
        yield None
    elif ranks.is_main:
        listener, ended = _listen(ranks), threading.Event()
        store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
        threading.Thread(target=_answer, args=(listener, ranks.meeting, store.port, ended), daemon=True).start()
        yield store
        ended.set()
    else:
        yield TCPStore(ranks.master_addr, _ask(ranks, timeout_s), is_master=False)


def candidates(meeting: str) -> list[int]:
    """The ports at which the ranks of a start look for each other, in the same order on all of them."""
    seed = int.from_bytes(hashlib.sha256(meeting.encode()).digest()[:8], "big")
    return [LOWEST + (seed + number * 977) % COUNT for number in range(CANDIDATES)]


def _listen(ranks: Ranks) -> socket.socket:
    for port in candidates(ranks.meeting):
        with suppress(OSError):  # somebody else's
            return socket.create_server(("", port), backlog=1024)
    tried = ", ".join(map(str, candidates(ranks.meeting)))
    raise DistftError(f"rank 0 must have a port to be found at on {ranks.node}, and all of {tried} are taken")


def _answer(listener: socket.socket, meeting: str, port: int, ended: threading.Event) -> None:
    listener.settimeout(PATIENCE_S)
    with listener:
        while not ended.is_set():
            with suppress(OSError):  # nobody asked, or has gone again
                asking, _ = listener.accept()
                with asking:
                    asking.sendall(f"{meeting} {port}\n".encode())


def _ask(ranks: Ranks, timeout_s: float) -> int:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        for candidate in candidates(ranks.meeting):
            with suppress(OSError), socket.create_connection((ranks.master_addr, candidate), timeout=5) as asked:
                asked.settimeout(5)
                answer = asked.makefile().readline(256)
                meeting, _, port = answer.strip().partition(" ")
                if meeting == ranks.meeting and port.isdigit():
                    return int(port)
        time.sleep(PATIENCE_S)
    raise DistftError(
        f"rank {ranks.global_rank} on {ranks.node} must find rank 0 on {ranks.master_addr}, and did not in "
        f"{timeout_s:.0f} s: see rank 0's log, and whether nodes may reach each other's ports {LOWEST}-{LOWEST + COUNT}"
    )
