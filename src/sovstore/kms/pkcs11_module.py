"""A PKCS#11 module in this process: all calls to it come from one thread, in turn, and nobody waits for ever.

A module is initialised once in a process and need not be safe for threads (PKCS#11 v3.1, 5.4); a call cannot be
interrupted. So each module has a thread of its own, and whoever asks gives up when the time is over. A child that was
forked starts the module anew.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_modules: dict[str, Module] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # a child must not inherit a lock that another thread of its parent held
    _lock = threading.Lock()
    _modules.clear()


os.register_at_fork(after_in_child=_after_fork)


def module(path: str) -> Module:
    """Return the one module at a path, whose thread is started when there is none."""
    with _lock:
        if path not in _modules:
            _modules[path] = Module(path)
        return _modules[path]


class Module:
    """A library and its thread.

    Parameters
    ----------
    path : str
        Of the library.
    """

    #: Libraries that a process has initialised; a child inherits that, and has to begin again.
    _initialised_by: dict[str, int] = {}  # noqa: RUF012  # of all modules, also across a fork

    def __init__(self, path: str) -> None:
        self._path = path
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[Any], Any]]] = queue.SimpleQueue()
        self._library: Any = None
        # A daemon: a device that hangs must not keep the process from ending.
        threading.Thread(target=self._serve, name=f"pkcs11 {path}", daemon=True).start()

    def call(self, function: Callable[[Any], T], timeout_s: float) -> T:
        """Return what a function of the library returns, run in the module's thread.

        Raises
        ------
        TimeoutError
            When it does not return in time. It may still do what it was to do.
        """
        future: Future[T] = Future()
        self._work.put((future, function))
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def _serve(self) -> None:
        while True:
            future, function = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(self._loaded()))
            except BaseException as exc:  # noqa: BLE001  # whatever it is belongs to whoever asked
                future.set_exception(exc)
            # Neither what was asked nor what came of it stays until the next call.
            del future, function

    def _loaded(self) -> Any:  # its types are known only where it is installed
        if self._library is None:
            import pkcs11

            self._library = pkcs11.lib(self._path)
            if self._initialised_by.setdefault(self._path, os.getpid()) != os.getpid():
                self._library.reinitialize()
                self._initialised_by[self._path] = os.getpid()
        return self._library
