"""What `08_your_models` needs beside the front door: a small pair of models in a stranger's layout,
what models say, other settings, and a cheap check of scores."""

import json
import shutil
from pathlib import Path

import torch

from msif.core import influence
from msif.core.capture import gradients
from msif.core.generation import answer_start, log_probabilities, own_answers, own_share
from msif.core.influence import Damping, Stage
from msif.core.layers import matrix, own_module, weight_matrix
from msif.core.objectives import loss
from msif.study.beds import testbed
from msif.study.tracing import methods
from msif.view import highlight

LOOKED_AT = 256  # fine-tuning rows


def pair(folder, corpus, *, questions, seed=0, **settings):
    """Train a pair on a `corpus.Corpus` and lay it out as anyone's: base/ and tuned/ with their
    tokenizer, documents.jsonl, rows.jsonl.

    settings: of `testbed.trained` (model, pretraining, finetuning, max_length), which keeps the
    training in scratch/. Whatever `folder` held is removed. Returns up to `questions` of the
    corpus' queries, [{"prompt", "answer"}], those that the fine-tuned model answers rightly. Raises
    ValueError if it answers none of them so.
    """
    folder, bed = Path(folder), testbed.trained(seed, corpus, checkpoints=[], **settings)
    shutil.rmtree(folder, ignore_errors=True)
    for name, source in (("base", "pretrained"), ("tuned", "finetuned")):
        shutil.copytree(bed.folder / source, folder / name)
        bed.tokenizer.save_pretrained(folder / name)
    _write(folder / "documents.jsonl", corpus.documents, ["text"])
    _write(folder / "rows.jsonl", corpus.finetuning, ["prompt", "answer"])
    known = testbed.answers(bed.model("finetuned"), bed.tokenizer, corpus.queries)
    right = [
        {"prompt": row["prompt"], "answer": row["answer"]}
        for row, (_, ok) in zip(corpus.queries, known)
        if ok
    ]
    if not right:
        raise ValueError(
            f"the fine-tuned model answers none of {len(corpus.queries)} questions rightly; train "
            "longer"
        )
    return right[:questions]


def _write(path, rows, keys):
    """These keys of rows, one JSON object a line."""
    lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def learnt(model, rows):
    """The share of the answers' tokens that a `msif.Model` would itself write, over up to 256 of
    the fine-tuning rows, evenly drawn: from 0 to 1."""
    return own_share(model.tracked.model, rows[:: -(-len(rows) // LOOKED_AT)])


def _parts(question):
    """(ids of the prompt, ids of the answer)."""
    at = answer_start(question)
    return question.input_ids[:at], question.input_ids[at:]


def as_text(model, questions):
    """[(prompt, answer)] of questions, as a `msif.Model`'s tokenizer writes them."""
    return [tuple(_decoded(model, part) for part in _parts(x)) for x in questions]


def _closing(model):
    """The ids of special tokens, of which one may close an answer."""
    return set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}


def _spoken(model, answer):
    """The ids of an answer before the special token that closes it, if there is one."""
    end = next((t for t, x in enumerate(answer) if t and x in _closing(model)), len(answer))
    return answer[:end]


def _decoded(model, ids):
    return model.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def said(model, questions):
    """What a `msif.Model` says to each question, in as many tokens as its answer has without what
    closes it: [(text, is it the answer?)]."""
    answers = [_spoken(model, _parts(x)[1]) for x in questions]
    written = own_answers(model.tracked.model, questions, stop=_closing(model))
    cut = [tuple(ids[: len(answer)]) for ids, answer in zip(written, answers)]
    return [(_decoded(model, ids), ids == answer) for ids, answer in zip(cut, answers)]


def shaded(scores, questions):
    """HTML of the documents that stand first for the first few questions of `msif.Scores`, each
    token shaded by its part of the score."""
    model, page = scores.stages[scores.stage].model, highlight.LEGEND
    asked = as_text(scores.stages[-1].model, scores.questions[:questions])
    ranked = scores.top()[:questions]
    documents = {x.index: x for x in scores.documents}
    for k, ((prompt, answer), row) in enumerate(zip(asked, ranked)):
        chosen = [documents[x.document] for x in row]
        alone = {name: w[k : k + 1] for name, w in scores.w.items()}
        split = influence.token_scores(model.tracked, chosen, alone)[0].tolist()
        page += highlight.ranking(
            prompt,
            answer,
            [
                {
                    "rank": x.rank,
                    "score": x.score,
                    "note": f"document {x.document}",
                    "words": [model.tokenizer.decode([i]) for i in sequence.input_ids],
                    "scores": tokens[: len(sequence.input_ids)],
                }
                for x, sequence, tokens in zip(row, chosen, split)
            ],
        )
    return page


def settings(stages, questions, documents, tried, batch_size=32):
    """Normalised scores (q, n) of two `msif.Stage`s with other numbers: {(damping, α): scores}, all
    in one pass over the documents. tried: {"damping": numbers, "alpha": numbers}."""
    before, after = stages
    q = influence.query_gradients(after.model.tracked, questions, batch_size=batch_size)
    vectors = {
        (d, a): influence.precondition(
            q,
            [
                Stage(before.factors, damping=Damping(d)),
                Stage(after.factors, alpha=Damping(a)),
            ],
        )[0]
        for d in tried["damping"]
        for a in tried["alpha"]
    }
    found = methods.score_together(before.model.tracked, documents, vectors, batch_size)
    return {setting: x.normalised() for setting, x in found.items()}


def weights_norm(tracked):
    """‖θ‖ over the tracked layers' weights and biases."""
    weights = (weight_matrix(own_module(tracked.model, x)) for x in tracked.layers)
    return float(sum(x.double().square().sum() for x in weights)) ** 0.5


def after_step(base, tuned, documents, queries, length, batch_size=32):
    """What one step of SGD on each document does to each query's log-probability: (q, n) float64,
    nats; positive = more likely.

    base, tuned: `layers.Tracked` with equal layers. The step is taken at `base`, over its layers,
    with ‖δ‖ = `length` for every document: δ = −length · ∇ℓ_z(θ₁) / ‖∇ℓ_z(θ₁)‖. It is carried to
    `tuned` unchanged, as if fine-tuning kept it: f(θ₂ + δ) − f(θ₂). To first order that is
    length × the gradient dot product of the query at θ₂ and the document at θ₁, normalised: no
    curvature takes part. `tuned` is given back as it was.
    """
    before, found = log_probabilities(tuned.model, queries, batch_size), []
    kept = {
        layer.name: [p.detach().clone() for p in _parameters(tuned.model, layer)]
        for layer in tuned.layers
    }
    try:
        for document in documents:  # one by one: a gradient is as large as the weights
            step = gradients(base, [document], loss)
            norm = sum(g.square().sum() for g in step.values()).sqrt()
            for layer in tuned.layers:
                _add(tuned.model, layer, -length / norm * step[layer.name][0])
            found.append(log_probabilities(tuned.model, queries, batch_size) - before)
            _restore(tuned, kept)
    finally:
        _restore(tuned, kept)
    return torch.stack(found, 1)


def _parameters(model, layer):
    module = own_module(model, layer)
    return [module.weight, module.bias] if layer.bias else [module.weight]


@torch.no_grad()
def _add(model, layer, step):
    """step (o, i), the last column the bias's."""
    weight, *bias = _parameters(model, layer)
    weight.add_(matrix(own_module(model, layer), step[:, : layer.in_features].to(weight)))
    for b in bias:
        b.add_(step[:, -1].to(b))


@torch.no_grad()
def _restore(tracked, kept):
    for layer in tracked.layers:
        for p, value in zip(_parameters(tracked.model, layer), kept[layer.name]):
            p.copy_(value)
