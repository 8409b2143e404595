"""What README, docs/findings.md and docs/prediction.md claim, in words, each number a `Number`."""

from dataclasses import dataclass, replace

from msif.study.pipeline import front, traced
from msif.study.tracing.names import named
from support.quoted import (
    REPORTS,
    added,
    answered,
    exact,
    filtered,
    halves,
    lead,
    metrics,
    of_difference,
    of_front,
    published,
    subject_first,
    tracing,
)
from support.quoted_retrained import (
    case_study,
    exchanged,
    kinds,
    kinds_each,
    kinds_over_corpora,
    lds,
    regime,
    removed,
    retrained,
)

ALONG = "multi_stage_trajectory"
HALF = ("other half", f"{ALONG}/normalised")
OVER = "trackstar_trajectory"  # what is best of the rivals, where words do not decide
SECOND = ("gains", "second stage")
PUBLISHED = ("full", "stories", "webnlg")  # profiles that README quotes of notebook 12


@dataclass(frozen=True)
class Phrase:
    """Words of a page, with a field for each number: {:2} two digits, {:%} a share, {:+3} a
    change."""

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
            "`webnlg`: multi-stage has {:2}, {:2} and {:2}, single-stage {:2}, {:2} and {:2}:",
            *as_published("multi-stage, absolute"),
            *as_published("single-stage, absolute"),
        ),
        phrase(
            "adds {:2} [{:2}, {:2}] on `full` and {:2} [{:2}, {:2}] on `webnlg`, and costs {:2} "
            "[{:2}, {:2}] on `stories`.",
            *(published(x, *SECOND, what=what) for x in ("full", "webnlg") for what in GAIN),
            *costs_of_the_second_stage(),
        ),
        phrase(
            "the same words ({:2}; influence {:2}), and is no worse for what mattered ({:2}; {:2})",
            *(tracing(x, c) for c in ("matched", "causal") for x in ("word_order", ALONG)),
        ),
        phrase(
            "TrackStar are level ({:+2} [{:+2}, {:+2}])",
            *(lead("causal", OVER, what) for what in GAIN),
        ),
        phrase(
            "rank correlation {:2}, one at {:2}; single-stage at {:2} and {:2}",
            *(lds(m, n) for m in ("multi_stage", "single_stage_finetuned") for n in (5, 1)),
        ),
        phrase(
            "{:%} of {:} right answers change", removed("lost", "influence"), removed("answers")
        ),
        phrase(
            "embeddings' five {:%}, single-stage's {:%} (not surely fewer), random {:%}.",
            *(removed("lost", x) for x in ("embeddings", "single-stage", "random")),
        ),
    ]


def as_published(method):
    """MRR of a method of notebook 12 on the profiles that are quoted."""
    return [published(x, "methods", method, "mrr") for x in PUBLISHED]


def costs_of_the_second_stage():
    """(mean, low, high) of single-stage less multi-stage on stories, with the paper's settings."""
    gain = metrics("stories", "as_published")["gains"]["second stage"]
    assert gain["high"] < 0
    lost = published("stories", *SECOND)
    turned = replace(lost, value=-lost.value)
    ends = [
        replace(turned, value=-gain[x], spread="–", key=f"{lost.key}, {x}") for x in ("high", "low")
    ]
    return [turned, *ends]


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
            f"{traced.QUESTIONS[row.condition]} {{:+3}} [{{:+3}}, {{:+3}}]",
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

# ---------------------------------------------------------- docs/findings.md and docs/prediction.md

FIRST, WINDOW = ("recipes", "as it is"), ("windows", "4")
OURS, COUNTED = (("lds", x, "ensemble") for x in ("multi-stage", "counting statements"))


def of_ceiling(where):
    """The LDS of multi-stage influence over what noise allows."""
    value, ceiling = regime(where, *OURS), regime(where, "ceiling")
    ratio = value.value / ceiling.value
    return replace(value, value=ratio, spread="–", key=f"{value.key} / {ceiling.key}")


def surely_ahead_of(method):
    """In how many recipes multi-stage influence is ahead by more than two errors; nowhere may it be
    so far behind."""
    recipes = metrics("full", "regimes")["gains"]
    leads = [x[method]["value"] / x[method]["error"] for x in recipes.values()]
    assert min(leads) > -2
    count = regime(("gains", "as it is"), method)
    key = f"gains, {method}: more than two errors"
    return replace(count, value=sum(x > 2 for x in leads), spread="–", key=key)


def findings():
    """The phrases of its prose."""
    near = [[exact("test-bed", m, 0, what) for m in NEAR] for what in ("spearman", "pearson")]
    repeated = [case_study("planted", "repeated", x, spread="–") for x in ("plants", "of")]
    stories = [
        case_study("planted", x, "precision_at_5", profile="stories") for x in ("bm25", "influence")
    ]
    leads = [
        lead(c, over, what)
        for c, over in (("plain", "embeddings"), ("matched", OVER), ("causal", OVER))
        for what in GAIN
    ]
    plants = ("removal", "plants", "influence")
    return [
        phrase(
            "plain {:3} [{:3}, {:3}] (embeddings), same words {:3} [{:3}, {:3}] and causal {:3} "
            "[{:3}, {:3}] (TrackStar over checkpoints",
            *leads,
        ),
        phrase(
            "fine-tuning's {:+3} [{:+3}, {:+3}], pre-training's {:+3} [{:+3}, {:+3}]",
            *added("matched", "pretraining_only"),
            *added("matched", "finetuning_only"),
        ),
        phrase("has little to go by** ({:3}), among", subject_first("word_order/raw")),
        phrase(
            "over checkpoints has {:3} [{:3}, {:3}], TrackStar {:3} [{:3}, {:3}], embeddings {:3} "
            "[{:3}, {:3}]",
            *(
                subject_first(x, what)
                for x in (f"{ALONG}/normalised", f"{OVER}/raw", "embeddings/raw")
                for what in GAIN
            ),
        ),
        phrase(
            "find with {:3} [{:3}, {:3}] and influence with {:3} [{:3}, {:3}]; where the subject "
            "comes first with {:3} and {:3}.",
            *(halves("all candidates", x, what) for x in HALF for what in GAIN),
            *(halves("subject first", x) for x in HALF),
        ),
        phrase(
            "keeps {:%} of a question's top ten, {:%} on `webnlg` and {:%} on `stories`",
            *map(filtered, ("full", "webnlg", "stories")),
        ),
        phrase(
            "take the LDS from {:2} to {:2}",
            exchanged("multi_stage"),
            exchanged("multi_stage_refined"),
        ),
        phrase(
            "ahead of single-stage by {:2} and {:2}.",
            *kinds_each("lds_lead_at_best", "full", "single"),
        ),
        phrase("its error about {:2}", regime(FIRST, *OURS, "error")),
        phrase(
            "Of 10 %, 25 % and half multi-stage has {:2}, {:2} and {:2} of what noise allows",
            *(of_ceiling(("shares", x)) for x in ("0.1", "0.25", "0.5")),
        ),
        phrase(
            "(of the LDS {:2}, of what noise allows {:2} to {:2})",
            regime(FIRST, *OURS, "error"),
            *(regime(("shares", x), "ceiling_error") for x in ("0.5", "0.1")),
        ),
        phrase(
            "alone it has {:2} (noise allows {:2}, counting the statements has {:2}), in all "
            "epochs {:2} ({:2}, {:2}).",
            *(regime(x, *at) for x in (WINDOW, FIRST) for at in (OURS, ("ceiling",), COUNTED)),
        ),
        phrase(
            "a rank correlation of {:2}, which {:%} of all orders",
            *(regime((), x) for x in ("correlation", "by_chance")),
        ),
        phrase(
            "ahead of TRAK in {:} of the {:} recipes, of single-stage in {:}, of TrackStar (one "
            "variant) in {:}, of two exact products in {:}, of corrected Shampoo in {:},",
            surely_ahead_of("TRAK"),
            regime((), "recipes", count=True),
            *map(surely_ahead_of, ("single-stage", "TrackStar", "with exact products")),
            surely_ahead_of("corrected Shampoo"),
        ),
        phrase(
            "ten highest share {:%} (two seeds of full fine-tuning {:%})",
            *(kinds("shared", x) for x in ("full and LoRA", "two seeds of full")),
        ),
        phrase(
            "gives another answer ({:%})",
            case_study("removal", "facts", "influence", "flipped"),
        ),
        phrase("(Spearman {:2}, {:2}, {:2})", *near[0]),
        phrase("(Pearson {:2}, {:2}, {:2})", *near[1]),
        phrase("{:2} against {:2}", *stories),
        phrase("(alike to {:2} of 1;", kinds("alike", "full and LoRA")),
        phrase(
            "MRR {:+2} ± {:2}, LDS ([prediction](prediction.md)) {:+2} ± {:2}; with DPO after it "
            "{:+2} ± {:2} and {:+2} ± {:2}.",
            *[
                x
                for kind in ("LoRA", "LoRA, DPO")
                for lead in ("mrr_lead_at_best", "lds_lead_at_best")
                for x in (
                    kinds(lead, kind, "as full", sign=-1),
                    kinds(lead, kind, "as full", "error"),
                )
            ],
        ),
        phrase(
            "95 % is {:2} to {:2} for MRR, {:2} to {:2} for LDS",
            *kinds_over_corpora("mrr_lead_at_best"),
            *kinds_over_corpora("lds_lead_at_best"),
        ),
        phrase("(the models repeat {:} of {:};", *repeated),
        phrase(
            "for each of {:} right answers", case_study("removal", "facts", "influence", "answers")
        ),
        phrase(
            "{:%} of {:} right answers of four models",
            removed("lost", "influence"),
            removed("answers"),
        ),
        phrase(
            "embeddings' five {:%} (a difference of {:+0} [{:+0}, {:+0}] points), single-stage's "
            "{:%} ({:+0} [{:+0}, {:+0}]), random ones {:%}",
            removed("lost", "embeddings"),
            *(removed("lead", "embeddings", x, times=100) for x in GAIN),
            removed("lost", "single-stage"),
            *(removed("lead", "single-stage", x, times=100) for x in GAIN),
            removed("lost", "random"),
        ),
        phrase(
            "either five lose {:%} of {:}",
            case_study(*plants, "flipped_or_halved"),
            case_study(*plants, "answers"),
        ),
    ]
