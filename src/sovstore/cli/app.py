"""The application: its options, and how a function becomes a command."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from sovstore.cli.output import Output, describe
from sovstore.cli.run import Run, os_error
from sovstore.errors import ConfigError, SovstoreError

#: Modules that register commands, in the order of ``--help``.
_MODULES = (
    "demo",
    "stores",
    "login",
    "objects",
    "put",
    "get",
    "copying",
    "migrate",
    "inspection",
    "manifest",
    "accept",
    "providers",
    "policy",
    "check",
    "gc",
    "keys",
    "keys_keks",
    "keys_epochs",
)
_INTERRUPTED = "interrupted; nothing half-written was left, and what was finished before is complete"

Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Configuration file instead of $SOVSTORE_CONFIG, ./sovstore.toml or the user's.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print results and errors as JSON.", show_default=False)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only errors on stderr.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)]
RecoveryKey = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Open the store with this recovery key instead of its KEK, read-only."),
]

#: What typer raises for wrong arguments; it gives the class itself no public name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

#: The backspace keeps click from wrapping the lines below it.
_HELP = """\
Keep files on any host, sealed: data, names and keys leave this machine as ciphertext only.

Paths are sov://STORE/PATH, where STORE is a table of the configuration; anything else is a file of this machine.

\b
See it work, without any set-up:
  sovstore demo
"""

app = typer.Typer(
    name="sovstore",
    help=_HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
)


@dataclass
class Shared:
    """The options that stand before the name of the command."""

    config: str | None = None
    as_json: bool = False
    quiet: bool = False
    debug: bool = False


def _show_version(value: bool) -> None:  # noqa: FBT001  # as typer calls it
    if value:
        from sovstore import __version__

        sys.stdout.write(f"sovstore {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Note the options that stand before the name of the command."""
    context.obj = Shared(config, as_json, quiet, debug)


def group(name: str, text: str) -> typer.Typer:
    """Return a new group of commands, such as ``sovstore keys``."""
    sub = typer.Typer(name=name, help=text, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(sub)
    return sub


def command(
    to: typer.Typer, name: str, *, examples: Sequence[str], reading: bool = False
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Return a decorator that makes ``function(run, …)`` a command with the shared options.

    Parameters
    ----------
    to : typer.Typer
        The application or a group of it.
    name : str
        Name of the command.
    examples : sequence of str
        Shown below its help, without the word ``sovstore``.
    reading : bool
        Whether it takes ``--recovery-key``.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def entry(
            context: typer.Context, *, config: str | None, as_json: bool, quiet: bool, debug: bool, **arguments: Any
        ) -> int:
            before: Shared = context.obj
            out = Output(as_json=as_json or before.as_json, quiet=quiet or before.quiet, debug=debug or before.debug)
            key = arguments.pop("recovery_key") if reading else None
            return guarded(out, lambda: _run(function, out, config or before.config, key, arguments))

        _sign(entry, function, reading=reading)
        shown = "\n".join(["\b", "Examples:", *(f"  sovstore {text}" for text in examples)])
        to.command(name, help=f"{inspect.getdoc(function)}\n\n{shown}")(entry)
        return function

    return register


def _run(
    function: Callable[..., int | None], out: Output, config: str | None, key: str | None, arguments: dict[str, Any]
) -> int:
    with Run(out, config, key) as run:
        return function(run, **arguments) or 0


def _sign(entry: Callable[..., int], function: Callable[..., int | None], *, reading: bool) -> None:
    """Give `entry` the signature that typer reads: what `function` takes, then the shared options."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared: list[tuple[str, Any, Any]] = [("recovery_key", RecoveryKey, None)] if reading else []
    shared += [("config", Config, None), ("as_json", Json, False), ("quiet", Quiet, False), ("debug", Debug, False)]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in shared
    ]
    parameters = [context, *own, *options]
    entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # any function may have one
    entry.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def guarded(out: Output, work: Callable[[], int]) -> int:
    """Return the exit code of some work; an error is printed and becomes its code."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has enough of it, as `head` does; what a shell makes of SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001  # whatever it is, it gets a message and a code
        if out.debug:
            traceback.print_exc()
        if type(exc).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{exc}\n")
            return 2
        error = _error(exc)
        out.failure(error)
        return int(error["exit_code"])


def _error(exc: BaseException) -> dict[str, Any]:
    """Return any exception as JSON has an error."""
    if isinstance(exc, SovstoreError):
        return describe(exc)
    if isinstance(exc, OSError):
        return os_error(exc)
    error: dict[str, Any] = {"type": type(exc).__name__, "path": None, "hint": None}
    if isinstance(exc, KeyboardInterrupt | typer.Abort):
        return {**error, "type": "Interrupted", "message": _INTERRUPTED, "exit_code": 130}
    if isinstance(exc, _UsageError):
        return {**error, "type": "UsageError", "message": _usage_text(exc), "hint": _usage_hint(exc), "exit_code": 2}
    hint = "this is a bug of sovstore: run the command again with --debug and report what it prints"
    return {**error, "message": f"unexpected {type(exc).__name__}: {exc}", "hint": hint, "exit_code": 1}


def _usage_text(exc: Any) -> str:  # click's own, which has no public name here
    text: str = exc.format_message()
    return (text[:1].lower() + text[1:]).strip().rstrip(".")


def _usage_hint(exc: Any) -> str:  # click's own, which has no public name here
    context = getattr(exc, "ctx", None)
    return f"'{context.command_path if context else 'sovstore'} --help' says what it takes"


def usage(message: str, hint: str | None = None) -> NoReturn:
    """Raise a usage error."""
    raise ConfigError(message, hint=hint)


def load() -> typer.Typer:
    """Return the application with all its commands."""
    for module in _MODULES:
        import_module(f"sovstore.cli.{module}")
    return app
