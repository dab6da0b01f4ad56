"""A PKCS#11 library in this process: who calls it, in which thread, and what becomes of it after a fork.

The standard gives a process one instance of a library, with one login per token for all of the process, so this is
state of the process by its nature. Calls are made one at a time: python-pkcs11 initialises libraries as those of a
caller that never calls from two threads at once (PKCS#11 2.40, 5.4, `C_Initialize` with NULL). Each is made in a
thread of its own: a call cannot be interrupted, only be waited for no longer. A call that hangs keeps its thread, and
the library is of no more use to the process until it returns.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sovstore.secret import Secret

T = TypeVar("T")


@dataclass
class Login:
    """A session with a token, which the keys of this process on that token share.

    Parameters
    ----------
    session : object
        Of python-pkcs11.
    pin : Secret
        What opened it.
    users : set of object
        One ticket of each key that uses it.
    """

    session: Any
    pin: Secret
    users: set[object] = field(default_factory=set)


class Module:
    """One library in one process. All methods but the constructor, `run` and `give_back` belong to its threads.

    Parameters
    ----------
    path : str
        Absolute path of the library. Loading it raises `pkcs11.PKCS11Error` when it is none.
    inherited : Module, optional
        The same library as the parent process had it.
    """

    def __init__(self, path: str, inherited: Module | None = None) -> None:
        from pkcs11 import _pkcs11

        self.path, self.pid = path, os.getpid()
        # Loaded without `__init__`, which would initialise it and may go to the network.
        library: Any = _pkcs11.lib
        self._functions: Any = library.__new__(library, path)
        self._library: Any = None
        self._forked = inherited is not None
        # Whether others in this process use it too; known once it was initialised.
        self._shared: bool = inherited is None or inherited._shared
        #: By the id of the token's slot.
        self.logins: dict[int, Login] = {}
        #: PINs that a token refused: a few tries more would lock it.
        self.wrong: list[tuple[bytes, Secret]] = list(inherited.wrong) if inherited else []
        self._left: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._busy = threading.Lock()

    def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Return what `work` returns, called in a thread of its own, one call at a time.

        Raises
        ------
        TimeoutError
            When it did not within `timeout_s` seconds. A call under way goes on; one that waits is never made.
        """
        future: Future[T] = Future()
        # A daemon: a call that never returns must not keep the process from ending.
        threading.Thread(
            target=self._serve, args=(future, work, timeout_s), name="sovstore-pkcs11", daemon=True
        ).start()
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def _serve(self, future: Future[T], work: Callable[[], T], timeout_s: float) -> None:
        # Taken here and not by the caller: it is held for as long as the library works, also when nobody waits for it.
        if not self._busy.acquire(timeout=timeout_s):
            return
        try:
            if future.set_running_or_notify_cancel():
                self._take_back()
                future.set_result(work())
        except BaseException as exc:  # noqa: BLE001  # handed to whoever waits, as it is
            future.set_exception(exc)
        finally:
            self._busy.release()

    def give_back(self, ticket: object) -> None:
        """Give a ticket back when the next call is made. May be called by a finalizer, so it waits for nothing."""
        self._left.put(ticket)

    def _take_back(self) -> None:
        while not self._left.empty():
            self.leave(self._left.get_nowait())

    def tokens(self) -> tuple[list[Any], Exception | None]:
        """Return the tokens that are there, and the error of a slot that could not be read."""
        from pkcs11 import PKCS11Error, TokenNotPresent, TokenNotRecognised

        found, error = [], None
        for slot in self.library().get_slots():
            try:
                found.append(slot.get_token())
            except (TokenNotPresent, TokenNotRecognised):
                continue
            except PKCS11Error as exc:
                # One HSM of several is away; the token that is looked for may be on another.
                error = exc
        return found, error

    def library(self) -> Any:
        """Return the library, initialised in this process."""
        ended = self._library not in (None, self._functions) and not self._library.initialized
        if self._library is None or ended:
            library = self._initialised()
            if self._forked:
                self._start_again(library)
            self._library, self._forked = library, False
        return self._library

    def _initialised(self) -> Any:
        import pkcs11

        self._shared = self._shared and self.path in getattr(pkcs11, "_loaded", {})
        try:
            # The one object that python-pkcs11 has for it, shared with whoever else uses that package.
            return pkcs11.lib(self.path)
        except pkcs11.PKCS11Error:
            # By another package or under another name, it may be initialised already: these functions then work.
            with contextlib.suppress(pkcs11.PKCS11Error):
                self._functions.get_slots()
                self._shared = True
                return self._functions
            raise

    def _start_again(self, library: Any) -> None:
        """Initialise the library in a child: what its parent opened is not the child's (PKCS#11 2.40, 5.4)."""
        from pkcs11 import PKCS11Error

        if library is self._functions:
            return
        # First told that it is over: libraries that do not notice a fork would answer that they are initialised, and
        # go on with the sessions and connections of the parent. Those that notice it answer that nothing is to end.
        with contextlib.suppress(PKCS11Error):
            library.finalize()
        library.initialize()

    def restart(self) -> bool:
        """Start the library anew, so that it looks for its tokens again; return whether that was possible.

        Not while somebody is logged in through it, whose sessions would end.
        """
        from pkcs11 import PKCS11Error

        if self._shared or self.logins or self._library is None:
            return False
        with contextlib.suppress(PKCS11Error):
            self._library.finalize()
        self._library = None
        return True

    def drop(self, slot_id: int, login: Login) -> None:
        """Forget a login that no longer works, if it still is the one of its token."""
        # The number of an old session may be that of a new one by now: only what is current is closed.
        if self.logins.get(slot_id) is login:
            del self.logins[slot_id]
            _close(login.session)

    def leave(self, ticket: object) -> None:
        """Log out where the holder of a ticket was the last to be logged in."""
        for slot_id, login in list(self.logins.items()):
            if ticket in login.users:
                login.users.discard(ticket)
                if not login.users:
                    del self.logins[slot_id]
                    _close(login.session)

    def refused_before(self, token: bytes, pin: Secret) -> bool:
        """Return whether a token refused that PIN already."""
        return any(known == token and same(wrong, pin) for known, wrong in self.wrong)


def same(one: Secret, other: Secret) -> bool:
    """Return whether two secrets are one."""
    return hmac.compare_digest(one.reveal(), other.reveal())


def _close(session: Any) -> None:
    from pkcs11 import PKCS11Error

    # What cannot be closed is gone already.
    with contextlib.suppress(PKCS11Error):
        session.close()


_modules: dict[str, Module] = {}
_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _lock  # a child must not inherit a lock that another thread of its parent held
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def module_at(path: str) -> Module:
    """Return the library at an absolute path, in this process; it is loaded, and initialised when it is first used."""
    # One library has one instance in a process, whatever links lead to it.
    real = os.path.realpath(path)
    with _lock:
        module = _modules.get(real)
        if module is None or module.pid != os.getpid():
            module = _modules[real] = Module(path, module)
        return module


def loaded(path: str) -> Module | None:
    """Return the library at an absolute path if this process has it already; MAY be called by a finalizer."""
    # Without the lock, which the thread that a finalizer interrupts may hold.
    module = _modules.get(os.path.realpath(path))
    return module if module is not None and module.pid == os.getpid() else None
