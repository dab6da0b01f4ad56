"""Run PyKMIP's server, in its own environment; its options are those of pykmip-server.

It starts two processes of its own and waits for them for many seconds when it is told to end. Here they end with it,
however it ends, so that it can simply be killed.
"""

from __future__ import annotations

import ctypes
import os
import signal

from kmip.services.server import server  # type: ignore[import-not-found]  # in its own environment

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    libc = ctypes.CDLL(None)
    os.register_at_fork(after_in_child=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    server.main()
