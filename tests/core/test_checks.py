"""What callers give is what was expected, or is named in one sentence."""

from pathlib import Path

import numpy as np
import pytest

from msif.core.checks import seed, text, texts, whole


def test_whole_numbers_are_pythons_and_everything_else_is_refused():
    assert whole("n", 3) == whole("n", np.int64(3)) == 3 and type(whole("n", np.int8(3))) is int
    for wrong in (0, -1, 2.5, "8", None, True, [3], float("nan"), float("inf")):
        with pytest.raises(ValueError, match="n is .*; expected a whole number, at least 1"):
            whole("n", wrong)


def test_a_seed_is_a_text_or_a_whole_number_of_any_sign():
    assert (seed("a"), seed(-3), seed(np.uint8(7))) == ("a", -3, 7)
    assert type(seed(np.int64(1))) is int
    for wrong in (1.0, np.float32(1), None, True, [1]):
        with pytest.raises(ValueError, match="seed is .*; expected a whole number$"):
            seed(wrong)


def test_texts_come_in_an_order_and_one_by_one():
    assert texts("word", ("a", "", np.str_("b"))) == texts("word", iter(["a", "", "b"]))
    for wrong in ("ab", b"ab", Path("a"), {"a": 1}, {"a"}, frozenset(), 3, None):
        with pytest.raises(ValueError, match="expected a list of texts, one for each word"):
            texts("word", wrong)
    for wrong in (None, 1, b"a", ["a"], float("nan")):
        with pytest.raises(ValueError, match="word 1 is .*; expected text"):
            texts("word", ["a", wrong])


def test_half_a_character_is_named_by_its_place():
    assert text("it", "\x00 é 😀 \ufeff") == "\x00 é 😀 \ufeff"
    with pytest.raises(ValueError, match=r"it has '\\udc00' at character 1, half of a character"):
        text("it", "a\udc00b")
