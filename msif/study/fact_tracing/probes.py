"""Generalisation probes: does a score follow what a document says, or how it says it?

Each probe is a document about one fact of the generated corpus; all but the first are absent from
the corpus, and use none but its words:

    statement       the fact, as one of the corpus's own sentences states it
    paraphrase      the fact, by a template in which the corpus does not state it
    object first    the statement with subject and object exchanged: the same words, and a false
                    sentence
    flipped         the fact, by a sentence that names the object first (`corpora.english` alone)
    reversed        the statement's words in reverse order
    other relation  another fact about the same subject
    other subject   the fact's relation and object, stated of another subject that has it
    unrelated       a sentence that names nobody

A probe that a corpus leaves no room for is left out for that fact, but for the paraphrase, which is
an error. Source: Grosse et al. 2023 (arXiv 2308.03296): influence is sparse, survives paraphrase,
and falls when the order of the key phrases is flipped.
"""

import random
from itertools import product

import numpy as np

from msif.study.corpora.corpus import FILLERS, RELATIONS, templates
from msif.study.metrics import top_share

PROBES = (
    "statement",
    "paraphrase",
    "object first",
    "flipped",
    "reversed",
    "other relation",
    "other subject",
    "unrelated",
)


def probe_documents(corpus, rows, seed=0):
    """Probe documents of facts: dicts with text, probe (one of `PROBES`) and query (the number of
    the fact in rows).

    corpus: a generated `Corpus`. rows: of its queries, with subject, relation, object and
    proponents. Raises ValueError, naming the row, for one that is no generated fact or that the
    corpus does not state, and where no template is left for a paraphrase.
    """
    facts = sorted({_fact(d) for d in corpus.documents if d["kind"] == "statement"})
    taken, rng = {d["text"] for d in corpus.documents}, random.Random(seed)
    words = {word for text in taken for word in text.split()}

    def unseen(texts):
        return [text for text in texts if text not in taken and words.issuperset(text.split())]

    idle = unseen(" ".join(parts) for parts in product(*FILLERS))
    found = []
    for number, row in enumerate(rows):
        _check(row, number)
        texts = _texts(corpus, facts, row, unseen, rng)
        if idle:
            texts["unrelated"] = rng.choice(idle)
        if "paraphrase" not in texts:
            count = len(templates(row["relation"], "statements"))
            raise ValueError(
                f"row {number}: the corpus states {_fact(row)} in every template it has words for; "
                f"generate it with fewer statements than the {count} templates, or with more people"
            )
        found += [
            {"text": texts[probe], "probe": probe, "query": number}
            for probe in PROBES
            if probe in texts
        ]
    return found


def _fact(row):
    return row["subject"], row["relation"], row["object"]


def _check(row, number):
    needed = ("subject", "relation", "object", "proponents")
    if lacking := [key for key in needed if not row.get(key)]:
        raise ValueError(
            f"row {number} has no {', '.join(lacking)}: expected a query of a generated corpus "
            "that states its fact"
        )
    if row["relation"] not in RELATIONS:
        raise ValueError(
            f"row {number} has the relation {row['relation']!r}; expected one of "
            f"{', '.join(RELATIONS)}"
        )


def _texts(corpus, facts, row, unseen, rng):
    """{probe: text} of one fact."""
    subject, relation, thing = _fact(row)
    statement = corpus.documents[rng.choice(row["proponents"])]["text"]
    exchanged = {subject: thing, thing: subject}
    pools = {
        "paraphrase": [_fact(row)],
        "other relation": [f for f in facts if f[0] == subject and f[1] != relation],
        "other subject": [f for f in facts if f[0] != subject and f[1:] == (relation, thing)],
    }
    pools = {
        probe: unseen(t.format(s=s, o=o) for s, r, o in some for t in templates(r, "statements"))
        for probe, some in pools.items()
    }
    words = statement.split()
    pools["object first"] = unseen([" ".join(exchanged.get(word, word) for word in words)])
    pools["reversed"] = unseen([" ".join(reversed(words))])
    drawn = {probe: rng.choice(pool) for probe, pool in pools.items() if pool}
    return {"statement": statement} | drawn


def probe_scores(probes, scores):
    """Scores of probe documents for their own queries: records {probe, query, score}, in the order
    of `probes`.

    probes: of `probe_documents`; scores: (q, n), of the same rows and documents. score: in the unit
    of scores, positive = proponent. Raises ValueError for scores of another shape.
    """
    queries = 1 + max(p["query"] for p in probes)
    if len(scores) < queries or scores.shape[1] != len(probes):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; expected at least {queries} queries and "
            f"{len(probes)} documents, the probes"
        )
    return [
        {"probe": p["probe"], "query": p["query"], "score": scores[p["query"], n].item()}
        for n, p in enumerate(probes)
    ]


def summary(records):
    """Each probe's mean score relative to the statement's: dicts
    {probe, relative, relative_se, queries}, in the order of `PROBES`.

    relative: Σ score / Σ statement's score over the queries that have the probe, without unit:
    1 = as influential as what was trained on, 0 = not at all. relative_se: over queries, paired, by
    linearising the ratio; nan for one query."""
    table = {}
    for r in records:
        table.setdefault(r["probe"], {})[r["query"]] = r["score"]
    return [
        _relative(probe, table[probe], table["statement"]) for probe in PROBES if probe in table
    ]


def _relative(probe, own, statement):
    own, base = (np.array([x[query] for query in own]) for x in (own, statement))
    ratio, n = own.mean() / base.mean(), len(own)
    error = (own - ratio * base).std(ddof=1) / (abs(base.mean()) * n**0.5) if n > 1 else np.nan
    return {
        "probe": probe,
        "relative": round(float(ratio), 4),
        "relative_se": round(float(error), 4),
        "queries": n,
    }


def sparsity(scores, share=0.01):
    """Share of each query's positive influence that the top `share` of its documents holds:
    (q, n) -> (q,) in [0, 1].

    nan for a query without positive score."""
    scores = np.asarray(scores)
    return np.array([top_share(row, share) if (row > 0).any() else np.nan for row in scores])
