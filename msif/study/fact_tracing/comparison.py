"""Every rival of the multi-stage score on one case; scores (q, n), one number for every document.

    bm25, tfidf, embeddings     text search for question + answer, words or all-MiniLM-L6-v2
                                (`retrieval`)
    bm25_question               for the question alone: what one knows before the model has answered
    bm25_all_words              stop words kept
    word_order                  a rule, not a search: subject before object, and near (`retrieval`);
                                knows how models learn
    hidden_mean, hidden_last    cosine of mean or last hidden states at θ₂, hidden_mean_pretrained
                                at θ₁, hidden_input of mean input embeddings; means over documents
                                taken off (`representations`)
    trackstar                   cosine of projected, whitened gradients at θ₂ (`trackstar`)
    trackstar_pretrained, trackstar_trajectory, trak, trak_pretrained, trak_trajectory
                                with documents at θ₁ or the checkpoints, and TRAK (`rivals`), with
                                the settings that `tuning` chose; without any, absent, and
                                TrackStar's the default
    multi_stage_refined         conjugate gradients on the exact Gauss-Newton matrix, preconditioned
                                by EK-FAC (`dial`)
    multi_stage… + embeddings   reciprocal rank fusion of influence with a text search, for each of
                                them

and the gradients, single-stage and multi-stage scores of `tracing.methods`.

To add a rival: a function of a case that gives (q, n) scores, higher = nearer, under its name in
`searched` (of texts) or `similar` (of models); its cost in `costs`; a line in the table above and
in notebook 03's. Columns are named "method/form" (`tracing.names`); a rival with a normalised form
gives both. Every condition then compares it, and `names.NAMES` has what readers call it.
"""

import torch
from safetensors.torch import save_file

from msif.core.data import encode_documents
from msif.rivals import representations, retrieval, trackstar
from msif.study import metrics, scratch
from msif.study.corpora import english_unseen
from msif.study.fact_tracing import probes, tuning
from msif.study.tracing import methods
from msif.study.tracing.candidates import candidate_table
from msif.study.tracing.curvatures import with_products
from msif.study.tracing.names import FORMS

SEARCHES = ("bm25", "tfidf", "embeddings")  # question + answer: those that are fused and filter
# What is fused with text search: the first there is.
INFLUENCE = ("multi_stage_trajectory/normalised", "multi_stage/normalised")


def texts(case):
    """(documents, questions, questions with the answer) of a case, as text search reads them: a
    question without the chat format around it."""
    asked = [row.get("question", row["prompt"]) for row in case.rows]
    return (
        [d["text"] for d in case.bed.corpus.documents],
        asked,
        [f"{question} {row['answer']}" for question, row in zip(asked, case.rows)],
    )


def influences(case, at_once, settings):
    """{method/form: (q, n)} of the gradients and influence scores."""
    if at_once is None:
        return methods.scored(case, **settings)
    key = case.key() | settings | {"at_once": at_once}
    return scratch.tensors("candidates", key, lambda: candidate_table(case, at_once, **settings))


def searched(case, embedder=None):
    """{method/raw: (q, n)} of the text searches. embedder: as for `retrieval.embeddings`."""
    documents, questions, both = texts(case)
    found = {
        "bm25": retrieval.bm25(documents, both),
        "bm25_question": retrieval.bm25(documents, questions),
        "bm25_all_words": retrieval.bm25(documents, both, stop_words=None),
        "tfidf": retrieval.tfidf(documents, both),
        "embeddings": retrieval.embeddings(documents, both, embedder),
    }
    rows = case.rows
    if all("subject" in row for row in rows):
        subjects, answers = [row["subject"] for row in rows], [row["answer"] for row in rows]
        found["word_order"] = retrieval.word_order(documents, subjects, answers)
    return {f"{name}/raw": torch.as_tensor(x, dtype=torch.float32) for name, x in found.items()}


def similar(case, dimension, batch_size=64):
    """{method/raw: (q, n)} of representations and projected gradients. dimension: of TrackStar's
    gradients, per layer."""
    queries, documents = case.queries, case.bed.documents
    tuned, base = case.tracked("finetuned"), case.bed.model("pretrained")

    def cosine(net, kind, layer=-1):
        return representations.cosine(
            net, queries, documents, kind, layer, batch_size, centred=True
        )

    found = {
        "hidden_mean": cosine(tuned.model, "mean"),
        "hidden_last": cosine(tuned.model, "last"),
        "hidden_mean_pretrained": cosine(base, "mean"),
        "hidden_input": cosine(tuned.model, "mean", 0),
    }
    found["trackstar"] = trackstar.scores(
        tuned,
        queries,
        documents,
        case.bed.finetuning,
        dimension=dimension,
        batch_size=batch_size,
    )
    return {f"{name}/raw": torch.as_tensor(x, dtype=torch.float32) for name, x in found.items()}


def compared(
    case, *, embedder=None, dimension=16, refined=None, at_once=None, chosen=None, **settings
):
    """{method/form: (q, n)} of everything above, each part kept in scratch/.

    settings: as for `methods.scored`. chosen: None, or {method: settings} of `tuning.RIVALS`.
    refined: None, or {"documents", "iterations"} of
    `with_products`. at_once: so many queries at a time, against their own candidates alone
    (`candidates.candidate_table`); None: all queries and documents together."""
    found = influences(case, at_once, settings)
    found |= scratch.tensors(
        "searched", case.key() | {"embedder": embedder}, lambda: searched(case, embedder)
    )
    found |= scratch.tensors(
        "similar",
        case.key() | {"dimension": dimension},
        lambda: similar(case, dimension, settings["batch_size"]),
    )
    if chosen:
        found |= tuning.scored(case, chosen, settings["batch_size"])
    if refined:
        size = refined["documents"], refined["iterations"]
        found |= with_products(case, *size, settings["damping"], settings["alpha"])
    return found | fusions(found, [row.get("candidates") for row in case.rows])


def save(found, folder):
    """Write {method/form: (q, n)} to folder/scores.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.contiguous().clone() for name, x in found.items()}
    save_file(tensors, folder / "scores.safetensors")


def fusions(found, candidates):
    """Reciprocal rank fusions of `influence` with each text search, each query's ranks among its
    candidates (None: all)."""
    ours = influence(found)

    def inside(x):
        return metrics.within(x, candidates) if all(candidates) else x

    fused = {}
    for name in SEARCHES:
        ranks = retrieval.fused(inside(found[ours]), inside(found[f"{name}/raw"]))
        fused[f"{ours.split('/')[0]} + {name}/raw"] = torch.as_tensor(ranks)
    return fused


def influence(found):
    """The name of the score that stands for influence: over checkpoints where there are any."""
    return next(name for name in INFLUENCE if name in found)


def filtering(found, name):
    """Scores (q, n) of a filter: a text search, or "a + b" for the fusion of two."""
    return retrieval.fused(*(found[f"{part}/raw"] for part in name.split(" + ")))


def probed(case, damping, alpha, seed, batch_size=64, parts=1):
    """{form: `probes.probe_scores`} of a case's queries by the multi-stage score at θ₁: of those
    about what the corpus invents."""
    invented = [n for n, row in enumerate(case.rows) if row.get("about") in (None, "invented")]
    rows, queries = ([x[n] for n in invented] for x in (case.rows, case.queries))
    maker = english_unseen if "about" in rows[0] else probes
    found = maker.probe_documents(case.bed.corpus, rows, seed)
    texts = [p["text"] for p in found]
    longest = case.bed.model("pretrained").config.max_position_embeddings
    documents = encode_documents(texts, case.bed.tokenizer, longest)
    settings = {"parts": parts, "batch_size": batch_size}
    scores = methods.multi_stage(case, queries, documents, damping, alpha, **settings)
    both = dict(zip(FORMS, (scores.values, scores.normalised())))
    return {form: probes.probe_scores(found, values) for form, values in both.items()}


def costs(case, refined=None, chosen=None):
    """{method: forward + backward passes per candidate document}, as `methods.costs`; text search
    is counted as nothing, a forward pass as a third, and a product of `refined` for one query and
    one document as one. chosen: as for `compared`."""
    hidden = ("hidden_mean", "hidden_last", "hidden_mean_pretrained", "hidden_input")
    found, documents = methods.costs(case), len(case.bed.documents)
    rows = len(case.bed.finetuning) / documents
    found |= dict.fromkeys((*SEARCHES, "bm25_question", "bm25_all_words", "word_order"), 0)
    found |= {"trackstar": 1 + rows} | dict.fromkeys(hidden, 1 / 3)
    for method, settings in (chosen or {}).items():
        models = len(case.bed.checkpoints) if method.endswith("_trajectory") else 1
        beside = 1 / 3 if method.startswith("trak") else rows + settings.get("moments", False)
        found[method] = models * (1 + beside)
    found |= {
        f"{method} + {name}": found[method]
        for method in ("multi_stage", "multi_stage_trajectory")
        for name in SEARCHES
    }
    if refined:
        data = refined["documents"] / documents + rows  # of one product
        products = refined["iterations"] * len(case.queries) * data
        found["multi_stage_refined"] = found["multi_stage"] + products
    return {name: round(float(cost), 2) for name, cost in found.items()}
