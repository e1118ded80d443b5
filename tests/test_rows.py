"""Rows from files of every format, and what is said of those that are damaged."""

import gzip
import json
from pathlib import Path

import pytest

from data.problems import InputError, Problem
from data.real.rows import SHOWN, problems_from, read

ROWS = [{"q": "a\u2028b", "n": 1}, {"q": "\n[,]", "n": 2}, {"q": "é", "n": 3}]
MMLU = Path(__file__).parents[2] / "shared/data/mmlu/mmlu_all.jsonl.gz"


def from_row(row: dict) -> Problem:
    if "n" not in row:
        raise ValueError("it has no n")
    return Problem("code", row["q"], "", "", row["n"], {}, row["q"])


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_format_gives_the_same_rows_and_their_places(tmp_path, end):
    lines = write(
        tmp_path / f"a.jsonl{end}",
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
    )
    whole = write(tmp_path / f"a.json{end}", "\n" + json.dumps(ROWS, ensure_ascii=False, indent=1))
    table = write(
        tmp_path / f"a.csv{end}",
        "\ufeffq,n\r\n" + "".join(f'"{row["q"]}",{row["n"]}\r\n' for row in ROWS),
    )
    assert read([lines]) == [(row, f"{lines}:{i}") for i, row in enumerate(ROWS, 1)]
    assert read([whole]) == [(row, f"{whole}:{i}") for row, i in zip(ROWS, (3, 7, 11))]
    assert read([table]) == [
        ({"q": row["q"], "n": str(row["n"])}, f"{table}:{i}") for row, i in zip(ROWS, (2, 3, 5))
    ]
    assert read([lines, whole]) == read([lines]) + read([whole])
    single = write(
        tmp_path / f"b.json{end}", json.dumps(ROWS[0], indent=1)
    )  # as MATH: a file for each problem
    assert read([str(single)]) == [(ROWS[0], f"{single}:1")]


def test_mmlu_without_a_header_takes_its_subject_from_the_name(tmp_path):
    path = write(
        tmp_path / "high_school_us_history_test.csv", 'Which?,"a, b",2,3,4,B\nWho?,1,2,3,4,D\n'
    )
    first = {
        "question": "Which?",
        "A": "a, b",
        "B": "2",
        "C": "3",
        "D": "4",
        "answer": "B",
        "subject": "high_school_us_history",
    }
    assert [row for row, _ in read([path])] == [
        first,
        {**first, "question": "Who?", "A": "1", "answer": "D"},
    ]
    path = write(tmp_path / "anatomy.csv", "question,A,B,C,D,answer\nWho?,1,2,3,4,D\n")
    assert [row for row, _ in read([path])] == [
        {**first, "question": "Who?", "A": "1", "answer": "D", "subject": "anatomy"}
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", None, "cannot be read .No such file or directory.: check the name"),
        ("a.txt", b"x", "unknown format: give .json, .jsonl or .csv"),
        ("a.gz", b"x", "unknown format"),
        ("a.jsonl", b"", "is empty"),
        ("a.json", b" \n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"q,n\n", "is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.jsonl", b'{"q": 1}\n{"q": ', "damaged or cut short"),
        ("a.json", b'[{"q": 1}, {"q"', "damaged or cut short"),
        ("a.json", b"[" * 100_000, "damaged or cut short"),
        ("a.csv", b'q,n\n"a', "damaged or cut short"),
        ("a.jsonl.gz", gzip.compress(b'{"q": 1}\n' * 99, mtime=0)[:-12], "damaged or cut short"),
        ("a.jsonl.gz", b'{"q": 1}', "no gzip file"),
        ("a.jsonl", gzip.compress(b'{"q": 1}', mtime=0), "not UTF-8 text"),
        ("a.csv", b"q,n\n\xff,1", "not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_one_clear_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_make_no_problem_are_reported_with_file_and_line(tmp_path, capsys):
    path = write(
        tmp_path / "a.jsonl", '{"q": "x", "n": 1}\nnot json\n{"q": "y"}\n[1]\n{"q": "z", "n": 2}\n'
    )
    assert [problem.prompt for problem in problems_from([path], from_row)] == ["x", "z"]
    *left_out, count = capsys.readouterr().err.splitlines()
    assert count == "kept 2 of 5 rows"
    assert [line.split(": ")[0] for line in left_out] == [
        f"left out {path}:{line}" for line in (2, 3, 4)
    ]
    assert left_out[1].endswith("it has no n") and left_out[2].endswith(
        "list in the place of an object"
    )
    assert [row["q"] for row, _ in read([path])] == [
        "x",
        "y",
        "z",
    ] and "kept 3 of 5" in capsys.readouterr().err
    table = write(tmp_path / "a.csv", "q,n\nx,1\ny\nz,2,3\n")
    assert (
        len(problems_from([table, path], from_row)) == 3
        and "a.csv:3: 1 cells in the place of 2" in capsys.readouterr().err
    )


def test_many_bad_rows_are_counted_and_only_bad_ones_are_an_error(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", '{"q": "x", "n": 1}\n' + '{"q": "y"}\n' * 50)
    problems_from([path], from_row)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == SHOWN + 2 and lines[-2:] == [
        f"left out {50 - SHOWN} more",
        "kept 1 of 51 rows",
    ]
    path = write(tmp_path / "b.jsonl", '{"q": "y"}\n')
    with pytest.raises(
        InputError, match="No row makes a problem of this task .*b.jsonl:1: it has no n"
    ):
        problems_from([path], from_row)


@pytest.mark.skipif(not MMLU.exists(), reason="the shared data is not here")
def test_a_real_file():
    rows = read([MMLU])
    assert (
        len(rows) == 15_858
        and rows[-1][1].endswith(":15858")
        and {row["answer"] for row, _ in rows} == set("ABCD")
    )
