"""The explorer of what a trace found, or several, a tab a stage."""

import reprlib
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msif.api.kinds import adapters_digest
from msif.api.scores import Scores
from msif.api.stages import layers_key, loss_of_pairs
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
    withhold_texts: bool | Collection[int] | Mapping[str, Any] = False,
    trained_on: int | Mapping[str, int] | None = None,
    title: str = "Influence explorer",
    height: int = 760,
    **options: Any,
) -> Any:
    """The explorer of these scores: inline in JupyterLab, or as one HTML file at `path` that loads
    nothing.

    Documents are shaded by the part of the score that passes through each token. Scores of several
    stages for the same questions, as a list or as {name: scores}, have a tab each; where their
    stages were fitted or inverted with other settings, the tab says which. count: documents from
    the top of each ranking, and opponents from its end. beside: other methods' scores, {name:
    (q, n)} in the order of `scores.index`. withhold_texts: write no word of the documents (of third
    parties, say), or of those of these numbers; of tabs {name: either}. trained_on: N, the
    number of documents that the loss of their stage is a mean over, of which these may be a part;
    each then shows −score / N, by how many nats leaving it out would change the answer's
    log-probability (a first-order estimate; its size depends on damping and α); of tabs {name: N}.
    options: `groups`, `notes` (one string a question), `labels` (one {document number: text} a
    question), `methods` ({name: a line about it}), `about`; `beside` and `labels` of one stage
    alone. Returns an IPython `HTML`, or the path. Raises ValueError for sizes that do not fit
    together, for numbers of no document, an N that is no whole number of at least 1, and for scores
    of other questions, models or layers.

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
    hidden, sizes = _withheld(withhold_texts, found), _sizes(trained_on, found)
    if len(found) == 1:
        [(name, one)] = found.items()
        options = options | {"trained_on": sizes[name]}
        given = explored(one, count or one.shown, opponents, beside or {}, options)
        shown = _hiding(explorer.prepared(**given), hidden[name])
        if path is not None:
            return explorer.write(path, title, **shown)
        return explorer.inline(explorer.page(title, **shown), title, height)
    if beside or "labels" in options:
        raise ValueError(
            f"{'beside' if beside else 'labels'} with scores of {len(found)} stages: expected "
            f"scores of one, whose documents they belong to"
        )
    about, pages, settings = options.pop("about", ""), {}, [_settings(x) for x in found.values()]
    differ = [name for name in settings[0] if len({x[name] for x in settings}) > 1]
    for (name, one), setting in zip(found.items(), settings):
        mine = options | {"trained_on": sizes[name]}
        given = explored(one, count or one.shown, opponents, {}, mine)
        told = ", ".join(f"{x} = {setting[x]}" for x in differ)
        note = f"{_note(one)} Not as in all tabs: {told}." if told else _note(one)
        pages[name] = _hiding(explorer.prepared(**given), hidden[name]) | {"note": note}
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
        if other := _other(first, x):
            raise ValueError(
                f"scores of stages {first.stage} and {x.stage} are for other {other}: expected the "
                f"same for all tabs, with the same answers"
            )
    names = [*given] if named else [_kind(x) for x in several]
    often = Counter(names)
    names = [f"{x}, stage {y.stage + 1}" if often[x] > 1 else x for x, y in zip(names, several)]
    if twice := [x for x, times in Counter(names).items() if times > 1]:
        raise ValueError(f"there are several {twice[0]}: give names, {{name: scores}}")
    return dict(zip(names, several))


def _other(one, two):
    """What of two scores must not differ, and does; "" for nothing."""
    if len(one.stages) != len(two.stages):
        return f"models (of {len(one.stages)} and {len(two.stages)} stages)"
    for k, both in enumerate(zip(one.stages, two.stages), 1):
        ends = [(x.factors.header["model"], adapters_digest(x.model.adapters)) for x in both]
        if ends[0] != ends[1]:
            sources = " and ".join(x.model.source for x in both)
            return f"models (in stage {k} {sources})"
        layers = [layers_key(x.model) for x in both]
        if layers[0] != layers[1]:
            return f"layers (of stage {k}, {len(layers[0])} and {len(layers[1])} are tracked)"
    return "" if one.questions == two.questions else "questions"


FITTED = ("labels", "samples", "seed", "b", "sequences", "tokens", "data")


def _settings(scores):
    """{what may differ between chains of equal models: its value, as text}."""
    found = {}
    for k, x in enumerate(scores.stages, 1):
        numbers = {"damping": x.core.damping, "α": x.core.alpha}
        told = {
            name: f"{y.value!r}{'' if y.relative else ' (absolute)'}" for name, y in numbers.items()
        }
        told |= {name: str(getattr(x, name)) for name in ("new", "decay", "remainder")}
        header = x.factors.header
        told |= {f"{name} of the factors": str(header.get(name))[:12] for name in FITTED}
        found |= {f"{name} of stage {k}": value for name, value in told.items()}
    return found


def _of_tabs(what, given, found, expected, for_all):
    """{tab: value} of the tabs that are given. for_all: may the same value be of several tabs?
    ValueError if it may not, and for what is no tab."""
    names = ", ".join(map(repr, found))
    if not isinstance(given, Mapping):
        if len(found) > 1 and not for_all:
            raise ValueError(
                f"{what} is {reprlib.repr(given)}, and there are {len(found)} tabs; "
                f"expected {expected}, of {names}"
            )
        given = dict.fromkeys(found, given)
    if wrong := [x for x in given if x not in found]:
        raise ValueError(f"{what} has {wrong[0]!r}, which is no tab; expected {names}")
    return given


def _sizes(given, found):
    """{tab: N, or None where it is not given}. ValueError for anything else."""
    given = _of_tabs("trained_on", given, found, "{name: number}", given is None)
    return {
        name: None if (n := given.get(name)) is None else checks.whole(f"trained_on of {name}", n)
        for name in found
    }


def _withheld(given, found):
    """{tab: True, False, or the documents' numbers}. ValueError for anything else."""
    expected = "True, False, or {name: numbers, or True}"
    given = _of_tabs("withhold_texts", given, found, expected, isinstance(given, bool))
    for name, hidden in given.items():
        if isinstance(hidden, bool):
            continue
        if not isinstance(hidden, Set | list | tuple):
            raise ValueError(
                f"withhold_texts of {name} is {reprlib.repr(hidden)}; expected True, False, or a "
                f"set of documents' numbers"
            )
        known = set(found[name].index.tolist())
        for n in hidden:
            if isinstance(n, bool) or not hasattr(n, "__index__") or n not in known:
                raise ValueError(
                    f"withhold_texts of {name} has {n!r}, which is the number of no document; "
                    f"expected those of its {len(known)} documents"
                )
    return {name: given.get(name, False) for name in found}


def _hiding(shown, hidden):
    """The page's arguments, with what is withheld of the documents that it shows."""
    if not isinstance(hidden, bool):
        hidden = {n for n in map(index, hidden) if n in shown["documents"]}
    return shown | {"withhold_texts": hidden}


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
    numbers = scores.index.tolist() if beside else []
    for name, values in beside.items():
        shape, wanted_shape = (
            tuple(torch.as_tensor(values).shape),
            (len(scores.questions), len(numbers)),
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
        ends = torch.cat([order[:, :count], order[:, len(numbers) - opponents :]], 1)
        wanted |= {numbers[at] for at in ends.flatten().tolist()}
    both = scores.among(wanted)
    units = torch.stack([x[2] for x in both.values()], 1)
    tables = dict(zip(TOLD, (units, torch.stack([x[1] for x in both.values()], 1))))
    place = {n: at for at, n in enumerate(numbers)}
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
        "tuned_tokenizer": tuned.tokenizer,
        "model": model.tracked,
        "w": scores.w,
        "tuned": tuned.tracked,
        "count": count,
        "opponents": opponents,
        "methods": methods,
        **options,
    }
