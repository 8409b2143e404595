"""What each notebook found, said from the numbers that it wrote: a function a stage, of its JSON.

Each reads the stage's metrics.json and gives a `Finding`: number, what it counts, and claim, three
strings. A sentence that compares is conditional on the numbers: it says "ahead", "level" (within
two standard errors) or "behind", whatever the study hoped for.
"""

from math import isnan
from typing import NamedTuple

from msif.study.tracing.names import Name

NAMES = {
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "embeddings": "sentence embeddings",
    "trackstar": "TrackStar",
    "trackstar_pretrained": "TrackStar at the pre-trained model",
    "trackstar_trajectory": "TrackStar over checkpoints",
    "trak": "TRAK",
    "trak_pretrained": "TRAK at the pre-trained model",
    "trak_trajectory": "TRAK over checkpoints",
    "tracincp": "TracInCP",
    "word_order": "a rule of word order",
}
# The rivals that notebook 6 compares with.
RIVALS_OF_RETRAINING = ("single", "gradient", "tracincp", "trak", "representation", "bm25")


class Finding(NamedTuple):
    """A key number, what it counts, and the claim that it carries."""

    number: str
    what: str
    claim: str


def named(method):
    """A method's name for readers.

    "embeddings/raw" -> "sentence embeddings", "x_y/normalised" -> "x y, normalised".
    """
    column = Name.of(method) if "/" in method else Name(method, "raw")
    name = column.method
    words = NAMES.get(name) or name.replace("_stage", "-stage").replace("_", " ")
    return f"{words}, normalised" if column.form == "normalised" else words


def against(lead, error, rival):
    """How a difference with its standard error reads."""
    if abs(lead) <= 2 * error:
        return f"level with {rival} ({lead:+.3f} ± {error:.3f})"
    place = "ahead of" if lead > 0 else "behind"
    return f"{place} {rival} by {abs(lead):.3f} ± {error:.3f}"


def above(value, other):
    """How a value reads beside another: "above", "equal to" or "below"."""
    if value > other:
        return "above"
    return "equal to" if value == other else "below"


def testbed(numbers):
    """Notebook 1: do the answers need both stages?"""
    m = numbers["exact_match"]
    after, before, guess = m["finetuned"], m["pretrained"], m["chance"]
    if after > max(before, guess) + 0.2:
        verdict = "they come from pre-training, through fine-tuning"
    else:
        verdict = "too little above the rest to say that the answers need both stages"
    return Finding(
        f"{after:.0%}",
        "of held-out facts answered",
        f"Of facts that fine-tuning never mentions, {after:.0%} are answered after it, "
        f"{before:.0%} before, {guess:.0%} by a guess: {verdict}.",
    )


def factors(numbers):
    """Notebook 2: how few directions hold the curvature, and which labels find it."""
    share, errors = numbers["top_1_percent_share"], numbers["relative_error"]
    first, second = f"{share['pretraining']:.0%}", f"{share['finetuning']:.0%}"
    flat = "; the rest is nearly flat" if min(share.values()) > 0.2 else ""
    claim = (
        f"One hundredth of the directions holds {first} of pre-training's curvature and {second} "
        f"of fine-tuning's{flat}."
    )
    ours, theirs = errors.get("Λ, gaussian pseudo-labels"), errors.get("Λ, sampled labels")
    if ours and theirs:
        size = max(ours, key=int)
        verdict = "err less" if ours[size] < theirs[size] else "err no less"
        claim += (
            f" From {size} documents, Gaussian pseudo-labels give eigenvalues with an error of "
            f"{ours[size]:.3f}, sampled labels of {theirs[size]:.3f}: the former {verdict}."
        )
    return Finding(
        f"{first}, {second}",
        "of the curvature in 1% of the directions (pre-training, fine-tuning)",
        claim,
    )


def fact_tracing(numbers):
    """Notebook 3: does influence find the sentences, and what does each stage's curvature give?"""
    plain = numbers["plain"]
    method = "multi_stage_trajectory" if "multi_stage_trajectory" in plain else "multi_stage"
    mrr, leads = plain[method]["normalised"]["mrr"], numbers["lead"]

    def rival(where):
        lead = leads[where]
        return against(lead["mean"], lead["se"], named(lead["over"]))

    claim = (
        f"Multi-stage influence finds the sentences that state the fact with a mean reciprocal "
        f"rank of {mrr:.3f} (1: always first): {rival('plain')}, the best rival that is neither a "
        f"part of it nor told the fact."
    )
    for where, what in (
        ("matched", "Among sentences of the same words"),
        ("causal", "Asked for sentences whose absence lowers the answer"),
    ):
        if where in leads:
            auc = numbers[where][method]["normalised"]["auc"]
            chance = numbers[where]["chance"]["auc"]
            claim += f" {what} it is right in {auc:.0%} of pairs, chance {chance:.0%}: "
            claim += f"{rival(where)}."
    for stage, other in (("fine-tuning", "pretraining_only"), ("pre-training", "finetuning_only")):
        claim += _without_curvature(stage, numbers["paired"][f"multi_stage - {other}"]["raw"])
    return Finding(f"{mrr:.3f}", "MRR of the sentences that state the fact", claim)


def _without_curvature(stage, gain):
    """What leaving out a stage's curvature does; `gain`: that of having it, with its interval."""
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    if low > 0:
        verdict = "costs"
    else:
        verdict = "gains" if high < 0 else "makes no sure difference to"
    return (
        f" Leaving out {stage}'s curvature {verdict} raw MRR "
        f"({-mean:+.3f}, 95% {-high:+.3f} to {-low:+.3f})."
    )


def exact(numbers):
    """Notebook 4: how near EK-FAC and the dial come to exact two-stage influence."""
    problems = numbers["two_stages"]
    problem = "test-bed" if "test-bed" in problems else next(iter(problems))
    at = {name: x["spearman"] for name, x in problems[problem].items()}
    ekfac = at["EK-FAC, 0 products"]
    few, many = at["dial, 4 products"], at["dial, 19 products"]
    plain_few, plain_many = at["CG, 5 products"], at["CG, 20 products"]
    return Finding(
        f"{ekfac:.2f} → {many:.2f}",
        "Spearman with exact two-stage influence: EK-FAC, the dial at 20 products",
        f"On the {problem}, EK-FAC shares {ekfac:.2f} of the exact order (Spearman). The dial has "
        f"{few:.2f} within 5 products with the curvature and {many:.2f} within 20: "
        f"{above(few, plain_few)} plain conjugate gradients' {plain_few:.2f}, and "
        f"{above(many, plain_many)} their {plain_many:.2f}.",
    )


def scalability(numbers):
    """Notebook 5: EK-FAC and the dial against a converged solve of one stage, and their cost."""
    damping, at = next(iter(numbers.items()))
    ours = at["EK-FAC"]["0"]["spearman"]
    without_products = [
        (at[name]["0"]["spearman"], name)
        for name in at
        if set(at[name]) == {"0"} and not name.startswith(("EK-FAC", "the dial"))
    ]
    rival, name = max(without_products, default=(float("nan"), "none"))
    dials, plains = at["the dial"], at["conjugate gradients"]
    k = max((k for k in dials if k in plains and int(k) <= 20), key=int)
    dial, plain = dials[k]["spearman"], plains[k]["spearman"]
    cost = dials[k]["cost"] / plains[k]["cost"]
    return Finding(
        f"{ours:.2f}",
        "Spearman of EK-FAC with a converged solve, one stage",
        f"At damping {damping}, EK-FAC has a Spearman of {ours:.2f} with a converged solve, "
        f"{above(ours, rival)} the {rival:.2f} of {name}, the best that needs no products with the "
        f"curvature. {k} products of the dial reach {dial:.2f}, {above(dial, plain)} plain "
        f"conjugate gradients' {plain:.2f}, at {cost:.1f} times their cost.",
    )


def retraining(numbers):
    """Notebook 6: does influence predict what training without half of the corpus does?"""
    lds, ceiling = numbers["lds"], numbers["ceiling"]
    models = max(int(name.split("_")[-2]) for name in lds)
    end = f"_{models}_models"
    at = {name.removesuffix(end): x for name, x in lds.items() if name.endswith(end)}
    best = max((name for name in at if name.startswith("multi_stage")), key=at.get)
    value, knows = at[best], at["statements_raw"]
    method = named("/".join(best.rsplit("_", 1)))
    lead, name = min(
        ((x, name) for name, x in numbers["lead"].items() if name.startswith(RIVALS_OF_RETRAINING)),
        key=lambda rival: rival[0]["value"],
    )
    return Finding(
        f"{value:.2f}",
        f"linear datamodeling score; noise ceiling {ceiling:.2f}",
        f"What both stages do, trained again without random halves of the corpus, is predicted "
        f"with a rank correlation of {value:.2f} ({method}, {models} models): "
        f"{value / ceiling:.0%} of the noise ceiling, "
        f"{against(lead['value'], lead['error'], named(name))}, "
        f"the best of single-stage and similarity methods, and {above(value, knows)} "
        f"the {knows:.2f} of counting the sentences that state the fact.",
    )


def case_studies(numbers):
    """Notebook 7: plants found and answers lost. None where there are neither plants nor removals.

    The first of the two that is there gives the key number.
    """
    plants = numbers.get("planted", {})
    removals = numbers.get("removal", {}).get("facts", {})
    found = [*([_planted(plants)] if plants else []), *([_removed(removals)] if removals else [])]
    if not found:
        return None
    return found[0]._replace(claim=" ".join(finding.claim for finding in found))


def _planted(plants):
    ours, search = (plants[name]["precision_at_5"] for name in ("influence", "bm25"))
    return Finding(
        f"{ours:.0%}",
        "of the first five documents are the planted ones",
        f"Of the first five documents behind a planted association {ours:.0%} are those that "
        f"planted it, {above(ours, search)} BM25's {search:.0%}.",
    )


def _removed(removals):
    ours, search, chance = (
        removals[name]["flipped_or_halved"] for name in ("influence", "bm25", "random")
    )
    return Finding(
        f"{ours:.0%}",
        "of answers flip, or halve their probability, without their first documents",
        f"Trained again without their first documents, {ours:.0%} of "
        f"{removals['influence']['answers']} right answers flip or halve their probability: "
        f"{above(ours, search)} the {search:.0%} of BM25's first, "
        f"{above(ours, chance)} the {chance:.0%} of random ones.",
    )


def your_models(numbers):
    """Notebook 8: does a step on the first document raise the answer?"""
    step = numbers["step"]
    value, error = step["first by influence"]["value"], step["first by influence"]["error"]
    search, chance, last = (
        step[kind]["value"] for kind in ("first by BM25", "at random", "last by influence")
    )
    alone = error is None or isnan(error)  # of one question there is no standard error
    if value > 2 * (0 if alone else error):
        verdict = "raises"
    else:
        verdict = "lowers" if value < -2 * (0 if alone else error) else "does not surely change"
    spread = "nats, one question" if alone else f"± {error:.2f} nats"
    claim = (
        f"One SGD step on the document that stands first {verdict} the answer's log-probability "
        f"({value:+.2f} {spread}); on BM25's first {search:+.2f}, on a random one "
        f"{chance:+.2f}, on the last {last:+.2f}."
    )
    if settings := numbers.get("settings"):
        claim += (
            f" Whatever damping and α are tried, at least {settings['least_of_first_10']:.0%} "
            f"of the first ten documents stay."
        )
    return Finding(
        f"{value:+.2f} nats",
        "change of the answer's log-probability by a step on the first document",
        claim,
    )


def kinds_of_fine_tuning(numbers):
    """Notebook 9: behind a LoRA model, what does its own T find, and what a wrong one?"""
    mrr, leads = numbers["mrr"]["LoRA"], numbers["mrr_lead"]["LoRA"]
    ours, exact = mrr["own"]["normalised"]["value"], numbers["exact"]["LoRA"]["dense"]

    def other(name, words):
        lead = leads[name]
        return against(lead["value"], lead["error"], words)

    shared = numbers["shared"]
    return Finding(
        f"{ours:.2f}",
        "MRR of the sentences that state the fact, behind a LoRA model, by its own T",
        f"At the optimum of a small problem LoRA's own T has a Spearman of "
        f"{exact['own, R']['value']:.2f} with the exact score, T := I has "
        f"{exact['identity']['value']:.2f}. On models that stop earlier it finds the statements "
        f"with an MRR of {ours:.2f}: "
        f"{other('identity', 'T := I')}, {other('as full', 'α(H + α)⁻¹ at the merged weights')}. "
        f"Of the ten highest documents, full fine-tuning and LoRA share "
        f"{shared['full and LoRA']['value']:.0%}, two seeds of full "
        f"{shared['two seeds of full']['value']:.0%}.",
    )


def removal(numbers):
    """Notebook 10: are answers lost without the documents that influence ranks highest?"""
    lost, lead = numbers["lost"], numbers["lead"]
    (ours,) = lost.keys() - lead.keys() - {"others' documents"}
    share = lost[ours]["value"]
    rest = [
        f"{named(name)} {lost[name]['value']:.0%} ({x['value']:+.0%} ± {x['error']:.0%} for {ours})"
        for name, x in lead.items()
    ]
    return Finding(
        f"{share:.0%}",
        "of right answers lost without the documents that influence ranks highest",
        f"Both stages trained again without the {numbers['top']} documents that {ours} ranks "
        f"highest, {share:.0%} of {numbers['answers']} right answers are lost; "
        f"{', '.join(rest)}.",
    )


def regimes(numbers):
    """Notebook 11: does LDS follow how smooth the training is?"""
    recipes = numbers["recipes"]

    def smooth(name):
        return recipes[name]["metasmoothness"]["value"]

    def lds(name):
        return recipes[name]["lds"]["multi-stage"]["ensemble"]["value"]

    rough, even = min(recipes, key=smooth), max(recipes, key=smooth)
    best = max(recipes, key=lds)
    follow = numbers["correlation"]
    follows = (
        "" if follow is None else f" Over {len(recipes)} recipes the two correlate {follow:.2f}."
    )
    return Finding(
        f"{lds(best):.2f}",
        "LDS of multi-stage influence by the recipe that it predicts best",
        f"The roughest training ({rough}, metasmoothness {smooth(rough):.2f}) has an LDS of "
        f"{lds(rough):.2f}, the smoothest ({even}, {smooth(even):.2f}) one of {lds(even):.2f}; "
        f"noise between seeds allows {recipes[rough]['ceiling']:.2f} and "
        f"{recipes[even]['ceiling']:.2f}.{follows}",
    )


FINDINGS = {
    f.__name__: f
    for f in (
        testbed,
        factors,
        fact_tracing,
        exact,
        scalability,
        retraining,
        case_studies,
        your_models,
        kinds_of_fine_tuning,
        removal,
        regimes,
    )
}
