"""What the time of a stream goes for: the cipher alone, sealing or opening alone, and the least that writes or reads.

Two bare threads do what sovstore does to a file of this machine, without sovstore: one encrypts or decrypts, the other
writes or reads, a megabyte at a time, in memory that is used again. What they need is the cipher, the kernel and
Python's lock; what sovstore needs beyond that is its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.case import MIB, Contender, Measured, measured
from benchmarks.memory import block_of_memory
from benchmarks.place import Facts
from sovstore.format.body import BodySealer, BodyStreamOpener
from sovstore.format.cobblestone import CHUNK, PREFIX, WIRE_CHUNK
from sovstore.secret import Secret

_NONCE = bytes(12)
_SEALED = MIB + 16
#: Buffers between the two threads.
_BUFFERS = 4


def ceiling(facts: Facts) -> Measured:
    """Encrypt with one thread of AES-256-GCM, 1 MiB at a time, into the same memory."""
    return _again(facts, _encrypting())


def two_ceilings(facts: Facts) -> Measured:
    """Encrypt as much in each of two threads."""
    works = [_encrypting(), _encrypting()]

    def both() -> None:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(functools.partial(_again, facts), works))

    return measured(both, 2 * facts["size"] / MIB)


def _encrypting() -> Callable[[], object]:
    aead, block, out = AESGCM(os.urandom(32)), block_of_memory(), block_of_memory(_SEALED)
    return lambda: aead.encrypt_into(_NONCE, block, None, out)


#: What a stream is measured against; it says how quiet the machine is, too, and both whether two cores are there.
CEILING = Contender("AES-256-GCM", f"{__name__}:ceiling")
TWO_CEILINGS = Contender("AES-256-GCM, two threads", f"{__name__}:two_ceilings")


def sealing(facts: Facts) -> Measured:
    """Measure the body of an object in this format, into the same memory."""
    sealer, block, out = BodySealer(Secret(os.urandom(32))), block_of_memory(), block_of_memory(BodySealer.room(MIB))
    return _again(facts, lambda: sealer.update_into(block, out))


def opening(facts: Facts) -> Measured:
    """Measure it out of the same memory, where the processor's cache has it, as it has what was just read.

    The chunks of a body can be opened in order only, so that each megabyte here is a body of its own, with the
    derivation of its key.
    """
    dek, out = Secret(os.urandom(32)), block_of_memory()
    sealed = block_of_memory(BodySealer.room(MIB))
    BodySealer(dek).update_into(out, sealed)
    prefix, chunks = bytes(sealed[:PREFIX]), sealed[PREFIX : PREFIX + MIB // CHUNK * WIRE_CHUNK]
    return _again(facts, lambda: BodyStreamOpener(dek, prefix, what="block").open_into(chunks, out))


def _again(facts: Facts, work: Callable[[], object]) -> Measured:
    blocks = facts["size"] // MIB

    def works() -> None:
        for _ in range(blocks):
            work()

    return measured(works, blocks)


def two_threads_write(facts: Facts) -> Measured:
    """Measure one thread that encrypts, and another that writes to a file."""
    aead, block, blocks = AESGCM(os.urandom(32)), block_of_memory(), facts["size"] // MIB
    path, buffers = Path(facts["folder"], "bare"), _buffers()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            _beside(lambda out: aead.encrypt_into(_NONCE, block, None, out), file.write, blocks, buffers)

    done = measured(write, blocks)
    path.unlink()
    return done


def two_threads_read(facts: Facts) -> Measured:
    """Measure one thread that decrypts what another reads from a file."""
    # The file of an earlier round is read again.
    aead, out, blocks = AESGCM(bytes(32)), block_of_memory(), facts["size"] // MIB
    path, buffers = Path(facts["folder"], "bare"), _buffers()
    if not path.exists():
        sealed = aead.encrypt(_NONCE, bytes(out), None)
        with path.open("wb") as file:
            for _ in range(blocks):
                file.write(sealed)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            _beside(file.readinto, lambda sealed: aead.decrypt_into(_NONCE, sealed, None, out), blocks, buffers)

    return measured(read, blocks)


def _buffers() -> list[memoryview]:
    return [block_of_memory(_SEALED) for _ in range(_BUFFERS)]


_Use = Callable[[memoryview], int | None]


def _beside(fill: _Use, drain: _Use, blocks: int, buffers: Sequence[memoryview]) -> None:
    """Fill buffers in turn, so many in all, while another thread drains them; who of the two fails ends both."""
    empty, full = SimpleQueue[memoryview | None](), SimpleQueue[memoryview | None]()
    for one in buffers:
        empty.put(one)

    def drains() -> None:
        while (buffer := full.get()) is not None:
            drain(buffer)
            empty.put(buffer)

    with ThreadPoolExecutor(1) as other:
        drained = other.submit(drains)
        drained.add_done_callback(lambda _: empty.put(None))
        try:
            for _ in range(blocks):
                if (buffer := empty.get()) is None:
                    break
                fill(buffer)
                full.put(buffer)
        finally:
            full.put(None)
        drained.result()
