"""What every call needs: the store, the paths and URLs, and the loop that sync calls run in."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import getpass
import hashlib
import os
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, get_loop, sync
from fsspec.utils import stringify_path

from sovstore import config as configuration
from sovstore import local_plaintext
from sovstore.errors import ConfigError, PathError
from sovstore.format.recovery import RecoveryKey
from sovstore.keysets import read_file
from sovstore.store import Store

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_SCHEME = "sov://"
#: Objects handled at a time by calls on many; fsspec's own default grows with the limit of open files.
_BATCH = 32
#: Options of fsspec itself that any filesystem takes.
_FSSPEC_OPTIONS = frozenset({"use_listings_cache", "listings_expiry_time", "max_paths", "protocol"})
_surroundings: contextvars.ContextVar[str] = contextvars.ContextVar("surroundings", default="")


class _Surroundings:
    """Class attribute that fsspec mixes into the identity of an instance: the configuration as it is now."""

    def __get__(self, instance: object, owner: type) -> str:
        return _surroundings.get()


class _Configured(type(AsyncFileSystem)):  # type: ignore[misc]  # fsspec has no types
    """Lets a cached instance be reused only while the configuration that it was made from has not changed."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # as fsspec
        # Absolute, since a pickle may be opened by a process with another working folder.
        for option in ("config", "recovery_key"):
            if kwargs.get(option) is not None:
                kwargs[option] = os.path.abspath(os.path.expanduser(os.fspath(kwargs[option])))
        token = _surroundings.set(_fingerprint(kwargs.get("config")))
        try:
            fs = super().__call__(*args, **kwargs)
        finally:
            _surroundings.reset(token)
        fs._hold_target()
        return fs


def _fingerprint(config: str | None) -> str:
    path = configuration.find(config)
    status = path.stat() if path else None
    seen = (str(path), status and (status.st_mtime_ns, status.st_size, status.st_ino))
    overrides = sorted(item for item in os.environ.items() if item[0].startswith("SOVSTORE_STORES__"))
    # A digest, since the values of the environment must not stand in a token.
    return hashlib.sha256(repr((seen, overrides)).encode()).hexdigest()


def _split(path: Any) -> tuple[str | None, str]:  # whatever fsspec accepts as a path
    """Return the store of a URL, None for a plain path, and the path in it."""
    text = stringify_path(path)
    store = None
    if text.startswith(_SCHEME):
        store, _, text = text.removeprefix(_SCHEME).partition("/")
    # One slash at either end is habit. More would be empty segments; they are refused here, since fsspec strips a path
    # more than once and would take them off one by one.
    plain = text.removeprefix("/").removesuffix("/")
    if plain.startswith("/") or plain.endswith("/"):
        raise PathError(f"{text!r}: empty path or segment", path=text, hint="write 'a/b': no double '/'")
    return store, plain


def watched(method: F) -> F:
    """Hold whoever calls a method for plaintext against the policy, as its ``local_plaintext`` says.

    The look is when the method is called, not when its coroutine first runs: fsspec makes the coroutines of sync calls
    in the caller's thread and runs them in another, and those of many objects in tasks of their own.
    """

    @functools.wraps(method)
    def call(self: SovBase, *args: Any, **kwargs: Any) -> Any:  # as the method
        if self._is_watched:
            local_plaintext.hold(self.store.config)
        return method(self, *args, **kwargs)

    return cast("F", call)


def sync_form(name: str) -> Any:  # as fsspec
    """Return the sync form of a coroutine function that is `watched`: fsspec makes none, not seeing what it is."""

    @functools.wraps(getattr(AbstractFileSystem, name))
    def call(self: SovBase, *args: Any, **kwargs: Any) -> Any:  # as the coroutine function
        return sync(self.loop, getattr(self, f"_{name}"), *args, **kwargs)

    return call


class SovBase(AsyncFileSystem, metaclass=_Configured):  # type: ignore[misc]  # fsspec has no types
    """A store with paths, URLs and loops, and nothing that reads or writes yet; `SovFileSystem` says how it is made."""

    protocol = "sov"
    root_marker = ""
    _extra_tokenize_attributes = ("_surroundings",)
    _surroundings = _Surroundings()
    _pid: int

    def __init__(
        self,
        store: str | None = None,
        *,
        config: str | None = None,
        recovery_key: str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        default_block_size: int | None = None,
        **kwargs: Any,  # fsspec's own options
    ) -> None:
        for option in set(kwargs) - _FSSPEC_OPTIONS:
            # Not kept, not shown: fsspec writes all options into pickles and JSON, and this may be a secret.
            known = "store, config, recovery_key, asynchronous, default_block_size"
            hint = f"known: {known}; everything else stands in the configuration"
            raise ConfigError(f"sov: unknown option {option!r}", path=option, hint=hint)
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size or _BATCH, **kwargs)
        loaded = configuration.load(config)
        if store is None:
            hint = f"write store='NAME' or sov://NAME/…; configured: {', '.join(loaded.stores) or 'none'}"
            raise ConfigError("sov: which store?", path="store", hint=hint)
        described = loaded.store(store)
        key = None
        if recovery_key is not None:
            key = RecoveryKey.load(read_file(str(Path(recovery_key).expanduser())), what=str(recovery_key))
        ask = getpass.getpass if sys.stdin is not None and sys.stdin.isatty() else None
        self.store_name = store
        self.default_block_size = default_block_size
        self.store = Store(described, configuration.access(described, ask), key)
        self._is_watched = local_plaintext.is_watched(described)
        # fsspec strips by instance and by class; only the instance can tell that a URL is of another store.
        self._strip_protocol = self._strip_own  # type: ignore[method-assign]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:  # a path or a list of them
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return _split(path)[1]

    def _hold_target(self) -> None:
        """Hold a layer of fsspec against the policy that has just taken this filesystem for its target."""
        if self._is_watched:
            local_plaintext.hold_target(self.store.config)

    @classmethod
    def current(cls) -> Any:  # as fsspec
        """Return the filesystem that was made last."""
        fs = super().current()
        fs._hold_target()
        return fs

    def _strip_own(self, path: Any) -> Any:  # a path or a list of them
        if self._is_watched:
            # The first that a cache asks, also before it writes, or reads what it kept from before.
            local_plaintext.hold_caller(self.store.config)
        if isinstance(path, list):
            return [self._strip_own(p) for p in path]
        store, plain = _split(path)
        if store not in (None, self.store_name):
            hint = f"open it with fsspec.filesystem('sov', store={store!r})"
            raise PathError(f"{path}: is in another store than {self.store_name!r}", path=plain, hint=hint)
        return plain

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        store = _split(path)[0]
        return {"store": store} if store else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"{_SCHEME}{self.store_name}/{self._strip_own(name)}"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that sync calls run in; a forked child gets its own."""
        if self._pid != os.getpid():
            self._loop = None if self.asynchronous else get_loop()
            # Afterwards: another thread of the child would take the parent's loop, which runs no more, and wait for it.
            self._pid = os.getpid()
        found: asyncio.AbstractEventLoop | None = self._loop
        return found

    def _sync(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        result: T = sync(self.loop, function, *args)
        return result

    def _refuse_in_loop(self) -> None:
        """Refuse what would wait, in the loop, for the loop; as `fsspec.asyn.sync` does."""
        if asyncio._get_running_loop() is self._loop is not None:
            raise NotImplementedError("Calling a sync method from within a running loop; use the async ones")

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        loop = self.loop
        assert loop is not None  # noqa: S101  # nosec B101  # only the files of sync instances call this
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def close(self) -> Any:
        """Forget the keys; the next use opens the store again. In asynchronous mode, to be awaited."""
        return self.store.close() if self.asynchronous else self._sync(self.store.close)

    async def __aenter__(self) -> Self:
        """Return the filesystem itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the connections of the running loop."""
        await self.store.close()


class Rooted:
    """Stands in for a filesystem where fsspec works out which source goes where.

    fsspec takes a source without any ``/`` for the target itself, also when the target is a folder to put it into; here
    every source has one.

    Parameters
    ----------
    fs : SovBase
        The filesystem.
    """

    def __init__(self, fs: SovBase) -> None:
        self._fs = fs

    async def _expand_path(self, *args: Any, **kwargs: Any) -> list[str]:
        return [f"/{path}" for path in await self._fs._expand_path(*args, **kwargs)]

    def __getattr__(self, name: str) -> Any:  # whatever else fsspec asks for
        return getattr(self._fs, name)
