"""What commands on many objects share: their arguments, the work itself, and the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sovstore.cli.app import usage
from sovstore.cli.output import count_text, size_text
from sovstore.cli.run import Outcome, Run
from sovstore.concurrency import for_each
from sovstore.errors import SovstoreError, StoreError

if TYPE_CHECKING:
    from sovstore.cli.output import Bar
    from sovstore.filesystem import SovFileSystem
    from sovstore.store import Entry


#: Seconds; below it a rate says nothing.
_WORTH_TELLING = 0.01


@dataclass(frozen=True)
class Item:
    """One object to transfer.

    Parameters
    ----------
    fs : SovFileSystem
        The store that it is in, or goes to when it comes from this machine.
    source, target : str
        Where it is and where it goes: local paths, or paths in a store.
    size : int
        Plaintext bytes, as far as known.
    """

    fs: SovFileSystem
    source: str
    target: str
    size: int


class Callback:
    """What the filesystem calls while it transfers one object.

    Parameters
    ----------
    bar : Bar
        Shows it.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def set_size(self, size: int) -> None:
        """Ignore the size of one object: the bar knows the sum."""

    def relative_update(self, inc: int) -> None:
        """Note bytes that are done."""
        self._bar.advance(inc)


def transfer(
    run: Run,
    verb: str,
    items: list[Item],
    outcome: Outcome,
    jobs: int,
    one: Callable[[Item, Callback], Coroutine[Any, Any, None]],
) -> int:
    """Transfer objects, several at a time; report each failure and go on; return the exit code."""
    _refuse_collisions(items)
    start = time.perf_counter()

    with run.out.progress(verb, len(items), sum(item.size for item in items)) as bar:

        async def work(item: Item) -> None:
            try:
                await one(item, Callback(bar))
            except (SovstoreError, OSError) as exc:
                run.fail(outcome, item.source, exc)
                return
            outcome.objects += 1
            outcome.size += item.size
            bar.finish()

        run.wait(for_each(iter(items), work, jobs))
    return done(run, verb, outcome, time.perf_counter() - start)


def _refuse_collisions(items: list[Item]) -> None:
    sources: dict[str, str] = {}
    for item in items:
        if item.target in sources:
            usage(f"{sources[item.target]} and {item.source} would both become {item.target}", "transfer them apart")
        sources[item.target] = item.source


def done(run: Run, verb: str, outcome: Outcome, seconds: float | None = None) -> int:
    """Print what became of work on many objects, and return its exit code."""
    if run.out.as_json:
        run.out.result({"objects": outcome.objects, "bytes": outcome.size, "failed": outcome.failed})
        return outcome.exit_code
    text = f"{verb} {count_text(outcome.objects)}, {size_text(outcome.size)}"
    if seconds and seconds >= _WORTH_TELLING:
        text += f" in {seconds:.{1 if seconds >= 1 else 2}f} s ({size_text(int(outcome.size / seconds))}/s)"
    if outcome.failed:
        text += f"; {len(outcome.failed)} failed"
    if outcome.objects or not outcome.failed:
        run.out.note(text)
    return outcome.exit_code


async def readable(run: Run, fs: SovFileSystem, entry: Entry, outcome: Outcome) -> bool:
    """Return whether a listed object can be one of this store's; report it when it cannot."""
    if not await has_foreign_name(fs, entry):
        return True
    hint = "somebody else wrote it beside the store, or altered a name"
    error = StoreError(f"{entry.path}: not an object of this store", path=entry.path, hint=hint)
    run.fail(outcome, entry.path, error)
    return False


async def has_foreign_name(fs: SovFileSystem, entry: Entry) -> bool:
    """Return whether the store did not make the name of an entry.

    An entry of its own name that is foreign by its size was damaged, and is refused when it is opened.
    """
    return not await fs.store.made_name(entry)
