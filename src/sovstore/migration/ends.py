"""What a migration is between: URLs of stores, of configured locations, and of anything that fsspec opens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sovstore import policy
from sovstore.backends.base import Place
from sovstore.backends.registry import open_backend
from sovstore.config import Config, StoreConfig
from sovstore.config_store import describe_location
from sovstore.errors import ConfigError
from sovstore.migration.bare import Plain, Raw
from sovstore.migration.sides import Sealed, Side
from sovstore.store import Store

_STORE, _LOCATION = "sov://", "plain://"

SEAL, REENCRYPT, COPY, OPEN = "seal", "reencrypt", "copy", "open"
#: What each mode does, for people.
MODES = {
    SEAL: "plaintext is sealed under the keys of the destination",
    REENCRYPT: "each object is opened and sealed anew: new keys, new names",
    COPY: "ciphertext as it is: the keys, and who may use them, stay the same",
    OPEN: "sealed objects become plaintext, which the host of the destination can read",
}


@dataclass(frozen=True)
class End:
    """One end of a migration, not opened yet.

    Parameters
    ----------
    url : str
        As it was given.
    config : StoreConfig
        Of the store, or of the location of plaintext.
    folder : str
        What is meant below its root.
    sealed : bool
        Whether it is a store.
    """

    url: str
    config: StoreConfig
    folder: str
    sealed: bool

    @property
    def place(self) -> Place:
        """Where it lies."""
        return self.config.place

    @property
    def elsewhere(self) -> str:
        """The URL by which another process of this machine, in another folder, means the same."""
        return self.url if "://" in self.url else self.place.root

    def plain(self) -> Side:
        """Return it as a place of plaintext. Makes no request."""
        return Plain(self.url, self.place, self.folder, open_backend(self.place))

    def raw(self) -> Side:
        """Return a store as its host has it. Makes no request."""
        return Raw(self.url, self.place, self.folder, open_backend(self.place), self.config.store_id or "")


#: Opens the store of an end.
Opener = Callable[[End], Store]


@dataclass(frozen=True)
class Pair:
    """Two ends that go together, ready to be used.

    Parameters
    ----------
    mode : str
        How objects get from one to the other.
    ends : tuple of End
        Source and destination, as they were given.
    source, dest : Side
        The same, to read from and to write to.
    """

    mode: str
    ends: tuple[End, End]
    source: Side
    dest: Side

    @property
    def named(self) -> Side:
        """The end whose names at its host a journal has."""
        return self.dest if self.mode == SEAL else self.source

    @property
    def identity(self) -> str:
        """What tells this job from every other one; it does not depend on names in the configuration."""
        return f"{self.mode}\n{self.source.identity}\n{self.dest.identity}"


def pair(
    source: str, dest: str, opener: Opener, *, config: Config, mode: str | None = None, no_keys: bool = False
) -> Pair:
    """Return the two ends of a migration. Makes no request but those of `opener`.

    Parameters
    ----------
    source, dest : str
        As `parse` takes them.
    opener : callable
        Gives the store of an end, opened. Not called for a byte copy.
    config : Config
        Where stores and locations are described.
    mode : str, optional
        As `mode_of` takes it.
    no_keys : bool
        Open no store: only a byte copy works then.

    Raises
    ------
    ConfigError, PolicyError
        When the two do not go together, or a policy forbids what would lie there.
    """
    one, other = parse(source, config), parse(dest, config)
    found = mode_of(one, other, COPY if no_keys and mode is None else mode)
    for end in (one, other):
        if not end.sealed:
            refuse_stores(end, config)
        elif found == COPY:
            # Nothing opens it here, which is where a policy is held against a store.
            policy.enforce(end.config, keks=())

    def side(end: End) -> Side:
        if found == COPY:
            return end.raw()
        return Sealed(end.url, opener(end), end.folder) if end.sealed else end.plain()

    return Pair(found, (one, other), side(one), side(other))


def parse(url: str, config: Config) -> End:
    """Return what a URL names.

    Parameters
    ----------
    url : str
        ``sov://STORE/FOLDER``, ``plain://LOCATION/FOLDER``, a local folder, or a URL of another fsspec filesystem.

    Raises
    ------
    ConfigError
        When it names nothing that is configured, or is not understood.
    """
    for scheme, described, sealed in ((_STORE, config.store, True), (_LOCATION, config.location, False)):
        if url.startswith(scheme):
            name, _, folder = url.removeprefix(scheme).partition("/")
            if not name:
                raise ConfigError(f"{url}: which one?", path=url, hint=f"write {scheme}NAME/FOLDER")
            return End(url, described(name), _folder(url, folder), sealed)
    if url.startswith(("sov:", "plain:")):
        raise ConfigError(
            f"{url}: not understood", path=url, hint="write sov://STORE/FOLDER or plain://LOCATION/FOLDER"
        )
    if "://" in url and urlsplit(url).password is not None:
        hint = "describe it in a table [locations.NAME] and give plain://NAME/"
        raise ConfigError("a URL with a password is no place for one", hint=hint)
    root = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    return End(url, describe_location("", {"root": root.rstrip("/") or "/"}, None, config.providers), "", sealed=False)


def _folder(url: str, folder: str) -> str:
    folder = folder.removesuffix("/")
    if any(part in ("", ".", "..") for part in folder.split("/")) and folder:
        raise ConfigError(f"{url}: not a folder", path=url, hint="no empty segment, '.' or '..' in it")
    return folder


def mode_of(source: End, dest: End, asked: str | None = None) -> str:
    """Return how objects get from one end to the other.

    Parameters
    ----------
    asked : str, optional
        The mode that the caller wants.

    Raises
    ------
    ConfigError
        When the two ends do not go together, or not in that mode.
    """
    if not source.sealed and not dest.sealed:
        hint = "one end is a store: sov://NAME/; from plaintext to plaintext any tool copies, rclone for one"
        raise ConfigError(f"{source.url} and {dest.url}: both hold plaintext", path=dest.url, hint=hint)
    if not source.sealed or not dest.sealed:
        possible = [SEAL] if dest.sealed else [OPEN]
    elif source.config.identity == _identity(dest):
        possible = [COPY, REENCRYPT]
    else:
        possible = [REENCRYPT]
    if asked is not None and asked not in possible:
        hint = f"possible: {', '.join(possible)}"
        if asked == COPY and source.sealed and dest.sealed:
            hint = f"a copy is the same store elsewhere: give both tables the store_id {source.config.store_id}"
        raise ConfigError(f"{source.url} to {dest.url}: not by {asked!r}", path=dest.url, hint=hint)
    mode = asked or possible[0]
    if mode == COPY and (source.folder or dest.folder):
        hint = "names are sealed for their folders: give both roots, or --mode reencrypt"
        raise ConfigError(f"{source.url} to {dest.url}: only whole stores are copied", path=dest.url, hint=hint)
    refuse_overlap(source, dest)
    return mode


def _identity(dest: End) -> bytes:
    if dest.config.store_id is None:
        name = dest.config.name
        hint = (
            f"to seal anew: 'sovstore init {name}' first; to copy a store as it is: give [stores.{name}] the store_id"
            " and auth_fingerprint of the other one"
        )
        raise ConfigError(f"store {name!r}: has no store_id", path=name, hint=hint)
    return dest.config.identity


def refuse_stores(plain: End, config: Config) -> None:
    """Refuse a place of plaintext that lies in a store of the configuration, or around one.

    Raises
    ------
    ConfigError
        Plaintext would lie where only ciphertext may.
    """
    for name, described in config.stores.items():
        store = End(f"sov://{name}/", described, "", sealed=True)
        try:
            store.place  # noqa: B018  # it fails where the store could not be opened either
        except ConfigError:
            continue
        refuse_overlap(store, plain)


def refuse_overlap(source: End, dest: End) -> None:
    """Refuse two ends of which one lies in the other.

    Raises
    ------
    ConfigError
        What was moved would be listed as something to move, or would replace what it is made from.
    """
    ours, theirs = source.place, dest.place
    same_host = (ours.provider.driver, ours.protocol, ours.endpoint, ours.account) == (
        theirs.provider.driver,
        theirs.protocol,
        theirs.endpoint,
        theirs.account,
    )
    if not same_host:
        return
    one, other = _real(source), _real(dest)
    if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
        hint = "inside a store, 'sovstore cp' and 'sovstore mv' do it; else give the destination a root of its own"
        raise ConfigError(f"{source.url} and {dest.url}: one lies in the other", path=dest.url, hint=hint)


def _real(end: End) -> str:
    root = end.place.root
    root = os.path.realpath(root) if end.place.provider.driver == "local" else root.partition("://")[2] or root
    # A whole store is in the way, whichever of its folders is meant.
    return root.strip("/") if end.sealed else str(Path("/", root.strip("/"), end.folder)).strip("/")
