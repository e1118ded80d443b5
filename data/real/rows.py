"""Real data from files: rows of JSON, JSON lines, CSV or Parquet, and the problems made of them.

    problems_from(["mbpp.jsonl", "apps.json.gz", "mmlu.parquet"], programs.from_row)

A file that is missing, empty, damaged or cut short is an InputError; a row that makes no problem is
left out and reported with its place, and the number of rows that are kept is always told. Any file
may be compressed and end in .gz. Parquet, the format of the Hugging Face Hub, needs pyarrow.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from data.problems import InputError, Problem

SHOWN = 5  # rows that are left out, before the rest is only counted
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # a lone surrogate is in no UTF-8 file, a NUL in no text


def problems_from(paths: list[str], from_row: Callable[[dict], Problem]) -> list[Problem]:
    """A problem for each row; from_row raises ValueError for a row that makes none.

    Raises InputError for a file that cannot be read, and where no row makes a problem.
    """
    problems, left_out = [], []
    for row, place in read(paths):
        try:
            if isinstance(row, ValueError):
                raise row
            problems.append(from_row(row))
        except ValueError as error:
            left_out.append(f"{place}: {error}")
    report(left_out, len(problems))
    if not problems:
        raise InputError(
            f"No row makes a problem of this task ({left_out[0]}): choose another task or other "
            "files."
        )
    return problems


@cache  # a stage asks once for each of its cells
def _digest_of(path: Path, mtime: int, size: int) -> bytes:
    return hashlib.sha256(_content(path)).digest()


def content_hash(paths: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of what stands in the files, in their order."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        found = path.stat()
        digest.update(_digest_of(path.resolve(), found.st_mtime_ns, found.st_size))
    return digest.hexdigest()[:16]


def report(left_out: list[str], kept: int) -> None:
    for line in left_out[:SHOWN]:
        print(f"left out {line}", file=sys.stderr)
    if len(left_out) > SHOWN:
        print(f"left out {len(left_out) - SHOWN} more", file=sys.stderr)
    print(f"kept {kept} of {kept + len(left_out)} rows", file=sys.stderr)


# ---- files
def read(paths: list[str]) -> list[tuple[dict | ValueError, str]]:
    """All rows of the files in their order, each with its place: ({"text": ...}, "mbpp.jsonl:12").

    Where a row is damaged, a ValueError that says how stands in its place. Raises InputError for a
    file that cannot be read.
    """
    rows = []
    for path in map(Path, paths):
        name = path.name.removesuffix(".gz")
        suffix = Path(name).suffix
        if suffix not in READERS:
            raise InputError(
                f"{path} is of an unknown format: give .json, .jsonl, .csv or .parquet, plain or "
                "with .gz after it."
            )
        content = _content(path)
        try:
            found = list(READERS[suffix](content, name))
        except UnicodeDecodeError:
            raise InputError(
                f"{path} is not UTF-8 text: save it as UTF-8, and end the names of compressed "
                "files with .gz."
            ) from None
        except ModuleNotFoundError:
            raise InputError(
                f"{path} cannot be read without pyarrow: pip install pyarrow, or save the rows as "
                ".jsonl."
            ) from None
        except (csv.Error, ValueError, RecursionError) as error:
            raise _damaged(path, error) from None
        if not found:
            raise InputError(f"{path} is empty: fetch it again or leave it out.")
        for row, line in found:
            rows.append((row, f"{path}:{line}"))
    return rows


def _content(path: Path) -> bytes:
    """What stands in the file, without its compression."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except gzip.BadGzipFile as error:
        raise InputError(
            f"{path} is damaged or no gzip file ({error}): fetch it again, or take .gz off its "
            "name."
        ) from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({why}): check the name.") from None
    except (EOFError, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or cut short ({error}): fetch it again.")


# ---- formats: from the content and the name of a file to its rows, each with its line or number
def json_rows(content: bytes, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    """One object, or a list of them; each with the line on which it starts."""
    text = content.decode("utf-8-sig")
    try:
        whole = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        raise InputError(
            f"{name} holds several values, one after the other: give it a name with .jsonl."
        ) from None
    if not isinstance(whole, list):
        yield as_row(whole), 1
        return
    if not whole:
        return

    # the list is well formed: its items are read a second time, only to find their lines
    decoder = json.JSONDecoder()
    end = text.index("[") + 1
    line = 1 + text.count("\n", 0, end)
    for row in whole:
        start = re.compile(r"[\s,]*").match(text, end).end()
        line += text.count("\n", end, start)
        yield as_row(row), line
        end = decoder.raw_decode(text, start)[1]
        line += text.count("\n", start, end)


def jsonl_rows(content: bytes, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    lines = content.decode("utf-8-sig").split("\n")  # U+2028, where splitlines cuts, is text
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield as_row(json.loads(line)), number
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # without its newline: the file was cut here
                raise
            yield ValueError(str(error)), number


def csv_rows(content: bytes, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    """With a header; or as MMLU's own files, without one.

    Those have question, four choices and letter, and the subject in the file's name.
    """
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    csv.field_size_limit(len(content) + 1)  # tests in a cell can be long
    reader = csv.reader(text, strict=True)
    header = None
    line = 1
    for cells in reader:
        is_row = len(cells) == 6 and cells[5] in ("A", "B", "C", "D") and "answer" not in cells
        if header is None and is_row:
            header = ["question", "A", "B", "C", "D", "answer"]
        elif header is None:
            header = cells
            cells = []

        if cells and len(cells) != len(header):
            yield ValueError(f"{len(cells)} cells in the place of {len(header)}"), line
        elif cells:
            row = dict(zip(header, cells))
            if {"A", "answer"} <= row.keys():
                row.setdefault("subject", re.sub(r"(_(dev|val|test))?\.csv$", "", name))
            yield as_row(row), line
        line = reader.line_num + 1


def parquet_rows(content: bytes, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    """Each with its number; a null is a field that is not there."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error).split("\n")[0]) from None
    for number, row in enumerate(rows, 1):
        yield as_row({field: value for field, value in row.items() if value is not None}), number


READERS = {
    ".json": json_rows,
    ".jsonl": jsonl_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}


def as_row(value) -> dict | ValueError:
    """The value, or what is wrong with it as a row."""
    if not isinstance(value, dict):
        return ValueError(f"{type(value).__name__} in the place of an object")
    try:
        for text in _texts(value):
            check_text(text)
    except ValueError as error:
        return error
    return value


def check_text(text: str) -> None:
    """Raises ValueError for half a character, which no file could hold."""
    found = NO_TEXT.search(text)
    if found:
        raise ValueError(f"it holds U+{ord(found[0]):04X}, which no text has")


def _texts(value) -> Iterator[str]:
    """All strings within a value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
