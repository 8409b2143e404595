"""What docs/findings.md and docs/prediction.md claim, in words, each number a `Number`."""

from dataclasses import replace

from support.phrases import ALONG, GAIN, HALF, NEAR, OVER, at_less_damping, phrase
from support.quoted import (
    added,
    exact,
    filtered,
    halves,
    lead,
    metrics,
    recorded,
    subject_first,
    tracing,
)
from support.quoted_retrained import (
    case_study,
    exchanged,
    kinds,
    kinds_over_corpora,
    lds,
    lead_over_corpora,
    leads_by_corpus,
    recipe_count,
    regime,
    removed,
    retrained,
)

REMOVED_BY = ("influence", "embeddings", "single-stage", "random")
FIRST, WINDOW, OWN = ("recipes", "as it is"), ("windows", "4"), ("own_less_other",)
OURS, COUNTED = (("lds", x, "ensemble") for x in ("multi-stage", "counting statements"))


def along(method):
    """A method at one checkpoint and over several, among the same words and for what mattered."""
    return [
        tracing(f"{method}{end}", condition)
        for condition in ("matched", "causal")
        for end in ("", "_trajectory")
    ]


def of_ceiling(where):
    """The LDS of multi-stage influence over what noise allows, in notebook 11."""
    return share_of_ceiling(regime(where, *OURS), regime(where, "ceiling"))


def share_of_ceiling(value, ceiling):
    """An LDS over what noise allows."""
    ratio = value.value / ceiling.value
    return replace(value, value=ratio, spread=None, key=f"{value.key} / {ceiling.key}")


def own_elsewhere():
    """The least and the greatest lead of the own seed over recipes and shares; none may be more
    than two errors."""
    names = [x for x in metrics("full", "regimes")["own_less_other"] if not x.startswith("last")]
    found = [regime(OWN, x) for x in names]
    assert all(abs(regime(OWN, x).value) <= 2 * regime(OWN, x, "error").value for x in names)
    return [pick(found, key=lambda x: x.value) for pick in (min, max)]


def surely_ahead_of(method):
    """In how many recipes multi-stage influence is ahead by more than two errors; nowhere may it be
    so far behind."""
    recipes = metrics("full", "regimes")["gains"]
    leads = [x[method]["value"] / x[method]["error"] for x in recipes.values()]
    assert min(leads) > -2
    return recipe_count(f"gains, {method}: more than two errors", sum(x > 2 for x in leads))


def findings():
    """The phrases of its prose."""
    near = [[exact("test-bed", m, 0, what) for m in NEAR] for what in ("spearman", "pearson")]
    repeated = [case_study("planted", "repeated", x) for x in ("plants", "of")]
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
        phrase(
            "(`webnlg`, four corpora) fine-tuning's {:+3} [{:+3}, {:+3}].",
            *added("plain", "pretraining_only", "webnlg"),
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
            "take the LDS from {:2} to {:2} (one model), at ten and a hundred times that damping "
            "to {:2} and {:2}.",
            *map(exchanged, ("multi_stage", "multi_stage_refined")),
            *map(exchanged, ("refined, damping 0.1", "refined, damping 1")),
        ),
        phrase(
            "goes from {:3} to {:3} among the same words and from {:3} to {:3} for what mattered",
            *along("single_stage_finetuned"),
        ),
        phrase("from {:3} to {:3} and from {:3} to {:3}.", *along("multi_stage")),
        phrase(
            "(`webnlg`, one model) {:%}, {:%}, {:%} and {:%} of {:} answers",
            *(removed("lost", x, profile="webnlg") for x in REMOVED_BY),
            removed("answers", profile="webnlg"),
        ),
        phrase(
            "{:%} of {:} go without random documents",
            removed("lost", "random", profile="stories"),
            removed("answers", profile="stories"),
        ),
        phrase("EK-FAC has {:2} to {:2} on the first three", *at_less_damping()[1:]),
        phrase("the ceiling is ± {:2}", retrained("ceiling_error")),
        phrase(
            "its set-up costs as much as {:0} products of block CG, each of its own as much as "
            "{:0}",
            *(
                recorded("full", "scalability", ("dial", f"{x}_in_products"), 1, 1)
                for x in ("set_up", "iteration")
            ),
        ),
        phrase(
            "averaging five takes {:2} to {:2}, still {:2} of the ceiling",
            *(lds("multi_stage", n) for n in (1, 5)),
            share_of_ceiling(lds("multi_stage", 5), retrained("ceiling")),
        ),
        phrase(
            "lead over TrackStar is {:2} ± {:2}, over single-stage {:2} ± {:2}.",
            *(
                retrained("lead", rival, x)
                for rival in ("trackstar", "single_stage_finetuned")
                for x in ("value", "error")
            ),
        ),
        phrase(
            "ahead of single-stage by {:2}, {:2} and {:2}; over the four by {:2} [{:2}, {:2}].",
            *leads_by_corpus()[1:],
            *lead_over_corpora(),
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
            "(by {:2} ± {:2}); left out in all epochs not surely ({:2} to {:2} by recipe and "
            "share, ± {:2}).",
            regime(OWN, "last 4 epochs"),
            regime(OWN, "last 4 epochs", "error"),
            *own_elsewhere(),
            regime(OWN, "as it is", "error"),
        ),
        phrase(
            "ahead of TRAK in {:} of the {:} recipes, of single-stage in {:}, of TrackStar (one "
            "variant) in {:}, of two exact products in {:}, of corrected Shampoo in {:},",
            surely_ahead_of("TRAK"),
            recipe_count("recipes", len(metrics("full", "regimes")["recipes"])),
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
                    -kinds(lead, kind, "as full"),
                    -kinds(lead, kind, "as full", "error"),
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
            "embeddings' five {:%} (a difference of {:+p} [{:+p}, {:+p}] points), single-stage's "
            "{:%} ({:+p} [{:+p}, {:+p}]), random ones {:%}",
            removed("lost", "embeddings"),
            *(removed("lead", "embeddings", x) for x in GAIN),
            removed("lost", "single-stage"),
            *(removed("lead", "single-stage", x) for x in GAIN),
            removed("lost", "random"),
        ),
        phrase(
            "either five lose {:%} of {:}",
            case_study(*plants, "flipped_or_halved"),
            case_study(*plants, "answers"),
        ),
    ]
