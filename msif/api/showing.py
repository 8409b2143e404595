"""The explorer of what a trace found, or several, a tab a stage."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msif.api.scores import Scores
from msif.api.stages import loss_of_pairs
from msif.core import checks
from msif.core.pairs import are_pairs
from msif.view import explorer, tabs

DOCUMENTS, ROWS, PAIRS = "pre-training documents", "fine-tuning rows", "preference pairs"


def show(
    scores: Scores | Sequence[Scores] | Mapping[str, Scores],
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

    Documents are shaded by the part of the score that passes through each token. Scores of several
    stages for the same questions, as a list or as {name: scores}, have a tab each. count: documents
    from the top of each ranking, and opponents from its end. beside: other methods' scores, {name:
    (q, n)} in the order of `scores.index`. options: `groups`, `notes` (one string a question),
    `labels` (one {document number: text} a question), `methods` ({name: a line about it}), `about`;
    `beside` and `labels` of one stage alone. Returns an IPython `HTML`, or the path. Raises
    ValueError for sizes that do not fit together, and for scores of other questions or models.

    >>> msif.show(scores, "explorer.html")
    PosixPath('explorer.html')
    """
    if path is None and "ipykernel" not in sys.modules:
        warnings.warn(
            "not in a notebook, where the explorer would be shown: give a path, such as "
            'msif.show(scores, "explorer.html")',
            stacklevel=2,
        )
    if count is not None:
        count = checks.whole("count", count)
    opponents = checks.whole("opponents", opponents, 0)
    found = _tabs(scores)
    if len(found) == 1:
        [one] = found.values()
        given = explored(one, count or one.shown, opponents, beside or {}, options)
        if path is not None:
            return explorer.write(path, title, **explorer.prepared(**given))
        return explorer.show(title=title, height=height, **given)
    if beside or "labels" in options:
        raise ValueError(
            f"{'beside' if beside else 'labels'} with scores of {len(found)} stages: expected "
            f"scores of one, whose documents they belong to"
        )
    about, pages = options.pop("about", ""), {}
    for name, one in found.items():
        given = explored(one, count or one.shown, opponents, {}, dict(options))
        pages[name] = explorer.prepared(**given) | {"note": _note(one)}
    if path is not None:
        return tabs.write(path, title, pages, about)
    return explorer.inline(tabs.page(title, pages, about), title, height)


def _tabs(given):
    """{name: scores}, a stage each. ValueError for what cannot stand side by side."""
    if isinstance(given, Scores):
        given = [given]
    named = isinstance(given, Mapping)
    if not isinstance(given, Iterable):
        raise ValueError(f"scores are a {type(given).__name__}: expected what `msif.trace` gives")
    several = list(given.values() if named else given)
    if wrong := [x for x in several if not isinstance(x, Scores)] or not several:
        kind = type(wrong[0]).__name__ if several else "empty list"
        raise ValueError(f"scores are a {kind}: expected what `msif.trace` gives, or a list of it")
    first = several[0]
    for x in several[1:]:
        ends = [y.stages[-1].factors.header["model"] for y in (first, x)]
        if x.questions != first.questions or ends[0] != ends[1]:
            raise ValueError(
                f"scores of stages {first.stage} and {x.stage} are for "
                f"{'other models' if ends[0] != ends[1] else 'other questions'}: expected the same "
                f"for all tabs, with the same answers"
            )
    names = [*given] if named else [_kind(x) for x in several]
    often = Counter(names)
    names = [f"{x}, stage {y.stage + 1}" if often[x] > 1 else x for x, y in zip(names, several)]
    if twice := [x for x, times in Counter(names).items() if times > 1]:
        raise ValueError(f"there are several {twice[0]}: give names, {{name: scores}}")
    return dict(zip(names, several))


def _kind(scores):
    if are_pairs(scores.documents):
        return PAIRS
    return ROWS if scores.stage else DOCUMENTS


def _note(scores):
    place = f"Stage {scores.stage + 1} of {len(scores.stages)}"
    if not are_pairs(scores.documents):
        return f"{place}."
    return f"{place}. A pair: what was chosen, ≻, what was rejected; its score is of both together."


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
    documents = [x[0] for x in both.values()]
    if are_pairs(documents):
        options = {**options, "objective": loss_of_pairs(scores.stages, scores.stage, documents)}
    return {
        "scores": tables,
        "queries": scores.questions,
        "documents": documents,
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
