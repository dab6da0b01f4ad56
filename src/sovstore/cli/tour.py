"""What ``sovstore demo`` shows. Everything it prints is done for real, by the commands and the code that it prints."""

from __future__ import annotations

import difflib
import inspect
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow.dataset as ds
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from sovstore.cli import main
from sovstore.cli.cohort import write_cohort
from sovstore.cli.output import size_text
from sovstore.errors import IntegrityError, StoreError
from sovstore.format.body import OVERHEAD

_COHORT = "sov://cohortes/2026"
_WIDTH = 100
_CONFIG = """\
[stores.cohortes]
root = "host-a"
kek = "keyfile:{folder}/cohortes.key"
backup = "backup"
"""
#: Patients whose source values are looked for at the host.
_PATIENTS = 20


def pressure_by_decade(cohort: str) -> pd.DataFrame:
    """Return the mean systolic pressure by decade of birth and sex."""
    fs, folder = fsspec.url_to_fs(f"{cohort}/measurement")
    pressure = ds.dataset(folder, filesystem=fs).to_table(
        columns=["person_id", "value_as_number"],
        filter=ds.field("measurement_concept_id") == 3004249,
    )
    person = pd.read_parquet(f"{cohort}/person.parquet")
    joined = pressure.to_pandas().merge(person, on="person_id")
    joined["born"] = joined["year_of_birth"] // 10 * 10
    joined["sex"] = joined["gender_source_value"]
    mean: pd.DataFrame = joined.pivot_table("value_as_number", "born", "sex")
    return mean.round(1)


class Tour:
    """One run of the demo.

    Parameters
    ----------
    folder : Path
        Its own; also the working folder of the process.
    """

    def __init__(self, folder: Path) -> None:
        terminal = Console(file=sys.stdout)
        width = min(terminal.width, _WIDTH) if sys.stdout.isatty() else _WIDTH
        self._console = Console(file=sys.stdout, width=width, highlight=False)
        self._folder = folder
        self._steps = 0

    def take(self) -> None:
        """Show everything.

        Raises
        ------
        SovstoreError
            When a step does not do what it should.
        """
        start = time.perf_counter()
        self._make_cohort()
        self._seal()
        self._compare_views()
        self._read_back()
        self._change_host()
        self._tamper()
        self._end(time.perf_counter() - start)

    # The steps

    def _make_cohort(self) -> None:
        self._heading("A cohort", "Synthetic, in the tables of the OMOP common data model; nobody in it exists.")
        clear = self._folder / "tables"
        clear.mkdir()
        self._tables = write_cohort(clear)
        rows = [
            (name, f"{table.num_rows:,}", str(table.num_columns), size_text(_size(clear, name)))
            for name, table in self._tables.items()
        ]
        self._table(["table", ">rows", ">columns", ">Parquet"], rows)
        self._expected = pressure_by_decade("tables")

    def _seal(self) -> None:
        self._heading("A store", "One table of one file says who holds the bytes, and which key opens them.")
        text = _CONFIG.format(folder=self._folder)
        Path("sovstore.toml").write_text(text, encoding="utf-8")
        self._syntax(text, "toml")
        self._sovstore("init", "cohortes", "--quiet")
        self._sovstore("put", "-r", "tables", _COHORT)
        self._say("A key file is for trying out. Real data: a KMS or HSM of your jurisdiction.")

    def _compare_views(self) -> None:
        self._heading("Two views of the same bytes", "You see the paths on the left; the host sees the rest.")
        fs = fsspec.filesystem("sov", store="cohortes")
        found = fs.find("", detail=True).values()
        rows = [
            (_below(i["name"]), f"{i['size']:,}", _short(_below(i["wire_name"])), f"{i['wire_size']:,}", self._head(i))
            for i in found
        ]
        self._table(["below 2026/", ">bytes", "at the host", ">bytes", "content"], rows)
        self._search()

    def _head(self, info: dict[str, str]) -> str:
        """Return the first bytes of what is sealed; those before it are the header."""
        with (self._folder / "host-a" / info["wire_name"]).open("rb") as file:
            file.seek(OVERHEAD)
            return file.read(3).hex()

    def _search(self) -> None:
        """Look for what the host must not know in every byte and every name that it holds."""
        clear, sealed = (list(_contents(self._folder / name)) for name in ("tables", "host-a"))
        columns = sorted({column for table in self._tables.values() for column in table.column_names})
        patients = self._tables["person"]["person_source_value"][:_PATIENTS].to_pylist()
        rows = []
        for what, words in (("tables", list(self._tables)), ("columns", columns), ("patients", patients)):
            before, after = (sum(_occurs(word, contents) for word in words) for contents in (clear, sealed))
            rows.append(
                (f"names of {what}" if what != "patients" else "patients", words[-1], str(len(words)), before, after)
            )
            if after:
                raise IntegrityError(f"demo: {after} {what} can be read at the host", path="demo")
        shown = [(what, word, number, str(before), str(after)) for what, word, number, before, after in rows]
        self._table(["looked for", "such as", ">words", ">found in clear", ">at the host"], shown)

    def _read_back(self) -> None:
        self._heading("Reading it back", "pandas, pyarrow, and whatever else takes an fsspec URL.")
        for name, table in self._tables.items():
            fs, path = fsspec.url_to_fs(f"{_COHORT}/{name}" if name == "measurement" else f"{_COHORT}/{name}.parquet")
            _same(table.equals(ds.dataset(path, filesystem=fs).to_table()), name)
        person = pd.read_parquet(f"{_COHORT}/person.parquet")
        _same(person.equals(self._tables["person"].to_pandas()), "person, by pandas")
        self._check("every table equals the one that was sealed, row by row")
        self._syntax(inspect.getsource(pressure_by_decade), "python")
        seconds, found = self._query()
        rows = [
            (f"{born}s", *(f"{value:.1f}" for value in row))
            for born, row in zip(found.index, found.values, strict=True)
        ]
        self._table(["born", *(f">{sex}" for sex in found.columns)], rows)
        self._check(f"the same result as on the files in clear, in {seconds:.1f} s")

    def _query(self) -> tuple[float, pd.DataFrame]:
        """Return how long the query took, in seconds, and its result, which must be the one on the files in clear."""
        start = time.perf_counter()
        found = pressure_by_decade(_COHORT)
        seconds = time.perf_counter() - start
        _same(found.equals(self._expected), "the query")
        return seconds, found

    def _change_host(self) -> None:
        self._heading("Changing the host", "A byte copy by any tool, and one line of configuration. No key is needed.")
        before = Path("sovstore.toml").read_text(encoding="utf-8")
        shutil.copytree("host-a", "host-b")
        shutil.rmtree("host-a")
        self._check("host-a was copied to host-b by shutil.copytree, and deleted")
        after = before.replace('root = "host-a"', 'root = "file://host-b"')
        Path("sovstore.toml").write_text(after, encoding="utf-8")
        diff = difflib.unified_diff(
            before.splitlines(), after.splitlines(), "sovstore.toml", "sovstore.toml", "", "", 1
        )
        self._syntax("\n".join(line.rstrip("\n") for line in diff), "diff")
        seconds, _ = self._query()
        self._check(f"the same code with the same URLs gives the same result, in {seconds:.1f} s")

    def _tamper(self) -> None:
        self._heading("A host that lies", "One bit of one object is flipped at the host, somewhere in the middle.")
        path = "2026/measurement/part-2.parquet"
        name = fsspec.filesystem("sov", store="cohortes").info(path)["wire_name"]
        _flip_a_bit(self._folder / "host-b" / name)
        try:
            pd.read_parquet(f"sov://cohortes/{path}")
        except IntegrityError as exc:
            self._console.print(Padding(Panel(Text(exc.message), title="IntegrityError", title_align="left"), (0, 2)))
        else:
            raise IntegrityError("demo: an altered object was read", path=path)
        self._check("refused, before a wrong byte reached pandas")
        self._sovstore("verify", "cohortes", "--quiet", expect=3)

    def _end(self, seconds: float) -> None:
        self._heading(f"Done, in {seconds:.0f} s", "")
        rows = [
            ("sovstore init --help", "make your own store"),
            ("sovstore --help", "every command, with examples"),
            ("docs/cli.md", "the commands, one after the other"),
            ("docs/spec/format.md", "every byte that a host gets, and tools/sovread.py to read it"),
        ]
        self._table(["next", ""], rows)

    # How they look

    def _heading(self, title: str, text: str) -> None:
        self._steps += 1
        self._console.print()
        self._console.rule(f"[bold]{self._steps}  {title}[/bold]", align="left")
        if text:
            self._console.print(Text(text, style="dim"))
        self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(Text(f"  {text}"))

    def _check(self, text: str) -> None:
        self._console.print(Text.assemble(("  ✓ ", "bold green"), text))

    def _syntax(self, text: str, language: str) -> None:
        code = Syntax(text.rstrip(), language, theme="ansi_dark", background_color="default", word_wrap=True)
        self._console.print(Padding(code, (0, 0, 1, 2), expand=False))

    def _table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name.removeprefix(">"), justify="right" if name[:1] == ">" else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(Padding(table, (0, 0, 1, 2), expand=False))

    def _sovstore(self, *arguments: str, expect: int = 0) -> None:
        """Run a command in this process, as it would be typed."""
        self._console.print(Text(f"  $ sovstore {' '.join(a for a in arguments if a != '--quiet')}", style="bold"))
        if (code := main(arguments)) != expect:
            raise StoreError(f"demo: sovstore {arguments[0]} ended with exit code {code}", path="demo")
        self._console.print()


def _size(folder: Path, table: str) -> int:
    single = folder / f"{table}.parquet"
    files = [single] if single.exists() else list((folder / table).iterdir())
    return sum(file.stat().st_size for file in files)


def _short(name: str) -> str:
    """Return the beginning of every segment of a name at the host."""
    return "/".join(f"{segment[:4]}…" for segment in name.split("/"))


def _below(path: str) -> str:
    """Return a path, or a name at the host, without its first segment."""
    return path.partition("/")[2]


def _contents(folder: Path) -> Iterable[bytes]:
    """Yield the name and the bytes of every file below a folder."""
    for file in folder.rglob("*"):
        yield str(file.relative_to(folder)).encode()
        if file.is_file():
            yield file.read_bytes()


def _occurs(word: str, contents: Iterable[bytes]) -> bool:
    return any(word.encode() in content for content in contents)


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _same(equal: bool, what: str) -> None:  # noqa: FBT001  # the one thing that it is about
    if not equal:
        raise IntegrityError(f"demo: {what}: what was read is not what was sealed", path="demo")
