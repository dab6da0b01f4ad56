"""What a command prints: results on stdout; progress, summaries, warnings and errors on stderr; JSON when asked for.

Text that comes from a host or from a user's names is escaped before a terminal sees it.
"""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from sovstore.errors import SovstoreError

#: Width of tables in a file or a pipe.
_PIPE_WIDTH = 120
#: These turn a line around, so that a name shows as what it is not (Unicode TR 36, 3.2).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return `text` on one line, with every character that could steer a terminal written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if c in _BIDI or unicodedata.category(c) in _UNSAFE else c for c in text)


#: Control characters, surrogates (also of bytes that are no UTF-8), line and paragraph separators.
_UNSAFE = frozenset(("Cc", "Cs", "Zl", "Zp"))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def size_text(size: int) -> str:
    """Return a number of bytes for people, in decimal units."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def count_text(number: int, what: str = "object") -> str:
    """Return a number with its noun: 1 object, 1,200 objects."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def time_text(moment: datetime | None) -> str:
    """Return a time of the host in UTC, or a dash."""
    return moment.strftime("%Y-%m-%d %H:%M:%SZ") if moment else "-"


def _plain(value: object) -> object:
    """Return what JSON has no form for in one that it has."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


class Bar:
    """Progress of work on many objects; does nothing where nobody watches.

    Parameters
    ----------
    progress : rich.progress.Progress or None
        Where it is drawn.
    verb : str
        What is being done.
    objects, size : int or None
        How much there is to do; None when it is not known yet.
    """

    def __init__(self, progress: Progress | None, verb: str, objects: int | None, size: int | None) -> None:
        self.objects = 0
        self.bytes = 0
        self.failed = 0
        self._verb, self._of = verb, objects
        self._progress = progress
        self._task = progress.add_task(self._text(), total=size) if progress else None

    def _text(self) -> str:
        done = f"{self._verb} {self.objects:,}" + (f"/{self._of:,}" if self._of is not None else "")
        return f"{done}, {self.failed:,} failed" if self.failed else done

    def restart(self, verb: str, objects: int, size: int | None) -> None:
        """Show other work, from its beginning."""
        self._verb, self._of, self.objects, self.bytes = verb, objects, 0, 0
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, total=size, description=self._text())

    def advance(self, size: int) -> None:
        """Note that `size` more bytes are done."""
        self.bytes += size
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, size)

    def finish(self) -> None:
        """Note that one more object is done."""
        self.objects += 1
        self._describe()

    def fail(self) -> None:
        """Note that one more object failed, and what goes on does so without it."""
        self.failed += 1
        self._describe()

    def _describe(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=self._text())


class Output:
    """Where a command prints.

    Parameters
    ----------
    as_json : bool
        Results on stdout, and errors on stderr, are JSON.
    quiet : bool
        Only errors on stderr.
    debug : bool
        Tracebacks and the library's log on stderr.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self._live: Console | None = None
        self._items = False

    # stdout

    def line(self, text: str = "") -> None:
        """Print one line of a result."""
        sys.stdout.write(printable(text) + "\n")

    def result(self, value: object) -> None:
        """Print a result as JSON."""
        sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")

    def item(self, value: object) -> None:
        """Print one item of a list as JSON, before the next one is known."""
        text = json.dumps(value, indent=2, default=_plain).replace("\n", "\n  ")
        sys.stdout.write(f"{',' if self._items else '['}\n  {text}")
        self._items = True

    def end_items(self) -> None:
        """Print the end of a list, which may be empty."""
        sys.stdout.write("\n]\n" if self._items else "[]\n")

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and values, aligned."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(f"  {name:<{width}}  {value}".rstrip())

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
        """Print a table; a column whose name starts with '>' is aligned to the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
        for name in columns:
            justify: Any = "right" if name.startswith(">") else "left"
            table.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = self.console()
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().splitlines():
            sys.stdout.write(line.rstrip() + "\n")

    def console(self) -> Console:
        """Return a console on stdout for tables and panels; markup and highlighting are off."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        return Console(file=sys.stdout, width=width, markup=False, highlight=False, soft_wrap=False)

    # stderr

    def _stderr(self, text: str) -> None:
        sys.stdout.flush()
        if self._live is not None:
            self._live.print(text, soft_wrap=True)
        else:
            sys.stderr.write(text + "\n")

    def note(self, text: str) -> None:
        """Print what a person may like to know, such as a summary."""
        if not self.quiet and not self.as_json:
            self._stderr(printable(text))

    def warn(self, text: str, hint: str | None = None) -> None:
        """Print a warning."""
        if self.quiet:
            return
        if self.as_json:
            self._stderr(json.dumps({"warning": {"message": text, "hint": hint}}))
            return
        self._stderr(f"sovstore: warning: {printable(text)}")
        if hint:
            self._stderr(f"sovstore: hint: {printable(hint)}")

    def failure(self, error: Mapping[str, Any]) -> None:
        """Print an error that `describe` or the like returned."""
        if self.as_json:
            self._stderr(json.dumps({"error": error}))
            return
        label = "" if error["type"] == "Interrupted" else "error: "
        self._stderr(f"sovstore: {label}{printable(error['message'])}")
        if error.get("hint"):
            self._stderr(f"sovstore: hint: {printable(error['hint'])}")

    @contextmanager
    def progress(
        self, verb: str, objects: int | None = None, size: int | None = None, *, shown: bool = True
    ) -> Iterator[Bar]:
        """Show a progress bar while a block runs, when stderr is a terminal."""
        if not shown or self.quiet or self.as_json or not sys.stderr.isatty():
            yield Bar(None, verb, objects, size)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._live = Console(file=sys.stderr, markup=False, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=self._live, transient=True) as progress:
                yield Bar(progress, verb, objects, size)
        finally:
            self._live = None


def describe(error: SovstoreError) -> dict[str, Any]:
    """Return an error as JSON has it."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "path": error.path,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


class LogHandler(logging.Handler):
    """Prints the library's warnings as a command's own.

    Parameters
    ----------
    output : Output
        Where they go.
    """

    def __init__(self, output: Output) -> None:
        super().__init__(logging.DEBUG if output.debug else logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        # Not at the top: `sovstore --help` needs none of it.
        from sovstore.listing import FOREIGN_NAME

        # The commands report foreign names by themselves.
        if record.msg != FOREIGN_NAME or self._output.debug:
            self._output.warn(record.getMessage())
