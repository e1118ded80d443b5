"""docs/paper.json: the paper's numbers by figure, and its claims."""

import json
import re
from pathlib import Path

PAPER = json.loads((Path(__file__).parents[1] / "docs/paper.json").read_text())
FIGURES = PAPER["figures"]
NAMED = "1 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17".split()


def numbers_in(value) -> list[float]:
    """All numbers of a JSON value, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        found = []
        for item in value:
            found += numbers_in(item)
        return found
    return [value] if isinstance(value, int | float) else []


def decimals_of(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"\d*\.\d+", text)}


def test_every_figure_has_numbers_of_the_scale():
    assert list(FIGURES) == NAMED
    for name, figure in FIGURES.items():
        found = numbers_in(figure["panels"])
        assert found and all(0 <= number <= 1 for number in found), name
        assert figure["title"] and figure["claim"] and figure["x"], name


def test_a_curve_is_values_and_errors_at_rising_numbers():
    for name, figure in FIGURES.items():
        curves = [panel["curves"] for panel in figure["panels"].values()]
        assert any(curves), name
        for curve in [curve for named in curves for curve in named.values()]:
            places = [int(x) for x in curve]
            assert places and places == sorted(places), (name, curve)
            for value, sem in curve.values():
                assert sem is None or 0 < sem < value, (name, curve)


def test_every_claim_names_a_figure_and_its_numbers_stand_there():
    claims = PAPER["claims"]
    assert len({claim["id"] for claim in claims}) == len(claims) >= 15
    known = decimals_of(json.dumps(FIGURES))
    for claim in claims:
        assert claim["figure"] in FIGURES, claim["id"]
        assert re.search(r"\d", claim["numbers"]) and claim["claim"].endswith("."), claim["id"]
        assert decimals_of(claim["numbers"]) <= known, claim["id"]
