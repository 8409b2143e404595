"""What README, docs/findings.md and the index claim, in words; each number is a `Number`."""

from dataclasses import dataclass

from msif.study.pipeline import front
from msif.study.tracing.names import named
from support.quoted import (
    ALONG,
    REPORTS,
    Number,
    answered,
    by_chance,
    case_study,
    converged,
    curvature,
    exact,
    exchanged,
    gain,
    kinds,
    lds,
    lead,
    metrics,
    of_front,
    published,
    retrained,
    tracing,
    tuned,
)

OVER = "trackstar_trajectory"  # what is best of the rivals, where words do not decide
PUBLISHED = ("stories", "webnlg")  # profiles that README quotes of notebook 12


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
    facts, plants = ("removal", "facts"), ("removal", "plants")
    best = [
        tuned(p, m)
        for m in ("multi_stage", "single_stage_finetuned")
        for p in ("stories", "webnlg")
    ]
    lost = [case_study(*facts, x, "flipped_or_halved") for x in ("influence", "bm25", "random")]
    answers, traits = (case_study(*x, "influence", "answers") for x in (facts, plants))
    return [
        phrase("multi-stage has {:2} and {:2} on these two", *best[:2]),
        phrase("single-stage {:2} and {:2}. `smollm`", *best[2:]),
        phrase(
            "on a GPU it has {:2} with 48 questions",
            tracing("multi_stage_trajectory", "plain", "smollm_h100"),
        ),
        phrase(
            "multi-stage has {:2} on `stories` and {:2} on `webnlg`",
            *as_published("multi-stage, absolute"),
        ),
        phrase(
            "({:2} and {:2} as its code was", *as_published("as released (H₁ unused), absolute")
        ),
        phrase("without H₁), single-stage {:2} and {:2}", *as_published("single-stage, absolute")),
        phrase("at its best damping {:2} and {:2}", *(at_best(x) for x in PUBLISHED)),
        phrase("BM25 {:2} and {:2};", *as_published("BM25")),
        phrase(
            "gradient norm multi-stage has {:2} and {:2}",
            *as_published("multi-stage, absolute, normalised"),
        ),
        phrase(
            "single-stage {:2} and {:2}. - **Text",
            *as_published("single-stage, absolute, normalised"),
        ),
        phrase(
            "it is {:2} ± {:2} above TrackStar (among the same words {:2} ± {:2})",
            *(lead(c, OVER, what) for c in ("causal", "matched") for what in ("mean", "se")),
        ),
        phrase("a rule of word order has {:2}.", tracing("word_order", "causal")),
        phrase("with {:2}, not {:2}", lds("multi_stage", 5), lds("multi_stage", 1)),
        phrase(
            "exact curvature take {:2} to {:2}",
            exchanged("multi_stage"),
            exchanged("multi_stage_refined"),
        ),
        phrase("{:%} of {:} right answers are lost", lost[0], answers),
        phrase("{:%} by BM25's five, which {:} answers do not", lost[1], answers),
        phrase("{:%} by random ones", lost[2]),
        phrase(
            "of {:} planted traits {:%} by either",
            traits,
            case_study(*plants, "influence", "flipped_or_halved"),
        ),
    ]


def as_published(method):
    """MRR of a method of notebook 12 on the profiles that are quoted."""
    return [published(x, "methods", method, "mrr") for x in PUBLISHED]


def at_best(profile):
    """Single-stage, not normalised, at the best of notebook 12's absolute dampings."""
    each = metrics(profile, "as_published")["by_damping"]["single-stage, raw"]
    best = max(each, key=lambda d: each[d]["mean"])
    return published(profile, "by_damping", "single-stage, raw", best)


def of_table():
    """[(cell of the front table, Number)]."""
    return [
        (f"{row.profile}, {front.QUESTIONS[row.condition]}: {_called(column, x)}", _in(row, x))
        for row in front.rows(REPORTS)
        for column in front.COLUMNS
        for x in (row.cells[column].one, row.cells[column].over)
        if x
    ]


def _called(column, value):
    return named(value.method) if column.endswith("-stage") else f"{column}, {named(value.method)}"


def _in(row, value):
    return of_front(row.profile, row.condition, value)


def of_answers():
    """The phrases of what `front` says below its table."""
    profiles = dict.fromkeys(row.profile for row in front.rows(REPORTS))
    gains = [
        phrase(f"{p} ({{:+3}} [{{:+3}}, {{:+3}}])", *(gain(p, x, ALONG) for x in GAIN))
        for p in profiles
        if metrics(p, "fact_tracing")["paired"].get(" - ".join(ALONG), {})
    ]
    bed = {(m, w): exact("test-bed", m, 0, w) for m in NEAR for w in ("spearman", "pearson")}
    return [
        *(x for x in gains if x.numbers[1].value <= 0),
        *(
            phrase(
                f"{row.profile}, {front.QUESTIONS[row.condition]} ({{:2}} and {{:2}})",
                *(_in(row, x) for x in pair),
            )
            for which in ("one", "over")
            for row in front.rows(REPORTS)
            for pair in [[getattr(row.cells[x], which) for x in front.COLUMNS[:2]]]
            if all(pair) and pair[0].mean >= pair[1].mean
        ),
        phrase("state the fact have an MRR of {:2}", tracing("multi_stage")),
        phrase("a Spearman of {:2} with that of exact", bed["EK-FAC", "spearman"]),
        phrase("(dot product of gradients {:2})", bed["gradient dot", "spearman"]),
        phrase(
            "is {:2} (dot product {:2})", *(bed[m, "pearson"] for m in ("EK-FAC", "gradient dot"))
        ),
        phrase(
            "correlation of {:2}, BM25 {:2}; noise allows {:2}",
            lds("multi_stage", 1),
            lds("bm25", 1),
            retrained("ceiling"),
        ),
    ]


GAIN = ("mean", "low", "high")
NEAR = ("EK-FAC", "K-FAC", "gradient dot")

# ------------------------------------------------------------------------------- docs/findings.md


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
        for what in ("mean", "se")
    ]
    plants = ("removal", "plants", "influence")
    return [
        phrase(
            "plain {:3} ± {:3} (embeddings), same words {:3} ± {:3} and causal {:3} ± {:3} "
            "(TrackStar over checkpoints",
            *leads,
        ),
        phrase("T₂ adds {:3} and {:3} on", gain("stories"), gain("webnlg")),
        phrase(
            "LDS {:2} in place of {:2}", exchanged("multi_stage_refined"), exchanged("multi_stage")
        ),
        phrase("(Spearman {:2}, {:2}, {:2})", *near[0]),
        phrase("(Pearson {:2}, {:2}, {:2})", *near[1]),
        phrase("{:2} against {:2}", *stories),
        phrase("(alike to {:2} of 1;", kinds("alike", "full and LoRA")),
        phrase(
            "MRR {:+2} ± {:2}, LDS {:+2} ± {:2}; with DPO after it {:+2} ± {:2} and {:+2} ± {:2}.",
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
        phrase("(the models repeat {:} of {:};", *repeated),
        phrase(
            "for each of {:} right answers", case_study("removal", "facts", "influence", "answers")
        ),
        phrase(
            "either five lose {:%} of {:}",
            case_study(*plants, "flipped_or_halved"),
            case_study(*plants, "answers"),
        ),
    ]


# ------------------------------------------------------------------------------------------ index


def index():
    """{stage: its Numbers}: of the sentence and the number of each card, profile `full`."""
    paired = [("multi_stage", x) for x in ("pretraining_only", "finetuning_only")]
    along, one = "multi_stage_trajectory", "multi_stage"
    leads = (("plain", "embeddings"), ("matched", OVER), ("causal", OVER))
    products = ("removal", "facts"), ("removal", "plants")
    best = lds("multi_stage_source", 5)
    share = Number(
        best.value / retrained("ceiling").value, "–", 1, best.models, best.file, "lds / ceiling"
    )
    rival = metrics("full", "retraining")["lead"]["single_stage_finetuned"]
    ahead = retrained("lead", "single_stage_finetuned", "value", spread=f"± {rival['error']:.3f}")
    error = retrained("lead", "single_stage_finetuned", "error")
    errors = "Λ, gaussian pseudo-labels", "Λ, sampled labels"
    blocks = converged("the dial, block alone", 50), converged("the dial", 20)
    costs = [
        converged(*at, "cost").value for at in (("the dial, block alone", 50), ("the dial", 20))
    ]
    ratio = Number(costs[0] / costs[1], "–", 1, 1, blocks[0].file, "cost / cost of the dial")
    return {
        "testbed": [answered(x) for x in ("finetuned", "pretrained", "chance")],
        "factors": [
            *(curvature("top_1_percent_share", x) for x in ("pretraining", "finetuning")),
            *(curvature("relative_error", x, "2000") for x in errors),
        ],
        "fact_tracing": [
            *(tracing(x, c) for x in (along, one) for c in ("plain", "matched", "causal")),
            *(by_chance(c, "auc") for c in ("matched", "causal")),
            *(lead(*at, what) for at in leads for what in ("mean", "se")),
            *(gain("full", x, p, f) for x in GAIN for p in paired for f in ("raw", "normalised")),
        ],
        "exact": [
            *(exact("test-bed", m) for m in NEAR),
            exact("test-bed", "EK-FAC", 0, "pearson"),
            exact("test-bed", "block CG", 20),
        ],
        "scalability": [
            *(converged(x, 0) for x in ("EK-FAC", "gradient dot")),
            *blocks,
            ratio,
        ],
        "retraining": [best, retrained("ceiling"), share, ahead, error, lds("statements", 5)],
        "case_studies": [
            *(
                case_study("planted", x, "precision_at_5")
                for x in ("influence", "one checkpoint", "bm25")
            ),
            *(
                case_study(*at, x, "flipped_or_halved")
                for at in products
                for x in ("influence", "bm25", "random")
            ),
        ],
    }
