"""What README claims, and the index below its table, in words, each number a `Number`."""

from dataclasses import dataclass
from statistics import fmean

from msif.study.pipeline import front, traced
from msif.study.tracing.names import named
from support.quoted import (
    REPORTS,
    Number,
    answered,
    exact,
    lead,
    metrics,
    of_difference,
    of_front,
    published,
    read,
    recorded,
    subject_first,
    tracing,
)
from support.quoted_retrained import (
    case_study,
    gains_of_fine_tunings_curvature,
    lds,
    lead_over_corpora,
    removed,
    retrained,
)

ALONG = "multi_stage_trajectory"
HALF = ("other half", f"{ALONG}/normalised")
OVER = "trackstar_trajectory"  # what is best of the rivals, where words do not decide
SECOND = ("gains", "second stage, each at the best of these absolute dampings")
PUBLISHED = ("full", "webnlg", "stories")  # profiles that README quotes of notebook 12


@dataclass(frozen=True)
class Phrase:
    """Words of a page, with a field for each number: {:2} two digits, {:%} a share, {:+p} points,
    {:+3} a change."""

    words: str
    numbers: tuple

    def __str__(self):
        return self.words.format(*self.numbers)


def phrase(words, *numbers):
    return Phrase(words, numbers)


# ----------------------------------------------------------------------------------------- README


def readme():
    """The phrases of README's first section, but for what `front` makes."""
    return [
        phrase("on `stories` everything (it answers {:%})", answered("finetuned", "stories")),
        phrase(
            "multi-stage less single-stage: {:2} [{:2}, {:2}] on `full`, {:2} [{:2}, {:2}] on "
            "`webnlg`, {:2} [{:2}, {:2}] on `stories`.",
            *(published(x, *SECOND, what=what) for x in PUBLISHED for what in GAIN),
        ),
        phrase(
            "{:2} among the same words (influence {:2}), for what mattered {:2} ({:2}; TrackStar "
            "level, {:+2} [{:+2}, {:+2}]).",
            *(tracing(x, c) for c in ("matched", "causal") for x in ("word_order", ALONG)),
            *(lead("causal", OVER, what) for what in GAIN),
        ),
        phrase(
            "little to go by ({:2}), influence has {:2}, sentence embeddings {:2}.",
            *map(subject_first, ("word_order/raw", f"{ALONG}/normalised", "embeddings/raw")),
        ),
        phrase(
            "rank correlation {:2}, one at {:2}; single-stage {:2} and {:2}, TrackStar {:2} and "
            "{:2} (one corpus; over four multi-stage leads single-stage by {:2} [{:2}, {:2}], "
            "itself without fine-tuning's curvature by {:2} to {:2})",
            *(
                lds(m, n)
                for m in ("multi_stage", "single_stage_finetuned", "trackstar")
                for n in (5, 1)
            ),
            *lead_over_corpora(),
            *gains_of_fine_tunings_curvature(),
        ),
        phrase(
            "{:%} of {:} right answers change or halve in probability (of 40 others {:%})",
            removed("lost", "influence"),
            removed("answers"),
            case_study("removal", "facts", "influence", "flipped_or_halved"),
        ),
        phrase(
            "embeddings' five {:%}, single-stage's {:%} (not surely fewer), random {:%}.",
            *(removed("lost", x) for x in ("embeddings", "single-stage", "random")),
        ),
    ]


def of_table():
    """[(cell of the front table, Number)]."""
    return [
        (f"{row.profile}, {row.question}: {_called(column, x)}", _in(row, x))
        for row in traced.rows(REPORTS)
        for column, x in row.cells.items()
        if x
    ]


def _called(column, value):
    own = column in traced.INFLUENCE
    return named(value.method) if own else f"{column}, {named(value.method)}"


def _in(row, value):
    return of_front(row.profile, row.condition, value)


def at_less_damping():
    """The damping of notebook 04's numbers; the least and the greatest of EK-FAC's order over the
    problems at a hundredth of it."""
    damping = recorded("full", "exact", ("damping",), 1, 1)
    found = {}
    for r in read("full", "exact"):
        if (r["method"], r["stages"], r["products"], r["damping"]) == ("EK-FAC", 2, 0, 0.001):
            found.setdefault(r["problem"], []).append(r["spearman"])
    key = "EK-FAC, two stages, damping 0.001: spearman"
    each = [
        Number(fmean(x), None, 1, len(x), "full/exact.json", f"{name}, {key}")
        for name, x in found.items()
    ]
    return [damping, *(pick(each, key=lambda x: x.value) for pick in (min, max))]


def of_answers():
    """The phrases of what `front` says below its table."""
    found = traced.rows(REPORTS)
    shown = [
        (row, x, column)
        for column, over, *_ in front.AGAINST
        for row, x in traced.differences(REPORTS, [r for r in found if r.over == over], column)
        if x and x.high < 0
    ]
    gains = [
        phrase(
            f"{row.question} {{:+3}} [{{:+3}}, {{:+3}}]",
            *of_difference(row, x, column),
        )
        for row, x, column in shown
    ]
    (order, size), (of_dot, size_dot) = (
        [_ends(method, what) for what in ("spearman", "pearson")]
        for method in ("EK-FAC", "gradient dot")
    )
    return [
        *gains,
        phrase(
            "ahead in {:2} of the pairs, over checkpoints {:2} (a rule of word order alone: {:2})",
            *(tracing(x, "matched") for x in ("multi_stage", "multi_stage_trajectory")),
            tracing("word_order", "matched"),
        ),
        phrase("at damping {:} (at 0.001 less: {:2} to {:2}), the", *at_less_damping()),
        phrase("a Spearman of {:2} to {:2} with that of exact", *order),
        phrase("(dot product of gradients {:2} to {:2})", *of_dot),
        phrase("a Pearson of {:2} to {:2} ({:2} to {:2})", *size, *size_dot),
        phrase(
            "correlation of {:2}, BM25 {:2}, counting the sentences that state the fact {:2}; "
            "noise allows at most {:2}",
            lds("multi_stage", 1),
            lds("bm25", 1),
            lds("statements", 5),
            retrained("ceiling"),
        ),
    ]


def _ends(method, what):
    """The least and the greatest of notebook 04's problems."""
    problems = metrics("full", "exact")["two_stages"]
    found = [exact(problem, method, 0, what) for problem in problems]
    return [pick(found, key=lambda x: x.value) for pick in (min, max)]


GAIN = ("mean", "low", "high")
NEAR = ("EK-FAC", "K-FAC", "gradient dot")
