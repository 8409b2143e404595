"""EK-FAC agrees with an independent implementation, kronfluence 1.0.1,
on a small GPT-NeoX with padded sequences.

Labels are the data's own, so that nothing is random; all in float64, kronfluence's sums included,
so that what is left is roundoff (measured: below 1e-14).
"""

import pytest
import torch
from support.tiny import documents, neox, relative

from msif.core.data import collate
from msif.core.ekfac import covariances, fit
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.kronecker import EKFAC, LayerFactors
from msif.core.layers import Tracked, tracked
from msif.core.objectives import fisher_losses

pytest.importorskip(
    "kronfluence",
    reason="installed by .ci/run: pip install --no-deps kronfluence==1.0.1 and what it imports",
)

from kronfluence.analyzer import Analyzer, prepare_model  # noqa: E402
from kronfluence.arguments import FactorArguments, ScoreArguments  # noqa: E402
from kronfluence.task import Task  # noqa: E402

DAMPING, TOLERANCE = 1e-3, 1e-9


class LanguageModelling(Task):
    def __init__(self, names):
        super().__init__()
        self.names = names

    def compute_train_loss(self, batch, model, sample=False):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return self.names

    def get_attention_mask(self, batch):
        return batch["attention_mask"]


def rows(sequences):
    """A map-style data set of padded rows."""
    batch = collate(sequences)
    return [
        dict(input_ids=i, attention_mask=m, labels=y)
        for i, m, y in zip(batch.input_ids, batch.attention_mask, batch.labels)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(ours, theirs as our EKFAC, their covariances, their scores)."""
    data, queries, model = documents(24), documents(3, seed=9), neox()
    tracked_model = tracked(model)
    task = LanguageModelling([x.name for x in tracked_model.layers])
    analyzer = Analyzer(
        "study",
        prepare_model(neox(), task),
        task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(tmp_path_factory.mktemp("kronfluence")),
        disable_model_save=True,
    )
    analyzer.fit_all_factors(
        "f",
        rows(data),
        per_device_batch_size=5,
        factor_args=FactorArguments(
            use_empirical_fisher=True,
            activation_covariance_dtype=torch.float64,
            gradient_covariance_dtype=torch.float64,
            per_sample_gradient_dtype=torch.float64,
            lambda_dtype=torch.float64,
        ),
    )
    analyzer.compute_pairwise_scores(
        "s",
        "f",
        rows(queries),
        rows(data),
        per_device_query_batch_size=3,
        per_device_train_batch_size=5,
        score_args=ScoreArguments(
            damping_factor=DAMPING,
            score_dtype=torch.float64,
            per_sample_gradient_dtype=torch.float64,
            precondition_dtype=torch.float64,
        ),
    )
    sums = analyzer.load_covariance_matrices("f")
    bases, values = analyzer.load_eigendecomposition("f"), analyzer.load_lambda_matrices("f")

    def mean(kind, name):
        return sums[f"{kind}_covariance"][name] / sums[f"num_{kind}_covariance_processed"][name]

    theirs = EKFAC(
        {
            x: LayerFactors(
                None,
                bases["activation_eigenvectors"][x],
                bases["gradient_eigenvectors"][x][None],
                values["lambda_matrix"][x][None] / values["num_lambda_processed"][x],
                bases["activation_eigenvalues"][x],
                bases["gradient_eigenvalues"][x][None],
                torch.tensor(0.0),
            )
            for x in task.names
        },
        {},
    )
    return dict(
        model=model,
        layers=tracked_model.layers,
        data=data,
        queries=queries,
        theirs=theirs,
        mean=mean,
        ours=fit(tracked_model, data, labels="true"),
        scores=analyzer.load_pairwise_scores("s")["all_modules"],
    )


def scores(both, factors):
    model, layers = both["model"], both["layers"]
    tracked_model = Tracked(model, layers)
    w = precondition(
        query_gradients(tracked_model, both["queries"]),
        [Stage(factors, Damping(DAMPING, relative=False))],
    )[0]
    return score(tracked_model, both["data"], w).values


def test_covariances_agree(both):
    at = Tracked(both["model"], both["layers"])
    found = covariances(at, both["data"], fisher_losses("true", 1, 0), 7)
    for name, (_, A, B, _) in found.items():
        assert relative(both["mean"]("activation", name), A) < TOLERANCE
        assert relative(both["mean"]("gradient", name), B[0]) < TOLERANCE


def test_eigenvalues_and_solves_agree_with_given_labels(both):
    """Eigenvectors may differ in sign, and freely where eigenvalues coincide: f(G) does not."""
    for name, ours in both["ours"].factors.items():
        theirs = both["theirs"].factors[name]
        v = torch.randn(4, *both["ours"].factors[name].eigenvalues.shape[1:]).double()
        assert (
            relative(theirs.in_values, ours.in_values) < TOLERANCE
            and relative(theirs.out_values, ours.out_values) < TOLERANCE
        )
        for f in (lambda values, mean: values, lambda values, mean: 1 / (values + 0.1 * mean)):
            assert relative(theirs.apply(f, v), ours.apply(f, v)) < TOLERANCE


def test_scores_from_its_factors_agree(both):
    """Their query is the loss, ours −f = the loss: the same sign."""
    assert relative(scores(both, both["theirs"]), both["scores"]) < TOLERANCE


def test_scores_from_own_factors_agree(both):
    assert relative(scores(both, both["ours"]), both["scores"]) < TOLERANCE
