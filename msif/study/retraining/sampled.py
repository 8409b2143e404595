"""Two-stage Bayesian influence of a pair trained here: models drawn near the end of pre-training,
each fine-tuned as the pair was (`msif.rivals.bayesian`)."""

import copy

import torch
from tqdm import tqdm

from msif.rivals import bayesian
from msif.study import scratch
from msif.study.beds.retraining import measured
from msif.study.beds.training import train


def bayesian_scores(case, recipe, seed, *, count, settings):
    """{"bayesian/raw" and "bayesian/normalised": (q, N)} of one seed, kept in scratch/.

    count: models drawn. settings: of `bayesian.draws`. All are fine-tuned on the same batches, so
    that they differ in where they start alone."""
    key = case.key() | recipe.key() | {"seed": seed, "count": count, "settings": settings}
    return scratch.tensors("bayesian", key, lambda: _scores(case, recipe, seed, count, settings))


def _scores(case, recipe, seed, count, settings):
    bed, losses, f = case.bed, [], []
    net = bed.model("pretrained")
    drawn = bayesian.draws(net, bed.documents, count, seed=seed, **settings)
    for model in tqdm(drawn, total=count, desc="draws, fine-tuned"):
        losses.append(bayesian.losses_of(model, bed.documents))
        tuned = copy.deepcopy(model)
        train(tuned, bed.finetuning, seed=seed, **recipe.finetuning)
        f.append(measured(tuned, case.queries)["log_probability"])
    raw, normalised = bayesian.covariances(
        torch.stack(losses), torch.stack(f), settings["inverse_temperature"]
    )
    return {"bayesian/raw": raw, "bayesian/normalised": normalised}
