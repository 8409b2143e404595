"""What each notebook found, said from the numbers that it wrote: a function a stage, of its JSON.

Those of notebooks that train again without documents are in `retrained`.

Each reads the stage's metrics.json and gives a `Finding`: number, what it counts, and claim, three
strings. A sentence that compares is conditional on the numbers: it says "ahead", "level" (within
two standard errors) or "behind", whatever the study hoped for.
"""

from math import isnan, log

from msif.study.kinds_of_fine_tuning.worlds import Mean
from msif.study.pipeline.retrained import case_studies, regimes, removal, retraining
from msif.study.pipeline.words import Finding, above, against
from msif.study.tracing.names import named

OF_CHECKPOINTS = ("trackstar", "trak", "gradient_dot", "single_stage")  # what may be averaged


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
    claim = (
        f"One hundredth of the directions holds {first} of pre-training's curvature and {second} "
        "of fine-tuning's."
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
        known = (lead["low"], lead["high"]) if "low" in lead else None  # older records have none
        return against(lead["mean"], lead["se"], name, known)

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
    kept = numbers.get("reference", {}).get(damping)  # older records have converged ones alone
    solve = "a converged solve"
    if kept and not kept["converged"]:
        solve = f"a solve that stopped at a residual of {kept['residual']:.0e}"
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
    blocks = at["block CG"]
    like = min((k for k in blocks), key=lambda k: abs(log(blocks[k]["cost"] / cost)))
    block = blocks[like]["spearman"]
    return Finding(
        f"{ours:.2f}",
        "Spearman of EK-FAC with a converged solve, one stage",
        f"At damping {damping}, EK-FAC has a Spearman of {ours:.2f} with {solve}, "
        f"{above(ours, rival)} the {rival:.2f} of {name}, the best rival without products with the "
        f"curvature. {k} products of the dial reach {dial:.2f}: {above(dial, block)} block "
        f"conjugate gradients' {block:.2f}, which take {like} products at "
        f"{blocks[like]['cost'] / cost:.1f} times the dial's total cost.",
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
    ours, exact = numbers["mrr"]["LoRA"]["own"]["normalised"]["value"], numbers["exact"]["LoRA"]
    found, foretold = numbers["mrr_lead_at_best"]["LoRA"], numbers["lds_lead_at_best"]["LoRA"]

    def over(leads):
        wrong = {"identity": "T := I", "as full": "α(H + α)⁻¹ at the merged weights"}
        means = {words: Mean(**leads[name]) for name, words in wrong.items()}
        return ", ".join(
            f"{x.place} {words} ({x.value:+.2f} ± {x.error:.2f})" for words, x in means.items()
        )

    shared = numbers["shared"]
    return Finding(
        f"{ours:.2f}",
        "MRR of the sentences that state the fact, behind a LoRA model, by its own T",
        f"At the optimum of a small problem LoRA's own T has a Spearman of "
        f"{exact['dense']['own, R']['value']:.2f} with the exact score, T := I has "
        f"{exact['dense']['identity']['value']:.2f}. On models trained as usual, each at its "
        f"best settings, it is {over(found)} at finding the statements; at predicting "
        f"retraining {over(foretold)}. Of the ten highest documents, full fine-tuning and LoRA "
        f"share {shared['full and LoRA']['value']:.0%}, two seeds of full "
        f"{shared['two seeds of full']['value']:.0%}.",
    )


def as_published(numbers):
    """Notebook 12: what do the paper's settings find, and which change of them matters?"""
    methods, gains = numbers["methods"], numbers["gains"]

    def mrr(label):
        return f"{methods[label]['mrr']['mean']:.2f}"

    def change(name):
        return "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**gains[name])

    return Finding(
        mrr("multi-stage, absolute"),
        "MRR of multi-stage influence with the paper's settings, among its candidates",
        f"With the paper's formula and absolute damping multi-stage influence finds the stating "
        f"documents with an MRR of {mrr('multi-stage, absolute')} among "
        f"{numbers['candidates']:.0f} candidates (single-stage "
        f"{mrr('single-stage, absolute')}, BM25 {mrr('BM25')}); dividing by the document's "
        f"gradient norm changes that by {change('normalised, in place of plain')}, a relative "
        f"damping by {change('relative damping, in place of absolute')}.",
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
        as_published,
    )
}
