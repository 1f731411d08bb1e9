"""A model worker ends with the server that started it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

# What MAX calls its worker.
_WORKER = "Model Worker"


def end_with_the_server() -> None:
    """Ends this process, if it is MAX's model worker, once its server is gone.

    MAX's worker would wait for requests for ever, with the model in memory, after
    a server that was killed.
    """
    server = multiprocessing.parent_process()
    if server is None or multiprocessing.current_process().name != _WORKER:
        return
    watch = threading.Thread(
        target=_wait_and_end, args=(server,), name="server watch", daemon=True
    )
    watch.start()


def _wait_and_end(server: BaseProcess) -> None:
    server.join()
    # There is no one to report to, and other threads may compute.
    os._exit(1)
