"""One run of a command: its event loop, the stores it opened, and the person at the terminal, if there is one.

Coroutines run in the main thread, so that Ctrl-C cancels them and every write under way is given up. A passphrase is
asked for between two of them and never from a thread, which Ctrl-C could not end.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from sovstore.cli.output import LogHandler, Output, describe, printable
from sovstore.errors import ConfigError, KeyDeniedError, SovstoreError

if TYPE_CHECKING:
    from sovstore.config import Config, StoreConfig
    from sovstore.filesystem import SovFileSystem
    from sovstore.format.recovery import RecoveryKey
    from sovstore.kms.base import Access

T = TypeVar("T")
#: How often a person may mistype a passphrase.
_TRIES = 3


class _UnansweredError(Exception):
    """A driver needs a passphrase that nobody was asked for yet."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.prompt = prompt


@dataclass
class Outcome:
    """What became of work on many objects.

    Parameters
    ----------
    objects, size : int
        What was done, and its plaintext bytes.
    failed : list of dict
        What was not, as errors in JSON form.
    """

    objects: int = 0
    size: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """3 when anything was not authentic; 5 when a part failed; the code of the error when all did."""
        codes = [error["exit_code"] for error in self.failed]
        if not codes:
            return 0
        if 3 in codes:
            return 3
        return 5 if self.objects or len(set(codes)) > 1 else int(codes[0])


class Run:
    """One run of a command.

    Parameters
    ----------
    out : Output
        Where it prints.
    config : str, optional
        Configuration file.
    recovery_key : str, optional
        File of a recovery key to open stores with.
    """

    def __init__(self, out: Output, config: str | None = None, recovery_key: str | None = None) -> None:
        self.out = out
        self.config_file = config
        self.recovery_key = recovery_key
        self._runner = asyncio.Runner()
        self._stores: dict[str, SovFileSystem] = {}
        self._answers: dict[str, str] = {}
        self._handler = LogHandler(out)
        logging.getLogger("sovstore").addHandler(self._handler)

    def __enter__(self) -> Run:
        """Return the run itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the stores and the event loop."""
        try:
            for fs in self._stores.values():
                self.wait(fs.close())
        finally:
            self._runner.close()
            logging.getLogger("sovstore").removeHandler(self._handler)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns; Ctrl-C cancels it and waits until it has cleaned up."""
        return self._runner.run(coroutine)

    # Stores

    @cached_property
    def config(self) -> Config:
        """The configuration."""
        from sovstore import config

        return config.load(self.config_file)

    def open(self, name: str) -> SovFileSystem:
        """Return a store of the configuration, its keyset opened.

        Raises
        ------
        ConfigError, ObjectNotFoundError, FormatError, IntegrityError, KMSError
            When it cannot be opened; the hint says what to do.
        """
        if name not in self._stores:
            from sovstore.filesystem import SovFileSystem
            from sovstore.store import Store

            described = self.config.store(name)
            key = self.recovery()
            fs = SovFileSystem(name, config=self.config_file, asynchronous=True, skip_instance_cache=True)

            async def opened(access: Access) -> None:
                # The filesystem would ask from a thread.
                fs.store = Store(described, access, key)
                await fs.store.keyset()

            self.asking(described, opened)
            self._stores[name] = fs
        return self._stores[name]

    def recovery(self) -> RecoveryKey | None:
        """Return the recovery key to open stores with, if one was named.

        Raises
        ------
        ConfigError
            When the file is not one.
        """
        if self.recovery_key is None:
            return None
        from sovstore.format.recovery import RecoveryKey
        from sovstore.keysets import read_file

        return RecoveryKey.load(read_file(self.recovery_key), what=self.recovery_key)

    # The person

    def asking(self, described: StoreConfig, work: Callable[[Access], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns, given a way to a passphrase; a person may be asked, also again.

        Parameters
        ----------
        described : StoreConfig
            The store that it is for.
        work : callable
            Called again after each answer, so it must have changed nothing before it needs one.
        """
        from sovstore import config

        access = config.access(described, self._answer if _somebody_is_there() else None)
        tries = 0
        while True:
            try:
                return self.wait(work(access))
            except _UnansweredError as question:
                self._answers[question.prompt] = _ask(question.prompt)
                tries += 1
            except KeyDeniedError as exc:
                if not tries or tries >= _TRIES:
                    raise
                self.out.failure({**describe(exc), "hint": None})
                self._answers.clear()

    def _answer(self, prompt: str) -> str:
        if prompt not in self._answers:
            raise _UnansweredError(prompt)
        return self._answers[prompt]

    # Many objects

    def fail(self, outcome: Outcome, path: str, exc: SovstoreError | OSError) -> None:
        """Note, and say, that one of many objects failed."""
        error = describe(exc) if isinstance(exc, SovstoreError) else os_error(exc)
        outcome.failed.append({**error, "path": path})
        self.out.failure(error)


def os_error(exc: OSError) -> dict[str, Any]:
    """Return an error of the local system as JSON has it."""
    path = None if exc.filename is None else str(exc.filename)
    text = exc.strerror or type(exc).__name__
    message = f"{path}: {text.lower()}" if path else text.lower()
    return {"type": type(exc).__name__, "message": message, "path": path, "hint": None, "exit_code": 1}


def _somebody_is_there() -> bool:
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    try:
        # Without a terminal of its own, getpass would read stdin, which may hold what is to be sealed.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _ask(prompt: str) -> str:
    """Return what a person types, unseen; a new passphrase twice."""
    sys.stdout.flush()
    try:
        while True:
            answer = getpass.getpass(printable(prompt))
            if not prompt.startswith("New ") or getpass.getpass("The same again: ") == answer:
                return answer
            sys.stderr.write("sovstore: the two are not the same; once more\n")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    except EOFError as exc:
        raise ConfigError("no passphrase was given", hint="set SOVSTORE_PASSPHRASE to run without a person") from exc
