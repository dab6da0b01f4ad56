"""rclone, and its crypt over a local folder: each time a command of its own, and its start is in its time."""

from __future__ import annotations

import os
import shutil
import subprocess  # nosec B404  # rclone itself
from collections.abc import Mapping
from pathlib import Path

from benchmarks.case import MIB, Measured, measured
from benchmarks.peers.work import SMALL_OBJECT, Facts


def run(facts: Facts, *arguments: str) -> str:
    """Run rclone and return what it prints."""
    config = Path(facts["folder"], "rclone.conf")
    environment = os.environ | {"RCLONE_CONFIG": str(config)}
    command = [_program(), *arguments]
    done = subprocess.run(  # noqa: S603  # nosec B603  # our own
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"rclone {arguments[0]}: {done.stderr}")
    return done.stdout


def _program() -> str:
    if found := shutil.which("rclone"):
        return found
    raise ImportError("rclone: apt-get install -y rclone")


def configure(facts: Facts, remote: str = "", **others: Mapping[str, str]) -> Path:
    """Write the configuration of a crypt remote unless an earlier round did, and return the folder that it is in.

    Parameters
    ----------
    facts : mapping
        Has the folder.
    remote : str
        Where the ciphertext goes, as rclone names it: into that folder when empty.
    others : mapping
        Other remotes by name.
    """
    folder = Path(facts["folder"])
    if not (folder / "rclone.conf").exists():
        # rclone wants the passphrase as it obscures one itself; it is of no value.
        obscured = run(facts, "obscure", "of the benchmark").strip()
        crypt = {"type": "crypt", "remote": remote or f"{folder}/rclone", "password": obscured}
        remotes = {**others, "crypt": crypt}.items()
        tables = [[f"[{name}]", *(f"{key} = {value}" for key, value in table.items())] for name, table in remotes]
        (folder / "rclone.conf").write_text("".join(f"{line}\n" for table in tables for line in table))
    return folder


def stream_write(facts: Facts) -> Measured:
    """Measure `rclone copyto` of a file."""
    folder = configure(facts)
    source = folder / "rclone-source"
    _fill(source, facts["size"])
    done = measured(lambda: run(facts, "copyto", str(source), "crypt:object"), facts["size"] / MIB)
    shutil.rmtree(folder / "rclone")
    return done


def stream_read(facts: Facts) -> Measured:
    """Measure `rclone copyto` into a file."""
    folder = configure(facts)
    if not (folder / "rclone").exists():
        _fill(folder / "rclone-source", facts["size"])
        run(facts, "copyto", str(folder / "rclone-source"), "crypt:object")
        (folder / "rclone-source").unlink()
    target = folder / "rclone-target"
    done = measured(lambda: run(facts, "copyto", "crypt:object", str(target)), facts["size"] / MIB)
    _check(target.stat().st_size, facts["size"])
    target.unlink()
    return done


def small_write(facts: Facts) -> Measured:
    """Measure `rclone copy` of a folder."""
    source = _small_source(configure(facts), facts)
    done = measured(lambda: run(facts, "copy", str(source), "crypt:"), facts["count"])
    shutil.rmtree(source.parent / "rclone")
    return done


def small_read(facts: Facts) -> Measured:
    """Measure `rclone copy` into a folder."""
    folder, target = _small_sealed(facts), Path(facts["folder"], f"rclone-{os.getpid()}")
    done = measured(lambda: run(facts, "copy", folder, str(target)), facts["count"])
    _check(len(list(target.iterdir())), facts["count"])
    shutil.rmtree(target)
    return done


def small_list(facts: Facts) -> Measured:
    """Measure `rclone lsf` with sizes."""
    folder, found = _small_sealed(facts), list[str]()
    done = measured(lambda: found.extend(run(facts, "lsf", "--format", "ps", folder).split()), facts["count"])
    _check(len(found), facts["count"])
    return done


def _small_source(folder: Path, facts: Facts) -> Path:
    source = folder / "rclone-source"
    if not source.exists():
        source.mkdir()
        for number in range(facts["count"]):
            (source / f"{number:06d}").write_bytes(os.urandom(SMALL_OBJECT))
    return source


def _small_sealed(facts: Facts) -> str:
    folder = configure(facts)
    if not (folder / "rclone").exists():
        run(facts, "copy", str(_small_source(folder, facts)), "crypt:small")
    return "crypt:small"


def _fill(path: Path, size: int) -> None:
    if not path.exists():
        block = os.urandom(MIB)
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(block)


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} of {wanted} arrived")
