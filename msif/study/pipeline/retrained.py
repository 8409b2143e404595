"""What the notebooks found that train both stages again without documents: 6, 7, 10 and 11.

A function a stage, as in `findings`.
"""

from msif.study.pipeline.words import Finding, above, against
from msif.study.tracing.names import named

# The rivals that notebook 6 compares with.
RIVALS_OF_RETRAINING = (
    "single",
    "gradient",
    "tracincp",
    "trackstar",
    "trak",
    "bayesian",
    "representation",
    "bm25",
)


def retraining(numbers):
    """Notebook 6: does influence predict what training without half of the corpus does?"""
    lds, ceiling = numbers["lds"], numbers["ceiling"]
    models = max(int(name.split("_")[-2]) for name in lds)
    end = f"_{models}_models"
    at = {name.removesuffix(end): x for name, x in lds.items() if name.endswith(end)}
    best = numbers.get("variant")  # chosen where nothing is reported; older records have none
    best = best or max((name for name in at if name.startswith("multi_stage")), key=at.get)
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
        f"the best rival that is no part of it, and {above(value, knows)} "
        f"the {knows:.2f} of counting the sentences that state the fact.",
    )


def case_studies(numbers):
    """Notebook 7: plants found and answers lost. None where there are neither plants nor removals.

    The first of the two that is there gives the key number.
    """
    plants = numbers.get("planted", {})
    removals, leads = numbers.get("removal", {}), numbers.get("leads", {})
    found = [_planted(plants, leads.get("planted"))] if plants else []
    found += [_removed(leads, **removals)] if removals else []
    if not found:
        return None
    return found[0]._replace(claim=" ".join(finding.claim for finding in found))


def _planted(plants, leads):
    ours, one = plants["influence"], plants.get("one checkpoint")
    value, along = ours["precision_at_5"], ""
    if one and (same := plants.get("influence, normalised")):
        along = (
            f" (over checkpoints; normalised {same['precision_at_5']:.0%}, and so at one "
            f"checkpoint {one['precision_at_5']:.0%})"
        )
    return Finding(
        f"{value:.0%}",
        "of the first five documents are the planted ones",
        f"Of the first five documents behind a planted association {value:.0%} are those that "
        f"planted it{along}: {_beside('BM25', plants['bm25']['precision_at_5'], leads, 'bm25')}.",
    )


def _removed(leads, facts, plants=None):
    def others(kind, found, names):
        return ", ".join(
            _beside(title, found[name]["flipped_or_halved"], leads.get(kind), name)
            for name, title in names.items()
        )

    ours, traits = facts["influence"], ""
    if plants:
        own = plants["influence"]
        traits = (
            f" Of {own['answers']} planted associations {own['flipped_or_halved']:.0%} do: "
            f"{others('plants', plants, {'bm25': 'BM25'})}."
        )
    return Finding(
        f"{ours['flipped_or_halved']:.0%}",
        "of answers flip, or halve their probability, without their first documents",
        f"Trained again without their first documents, {ours['flipped_or_halved']:.0%} of "
        f"{ours['answers']} right answers flip or halve their probability: "
        f"{others('facts', facts, {'bm25': 'BM25', 'random': 'random documents'})}.{traits}",
    )


def _beside(title, share, leads, name):
    """How a rival's share reads beside ours; leads: {rival: the paired difference's mean and 95 %
    interval}, or None where too few answers say nothing of it; None in older records."""
    lead = (leads or {}).get(name)
    if not lead:
        return f"{title} {share:.0%}"
    place = "ahead of" if lead["low"] > 0 else "behind" if lead["high"] < 0 else "level with"
    mean, low, high = (100 * lead[x] for x in ("mean", "low", "high"))
    return f"{place} {title} with {share:.0%} ({mean:+.0f} [{low:+.0f}, {high:+.0f}] points)"


def removal(numbers):
    """Notebook 10: are answers lost without the documents that influence ranks highest?"""
    lost, lead = numbers["lost"], numbers["lead"]
    (ours,) = lost.keys() - lead.keys() - {"others' documents"}
    share = lost[ours]["value"]

    def beside(name, x):
        if "low" not in x:  # older records
            return f"{named(name)} {lost[name]['value']:.0%}"
        ends = f"[{x['low']:+.0%}, {x['high']:+.0%}]"
        return f"{named(name)} {lost[name]['value']:.0%} ({x['mean']:+.0%} {ends} for {ours})"

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

    first, *_ = recipes
    rough, even = min(recipes, key=smooth), max(recipes, key=smooth)
    if rough == even:
        claim = f"One recipe alone ({even}, metasmoothness {smooth(even):.2f}) was tried."
        return Finding(f"{lds(first):.2f}", "LDS of multi-stage influence", claim)
    return Finding(
        f"{lds(first):.2f}",
        "LDS of multi-stage influence, by the first recipe of training",
        f"The roughest training ({rough}, metasmoothness {smooth(rough):.2f}) has an LDS of "
        f"{lds(rough):.2f}, the smoothest ({even}, {smooth(even):.2f}) one of {lds(even):.2f}; "
        f"noise between seeds allows {recipes[rough]['ceiling']:.2f} and "
        f"{recipes[even]['ceiling']:.2f}.{_follows(numbers)}",
    )


def _follows(numbers):
    """Does LDS follow metasmoothness over the recipes, by more than chance?"""
    if numbers["correlation"] is None:
        return ""
    p = numbers.get("by_chance")
    sure = "" if p is None else f" (by chance as often as {p:.2f})"
    many, value = len(numbers["recipes"]), numbers["correlation"]
    return f" Over {many} recipes the two correlate {value:.2f}{sure}."
