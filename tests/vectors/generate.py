"""Write `sovstore/*.json`: `python -m tests.vectors.generate`, from the root of the repository.

Every byte comes from a fixed seed, so the same files come out again. The seals of recovery.json are the
exception: HPKE draws its own randomness, so they are made once, and kept as long as they open.
"""

import json
import sys
from pathlib import Path

from tests.vectors.load import FOLDER
from tests.vectors.make_keyset import make_keyset
from tests.vectors.make_names import make_names, make_sizes
from tests.vectors.make_objects import Made, make_body, make_header
from tests.vectors.make_recovery import keep_seals, make_recovery

TARGET = FOLDER / "sovstore"
ABOUT = "Made by tests/vectors/generate.py; described in tests/vectors/README.md."


def build(kept: Path = TARGET / "recovery.json") -> tuple[dict[str, str], list[str]]:
    """Return the text of each file, and the names of the seals that were made anew."""
    seals, new = keep_seals(kept)
    made = {
        "header": make_header(),
        "body": make_body(),
        "names": make_names(),
        "sizes": make_sizes(),
        "keyset": make_keyset(),
        "recovery": make_recovery(seals),
    }
    hexes = {name: seal.hex() for name, seal in seals.items()}
    extra = {"recovery": {"seals": hexes}}
    return {f"{name}.json": _text(*parts, extra.get(name, {})) for name, parts in made.items()}, new


def _text(common: Made, vectors: list[Made], extra: Made) -> str:
    """Return a file with one vector a line, so that a change shows as the vectors it changes."""
    top = {"about": ABOUT, **extra, "common": common}
    lines = [json.dumps({"id": number, **vector}) for number, vector in enumerate(vectors, start=1)]
    head = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in top.items())
    return "{\n" + head + ' "vectors": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def main() -> None:
    """Write the files, and say what is not reproducible."""
    files, new = build()
    for name, text in files.items():
        (TARGET / name).write_text(text, encoding="ascii")
        sys.stdout.write(f"{name}: {len(json.loads(text)['vectors'])} vectors\n")
    sys.stdout.write(f"seals: made anew {new}\n" if new else "seals: kept\n")


if __name__ == "__main__":
    main()
