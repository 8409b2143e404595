"""What each notebook found, said from the numbers that it wrote: one function a stage, of its metrics.json.

Each gives (number, what it counts, claim), three strings. A sentence that compares is conditional on the numbers: it says
"ahead", "level" (within two standard errors) or "behind", whatever the study hoped for.
"""

NAMES = {
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "embeddings": "sentence embeddings",
    "trackstar": "TrackStar",
    "trak": "TRAK",
    "word_order": "a rule of word order",
}
NO_MODEL_OF_INFLUENCE = (
    "single",
    "gradient",
    "trak",
    "representation",
    "bm25",
)  # the rivals that notebook 6 compares with


def named(method):
    """A method's name for readers: "embeddings/raw" -> "sentence embeddings", "x_y/normalised" -> "x y, normalised"."""
    name, _, form = method.partition("/")
    return (
        NAMES.get(name) or name.replace("_stage", "-stage").replace("_", " ")
    ) + ", normalised" * (form == "normalised")


def against(lead, error, rival):
    """How a difference with its standard error reads."""
    if abs(lead) <= 2 * error:
        return f"level with {rival} ({lead:+.3f} ± {error:.3f})"
    return f"{'ahead of' if lead > 0 else 'behind'} {rival} by {abs(lead):.3f} ± {error:.3f}"


def above(value, other):
    return "above" if value > other else "equal to" if value == other else "below"


def testbed(numbers):
    m = numbers["exact_match"]
    verdict = (
        "they come from pre-training, through fine-tuning"
        if m["finetuned"] > max(m["pretrained"], m["chance"]) + 0.2
        else "too little above the rest to say that the answers need both stages"
    )
    return (
        f"{m['finetuned']:.0%}",
        "of held-out facts answered",
        f"Of facts that fine-tuning never mentions, {m['finetuned']:.0%} are answered after it, {m['pretrained']:.0%} before, "
        f"{m['chance']:.0%} by a guess: {verdict}.",
    )


def factors(numbers):
    share, errors = numbers["top_1_percent_share"], numbers["relative_error"]
    claim = (
        f"One hundredth of the directions holds {share['pretraining']:.0%} of pre-training's curvature and {share['finetuning']:.0%} of fine-tuning's"
        f"{'; the rest is nearly flat' if min(share.values()) > 0.2 else ''}."
    )
    ours, theirs = errors.get("Λ, gaussian pseudo-labels"), errors.get("Λ, sampled labels")
    if ours and theirs:
        size = max(ours, key=int)
        claim += (
            f" From {size} documents, Gaussian pseudo-labels give eigenvalues with an error of {ours[size]:.3f}, sampled labels of {theirs[size]:.3f}: "
            f"the former {'err less' if ours[size] < theirs[size] else 'err no less'}."
        )
    return (
        f"{share['pretraining']:.0%}, {share['finetuning']:.0%}",
        "of the curvature in 1% of the directions (pre-training, fine-tuning)",
        claim,
    )


def fact_tracing(numbers):
    plain = numbers["plain"]
    method = "multi_stage_trajectory" if "multi_stage_trajectory" in plain else "multi_stage"
    mrr, leads = plain[method]["normalised"]["mrr"], numbers["lead"]
    rival = lambda where: against(
        leads[where]["mean"], leads[where]["se"], named(leads[where]["over"])
    )
    claim = (
        f"Multi-stage influence finds the sentences that state the fact with a mean reciprocal rank of {mrr:.3f} (1: always first): {rival('plain')}, the best rival "
        f"that is neither a part of it nor told the fact."
    )
    for where, what in (
        ("matched", "Among sentences of the same words"),
        ("causal", "Asked for sentences whose absence lowers the answer"),
    ):
        if where in leads:
            auc = numbers[where][method]["normalised"]["auc"]
            claim += f" {what} it is right in {auc:.0%} of pairs, chance {numbers[where]['chance']['auc']:.0%}: {rival(where)}."
    first = {
        name.split(" - ")[1]: x["raw"]
        for name, x in numbers["paired"].items()
        if name.startswith("multi_stage - ")
    }
    for stage, other in (("fine-tuning", "pretraining_only"), ("pre-training", "finetuning_only")):
        low, high = first[other]["low"], first[other]["high"]
        verdict = "costs" if low > 0 else "gains" if high < 0 else "makes no sure difference to"
        claim += f" Leaving out {stage}'s curvature {verdict} raw MRR ({-first[other]['mean']:+.3f}, 95% {-high:+.3f} to {-low:+.3f})."
    return f"{mrr:.3f}", "MRR of the sentences that state the fact", claim


def exact(numbers):
    problems = numbers["two_stages"]
    problem = "test-bed" if "test-bed" in problems else next(iter(problems))
    at = {name: x["spearman"] for name, x in problems[problem].items()}
    few, many, plain_few, plain_many = (
        at[key]
        for key in ("dial, 4 products", "dial, 19 products", "CG, 5 products", "CG, 20 products")
    )
    return (
        f"{at['EK-FAC, 0 products']:.2f} → {many:.2f}",
        "Spearman with exact two-stage influence: EK-FAC, the dial at 20 products",
        f"On the {problem}, EK-FAC shares {at['EK-FAC, 0 products']:.2f} of the exact order (Spearman). The dial has {few:.2f} within 5 products with "
        f"the curvature and {many:.2f} within 20: {above(few, plain_few)} plain conjugate gradients' {plain_few:.2f}, and {above(many, plain_many)} their {plain_many:.2f}.",
    )


def scalability(numbers):
    damping, at = next(iter(numbers.items()))
    best = lambda names: max(
        ((at[m][k]["spearman"], m) for m in names for k in at[m]), default=(float("nan"), "none")
    )
    ours = at["EK-FAC"]["0"]["spearman"]
    rival, name = best(
        [m for m in at if set(at[m]) == {"0"} and not m.startswith(("EK-FAC", "the dial"))]
    )
    shared = [k for k in at["the dial"] if k in at["conjugate gradients"] and int(k) <= 20]
    k = max(shared, key=int)
    dial, plain = at["the dial"][k]["spearman"], at["conjugate gradients"][k]["spearman"]
    cost = at["the dial"][k]["cost"] / at["conjugate gradients"][k]["cost"]
    return (
        f"{ours:.2f}",
        "Spearman of EK-FAC with a converged solve, one stage",
        f"At damping {damping}, EK-FAC has a Spearman of {ours:.2f} with a converged solve, {above(ours, rival)} the {rival:.2f} of {name}, the best that needs "
        f"no products with the curvature. {k} products of the dial reach {dial:.2f}, {above(dial, plain)} plain conjugate gradients' {plain:.2f}, "
        f"at {cost:.1f} times their cost.",
    )


def retraining(numbers):
    lds, ceiling = numbers["lds"], numbers["ceiling"]
    models = max(int(name.split("_")[-2]) for name in lds)
    at = {
        name.removesuffix(f"_{models}_models"): value
        for name, value in lds.items()
        if name.endswith(f"_{models}_models")
    }
    best = max((name for name in at if name.startswith("multi_stage")), key=at.get)
    others = {
        name: x for name, x in numbers["lead"].items() if name.startswith(NO_MODEL_OF_INFLUENCE)
    }
    rival = min(others, key=lambda name: others[name]["value"])
    value, knows = at[best], at["statements_raw"]
    return (
        f"{value:.2f}",
        f"linear datamodeling score; noise ceiling {ceiling:.2f}",
        f"What both stages do, trained again without random halves of the corpus, is predicted with a rank correlation of {value:.2f} "
        f"({named('/'.join(best.rsplit('_', 1)))}, {models} models): {value / ceiling:.0%} of the noise ceiling, "
        f"{against(others[rival]['value'], others[rival]['error'], named(rival))}, the best of single-stage and similarity methods, "
        f"and {above(value, knows)} the {knows:.2f} of counting the sentences that state the fact.",
    )


def case_studies(numbers):
    """None where there are neither plants nor removals."""
    found, removed, claim, number = (
        numbers.get("planted", {}),
        numbers.get("removal", {}).get("facts", {}),
        [],
        None,
    )
    if found:
        value, search = (found[name]["precision_at_5"] for name in ("influence", "bm25"))
        number = (f"{value:.0%}", "of the first five documents are the planted ones")
        claim.append(
            f"Of the first five documents behind a planted association {value:.0%} are those that planted it, {above(value, search)} BM25's {search:.0%}."
        )
    if removed:
        ours, search, chance = (
            removed[name]["flipped_or_halved"] for name in ("influence", "bm25", "random")
        )
        number = number or (
            f"{ours:.0%}",
            "of answers flip, or halve their probability, without their first documents",
        )
        claim.append(
            f"Trained again without their first documents, {ours:.0%} of {removed['influence']['answers']} right answers flip or halve their probability: "
            f"{above(ours, search)} the {search:.0%} of BM25's first, {above(ours, chance)} the {chance:.0%} of random ones."
        )
    return (*number, " ".join(claim)) if number else None


def your_models(numbers):
    first, chance, last, search = (
        numbers["step"][kind]
        for kind in ("first by influence", "at random", "last by influence", "first by BM25")
    )
    verdict = (
        "raises"
        if first["value"] > 2 * first["error"]
        else "lowers"
        if first["value"] < -2 * first["error"]
        else "does not surely change"
    )
    claim = (
        f"One SGD step on the document that stands first {verdict} the answer's log-probability ({first['value']:+.2f} ± {first['error']:.2f} nats); "
        f"on BM25's first {search['value']:+.2f}, on a random one {chance['value']:+.2f}, on the last {last['value']:+.2f}."
    )
    if settings := numbers.get("settings"):
        claim += f" Whatever damping and α are tried, at least {settings['least_of_first_10']:.0%} of the first ten documents stay."
    return (
        f"{first['value']:+.2f} nats",
        "change of the answer's log-probability by a step on the first document",
        claim,
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
    )
}
