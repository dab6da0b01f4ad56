"""The pipeline of test_move.py: it knows the URL of a store, and nothing of hosts."""

from __future__ import annotations

import hashlib
import sys

import fsspec

CONTENTS = {"a.csv": 34, "empty": 0, "2026/b.bin": 200, "2026/c": 1000, "large.bin": 20_000_000}


def content(name: str, size: int) -> bytes:
    """Return what an object of this name and size must hold."""
    return hashlib.shake_128(f"{name} {size}".encode()).digest(size)


def main() -> None:
    """Fill the store, or check all that it holds and write one object more; print what is there."""
    url, job = sys.argv[1:]
    fs, root = fsspec.url_to_fs(url)
    if job == "fill":
        for name, size in CONTENTS.items():
            with fsspec.open(f"{url}/{name}", "wb") as file:
                file.write(content(name, size))
        fs.pipe_file(f"{root}/log/0", b"")
    else:
        count = len(fs.find(f"{root}/log"))
        fs.pipe_file(f"{root}/log/{count}", b"1234567")
    for name, size in CONTENTS.items():
        assert fs.cat_file(f"{root}/{name}") == content(name, size)
    sizes = [info["size"] for info in fs.find(root, detail=True).values()]
    sys.stdout.write(f"{len(sizes)} objects, {sum(sizes)} bytes\n")


if __name__ == "__main__":
    main()
