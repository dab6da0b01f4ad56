"""A PKCS#11 library in this process: who calls it, in which thread, and what becomes of it after a fork.

The standard gives a process one instance of a library, with one login per token for all of the process, so this is
state of the process by its nature. Calls are made in one thread, one at a time: python-pkcs11 initialises libraries as
those of a caller that never calls from two threads at once (PKCS#11 2.40, 5.4, `C_Initialize` with NULL). A call cannot
be interrupted, only be waited for no longer. One that hangs keeps the thread, and the library is of no more use to the
process until it returns.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    """One library in one process. The rest than `run`, `hold`, `release` and `give_back` is for its threads.

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
        # What a parent process opened is not its child's (PKCS#11 2.40, 5.4).
        self._stale = inherited is not None
        # Whether others in this process use it too; known once it was initialised.
        self._shared: bool = inherited is None or inherited._shared
        #: By the id of the token's slot.
        self.logins: dict[int, Login] = {}
        #: PINs that a token refused: a few tries more would lock it.
        self.wrong: list[tuple[bytes, Secret]] = list(inherited.wrong) if inherited else []
        self._left: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._starting, self._started = threading.Lock(), False
        self._busy = threading.Lock()

    def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Return what `work` returns, called in the thread of the library, one call at a time.

        Raises
        ------
        TimeoutError
            When it did not within `timeout_s` seconds. A call under way goes on; one that waits is never made.
        """
        future: Future[T] = Future()
        self._jobs.put((future, work))
        self._start()
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                # A daemon: a call that never returns must not keep the process from ending. One thread that stays,
                # since a thread that ends holds locks of OpenSSL for a moment, which a fork would copy.
                threading.Thread(target=self._serve, name="sovstore-pkcs11", daemon=True).start()
                self._started = True

    def _serve(self) -> None:
        while True:
            self._serve_one(*self._jobs.get())

    def _serve_one(self, future: Future[Any], work: Callable[[], Any]) -> None:
        # A method of its own, so that nothing of a call stays in the variables of a thread that waits.
        with self._busy:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self._take_back()
                future.set_result(work())
            except BaseException as exc:  # noqa: BLE001  # handed to whoever waits, as it is
                future.set_exception(exc)

    def hold(self, timeout_s: float) -> bool:
        """Let no call begin until `release`; return False when one that is under way did not end in time."""
        return self.pid == os.getpid() and self._busy.acquire(timeout=timeout_s)

    def release(self) -> None:
        """Let calls begin again."""
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
        for slot in self.cryptoki().get_slots():
            try:
                found.append(slot.get_token())
            except (TokenNotPresent, TokenNotRecognised):
                continue
            except PKCS11Error as exc:
                # One HSM of several is away; the token that is looked for may be on another.
                error = exc
        return found, error

    def cryptoki(self) -> Any:
        """Return the library, initialised in this process."""
        ended = self._library not in (None, self._functions) and not self._library.initialized
        if self._library is None or ended or self._stale:
            library = self._initialised()
            if self._stale and library is not self._functions:
                _start_again(self.path)
            self._library, self._stale = library, False
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

    def restart(self) -> bool:
        """Have the library start anew, so that it looks for its tokens again; return whether that is possible.

        Not while somebody is logged in through it, whose sessions would end.
        """
        if self._shared or self.logins or self._library is None:
            return False
        self._stale = True
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


def _start_again(path: str) -> None:
    """End a library and initialise it again, as python-pkcs11 would.

    That one keeps all threads of Python from running while a library ends, and one that hangs would stop the process.
    """
    from pkcs11 import GeneralError

    table = ctypes.c_void_p()
    library = ctypes.CDLL(path)
    if library.C_GetFunctionList(ctypes.byref(table)) or table.value is None:
        raise GeneralError
    # CK_FUNCTION_LIST begins with a version, which takes the space of a pointer, `C_Initialize` and `C_Finalize`.
    function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)
    _, initialize, finalize = (function(entry or 0) for entry in (ctypes.c_void_p * 3).from_address(table.value))
    # First told that it is over: libraries that do not notice a fork would answer that they are initialised, and
    # go on with the sessions and connections of the parent. Those that notice it answer that nothing is to end.
    finalize(None)
    if initialize(None):
        raise GeneralError


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
#: Modules that wait for a fork to be over.
_held: list[Module] = []
#: Seconds that a fork waits for a call under way.
_FORK_WAIT_S = 1.0


def _before_fork() -> None:
    # A child that is forked amid a call inherits the locks within the library, and nobody who would ever release them.
    _held.extend(module for module in list(_modules.values()) if module.hold(_FORK_WAIT_S))


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    global _lock  # a child must not inherit a lock that another thread of its parent held
    _lock = threading.Lock()
    # The locks of modules stay as they are: a child has modules of its own.
    _held.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


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
