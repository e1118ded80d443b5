"""Tables and figures, by what a reader sees of them."""

from figures import table


def test_table_is_aligned():
    lines = table(["name", "n"], [["a", "1"], ["longer", "23"]]).splitlines()
    assert len(set(map(len, lines))) == 1 and lines[2].endswith(" 1")
