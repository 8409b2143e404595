"""What the cards of the index claim of profile `full`: each card's sentence, number by number."""

from dataclasses import replace

from msif.study.tracing.names import named
from support.phrases import ALONG, GAIN, NEAR, OVER, phrase
from support.phrases_of_findings import FIRST, OURS
from support.quoted import (
    REPORTS,
    Number,
    answered,
    by_chance,
    converged,
    curvature,
    exact,
    gain,
    lead,
    metrics,
    published,
    tracing,
)
from support.quoted_retrained import (
    case_study,
    kinds,
    lds,
    leading,
    regime,
    removed,
    retrained,
)

ENDS = ("ε = 1e-2, rate 2e-2", "ε = 1e-3, 17 epochs")  # the roughest and the smoothest recipe
ONE = "multi_stage"


def _testbed():
    shares = [answered(x) for x in ("finetuned", "pretrained", "chance")]
    return [phrase("{:%} are answered after it, {:%} before, {:%} by a guess", *shares)]


def _factors():
    shares = [curvature("top_1_percent_share", x) for x in ("pretraining", "finetuning")]
    labels = ("Λ, gaussian pseudo-labels", "Λ, sampled labels")
    return [
        phrase("holds {:%} of pre-training's curvature and {:%} of fine-tuning's", *shares),
        phrase(
            "with an error of {:3}, sampled labels of {:3}",
            *(curvature("relative_error", x, "2000") for x in labels),
        ),
    ]


def _tracing():
    said = [
        phrase(
            "reciprocal rank of {:3} over checkpoints ({:3} at one)",
            *(tracing(x) for x in (ALONG, ONE)),
        ),
        phrase(
            "behind sentence embeddings by {:3} ± {:3}",
            *(-lead("plain", "embeddings", x) for x in ("mean", "se")),
        ),
    ]
    for condition, place in (
        ("matched", "ahead of TrackStar, over checkpoints by {:3} ± {:3}"),
        ("causal", "level with TrackStar, over checkpoints ({:+3} ± {:3})"),
    ):
        said.append(
            phrase(
                "right in {:%} of pairs over checkpoints ({:%} at one), chance {:%}: " + place,
                *(tracing(x, condition) for x in (ALONG, ONE)),
                by_chance(condition, "auc"),
                *(lead(condition, OVER, x) for x in ("mean", "se")),
            )
        )
    for other in ("pretraining_only", "finetuning_only"):
        for form in ("raw", "normalised"):
            without = [-gain("full", x, (ONE, other), form) for x in ("mean", "high", "low")]
            words = f"{form} MRR ({{:+3}}, 95 % {{:+3}} to {{:+3}})"
            said.append(phrase(words, *without))
    return said


def _exact():
    return [
        phrase(
            "EK-FAC shares {:2} of the exact order of all documents (Spearman), K-FAC {:2}, the "
            "plain dot product of gradients {:2}",
            *(exact("test-bed", m) for m in NEAR),
        ),
        phrase("EK-FAC shares {:2} (Pearson)", exact("test-bed", "EK-FAC", 0, "pearson")),
        phrase("gradients share {:2} of the order", exact("test-bed", "block CG", 20)),
    ]


def _scalability():
    blocks, dial = converged("block CG", 50), converged("the dial", 20)
    costs = [converged(*at, "cost").value for at in (("block CG", 50), ("the dial", 20))]
    ratio = Number(costs[0] / costs[1], None, 1, 1, blocks.file, "cost / cost of the dial")
    return [
        phrase("a Spearman of {:2} with", converged("EK-FAC", 0)),
        phrase("the {:2} of gradient dot", converged("gradient dot", 0)),
        phrase("products of the dial reach {:2}", dial),
        phrase("gradients' {:2}, which take 50 products at {:1} times", blocks, ratio),
    ]


def _retraining():
    found = metrics("full", "retraining")
    method, form = found.get("variant", "multi_stage_source_normalised").rsplit("_", 1)
    best, ceiling = lds(method, 5, form), retrained("ceiling")
    share = replace(best, value=best.value / ceiling.value, spread=None, key="lds / ceiling")
    place, rival, value, error = leading()
    return [
        phrase(
            f"a rank correlation of {{:2}} ({named(f'{method}/{form}')}, 5 models): {{:%}} of",
            best,
            share,
        ),
        phrase(f"{place} {named(rival)} by {{:3}} ± {{:3}}", value, error),
        phrase("the {:2} of counting", lds("statements", 5)),
    ]


def _case_studies():
    planted = [
        case_study("planted", x, "precision_at_5")
        for x in ("influence", "influence, normalised", "one checkpoint")
    ]

    def lost(kind, name):
        return case_study("removal", kind, name, "flipped_or_halved")

    def beside(kind, name, title, share):
        return phrase(
            f"{title} with {{:%}} ({{:+p}} [{{:+p}}, {{:+p}}] points)",
            share,
            *(case_study("leads", kind, name, x) for x in GAIN),
        )

    facts, plants = ("removal", "facts"), ("removal", "plants")
    return [
        phrase(
            "association {:%} are those that planted it (over checkpoints; normalised {:%}, and so "
            "at one checkpoint {:%})",
            *planted,
        ),
        beside("planted", "bm25", "BM25", case_study("planted", "bm25", "precision_at_5")),
        phrase(
            "{:%} of {:} right answers flip",
            lost("facts", "influence"),
            case_study(*facts, "influence", "answers"),
        ),
        beside("facts", "bm25", "BM25", lost("facts", "bm25")),
        beside("facts", "random", "random documents", lost("facts", "random")),
        phrase(
            "Of {:} planted associations {:%} do",
            case_study(*plants, "influence", "answers"),
            lost("plants", "influence"),
        ),
        beside("plants", "bm25", "BM25", lost("plants", "bm25")),
    ]


def _removal():
    found = metrics("full", "removal")
    ours, *others = [x for x in found["lost"] if x != "others' documents"]
    return [
        phrase("{:%} of {:} right answers are lost", removed("lost", ours), removed("answers")),
        *(
            phrase(
                f"{named(x)} {{:%}} ({{:+%}} [{{:+%}}, {{:+%}}] for {ours})",
                removed("lost", x),
                *(removed("lead", x, y) for y in GAIN),
            )
            for x in others
        ),
    ]


def _kinds():
    dense = [kinds("exact", "LoRA", "dense", x) for x in ("own, R", "identity")]
    leads = [
        phrase(
            f"{title} ({{:+2}} ± {{:2}})",
            kinds(what, "LoRA", wrong),
            kinds(what, "LoRA", wrong, "error"),
        )
        for what in ("mrr_lead_at_best", "lds_lead_at_best")
        for wrong, title in (("identity", "T := I"), ("as full", "at the merged weights"))
    ]
    return [
        phrase("a Spearman of {:2} with the exact score, T := I has {:2}", *dense),
        *leads,
        phrase(
            "full fine-tuning and LoRA share {:%}, two seeds of full {:%}",
            *(kinds("shared", x) for x in ("full and LoRA", "two seeds of full")),
        ),
    ]


def _as_published():
    changes = ("normalised, in place of plain", "relative damping, in place of absolute")
    norm, damping = ([published("full", "gains", x, what=y) for y in GAIN] for x in changes)
    methods = ("multi-stage, absolute", "single-stage, absolute", "BM25")
    ours, single, search = (published("full", "methods", x, "mrr") for x in methods)
    return [
        phrase("with an MRR of {:2} among", ours),
        phrase("(single-stage {:2}, BM25 {:2})", single, search),
        phrase("gradient norm changes that by {:+2} [{:+2}, {:+2}]", *norm),
        phrase("a relative damping by {:+2} [{:+2}, {:+2}]", *damping),
    ]


def _regimes():
    (rough, least), (smooth, most) = (
        [regime(("recipes", x), *at) for at in (("metasmoothness",), OURS)] for x in ENDS
    )
    return [
        phrase(
            f"({ENDS[0]}, metasmoothness {{:2}}) has an LDS of {{:2}}, the smoothest ({ENDS[1]}, "
            "{:2}) one of {:2}; noise between seeds allows {:2} and {:2}.",
            *(rough, least, smooth, most),
            *(regime(("recipes", x), "ceiling") for x in ENDS),
        ),
        phrase(
            "the two correlate {:2} (by chance as often as {:2})",
            *(regime((), x) for x in ("correlation", "by_chance")),
        ),
    ]


PHRASES = {
    "testbed": _testbed,
    "factors": _factors,
    "fact_tracing": _tracing,
    "exact": _exact,
    "scalability": _scalability,
    "retraining": _retraining,
    "case_studies": _case_studies,
    "kinds_of_fine_tuning": _kinds,
    "removal": _removal,
    "regimes": _regimes,
    "as_published": _as_published,
}
# What stands above a sentence, and not in it.
HEADS = {
    "retraining": lambda: [retrained("ceiling")],
    "kinds_of_fine_tuning": lambda: [kinds("mrr", "LoRA", "own", "normalised")],
    "regimes": lambda: [regime(FIRST, *OURS)],
}
STAGES = [x for x in PHRASES if (REPORTS / "full" / f"{x}.metrics.json").exists()]


def phrases(stage):
    """The phrases of a card's sentence."""
    return PHRASES[stage]()


def said(stage):
    """The Numbers of a card by phrase; last those of its head."""
    return [*(x.numbers for x in phrases(stage)), HEADS.get(stage, list)()]


def numbers(stage):
    """The Numbers of a card, that of its head included."""
    return [n for each in said(stage) for n in each]
