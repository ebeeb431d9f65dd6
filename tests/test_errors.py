import unicodedata

import pytest

from vdvae_repr.errors import DataError, printable


@pytest.mark.parametrize("text", ["café", "日本\u3000語", "क्\u200dष", "👩\u200d🔬", "a b", ""])
def test_text_of_any_language_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred",
        "a\nb",
        "a\r\nb",
        "\0",
        "\x7f",
        "\x9b2J",
        "\u202ecod.exe",
        "\u2066x",
        "\u2028",
        "\udce9",
        "\u200f",
    ],
)
def test_what_moves_a_cursor_or_cannot_be_written_is_escaped(text):
    shown = printable(text)
    assert shown != text
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Cf", "Zl", "Zp"}
    assert shown.encode().decode("unicode_escape") == text
    assert printable(shown) == shown


def test_messages_of_errors_are_printable():
    assert str(DataError("a\x1b[2J.png: gone")) == r"a\x1b[2J.png: gone"
