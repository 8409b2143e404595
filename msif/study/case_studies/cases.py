"""The pairs of models that the case studies speak of, and their own answers as queries.

A case (`Case`) is a trained pair with factors of both stages. Its queries are what the fine-tuned
model itself says, greedily: right or wrong, f is the log-probability of that answer, so that
influence explains what was said and not what should have been. A pair is trained here
(`sources.recipe`), or given (`msif.study.beds.pairs`): then nothing can be trained again, and every
query has its own candidates.
"""

import math
import random
from dataclasses import dataclass, replace

import torch

from msif.core import influence
from msif.core.data import NO_LOSS
from msif.rivals import retrieval
from msif.study.beds import pairs, sources, testbed
from msif.study.beds.retraining import Recipe
from msif.study.case_studies import anatomy, large, preflight
from msif.study.case_studies.answers import answered, own_question
from msif.study.corpora.planted import BIOGRAPHY
from msif.study.tracing import methods, mistakes
from msif.study.tracing.case import Case, trained_case

CLASSES = (*mistakes.CLASSES[:-1], "names the answer", mistakes.CLASSES[-1])


def case(made, seed, checkpoints, batch_size=64, questions=()):
    """The `Case` of a recipe, its queries those of the corpus and one's own `questions`
    ({"prompt", "answer"?}), with the model's own answers in place of the true ones: rows have
    `answer`, what the model says; `truth`, the corpus's (or None); and `right`."""
    found = trained_case(made, seed, checkpoints, batch_size=batch_size)
    own = [own_question(found, row) for row in questions]
    return answered(found, [*found.bed.corpus.queries, *own])


def taught(case, count, seed=0):
    """At most `count` rows of fine-tuning that ask for a fact of the kind that queries ask for, and
    that the fine-tuned model answers rightly; drawn by seed, one for each fact."""
    relations = {row["relation"] for row in case.rows if row["kind"] == "query"}
    facts = {
        (row["subject"], row["relation"]): row
        for row in case.bed.corpus.finetuning
        if row.get("relation") in relations
    }
    rows = list(facts.values())
    given = testbed.answers(case.bed.model("finetuned"), case.bed.tokenizer, rows)
    right = [row for row, (_, ok) in zip(rows, given) if ok]
    return random.Random(seed).sample(right, min(count, len(right)))


def drawn(case, count, seed=0, **wanted):
    """Numbers of at most `count` queries of a case, drawn by seed among those whose rows have the
    values `wanted`, in order."""

    def fits(row):
        return all(row.get(name) == value for name, value in wanted.items())

    fitting = [n for n, row in enumerate(case.rows) if fits(row)]
    return sorted(random.Random(seed).sample(fitting, min(count, len(fitting))))


@dataclass(frozen=True)
class Portion:
    """Some queries of a case with the documents that they are ranked among. table:
    {method/form: (q, n)}; numbers: those documents' in the whole."""

    case: Case
    table: dict
    numbers: list


@dataclass(frozen=True)
class Study:
    """One seed's pair. table: {method/form: (q, N)}, −inf outside a query's candidates. recipe:
    None for a given pair. parts: the case whole, or by queries."""

    case: Case
    table: dict
    recipe: Recipe | None
    parts: list

    @property
    def influence(self):
        """The name of the score that stands for influence: over checkpoints, where there are
        any."""
        names = ("multi_stage_trajectory/raw", "multi_stage/normalised")
        return next(name for name in names if name in self.table)


def study(seed, pair, *, questions=(), fit=None, at_once=None, settings):
    """The `Study` of one seed. pair: {"checkpoints"} and the arguments of `sources.recipe`, or
    the arguments of `pairs.prepare` (known by its "models").

    questions: one's own; at_once, fit: for a given pair, queries at a time and arguments of
    `large.case`. settings: as for `methods.scored`."""
    if "models" in pair:
        asked = [*pair["questions"], *questions]
        found = large.case(pairs.prepared(seed, **pair | {"questions": asked}), **fit or {})
        table = _given_table(found, at_once or 1, settings)
        return Study(found, table, None, portions(found, table))
    how = {name: value for name, value in pair.items() if name != "checkpoints"}
    made = sources.recipe(seed, **how)
    found = case(made, seed, pair.get("checkpoints", ()), settings["batch_size"], questions)
    table = methods.scored(found, **settings) | {"word_order/raw": _word_order(found)}
    return Study(found, table, made, [Portion(found, table, list(range(len(found.bed.documents))))])


def _word_order(case):
    """The rule that is told subject and answer (`retrieval.word_order`), −1 everywhere where a
    query has no subject."""
    subjects = [row.get("subject") or "–" for row in case.rows]
    answers = [row["answer"] for row in case.rows]
    texts = [d["text"] for d in case.bed.corpus.documents]
    return torch.from_numpy(retrieval.word_order(texts, subjects, answers))


def _given_table(found, at_once, settings):
    """Multi-stage and single-stage scores at the two models, and BM25, of each query's own
    candidates."""
    damping = influence.Damping(settings["single_stage_damping"])
    chains = {
        "multi_stage": found.chain(settings["damping"], settings["alpha"]),
        "single_stage_finetuned": [influence.Stage(found.factors["finetuned"], damping)],
    }
    scores = large.scored(found, chains, at_once=at_once, batch_size=settings["batch_size"])
    table = {
        f"{method}/{form}": values
        for method, both in scores.items()
        for form, values in zip(methods.FORMS, both)
    }
    texts = [d["text"] for d in found.bed.corpus.documents]
    asked = [f"{row['prompt']} {row['answer']}" for row in found.rows]
    search = torch.from_numpy(retrieval.bm25(texts, asked)).float()
    inside = table["multi_stage/raw"].isfinite()
    return table | {"bm25/raw": torch.where(inside, search, -torch.inf)}


def portions(found, table):
    """One part a query, with its own candidates: for the sizes at which a score of every query and
    document is not to be had."""
    parts, bed, corpus = [], found.bed, found.bed.corpus
    rows = [row | {"proponents": [], "candidates": None} for row in corpus.queries]
    for n, (query, row) in enumerate(zip(found.queries, found.rows)):
        numbers = sorted(row["candidates"])
        few = replace(corpus, documents=[corpus.documents[m] for m in numbers], queries=rows)
        own = replace(bed, corpus=few, documents=[bed.documents[m] for m in numbers])
        values = {name: x[[n]][:, numbers] for name, x in table.items()}
        parts.append(Portion(replace(found, bed=own, queries=[query]), values, numbers))
    return parts


def compared(study, chain, reference, at_once=None, batch_size=64):
    """`anatomy.agreement` of the normalised multi-stage scores at one checkpoint by two lists of
    `influence.Stage`; at_once: for a given pair, queries at a time, each with its own candidates.

    What a given pair was scored by before is not computed again."""
    if at_once is None:
        return anatomy.over(
            study.parts, lambda p: anatomy.changed(p.case, chain, reference, batch_size)
        )
    both = (
        large.scored(study.case, {"multi_stage": x}, at_once=at_once, batch_size=batch_size)
        for x in (chain, reference)
    )
    values = [scores["multi_stage"][1] for scores in both]
    parts = list(enumerate(study.parts))
    return anatomy.over(
        parts, lambda part: anatomy.agreement(*(x[[part[0]]][:, part[1].numbers] for x in values))
    )


def plan(pair, seeds, counterfactual, **given):
    """What the study is about to do, as text. given: `fit`, `at_once`, `batch_size` and `questions`
    of a given pair, for which it is the table of `preflight.preflight`; OSError, before anything
    starts, where something is missing, saying what and what to do."""
    if "models" in pair and counterfactual:
        raise ValueError(
            "counterfactual is for pairs that are trained here; a given pair cannot be trained "
            "again: set it to null"
        )
    if "models" in pair:
        rows, missing = preflight.preflight(**preflight.arguments(given | {"pair": pair}))
        if missing:
            raise OSError("\n".join([preflight.table(rows), *(f"missing: {x}" for x in missing)]))
        return preflight.table(rows)
    lines = [
        f"plan: {len(seeds)} pair{'s' * (len(seeds) > 1)} of models trained here, factors of "
        f"{len(pair['checkpoints']) + 2} checkpoints each"
    ]
    if counterfactual:
        answers = counterfactual["answers"] + pair["corpus"].get("planted", 0)
        few = math.ceil(answers / counterfactual["together"])
        lines.append(
            f"about {(3 * few + 5) * len(counterfactual['seeds'])} retrainings of both stages, "
            "kept in scratch/: a killed run goes on"
        )
    return "; ".join(lines)


def by_fact(case, numbers, damping, alpha, batch_size=64):
    """{relation: (numbers of queries, scores (len, n))}: the normalised multi-stage score of each
    fact's own word in biographies, the words before it given.

    numbers: of the queries; an answer that does not tell a fact in the words of `planted.BIOGRAPHY`
    is left out of that relation."""
    base, tuned = case.tracked("pretrained"), case.tracked("finetuned")
    chain, found = case.chain(damping, alpha), {}
    for relation, template in BIOGRAPHY.items():
        told = [(n, word) for n in numbers if (word := word_of(case, n, template)) is not None]
        if told:
            q = influence.query_gradients(tuned, [query for _, query in told])
            w = influence.precondition(q, chain)[0]
            scores = influence.score(base, case.bed.documents, w, batch_size=batch_size)
            found[relation] = [n for n, _ in told], scores.normalised()
    return found


def word_of(case, n, template):
    """The query with a label on the one word that stands for {o}; None where the answer lacks the
    words before it."""
    words, query = template.format(o="").strip(), case.queries[n]
    before = case.bed.tokenizer(words, add_special_tokens=False)["input_ids"]
    ids = list(query.input_ids)
    for start in range(len(ids) - len(before)):
        at = start + len(before)
        if ids[start:at] == before and query.labels[start] != NO_LOSS:
            labels = tuple(y if t == at else NO_LOSS for t, y in enumerate(query.labels))
            return replace(query, index=n, labels=labels)
    return None


def short_names(layers):
    """Layer names without what all of them share: "0 attention.query_key_value"."""
    parts = [name.split(".") for name in layers]
    same = next((n for n, column in enumerate(zip(*parts)) if len(set(column)) > 1), 0)
    return [" ".join([x[same], ".".join(x[same + 1 :])]) for x in parts]


def said(document, row):
    """What a document says of an answer: one of CLASSES. Decoys and "near" sentences name things
    and state nothing."""
    document = document | {"kind": "near"} if document["kind"] == "decoy" else document
    found = mistakes.said(document, row["subject"], row["relation"], row["answer"])
    names_it = found == "another subject" and document["kind"] == "near"
    return "names the answer" if names_it else found


def finding(tops, kinds):
    """The title of a figure: for which kind of document two methods differ most. tops: {method:
    {kind: (q,) share}}, the first against "single-stage"."""
    ours, other = next(iter(tops)), "single-stage"
    kind = max(kinds, key=lambda x: abs(tops[ours][x].mean() - tops[other][x].mean()))
    shares = [f"{tops[method][kind].mean():.0%} by {method}" for method in (ours, other)]
    return f"The ten highest documents, by method: of kind {kind!r} {', '.join(shares)}"


def record(study, row, method, **values):
    """One record of case_studies.json: all have the same keys, so that `dvc plots` draws them; None
    where a study lacks one."""
    names = ("seed", "precision_at_5", "rarest_shared_word", "before", "after", "says", "lost")
    of = {"study": study, "question": row["prompt"], "answer": row["answer"], "method": method}
    return of | dict.fromkeys(names) | values
