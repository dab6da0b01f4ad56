"""An upload in parts, sent a few at a time in bounded memory: what S3 and Azure Blob have in common."""

from __future__ import annotations

import asyncio
import tempfile
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from sovstore.backends.base import Upload
from sovstore.backends.loop import LoopBackend
from sovstore.errors import SovstoreError, StoreError

#: Bytes of a part, unless the object would need more parts than the host takes.
PART = 8 * 2**20
#: Parts on their way at the same time, of all uploads of one backend.
SLOTS = 3
#: A larger part waits in a temporary file, not in memory. It is ciphertext, as at the host.
_IN_MEMORY = 16 * 2**20
_STAGES = 16
#: The body of a part or of a whole small object: bytes, or a file at its start.
Body: TypeAlias = bytearray | BinaryIO


class Pieces:
    """A body as an HTTP client wants to have it: a little at a time, and again from the start when it retries.

    Given whole, a body is encrypted for TLS whole, and held once more until the socket takes it.

    Parameters
    ----------
    body : bytearray or file
        What to send.
    size : int
        Bytes of it.
    """

    _STEP = 2**18

    def __init__(self, body: Body, size: int) -> None:
        self._body, self._size, self._position = body, size, 0

    def __len__(self) -> int:
        """Return the bytes of all of it."""
        return self._size

    def seek(self, position: int, whence: int = 0) -> int:
        """Go on from another place."""
        self._position = position + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the place that it goes on from."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; a client that signs the body reads it first."""
        return bytes(self._next(self._size if size < 0 else size))

    def _next(self, size: int) -> bytes | memoryview:
        start, end = self._position, min(self._position + size, self._size)
        self._position = end
        if isinstance(self._body, bytearray):
            return memoryview(self._body)[start:end]
        self._body.seek(start)
        return self._body.read(end - start)

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        """Yield it in pieces."""
        while self._position < self._size:
            yield self._next(self._STEP)


@dataclass(frozen=True)
class PartSizes:
    """How an object is cut into parts.

    Parameters
    ----------
    part : int
        Bytes of the first parts.
    part_max : int
        Most bytes of a part.
    parts_max : int
        Most parts of an object.
    object_max : int
        Most bytes of an object.
    equal : bool
        Whether all parts but the last must have the same size.
    """

    part: int
    part_max: int
    parts_max: int
    object_max: int
    equal: bool = False

    def of(self, size: int | None, *, name: str) -> PartSizes:
        """Return how an object is cut whose size is known.

        Raises
        ------
        StoreError
            When the host does not take objects of this size.
        """
        if size is None:
            return self
        if size > min(self.object_max, self.part_max * self.parts_max):
            raise StoreError(f"{name}: {size} bytes, and the host takes {self.object_max} at most", path=name)
        needed = -(-size // self.parts_max)
        # Whole MiB: some hosts copy fastest along such borders.
        part = min(max(self.part, -(-needed // 2**20) * 2**20), self.part_max)
        return PartSizes(part, self.part_max, self.parts_max, self.object_max, equal=True)

    def size(self, number: int, *, name: str) -> int:
        """Return the bytes of the part `number`, counted from 0.

        Of an object whose size nobody knows, later parts are larger: it may turn out to be a very large one.

        Raises
        ------
        StoreError
            When the host takes no part of that number.
        """
        if number >= self.parts_max:
            hint = "say its size beforehand, or set a larger 'part_size' in the options of the store"
            raise StoreError(f"{name}: more than {self.parts_max} parts", path=name, hint=hint)
        stage = 0 if self.equal else number // max(1, self.parts_max // _STAGES)
        return min(self.part << stage, self.part_max)


class PartUpload(Upload):
    """A write that goes to the host part by part.

    Subclasses say how; what they are asked for runs on the loop of the backend. An object that fits into one part
    takes one request, `_put`.

    Parameters
    ----------
    backend : LoopBackend
        Whose loop and connections are used.
    name : str
        Name below the root.
    sizes : PartSizes
        How the object is cut.
    slots : asyncio.Semaphore
        Taken by each part on its way.
    """

    def __init__(self, backend: LoopBackend, name: str, sizes: PartSizes, slots: asyncio.Semaphore) -> None:
        self.name = name
        self._backend, self._sizes, self._slots = backend, sizes, slots
        self._body: Body = bytearray()
        self._filled = 0
        self._limit = sizes.size(0, name=name)
        self._free: list[bytearray] = []
        self._tasks: list[asyncio.Future[Any]] = []
        self._begun = False
        self._done = False

    @abstractmethod
    async def _put(self, body: Body, size: int) -> None:
        """Write the whole object by one request, under the condition of this upload."""

    @abstractmethod
    async def _begin(self) -> None:
        """Start an upload in parts."""

    @abstractmethod
    async def _send(self, number: int, body: Body, size: int) -> Any:  # each host has its own receipt
        """Send one part, counted from 0, and return what `_finish` needs of it."""

    @abstractmethod
    async def _finish(self, receipts: Sequence[Any]) -> None:
        """Make the object of these parts visible, under the condition of this upload."""

    @abstractmethod
    async def _discard(self) -> None:
        """Make the host forget the parts. Called only after `_begin`."""

    async def _received(self, token: str) -> Sequence[tuple[Any, int]]:  # noqa: ARG002  # for hosts that tell
        """Return receipt and bytes of the parts that the host has of an earlier write, in order, without a gap."""
        return ()

    async def go_on(self, token: str, size: int) -> int:
        """Take up an earlier write, of `size` bytes, and return how many of its first bytes the host has."""
        return await self._backend.on_loop(self._go_on(token, size))

    async def _go_on(self, token: str, size: int) -> int:
        start = 0
        for receipt, part in await self._received(token):
            # The last part is sent again: the commit sends one.
            if part != self._sizes.size(len(self._tasks), name=self.name) or start + part >= size:
                break
            done = asyncio.get_running_loop().create_future()
            done.set_result(receipt)
            self._tasks.append(done)
            start += part
        if start:
            self._begun = True
            self._limit = self._sizes.size(len(self._tasks), name=self.name)
        return start

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; waits while too many parts are on their way."""
        await self._backend.on_loop(self._write(memoryview(data)))

    async def _write(self, data: memoryview) -> None:
        while data:
            if self._filled == self._limit:
                await self._flush()
            taken = min(len(data), self._limit - self._filled)
            self._append(data[:taken])
            data = data[taken:]

    def _append(self, data: memoryview) -> None:
        end = self._filled + len(data)
        if isinstance(self._body, bytearray) and end > _IN_MEMORY:
            # A small object stays in memory, however large its only part might have become.
            file = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it is sent
            file.write(memoryview(self._body)[: self._filled])
            self._body = file
        if not isinstance(self._body, bytearray):
            self._body.write(data)
        elif end > len(self._body):
            # Grown and not made at full size: most objects are small.
            del self._body[self._filled :]
            self._body += data
        else:
            # A bytearray would copy the bytes once more on their way in.
            with memoryview(self._body) as view:
                view[self._filled : end] = data
        self._filled = end

    async def _flush(self) -> None:
        """Send what is filled as one part, and take room for the next one."""
        number = len(self._tasks)
        following = self._sizes.size(number + 1, name=self.name)
        if not self._begun:
            await self._begin()
            # Not before: there would be nothing that `_discard` could tell the host to forget.
            self._begun = True
        await self._launch_part(number)
        self._limit, self._filled = following, 0
        self._body = self._free.pop() if self._free else bytearray()

    async def _launch_part(self, number: int) -> None:
        body = self._body
        await self._launch(self._send(number, _whole(body, self._filled), self._filled), lambda: self._recycle(body))

    def _recycle(self, body: Body) -> None:
        if not isinstance(body, bytearray):
            body.close()
        elif len(body) == self._limit:
            self._free.append(body)

    async def _launch(self, work: Coroutine[Any, Any, Any], after: Callable[[], None] = lambda: None) -> None:
        """Start sending when there is a slot, and call `after` at its end; raise what an earlier part failed with."""
        try:
            await self._slots.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        # Not `finally` inside the task: one that is cancelled before it starts would keep its slot.
        task.add_done_callback(lambda _: self._slots.release())
        task.add_done_callback(lambda _: after())
        self._tasks.append(task)
        for earlier in self._tasks:
            if earlier.done() and not earlier.cancelled() and (failure := earlier.exception()):
                raise failure

    async def commit(self) -> None:
        """Send the rest and make the object visible."""
        await self._backend.on_loop(self._commit())

    async def _commit(self) -> None:
        if not self._begun:
            await self._put(_whole(self._body, self._filled), self._filled)
            self._close_body()
        else:
            # Nothing is left over behind parts that the host has copied.
            if self._filled:
                await self._launch_part(len(self._tasks))
            await self._finish(await asyncio.gather(*self._tasks))
        self._done = True

    def _close_body(self) -> None:
        if not isinstance(self._body, bytearray):
            self._body.close()

    async def abort(self) -> None:
        """Stop what is on its way and make the host forget it."""
        with suppress(SovstoreError):
            await self._backend.on_loop(self._abort())

    async def _abort(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_body()
        self._free.clear()
        if self._begun and not self._done:
            await self._discard()
            self._done = True


def _whole(body: Body, size: int) -> Body:
    """Return the body cut to its size, at its start."""
    if isinstance(body, bytearray):
        del body[size:]
    else:
        body.seek(0)
    return body
