"""Real data from files: rows of JSON, JSON lines or CSV, plain or .gz, and the problems made of them.

    problems_from(["mbpp.jsonl", "apps.json.gz"], programs.from_row)

A file that is missing, empty, damaged or cut short is an InputError; a row that makes no problem is left out and
reported with its place, and the number of rows that are kept is always told.
"""
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from data.problems import InputError, Problem

SHOWN = 5  # rows that are left out, before the rest is only counted


def read(paths: list[str]) -> list[tuple[dict, str]]:
    """All rows of the files in their order, each with its place: ({"text": ...}, "mbpp.jsonl:12")."""
    rows = _rows(paths)
    kept = [(row, place) for row, place in rows if not isinstance(row, ValueError)]
    if len(kept) < len(rows):
        report([f"{place}: {row}" for row, place in rows if isinstance(row, ValueError)], len(kept))
    return kept


def problems_from(paths: list[str], from_row: Callable[[dict], Problem]) -> list[Problem]:
    """A problem for each row; from_row raises ValueError for a row that makes none."""
    problems, left_out = [], []
    for row, place in _rows(paths):
        try:
            if isinstance(row, ValueError):
                raise row
            problems.append(from_row(row))
        except ValueError as error:
            left_out.append(f"{place}: {error}")
    report(left_out, len(problems))
    if not problems:
        raise InputError(f"No row makes a problem of this task ({left_out[0]}): choose another task or other files.")
    return problems


def report(left_out: list[str], kept: int) -> None:
    for line in left_out[:SHOWN]:
        print(f"left out {line}", file=sys.stderr)
    if len(left_out) > SHOWN:
        print(f"left out {len(left_out) - SHOWN} more", file=sys.stderr)
    print(f"kept {kept} of {kept + len(left_out)} rows", file=sys.stderr)


def _rows(paths: list[str]) -> list[tuple[dict | ValueError, str]]:
    """As `read`, with the error in the place of a row that is none."""
    rows = []
    for path in map(Path, paths):
        name = path.name.removesuffix(".gz")
        if Path(name).suffix not in READERS:
            raise InputError(f"{path} is of an unknown format: give .json, .jsonl or .csv, plain or with .gz behind it.")
        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
            found = list(READERS[Path(name).suffix](text, name))
        except gzip.BadGzipFile as error:
            raise InputError(f"{path} is damaged or no gzip file ({error}): fetch it again, or take .gz off its name.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): check the name.") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8 text: save it as UTF-8, and end the names of compressed files with .gz.") from None
        except (EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged or cut short ({error}): fetch it again.") from None
        if not found:
            raise InputError(f"{path} is empty: fetch it again or leave it out.")
        rows += [(row, f"{path}:{line}") for row, line in found]
    return rows


def json_rows(text: str, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    """One object, or a list of them; each with the line on which it starts."""
    whole = json.loads(text) if text.strip() else []
    if not isinstance(whole, list):
        yield as_row(whole), 1
    elif whole:
        decoder, end, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
        for row in whole:
            start = re.compile(r"[\s,]*").match(text, end).end()
            yield as_row(row), (line := line + text.count("\n", end, start))
            end = decoder.raw_decode(text, start)[1]
            line += text.count("\n", start, end)


def jsonl_rows(text: str, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    lines = text.split("\n")  # not splitlines: U+2028 may stand within a string
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield as_row(json.loads(line)), number
            except ValueError as error:
                if number == len(lines):  # without its newline
                    raise
                yield error, number


def as_row(value) -> dict | ValueError:
    return value if isinstance(value, dict) else ValueError(f"{type(value).__name__} in the place of an object")


def csv_rows(text: str, name: str) -> Iterator[tuple[dict | ValueError, int]]:
    """With a header; or as MMLU's own files, without one: question, four choices, letter, and the subject in the name."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, line = None, 1
    for cells in reader:
        if header is None and len(cells) == 6 and cells[5] in ("A", "B", "C", "D"):
            header = ["question", "A", "B", "C", "D", "answer"]
        elif header is None:
            header, cells = cells, []
        if cells:
            same = len(cells) == len(header)
            row = dict(zip(header, cells)) if same else ValueError(f"{len(cells)} cells in the place of {len(header)}")
            if same and "answer" in row:
                row.setdefault("subject", re.sub(r"(_(dev|val|test))?\.csv$", "", name))
            yield row, line
        line = reader.line_num + 1


READERS = {".json": json_rows, ".jsonl": jsonl_rows, ".csv": csv_rows}
