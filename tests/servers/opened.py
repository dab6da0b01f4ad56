"""Keys that a test opens, all closed when it ends: connections left open would warn, and warnings are errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.settings import Service

Opener = Callable[[str], WrappingKey]


@contextlib.contextmanager
def opener(*services: Service) -> Iterator[Opener]:
    """Yield a function that opens a KEK from its URI, with `services` as the configuration."""
    with contextlib.ExitStack() as stack:

        def open_one(uri: str) -> WrappingKey:
            key = registry.open_key(uri, Access(services=services))
            stack.callback(key.close)
            return key

        yield open_one
