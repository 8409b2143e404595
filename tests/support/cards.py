"""What the cards of the index claim of profile `full`: the numbers of each card's sentence."""

from support.phrases import FIRST, GAIN, NEAR, OURS, OVER
from support.quoted import (
    Number,
    answered,
    by_chance,
    case_study,
    converged,
    curvature,
    exact,
    gain,
    kinds,
    lds,
    lead,
    metrics,
    published,
    regime,
    retrained,
    tracing,
)

ENDS = ("ε = 1e-2, rate 2e-2", "ε = 1e-3, 17 epochs")  # the roughest and the smoothest recipe
CHANGES = ("normalised, in place of plain", "relative damping, in place of absolute")


def numbers():
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
                for x in ("influence", "influence, normalised", "one checkpoint", "bm25")
            ),
            *(
                case_study(*at, x, "flipped_or_halved")
                for at in products
                for x in ("influence", "bm25", "random")
            ),
        ],
        "kinds_of_fine_tuning": [
            kinds("mrr", "LoRA", "own", "normalised"),
            *(kinds("exact", "LoRA", "dense", x) for x in ("own, R", "identity")),
            *(
                kinds(leads, "LoRA", wrong, *error)
                for leads in ("mrr_lead_at_best", "lds_lead_at_best")
                for wrong in ("identity", "as full")
                for error in ((), ("error",))
            ),
            *(kinds("shared", x) for x in ("full and LoRA", "two seeds of full")),
        ],
        "regimes": [
            *(
                regime(("recipes", name), *keys)
                for name in ENDS
                for keys in (("metasmoothness",), OURS, ("ceiling",))
            ),
            regime(FIRST, *OURS),
            *(regime((), x) for x in ("correlation", "by_chance")),
        ],
        "as_published": [
            *(
                published("full", "methods", x, "mrr")
                for x in ("multi-stage, absolute", "single-stage, absolute", "BM25")
            ),
            *(published("full", "gains", x, what=what) for x in CHANGES for what in GAIN),
        ],
    }
