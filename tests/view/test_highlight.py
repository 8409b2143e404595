"""Text from a corpus is data: it is shown, never interpreted."""

from msif.view import highlight

ROW = {
    "rank": 1,
    "score": 2.0,
    "note": "<i>",
    "words": ["<script>alert(1)</script>", "a&b"],
    "scores": [2.0, -1.0],
}


def test_markup_in_a_document_is_shown_as_text():
    html = highlight.page("<t>", highlight.ranking("<b>?", "</p>", [ROW]))
    for raw in ("<script", "<i>", "<t>", "<b>?", "a&b"):
        assert raw not in html
    assert "&lt;script&gt;" in html and "a&amp;b" in html


def test_signs_differ_by_more_than_colour():
    """A proponent token is underlined too, and every number is there to be read."""
    positive, negative = highlight.tokens(["x", "y"], [1.0, -1.0], 1.0).split("</span> ")
    assert "border-bottom" in positive and "border-bottom" not in negative
    assert 'title="+1"' in positive and 'title="-1"' in negative


def test_scores_of_zero_are_drawn():
    assert "rgba" in highlight.ranking("q", "a", [ROW | {"scores": [0.0, 0.0]}])


def test_what_would_be_unseen_or_turn_a_text_around_is_named():
    html = highlight.page("ans\u202ewer", highlight.ranking("a\x07", "b\u200b", [ROW]))
    assert "ans⟨U+202E⟩wer" in html and "a⟨U+0007⟩" in html and "b⟨U+200B⟩" in html
