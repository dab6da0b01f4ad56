"""Layers of fsspec that keep plaintext on a disk of this machine, held against ``local_plaintext`` of the policy.

fsspec does not tell a filesystem for whom it reads: a cache and a person make the same calls. So where plaintext is
handed out, the calling frames are looked at (docs/adr/0011), and only where the policy says more than ``allow``. A
frame is a layer's by the class of its ``self``, so classes derived from those of fsspec count too.

What this cannot see: whoever reads bytes and writes them somewhere by other means; a cache that reads in threads of its
own; and one over a filesystem that moves calls to another thread before they come here, unless the cache made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sovstore import policy, rules
from sovstore.config_policy import ALLOW
from sovstore.config_store import StoreConfig

_CACHED, _GENERIC, _CACHING = "fsspec.implementations.cached", "fsspec.generic", "fsspec.caching"
#: The layers that keep what they read, and what they write with.
_CACHES = ("CachingFileSystem", "LocalTempFile", "WriteCachedTransaction")
_COPIER = "GenericFileSystem"
#: Its functions that copy by way of a local file, or block by block. Its others hand out bytes, as a store's own do.
_COPIES = ("_copy_file_op", "_copy", "_cp_file")


def is_watched(store: StoreConfig) -> bool:
    """Return whether the policy of a store says anything of such layers."""
    return store.policy.local_plaintext != ALLOW


def hold(store: StoreConfig, *, copies: bool = True) -> None:
    """Hold whoever is calling against the policy.

    Parameters
    ----------
    store : StoreConfig
        Of which plaintext is asked for.
    copies : bool
        Whether generic copies count; they do not where nothing is read.

    Raises
    ------
    PolicyError
        When it is a layer that keeps plaintext, and the policy refuses those.
    """
    for frame in _above(sys._getframe(1)):
        if (name := _cache(frame)) is not None:
            _act(store, name, _CACHED)
        elif copies and _is_copy(frame):
            _act(store, _COPIER, _GENERIC)


def hold_caller(store: StoreConfig) -> None:
    """Hold the caller of the calling function against the policy, and nobody above it; otherwise as `hold`."""
    caller = sys._getframe(1).f_back
    name = None if caller is None else _cache(caller)
    if name is not None:
        _act(store, name, _CACHED)


def hold_target(store: StoreConfig) -> None:
    """Hold who has just made, or found, the filesystem of a store to read from it; otherwise as `hold`.

    A generic copy of several objects drops the errors of each, so it is refused where it asks for its filesystems.
    """
    for frame in _above(sys._getframe(1)):
        if (name := _cache(frame)) is not None:
            _act(store, name, _CACHED)
        elif _resolves_a_source(frame, store.name):
            _act(store, _COPIER, _GENERIC)


def hold_cache_type(store: StoreConfig, kind: str, cache: Callable[..., Any] | None) -> None:
    """Hold a kind of cache of one open file against the policy; otherwise as `hold`.

    Parameters
    ----------
    kind : str
        Its name.
    cache : class or None
        What fsspec has of that name.
    """
    mapped = getattr(sys.modules.get(_CACHING), "MMapCache", None)
    if isinstance(mapped, type) and isinstance(cache, type) and issubclass(cache, mapped):
        _act(store, f"cache_type={kind!r}", _CACHING)


def _act(store: StoreConfig, name: str, module: str) -> None:
    policy.act(store, [rules.of_layer(store, name, module)])


def _above(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that lead to it; none where no layer was ever imported, and so none can be among them."""
    if _CACHED not in sys.modules and _GENERIC not in sys.modules:
        return
    while frame is not None:
        yield frame
        frame = frame.f_back


def _self(frame: FrameType) -> object:
    """Return what a frame knows as ``self``; None where it knows none."""
    code = frame.f_code
    # To read the locals of a frame keeps what they hold until it ends, before Python 3.13: only where it must be.
    own = code.co_argcount > 0 and code.co_varnames[0] == "self"
    return frame.f_locals.get("self") if own or "self" in code.co_freevars else None


def _is_one(found: object, module: str, *names: str) -> bool:
    if found is None or module not in sys.modules:
        return False
    classes = [vars(sys.modules[module]).get(name) for name in names]
    # Not `isinstance`, which would run code of a proxy.
    return issubclass(type(found), tuple(one for one in classes if isinstance(one, type)))


def _cache(frame: FrameType) -> str | None:
    """Return what the cache is called whose frame this is."""
    found = _self(frame)
    return type(found).__name__ if _is_one(found, _CACHED, *_CACHES) else None


def _is_copy(frame: FrameType) -> bool:
    if frame.f_code.co_name not in _COPIES:
        return False
    return frame.f_globals.get("__name__") == _GENERIC or _is_one(_self(frame), _GENERIC, _COPIER)


def _resolves_a_source(frame: FrameType, store: str) -> bool:
    """Return whether a generic copy asks in this frame for the filesystem of its source, to copy out of a store."""
    if frame.f_code.co_name != "_resolve_fs" or frame.f_back is None or not _is_copy(frame.f_back):
        return False
    found = frame.f_back.f_locals
    target = found.get("path2", found.get("url2"))
    first = target[0] if isinstance(target, list | tuple) and target else target
    # Within a store it has the store copy ciphertext; and when it is the target that is asked for, that is in it too.
    return not f"{first}/".startswith(f"sov://{store}/")
