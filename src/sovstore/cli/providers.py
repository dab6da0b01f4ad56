"""``providers``: what is known of each provider, with its source and date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

from sovstore.cli.app import app, command
from sovstore.cli.arguments import argument
from sovstore.cli.output import count_text
from sovstore.cli.run import Run
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from datetime import date

    from sovstore.backends.providers import Fact, Provider

_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (10**12, "TB"), (10**9, "GB"))
_LEGEND = (
    "?                   nobody says",
    "law                 country of the controller",
    "conditional writes  whether the host keeps two writers from undoing each other",
    "SecNumCloud, HDS    partly: of other services; claimed: without the scope",
)
#: What two writers can race on, so what "conditional writes" are.
_WRITES = frozenset(("put:create", "put:replace", "complete:create", "complete:replace"))


def _complete_names(incomplete: str) -> list[str]:
    from sovstore.backends import providers

    return [name for name in providers.catalogue() if name.startswith(incomplete)]


@command(
    app,
    "providers",
    examples=["providers", "providers ovhcloud", "providers --json scaleway"],
)
def show_providers(
    run: Run,
    name: Annotated[str | None, argument("NAME", _complete_names)] = None,
) -> None:
    """List the known providers, or show all that is known of one, with source and date.

    Those of the configuration, [providers.NAME], are shown too. Nothing is asked of any provider: these are the facts
    that sovstore was shipped with, and that it goes by. Where one is unknown, 'taken' is what it goes by instead.
    """
    known = _known(run, name)
    if name is not None and name not in known:
        from sovstore.backends.providers import nearest

        hint = f"{nearest(name, list(known))}known: {', '.join(known)}"
        raise ConfigError(f"provider {name!r}: there is none of that name", path=name, hint=hint)
    if run.out.as_json:
        described = [_described(provider) for provider in known.values() if name in (None, provider.name)]
        run.out.result(described if name is None else described[0])
    elif name is None:
        _show_all(run, known)
    else:
        _show_one(run, known[name])


def _known(run: Run, name: str | None) -> Mapping[str, Provider]:
    """Return the providers by name: the shipped ones alone where the configuration is wrong, as it says why."""
    from sovstore.backends import providers

    try:
        return run.config.providers
    except ConfigError as exc:
        # The region of a store may be what is wrong, and this command what tells the right one.
        shipped = providers.catalogue()
        if name is not None and name not in shipped:
            raise
        run.out.warn(f"{exc.message}; only the shipped providers are shown", exc.hint)
        return shipped


def _is_shipped(provider: Provider) -> bool:
    from sovstore.backends import providers

    return provider.name in providers.catalogue()


# All of them


def _show_all(run: Run, known: Mapping[str, Provider]) -> None:
    columns = ["name", "driver", "controller", "law", "conditional\nwrites", "SecNumCloud", "HDS"]
    run.out.table(columns, [_row(provider) for provider in known.values()])
    run.out.line()
    for line in _LEGEND:
        run.out.line(line)
    if any(not _is_shipped(provider) for provider in known.values()):
        run.out.line(f"*                   from {run.config.path}")
    run.out.note("'sovstore providers NAME' shows all that is known of one, with source and date")


def _row(provider: Provider) -> list[str]:
    return [
        provider.name + ("" if _is_shipped(provider) else " *"),
        provider.driver,
        _short(provider, "controller"),
        _short(provider, "jurisdiction"),
        _conditional(provider),
        _short(provider, "secnumcloud"),
        _short(provider, "hds"),
    ]


def _short(provider: Provider, fact: str) -> str:
    """Return the first word of a qualification and all of another value; a dash where nothing is stated."""
    if fact not in provider.facts:
        return "-"
    if not provider.known(fact):
        return "?"
    value = str(provider.facts[fact].value)
    return value.partition(":")[0] if fact in ("secnumcloud", "hds") else value


def _conditional(provider: Provider) -> str:
    if not provider.known("conditions"):
        return "?"
    kept = provider.conditions & _WRITES
    return "yes" if kept == _WRITES else "partly" if kept else "no"


# One of them


def _show_one(run: Run, provider: Provider) -> None:
    run.out.line(f"{provider.name}: {provider.title}")
    if not _is_shipped(provider):
        run.out.line(f"from {run.config.path}")
    run.out.line()
    notes = _notes(provider)
    stated = [(name, fact) for name, fact in _in_order(provider) if name != "endpoint"]
    rows = [["driver", provider.driver, ""]]
    rows += [[name, _text(provider, name), f"[{notes[_origin(fact)]}]"] for name, fact in stated]
    run.out.table(["fact", "value", "source"], rows)
    _show_endpoints(run, provider, notes)
    if notes:
        run.out.line()
        run.out.line("sources, and when it was true")
    margin, width = " " * 19, max(run.out.console().width, 40)
    for (source, as_of), number in notes.items():
        # A URL stays whole, to be copied; the lines are cut between words only.
        when = as_of.isoformat() if as_of else "-"
        start = f"  {f'[{number}]':>4} {when:<10}  "
        for line in wrap(source, width, initial_indent=start, subsequent_indent=margin, **_WHOLE_WORDS):
            run.out.line(line)


def _show_endpoints(run: Run, provider: Provider, notes: Mapping[tuple[str, date | None], int]) -> None:
    if "endpoint" not in provider.facts:
        return
    run.out.line()
    mark = f"[{notes[_origin(provider.facts['endpoint'])]}]"
    found = _endpoints(provider)
    if not found:
        run.out.line(f'endpoint: unknown; write endpoint = "https://…" into the table of the store {mark}')
        return
    width = max(len(region) for region in found)
    regions = count_text(len(found), "region") if provider.get("regions") else "any region"
    run.out.line(f"endpoints, {regions} {mark}")
    for region, url in found.items():
        run.out.line("  " + f"{region:<{width}}  {url or 'unknown'}".lstrip())


def _in_order(provider: Provider) -> list[tuple[str, Fact]]:
    from sovstore.backends import providers

    return [(name, provider.facts[name]) for name in providers.FACTS if name in provider.facts]


def _origin(fact: Fact) -> tuple[str, date | None]:
    return fact.source, fact.as_of


def _notes(provider: Provider) -> dict[tuple[str, date | None], int]:
    """Return a number for each source and date, in the order in which they are referred to."""
    origins = dict.fromkeys(_origin(fact) for name, fact in _in_order(provider) if name != "endpoint")
    origins |= dict.fromkeys(_origin(fact) for name, fact in _in_order(provider) if name == "endpoint")
    return {origin: number for number, origin in enumerate(origins, 1)}


def _endpoints(provider: Provider) -> dict[str, str | None]:
    """Return the endpoint of each region, None where it is unknown; of any region where they are not known."""
    regions: Sequence[str | None] = provider.get("regions") or [None]
    found = {region or "": _endpoint(provider, region) for region in regions}
    return {} if found == {"": None} else found


def _endpoint(provider: Provider, region: str | None) -> str | None:
    from sovstore.backends.providers import ANY_ACCOUNT

    try:
        return provider.endpoint(region, ANY_ACCOUNT, where=f"provider {provider.name!r}")
    except ConfigError:
        # One of a user may hold {region} without a list of regions.
        return provider.get("endpoint") if region is None else None


def _text(provider: Provider, name: str) -> str:
    """Return a value for people; of an unknown one also what is taken in its place."""
    from sovstore.backends.providers import FACTS, UNKNOWN

    unit = FACTS[name].unit
    if provider.known(name):
        return _value_text(provider.get(name), unit)
    instead = provider.get(name)
    if instead in (None, UNKNOWN) or instead == []:
        return UNKNOWN
    return f"{UNKNOWN}; taken: {_value_text(instead, unit)}"


def _value_text(value: Any, unit: str) -> str:  # facts have several types
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _size_text(value) if unit == "bytes" else f"{value:,}" + (" s" if unit == "seconds" else "")
    if isinstance(value, tuple | list):
        return ", ".join(value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def _size_text(size: int) -> str:
    """Return a limit exactly, in the largest unit that it is a whole number of."""
    for factor, unit in _UNITS:
        if size % factor == 0:
            return f"{size // factor:,} {unit}"
    return f"{size:,} B"


# JSON


def _described(provider: Provider) -> dict[str, Any]:
    facts = {
        name: {"value": fact.value, "source": fact.source, "as_of": fact.as_of and fact.as_of.isoformat()}
        for name, fact in _in_order(provider)
    }
    shown = {"name": provider.name, "title": provider.title, "driver": provider.driver}
    return {**shown, "shipped": _is_shipped(provider), "endpoints": _endpoints(provider), "facts": facts}
