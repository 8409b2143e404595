"""What each notebook found, said from the numbers that it wrote: a function a stage, of its JSON.

Each reads the stage's metrics.json and gives a `Finding`: number, what it counts, and claim, three
strings. A sentence that compares is conditional on the numbers: it says "ahead", "level" (within
two standard errors) or "behind", whatever the study hoped for.
"""

from math import hypot, isnan, log
from typing import NamedTuple

from msif.study.pipeline.words import above, against, named

OF_CHECKPOINTS = ("trackstar", "trak", "gradient_dot", "single_stage")  # what may be averaged
# The rivals that notebook 6 compares with.
RIVALS_OF_RETRAINING = ("single", "gradient", "tracincp", "trak", "representation", "bm25")


class Finding(NamedTuple):
    """A key number, what it counts, and the claim that it carries."""

    number: str
    what: str
    claim: str


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
    along = "multi_stage_trajectory" in plain
    method = "multi_stage_trajectory" if along else "multi_stage"
    where, leads = " over checkpoints" if along else "", numbers["lead"]
    mrr = plain[method]["normalised"]["mrr"]

    def at_one(condition, metric, form):
        value = numbers[condition]["multi_stage"]["normalised"][metric]
        return f" ({value:{form}} at one)" if along else ""

    def rival(condition):
        lead = leads[condition]
        name, over = named(lead["over"]), lead["over"]
        if along and "_trajectory" not in over and over.startswith(OF_CHECKPOINTS):
            name += " at one checkpoint"
        return against(lead["mean"], lead["se"], name)

    claim = (
        f"Multi-stage influence finds the sentences that state the fact with a mean reciprocal "
        f"rank of {mrr:.3f}{where}{at_one('plain', 'mrr', '.3f')} (1: always first): "
        f"{rival('plain')}, the best rival that is neither a part of it nor told the fact."
    )
    for condition, what in (
        ("named", "Among sentences that name the subject and the object"),
        ("matched", "Among sentences of the same words"),
        ("causal", "Asked for sentences whose absence lowers the answer"),
    ):
        if condition in leads:
            auc = numbers[condition][method]["normalised"]["auc"]
            chance = numbers[condition]["chance"]["auc"]
            claim += (
                f" {what} it is right in {auc:.0%} of pairs{where}"
                f"{at_one(condition, 'auc', '.0%')}, chance {chance:.0%}: {rival(condition)}."
            )
    for stage, other in (("fine-tuning", "pretraining_only"), ("pre-training", "finetuning_only")):
        claim += _without_curvature(stage, numbers["paired"][f"multi_stage - {other}"])
    return Finding(f"{mrr:.3f}", f"MRR of the sentences that state the fact{where}", claim)


def _without_curvature(stage, gains):
    """What leaving out a stage's curvature does; `gains`: {form: that of having it}."""
    raw, normalised = (_changed(gains[form]) for form in ("raw", "normalised"))
    return (
        f" At one checkpoint, leaving out {stage}'s curvature {raw.format('raw')} and "
        f"{normalised.format('normalised')}."
    )


def _changed(gain):
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    if low > 0:
        verdict = "costs"
    else:
        verdict = "gains" if high < 0 else "makes no sure difference to"
    return f"{verdict} {{}} MRR ({-mean:+.3f}, 95% {-high:+.3f} to {-low:+.3f})"


def exact(numbers):
    """Notebook 4: how near does EK-FAC come to exact two-stage influence?"""
    problems = numbers["two_stages"]
    problem = "test-bed" if "test-bed" in problems else next(iter(problems))
    at = {name: x["spearman"] for name, x in problems[problem].items()}
    ekfac, kfac, dot = (at[f"{name}, 0 products"] for name in ("EK-FAC", "K-FAC", "gradient dot"))
    size = problems[problem]["EK-FAC, 0 products"]["pearson"]
    block = at["block CG, 20 products"]
    return Finding(
        f"{ekfac:.2f}",
        "Spearman of EK-FAC with exact two-stage influence, over all documents",
        f"On the {problem}, EK-FAC shares {ekfac:.2f} of the exact order of all documents "
        f"(Spearman), K-FAC {kfac:.2f}, the plain dot product of gradients {dot:.2f}; of the "
        f"sizes, which the few large scores decide, EK-FAC shares {size:.2f} (Pearson). Block "
        f"conjugate gradients share {block:.2f} of the order after 20 products with the exact "
        f"curvature. Whether nearer to exact is nearer to retraining, notebook 6 asks.",
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
    dials = at["the dial"]
    k = max((k for k in dials if int(k) <= 20), key=int)
    dial, cost = dials[k]["spearman"], dials[k]["cost"]
    blocks = at["the dial, block alone"]
    like = min((k for k in blocks), key=lambda k: abs(log(blocks[k]["cost"] / cost)))
    block = blocks[like]["spearman"]
    return Finding(
        f"{ours:.2f}",
        "Spearman of EK-FAC with a converged solve, one stage",
        f"At damping {damping}, EK-FAC has a Spearman of {ours:.2f} with a converged solve, "
        f"{above(ours, rival)} the {rival:.2f} of {name}, the best rival without products with the "
        f"curvature. {k} products of the dial reach {dial:.2f}: {above(dial, block)} block "
        f"conjugate gradients' {block:.2f}, which take {like} products at "
        f"{blocks[like]['cost'] / cost:.1f} times the dial's total cost.",
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
    removals = numbers.get("removal", {})
    found = [*([_planted(plants)] if plants else []), *([_removed(**removals)] if removals else [])]
    if not found:
        return None
    return found[0]._replace(claim=" ".join(finding.claim for finding in found))


def _planted(plants):
    ours, search = plants["influence"], plants["bm25"]
    value, one = ours["precision_at_5"], plants.get("one checkpoint")
    along = f" (over checkpoints; {one['precision_at_5']:.0%} at one)" if one else ""
    return Finding(
        f"{value:.0%}",
        "of the first five documents are the planted ones",
        f"Of the first five documents behind a planted association {value:.0%} are those that "
        f"planted it{along}: {_beside(ours, search, 'precision_at_5', 'BM25')}.",
    )


def _removed(facts, plants=None):
    ours, search, chance = (facts[name] for name in ("influence", "bm25", "random"))
    value, traits = ours["flipped_or_halved"], ""
    if plants:
        own, rival = plants["influence"], plants["bm25"]
        traits = (
            f" Of {own['answers']} planted associations {own['flipped_or_halved']:.0%} do: "
            f"{_beside(own, rival, 'flipped_or_halved', 'BM25')}."
        )
    return Finding(
        f"{value:.0%}",
        "of answers flip, or halve their probability, without their first documents",
        f"Trained again without their first documents, {value:.0%} of {ours['answers']} right "
        f"answers flip or halve their probability: "
        f"{_beside(ours, search, 'flipped_or_halved', 'BM25')}, "
        f"{_beside(ours, chance, 'flipped_or_halved', 'random documents')}.{traits}",
    )


def _beside(ours, other, key, name):
    """How two shares read beside each other, their errors taken as of different answers."""
    lead, error = ours[key] - other[key], hypot(ours["se"], other["se"])
    if abs(lead) <= 2 * error:
        place = "level with"
    else:
        place = "ahead of" if lead > 0 else "behind"
    return f"{place} {name} with {other[key]:.0%} ({100 * lead:+.0f} ± {100 * error:.0f} points)"


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

    def beside(name, x):
        error = "" if x["error"] is None else f" ± {x['error']:.0%}"
        return f"{named(name)} {lost[name]['value']:.0%} ({x['value']:+.0%}{error} for {ours})"

    rest = "".join(f"; {beside(name, x)}" for name, x in lead.items())
    return Finding(
        f"{share:.0%}",
        "of right answers lost without the documents that influence ranks highest",
        f"Both stages trained again without the {numbers['top']} documents that {ours} ranks "
        f"highest, {share:.0%} of {numbers['answers']} right answers are lost{rest}.",
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
    if rough == even:
        claim = f"One recipe alone ({even}, metasmoothness {smooth(even):.2f}) was tried."
        return Finding(f"{lds(best):.2f}", "LDS of multi-stage influence", claim)
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
