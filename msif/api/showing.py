"""The explorer of what a trace found."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msif.api.scores import Scores
from msif.core import checks
from msif.core.pairs import are_pairs
from msif.view import explorer


def show(
    scores: Scores,
    path: str | Path | None = None,
    *,
    count: int | None = None,
    opponents: int = 3,
    beside: Mapping[str, Tensor] | None = None,
    title: str = "Influence explorer",
    height: int = 760,
    **options: Any,
) -> Any:
    """The explorer of these scores: inline in JupyterLab, or as one HTML file at `path` that loads
    nothing.

    Documents are shaded by the part of the score that passes through each token. count: documents
    from the top of each ranking, and opponents from its end. beside: other methods' scores, {name:
    (q, n)} in the order of `scores.index`. options: `groups`, `notes` (one string a question),
    `labels` (one {document number: text} a question), `methods` ({name: a line about it}), `about`.
    Returns an IPython `HTML`, or the path. Raises ValueError for sizes that do not fit together.

    >>> msif.show(scores, "explorer.html")
    PosixPath('explorer.html')
    """
    if path is None and "ipykernel" not in sys.modules:
        warnings.warn(
            "not in a notebook, where the explorer would be shown: give a path, such as "
            'msif.show(scores, "explorer.html")',
            stacklevel=2,
        )
    if are_pairs(scores.documents):
        raise ValueError("these scores are of pairs, which the explorer cannot show: print them")
    count = scores.shown if count is None else checks.whole("count", count)
    opponents = checks.whole("opponents", opponents, 0)
    given = explored(scores, count, opponents, beside or {}, options)
    if path is not None:
        return explorer.write(path, title, **explorer.prepared(**given))
    return explorer.show(title=title, height=height, **given)


TOLD = {
    "influence, normalised": "df/dw divided by the norm of the document's gradient",
    "influence": "df/dw, nats per unit of document weight",
}


def explored(
    scores: Scores,
    count: int,
    opponents: int,
    beside: Mapping[str, Tensor],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The arguments of `explorer.show`: the documents that stand first or last in any ranking."""
    index = scores.index.tolist() if beside else []
    for name, values in beside.items():
        shape, wanted_shape = (
            tuple(torch.as_tensor(values).shape),
            (len(scores.questions), len(index)),
        )
        if name in TOLD or shape != wanted_shape:
            raise ValueError(
                f"beside has {name!r} of shape {shape}: expected {wanted_shape}, questions by "
                f"documents, under another name than {', '.join(map(repr, TOLD))}"
            )
    wanted = {
        n
        for normalised in (True, False)
        for lowest, so_many in ((False, count), (True, opponents))
        for row in (scores.extremes(so_many, normalised, lowest) if so_many else ())
        for n in row
    }
    for values in beside.values():
        order = torch.as_tensor(values).sort(dim=1, descending=True, stable=True).indices
        ends = torch.cat([order[:, :count], order[:, len(index) - opponents :]], 1)
        wanted |= {index[at] for at in ends.flatten().tolist()}
    both = scores.among(wanted)
    units = torch.stack([x[2] for x in both.values()], 1)
    tables = dict(zip(TOLD, (units, torch.stack([x[1] for x in both.values()], 1))))
    place = {n: at for at, n in enumerate(index)}
    for name, values in beside.items():
        tables[name] = torch.as_tensor(values)[:, [place[n] for n in both]]
    for stage in {scores.stage, len(scores.stages) - 1}:
        scores.stages[stage].check_model()
    model, tuned = scores.stages[scores.stage].model, scores.stages[-1].model
    methods = TOLD | {name: "" for name in beside} | options.pop("methods", {})
    return {
        "scores": tables,
        "queries": scores.questions,
        "documents": [x[0] for x in both.values()],
        "numbers": list(both),
        "tokenizer": model.tokenizer,
        "model": model.tracked,
        "w": scores.w,
        "tuned": tuned.tracked,
        "count": count,
        "opponents": opponents,
        "methods": methods,
        **options,
    }
