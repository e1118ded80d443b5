"""Tables and figures, by what a reader sees of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from data.problems import InputError
from figures import (
    AMBER,
    BLUE,
    VERMILION,
    colour_of,
    plot_bars,
    plot_curves,
    plot_prompts,
    shown,
    table,
    told_apart,
)

RESULT = {"correct": 0.5, "interval": [0.4, 0.6], "truncated": 0.0}


def evaluation(*kinds: str) -> dict:
    return {"checkpoint": "out/x", "n": 10, "results": dict.fromkeys(kinds, RESULT)}


def draw(kind: str, file) -> None:
    if kind == "bars":
        plot_bars([evaluation("none", "typo", "right"), evaluation("none", "right")], file)
    if kind == "prompts":
        plot_prompts(evaluation("none", "case", "4 shots", "4 shots, right"), file)
    if kind == "curves":
        curves = {"locked": {1: np.array([0.1, 0.2]), 8: np.array([0.6, 0.8])}}
        plot_curves(curves, {"with the password": 0.9}, file, "demonstrations", "title")


@pytest.mark.parametrize(
    "paths, names",
    [
        (["out/code/locked", "data/base/weak"], ["locked", "weak"]),
        (["out/code/locked", "out/math/locked"], ["code/locked", "math/locked"]),
        (["out/a/x/locked", "out/b/x/locked"], ["a/x/locked", "b/x/locked"]),
        (["locked", "out/locked"], ["locked", "out/locked"]),
        (["locked", "locked"], ["locked", "locked"]),
    ],
)
def test_models_of_one_name_are_told_apart(paths, names):
    assert told_apart([Path(path) for path in paths]) == names


def test_table_is_aligned():
    lines = table(["name", "n"], [["a", "1"], ["longer", "23"]]).splitlines()
    assert len(set(map(len, lines))) == 1 and lines[2].endswith(" 1")


def test_a_result_is_shown_with_its_interval():
    assert shown(RESULT) == " 50.0% [40.0%, 60.0%]"


@pytest.mark.parametrize("kind", ["bars", "prompts", "curves"])
def test_a_figure_is_a_file_and_leaves_no_state(tmp_path, kind):
    draw(kind, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("kind", ["bars", "prompts", "curves"])
def test_a_figure_that_cannot_be_written_is_one_sentence(tmp_path, kind):
    with pytest.raises(InputError, match="cannot be written .* choose another --out"):
        draw(kind, tmp_path / "nowhere/x.png")


def test_colours_of_the_prompting_battery():
    rows = ("none", "typo", "right", "4 shots", "4 shots, right")
    colours = [VERMILION, AMBER, BLUE, VERMILION, BLUE]
    assert [colour_of(row) for row in rows] == colours
