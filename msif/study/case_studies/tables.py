"""An answer's highest documents as a table, as papers show them."""

import torch

from msif.view.highlight import escape

COLUMNS = ("rank", "score", "normalised", "self-influence", "found by", "corpus", "title")


def highest(part, own, count=16, show_texts=False):
    """HTML: the `count` documents of a `cases.Portion` of one answer with the highest normalised
    multi-stage score.

    own: (n,) self-influence of the part's documents. Columns: `COLUMNS`, and where show_texts the
    document; the score in nats per unit of document weight, positive for a proponent; found by: the
    search whose first documents it is among, or "chance"."""
    (row,), documents = part.case.rows, part.case.bed.corpus.documents
    raw, values = (part.table[f"multi_stage/{form}"][0] for form in ("raw", "normalised"))
    best = values.topk(min(count, len(values))).indices.tolist()
    lines = [
        [str(rank), f"{raw[n]:+.3g}", f"{values[n]:+.3g}", f"{float(own[n]):.3g}"]
        + [_found_by(row, documents[n])]
        + [documents[n][name] for name in ("kind", "title", "text")]
        for rank, n in enumerate(best, 1)
    ]
    shown = [*COLUMNS, "document"] if show_texts else [*COLUMNS]
    head = _line("th", shown)
    body = "".join(_line("td", line[: len(shown)]) for line in lines)
    own_of = f"median self-influence of all {len(values)}: {torch.as_tensor(own).median():.3g}"
    return (
        f"<p><b>{escape(row['prompt'])}</b> <mark>{escape(row['answer'])}</mark> "
        f"<small>{escape(row['how'])}, {row['logprob']:.1f} nats; {own_of}</small></p>"
        f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    )


def searched(part, count=10):
    """Of a `cases.Portion` of one answer, {"highest", "all"}: (1,) share of the `count` documents
    with the highest normalised multi-stage score, and of all candidates, that a search found; the
    others were drawn at random."""
    (row,), documents = part.case.rows, part.case.bed.corpus.documents
    found = torch.tensor([_found_by(row, x) != "chance" for x in documents], dtype=torch.float64)
    best = part.table["multi_stage/normalised"][0].topk(min(count, len(found))).indices.cpu()
    return {name: x.mean(0, keepdim=True) for name, x in (("highest", found[best]), ("all", found))}


def _found_by(row, document):
    """The first search that found it, or "chance"."""
    searches = (name for name, few in row["found"].items() if document["document"] in few)
    return next(searches, "chance")


def _line(tag, cells):
    """Numbers stand to the right, words to the left."""
    words = ' style="text-align:left"'
    return (
        "<tr>"
        + "".join(
            f"<{tag}{words if n > 3 else ''}>{escape(x)}</{tag}>" for n, x in enumerate(cells)
        )
        + "</tr>"
    )
