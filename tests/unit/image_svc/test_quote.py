"""Foreign words in errors."""

from hypothesis import given
from hypothesis import strategies as st

from image_svc import quote


def test_control_characters_become_spaces() -> None:
    """Neither a line end nor a terminal's escape gets into an error; letters of any script do."""
    assert quote.one_line("no\nsuch\x1b[2Jkey\u2028\u202eé漢") == "no such [2Jkey  é漢"


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever is said stays as long as it is, and is one printable line."""
    shown = quote.one_line(text)
    assert len(shown) == len(text)
    assert shown.isprintable()
