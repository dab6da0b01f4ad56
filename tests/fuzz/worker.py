"""One target under atheris, in a process of its own: ``python -m tests.fuzz.worker NAME RUNS FOLDER``."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import atheris  # type: ignore[import-untyped]

#: Seconds of the wall clock after which an input hangs: for what takes no processor time.
_HANGS_S = 60
#: Seconds of processor time after which an input is tried again.
_ODD_S = 0.05
#: Megabytes at which libFuzzer stops it; the limit for an input is checked here, and is far below.
_MOST_MB = 2048


def main(name: str, runs: int, folder: Path) -> NoReturn:
    """Fuzz one target until it has had its runs, or something is found; what is known is in ``progress.json``."""
    for variable in [v for v in os.environ if v.startswith("SOVSTORE_STORES__")]:
        del os.environ[variable]
    logging.getLogger("sovstore").addHandler(logging.NullHandler())
    with atheris.instrument_imports(include=["sovstore"]):
        from tests.fuzz.target import MOST_BYTES, MOST_S, hold, processor_time
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    seeds, corpus, found, words = folder / "seeds", folder / "corpus", folder / "found", folder / "words"
    for made in (seeds, corpus, found):
        made.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / f"{number:03}").write_bytes(seed)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))
    gc.collect()
    gc.freeze()
    inputs, slowest, started, told = 0, 0.0, time.monotonic(), 0.0
    base = 0

    def tell() -> None:
        known = {
            "inputs": inputs,
            "seconds": round(time.monotonic() - started, 1),
            "slowest_s": round(slowest, 4),
            "growth_mib": round((_peak() - base) / 2**20, 1),
        }
        fresh = folder / ".progress.json"
        # A full disk is told by the end of the run, and is not the input's doing.
        with suppress(OSError):
            fresh.write_text(json.dumps(known))
            fresh.replace(folder / "progress.json")

    def one(data: bytes) -> None:
        nonlocal base, inputs, slowest, told
        # By now, libFuzzer has made its tables.
        base = base or _peak()
        inputs += 1
        start = time.thread_time()
        try:
            target(data)
        finally:
            seconds = time.thread_time() - start
            if seconds > _ODD_S and sys.exception() is None:
                # Once more: a machine that stood still is not the input's doing.
                seconds = min(seconds, processor_time(target, data))
            if seconds > slowest:
                slowest = seconds
                with suppress(OSError):
                    (folder / "slowest").write_bytes(data)
            now = time.monotonic()
            if inputs >= runs or now - told >= 1:
                told = now
                tell()
        hold(seconds <= MOST_S, f"{seconds:.2f} s of processor time")
        # Of all inputs together, and so of each.
        hold(_peak() - base <= MOST_BYTES, f"{(_peak() - base) / 2**20:.0f} MiB more than before the first input")

    options = {
        "runs": runs,
        "max_len": target.longest,
        "timeout": _HANGS_S,
        # Processor time is what counts, and it is counted here.
        "report_slow_units": _HANGS_S,
        "rss_limit_mb": _MOST_MB,
        "malloc_limit_mb": _MOST_MB,
        "artifact_prefix": f"{found}/",
        **({"dict": words} if target.words else {}),
        "reload": 0,
        "print_final_stats": 1,
    }
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), str(corpus), str(seeds)], one)
    atheris.Fuzz()
    raise AssertionError("atheris.Fuzz does not return")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
