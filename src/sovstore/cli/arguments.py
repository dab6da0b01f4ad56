"""Arguments and options that several commands take, and how a shell completes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

#: Objects under way at a time; each takes some MiB.
JOBS = 8


def complete_urls(incomplete: str) -> list[str]:
    """Return the URLs of the configured stores; reads the configuration and asks nobody."""
    # bash takes the colon for the end of a word, and asks for what follows it.
    scheme = "" if incomplete.startswith("//") else "sov:"
    return [url for name in complete_stores("") if (url := f"{scheme}//{name}/").startswith(incomplete)]


def complete_stores(incomplete: str) -> list[str]:
    """Return the names of the configured stores."""
    from sovstore import config
    from sovstore.errors import SovstoreError

    try:
        return [name for name in config.load().stores if name.startswith(incomplete)]
    except SovstoreError:
        return []


def argument(metavar: str, complete: Callable[[str], list[str]] | None = None) -> Any:
    """Return an argument that the usage line and the text of the help explain."""
    return typer.Argument(metavar=metavar, hidden=True, autocompletion=complete)


Urls = Annotated[list[str], argument("URL", complete_urls)]
Url = Annotated[str, argument("URL", complete_urls)]
OptionalUrls = Annotated[list[str] | None, argument("URL", complete_urls)]
# With several arguments in a row, a shell asks the first of them for what may be the last.
Files = Annotated[list[str], argument("FILE", complete_urls)]
File = Annotated[str, argument("FILE")]
StoreName = Annotated[str, argument("STORE", complete_stores)]
OptionalStoreName = Annotated[str | None, argument("STORE", complete_stores)]

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Take folders, with all that is in them.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=64, metavar="N", help="Objects under way at a time.")]
