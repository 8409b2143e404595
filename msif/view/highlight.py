"""Ranked documents as HTML, each token shaded by its signed score. Texts are escaped; nothing is
fetched."""

from html import escape as escaped

from msif.view.words import visible

# Red, green and blue of a proponent and an opponent: told apart by every kind of colour vision.
BLUE = "31,119,180"
ORANGE = "230,120,20"
LEGEND = (
    "<p><small>A score is df/dw, in nats per unit of document weight: positive (blue, the "
    "strongest underlined) raises the answer's log-probability, negative (orange) lowers it. "
    "A token's shade is the part of the score that passes through the weights at that position, "
    "later losses included.</small></p>"
)


def escape(text):
    """The text as HTML, what would be unseen in it by name."""
    return escaped(visible(text))


def tokens(words, scores, scale):
    """One text: each word shaded by score / scale, clipped to [−1, 1]; hovering shows the
    number."""
    return " ".join(
        _token(word, score, max(-1.0, min(1.0, score / scale)))
        for word, score in zip(words, scores)
    )


def _token(word, score, shade):
    background = f"rgba({BLUE if shade > 0 else ORANGE},{abs(shade) * 0.6:.2f})"
    line = f"border-bottom:2px solid rgb({BLUE})" if shade > 0.3 else ""
    style = f"background:{background};{line}"
    return f'<span title="{score:+.3g}" style="{style}">{escape(word)}</span>'


def ranking(query, answer, rows):
    """A query and its ranked documents.

    rows: dicts with `rank`, `score`, `words`, `scores` (per word) and `note`."""
    scale = max((abs(x) for row in rows for x in row["scores"]), default=1.0) or 1.0
    body = "".join(
        f"<tr><td>{row['rank']}</td><td>{row['score']:+.3g}</td><td>{escape(row['note'])}</td>"
        f'<td style="text-align:left">{tokens(row["words"], row["scores"], scale)}</td></tr>'
        for row in rows
    )
    head = '<th>rank</th><th>score</th><th>kind</th><th style="text-align:left">document</th>'
    return (
        f"<p><b>{escape(query)}</b> <mark>{escape(answer)}</mark></p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def page(title, body):
    """A whole HTML document around some of the above."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title>"
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"
