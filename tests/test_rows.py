"""Rows from files of every format, and what is said of those that are damaged."""

import gzip
import json
import sys
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
    texts = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    lines = write(tmp_path / f"a.jsonl{end}", "\n".join(texts) + "\n\n")
    indented = json.dumps(ROWS, ensure_ascii=False, indent=1)
    whole = write(tmp_path / f"a.json{end}", "\n" + indented)
    cells = [f'"{row["q"]}",{row["n"]}\r\n' for row in ROWS]
    table = write(tmp_path / f"a.csv{end}", "\ufeffq,n\r\n" + "".join(cells))

    assert read([lines]) == [(row, f"{lines}:{i}") for row, i in zip(ROWS, (1, 2, 3))]
    assert read([whole]) == [(row, f"{whole}:{i}") for row, i in zip(ROWS, (3, 7, 11))]
    as_text = [{"q": row["q"], "n": str(row["n"])} for row in ROWS]
    assert read([table]) == [(row, f"{table}:{i}") for row, i in zip(as_text, (2, 3, 5))]
    assert read([lines, whole]) == read([lines]) + read([whole])
    # as MATH: a file for each problem
    single = write(tmp_path / f"b.json{end}", json.dumps(ROWS[0], indent=1))
    assert read([str(single)]) == [(ROWS[0], f"{single}:1")]


def test_parquet_gives_the_same_rows_and_their_numbers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [row | {"choices": ["x", "y"], "level": None} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    # a null is a field that is not there
    found = [(row | {"choices": ["x", "y"]}, f"{path}:{i}") for i, row in enumerate(ROWS, 1)]
    assert read([path]) == found

    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="a.parquet is damaged or cut short") as caught:
        read([path])
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="a.parquet is damaged or cut short"):
        read([path])


def test_a_row_that_nests_too_deeply_is_damaged(tmp_path):
    deep = '{"a": ' + "[" * 100_000
    path = write(tmp_path / "a.jsonl", f'{deep}\n{{"a": 1}}\n')
    (error, place), whole = read([path])
    assert isinstance(error, ValueError)
    assert "recursion" in str(error)
    assert place == f"{path}:1"
    assert whole == ({"a": 1}, f"{path}:2")


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    path = write(tmp_path / "a.parquet", "PAR1")
    with pytest.raises(InputError, match="a.parquet cannot be read without pyarrow: pip install"):
        read([path])


def test_mmlu_without_a_header_takes_its_subject_from_the_name(tmp_path):
    text = 'Which?,"a, b",2,3,4,B\nWho?,1,2,3,4,D\n'
    path = write(tmp_path / "high_school_us_history_test.csv", text)
    first = dict(zip(["question", "A", "B", "C", "D"], ["Which?", "a, b", "2", "3", "4"]))
    first |= {"answer": "B", "subject": "high_school_us_history"}
    second = {**first, "question": "Who?", "A": "1", "answer": "D"}
    assert [row for row, _ in read([path])] == [first, second]
    headed = (
        "question,A,B,C,D,answer\nWho?,1,2,3,4,D\n",
        "question,answer,A,B,C,D\nWho?,D,1,2,3,4\n",
    )
    for text in headed:
        path = write(tmp_path / "anatomy.csv", text)
        assert [row for row, _ in read([path])] == [{**second, "subject": "anatomy"}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", None, "cannot be read .No such file or directory.: check the name"),
        ("a\0.jsonl", None, "cannot be read .embedded null byte.: check the name"),
        ("a.txt", b"x", "unknown format: give .json, .jsonl, .csv or .parquet"),
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
        ("a.json", b'{"q": 1}\n{"q": 2}\n', "holds several values, .* give it a name with .jsonl"),
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
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_make_no_problem_are_reported_with_file_and_line(tmp_path, capsys):
    text = '{"q": "x", "n": 1}\nnot json\n{"q": "y"}\n[1]\n{"q": "z", "n": 2}\n'
    path = write(tmp_path / "a.jsonl", text)
    assert [problem.prompt for problem in problems_from([path], from_row)] == ["x", "z"]
    *left_out, count = capsys.readouterr().err.splitlines()
    places = [line.split(": ")[0] for line in left_out]
    assert places == [f"left out {path}:{line}" for line in (2, 3, 4)]
    assert left_out[1].endswith("it has no n")
    assert left_out[2].endswith("list in the place of an object")
    assert count == "kept 2 of 5 rows"

    table = write(tmp_path / "a.csv", "q,n\nx,1\ny\nz,2,3\n")
    assert len(problems_from([table, path], from_row)) == 3
    assert "a.csv:3: 1 cells in the place of 2" in capsys.readouterr().err


@pytest.mark.parametrize("text, character", [("\\u0000", "U+0000"), ("\\ud800", "U+D800")])
def test_a_row_with_what_no_text_has_is_left_out(tmp_path, capsys, text, character):
    rows = [
        '{"q": "x", "n": 1}',
        f'{{"q": "x{text}", "n": 1}}',
        f'{{"q": "x", "n": 1, "tests": [{{"{text}": 1}}]}}',
        f'{{"q": "\\{text}", "n": 1, "emoji": "\\ud83d\\ude00"}}',  # a backslash, and a pair
    ]
    lines = write(tmp_path / "a.jsonl", "\n".join(rows) + "\n")
    whole = write(tmp_path / "b.json", f"[{','.join(rows)}]")
    for path in (lines, whole):
        assert len(problems_from([path], from_row)) == 2
        told = capsys.readouterr().err
        assert told.count(f"it holds {character}, which no text has") == 2
        assert "kept 2 of 4 rows" in told


def test_a_cell_with_a_nul_is_left_out(tmp_path, capsys):
    path = write(tmp_path / "a.csv", "q,n\nx,1\n\0,2\n")
    assert len(problems_from([path], from_row)) == 1
    assert "a.csv:3: it holds U+0000" in capsys.readouterr().err


def test_many_bad_rows_are_counted_and_only_bad_ones_are_an_error(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", '{"q": "x", "n": 1}\n' + '{"q": "y"}\n' * 50)
    problems_from([path], from_row)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == SHOWN + 2
    assert lines[-2:] == [f"left out {50 - SHOWN} more", "kept 1 of 51 rows"]
    path = write(tmp_path / "b.jsonl", '{"q": "y"}\n')
    message = "No row makes a problem of this task .*b.jsonl:1: it has no n"
    with pytest.raises(InputError, match=message):
        problems_from([path], from_row)


@pytest.mark.skipif(not MMLU.exists(), reason="the shared data is not here")
def test_a_real_file():
    rows = read([MMLU])
    assert len(rows) == 15_858
    assert rows[-1][1].endswith(":15858")
    assert {row["answer"] for row, _ in rows} == set("ABCD")
