"""One class for each library: set up outside the measurement,
then fit() and score(mode) as a user of that library would.

    __init__(model, data, shape, folder, labels)
                  labels: "sampled", one per position; "true", the data's own
    fit()         EK-FAC on data["train"], all sequences in both passes
    score(mode)   (queries, candidates), with damping DAMPING × the mean eigenvalue of each layer

Candidates go in batches of `shape.batch`, queries all at once. Everything is in float32 but for
eigendecompositions, where each library has its default (float64 in msif, kronfluence and bergson).
"""

import os

import numpy
import torch
import torch.nn.functional as F
from ours import DAMPING, Msif
from workload import summed_loss, tracked


class Kronfluence:
    """kronfluence: strategy "ekfac" through `Analyzer`;
    damping_factor=None is its 0.1 × the mean eigenvalue."""

    modes = ["exact"]

    def __init__(self, model, data, shape, folder, labels):
        from datasets import Dataset
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
        from kronfluence.utils.constants import HEURISTIC_DAMPING_SCALE

        assert HEURISTIC_DAMPING_SCALE == DAMPING
        names = tracked(model, shape).names

        class LanguageModelling(Task):
            """Next-token prediction, as msif scores it."""

            def compute_train_loss(self, batch, model, sample=False):
                """The summed loss, of the data's labels or of labels drawn from the model."""
                ids = batch["input_ids"]
                if not sample:
                    return summed_loss(model, ids)
                logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
                with torch.no_grad():
                    drawn = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
                return F.cross_entropy(logits, drawn, reduction="sum")

            def compute_measurement(self, batch, model):
                """What a query measures: its loss."""
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self):
                """The layers that msif tracks."""
                return names

        self.shape = shape
        self.data = {
            name: Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
            for name, ids in data.items()
        }
        task = LanguageModelling()
        self.analyzer = Analyzer(
            "benchmark",
            prepare_model(model, task),
            task,
            cpu=True,
            output_dir=folder,
            disable_tqdm=True,
        )
        self.settings = FactorArguments(strategy="ekfac", use_empirical_fisher=labels == "true")
        self.scoring = ScoreArguments(damping_factor=None)

    def fit(self):
        """EK-FAC on the training sequences."""
        self.analyzer.fit_all_factors(
            "f",
            self.data["train"],
            per_device_batch_size=self.shape.batch,
            factor_args=self.settings,
        )

    def score(self, mode):
        """(queries, candidates), in one of the modes."""
        self.analyzer.compute_pairwise_scores(
            "s",
            "f",
            self.data["query"],
            self.data["candidates"],
            per_device_query_batch_size=self.shape.queries,
            per_device_train_batch_size=self.shape.batch,
            score_args=self.scoring,
        )
        return self.analyzer.load_pairwise_scores("s")["all_modules"].float()


class Bergson:
    """bergson: Hessian method "kfac" with eigenvalue correction,
    by the functions below its command line: the model is in memory.

    Its A leaves out positions without a label, here the last of each sequence. If msif does so too,
    the scores agree to 1e-6."""

    modes = ["exact"]

    def __init__(self, model, data, shape, folder, labels):
        import bergson.collection
        import bergson.hessians.apply_hessian
        import bergson.hessians.hessian_approximations
        import bergson.score.score
        from bergson.config import config
        from datasets import Dataset

        self.bergson = bergson
        self.config = config
        self.shape = shape
        self.folder = folder
        self.labels = labels
        self.names = {
            x.removeprefix(f"{model.base_model_prefix}.") for x in tracked(model, shape).names
        }
        self.model = model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)  # as bergson's own set-up leaves a model
        self.data = {
            name: Dataset.from_dict(
                {"input_ids": ids.tolist(), "length": [ids.shape[1]] * len(ids)}
            )
            for name, ids in data.items()
        }
        self.tokens = shape.batch * shape.length
        self.batches = {
            name: bergson.data.allocate_batches(x["length"][:], self.tokens)
            for name, x in self.data.items()
        }

    def run(self, name):
        """The settings of one step, whose results go to folder/name."""
        found = self.config.IndexConfig(
            run_path=os.path.join(self.folder, name),
            precision="fp32",
            include_bias=True,
            token_batch_size=self.tokens,
            loss_reduction="sum",
            projection_dim=0,
            distributed=self.config.DistributedConfig(nproc_per_node=1),
        )
        found.partial_run_path.mkdir(parents=True, exist_ok=True)
        return found

    def fit(self):
        """EK-FAC on the training sequences."""
        run = self.run("hessian")
        self.hessian = str(run.partial_run_path)
        self.bergson.hessians.hessian_approximations.fit_factored_hessians(
            self.model,
            self.data["train"],
            run,
            self.config.HessianConfig(
                method="kfac", ev_correction=True, use_dataset_labels=self.labels == "true"
            ),
            target_modules=self.names,
            attention_cfgs={},
            batches=self.batches["train"],
            path=self.hessian,
            do_eigendecomposition=True,
        )

    def gradients(self, name, run, **more):
        """Write the gradients of some data, by the settings of a step; returns their processor."""
        processor = self.bergson.gradients.GradientProcessor(include_bias=True)
        self.bergson.collection.collect_gradients(
            self.model,
            self.data[name],
            processor,
            run,
            batches=self.batches[name],
            target_modules=self.names,
            **more,
        )
        return processor

    def score(self, mode):
        """(queries, candidates), in one of the modes."""
        query = self.run("query")
        run = self.run("scores")
        solved = os.path.join(self.folder, "solved")
        preprocessing, solver = self.config.PreprocessConfig(), self.bergson.hessians.apply_hessian
        self.gradients("query", query, preprocess_cfg=preprocessing).save(query.partial_run_path)
        solver.EkfacApplicator(
            solver.EkfacConfig(
                hessian_method_path=self.hessian,
                gradient_path=str(query.partial_run_path),
                run_path=solved,
                ev_correction=True,
                apply_batch_size=self.shape.queries,
            ),
            inversion_cfg=self.config.InversionConfig(
                inversion="damped_inverse", damping_factor=DAMPING
            ),
        ).compute_ivhp_sharded()
        scorer = self.bergson.score.score.create_scorer(
            run.partial_run_path,
            self.data["candidates"],
            self.config.ScoreConfig(query_path=solved),
            preprocessing,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        self.gradients("candidates", run, scorer=scorer)
        scorer.writer.flush()
        found = numpy.asarray(self.bergson.data.load_scores(run.partial_run_path)[:])
        if found.dtype.names:
            found = numpy.stack([found[f"score_{n}"] for n in range(self.shape.queries)], 1)
        return torch.from_numpy(numpy.ascontiguousarray(found)).T.float()


class Curvlinops:
    """curvlinops: `EKFACLinearOperator` and its inverse. It has no scores: those are autograd,
    one candidate after the other.

    EK-FAC wants outputs of two dimensions, hence the flattened logits.
    Its damping is one number for all layers: here 1e-4."""

    modes = ["exact"]

    def __init__(self, model, data, shape, folder, labels):
        from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator

        self.operator, self.inverse = EKFACLinearOperator, KFACInverseLinearOperator
        self.model, self.data, self.shape = model, data, shape
        self.fisher = {"sampled": "mc", "true": "empirical"}[labels]
        model.requires_grad_(False)
        names = tracked(model, shape).names
        modules = [model.get_submodule(name).requires_grad_(True) for name in names]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.batches = [(ids, ids[:, 1:].flatten()) for ids in data["train"].split(shape.batch)]

    def fit(self):
        """EK-FAC on the training sequences."""
        self.curvature = self.operator(
            Flat(self.model),
            torch.nn.CrossEntropyLoss(reduction="sum"),
            self.parameters,
            self.batches,
            check_deterministic=False,
            fisher_type=self.fisher,
            mc_samples=1,
            num_data=self.shape.sequences,
            num_per_example_loss_terms=self.shape.length - 1,
            separate_weight_and_bias=False,
        )
        self.curvature.compute_kronecker_factors()
        self.curvature._compute_eigenvectors()
        self.curvature.compute_eigenvalue_correction()

    def score(self, mode):
        """(queries, candidates), in one of the modes."""
        n = self.shape.sequences  # its eigenvalues are sums: (L/n + d)⁻¹ = n (L + n d)⁻¹

        def gradient(ids):
            return torch.autograd.grad(summed_loss(self.model, ids[None]), self.parameters)

        columns = [torch.stack(x, -1) for x in zip(*map(gradient, self.data["query"]))]
        solve = self.inverse(self.curvature, damping=1e-4 * n, use_exact_damping=True)
        w = [x.mul_(n).flatten(0, -2) for x in solve @ columns]

        def of_all_queries(ids):
            return sum(g.flatten() @ x for g, x in zip(gradient(ids), w))

        return torch.stack([of_all_queries(ids) for ids in self.data["candidates"]], 1)


class Flat(torch.nn.Module):
    """ids (n, length) -> the logits (n (length − 1), vocabulary) of every label."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        """All positions but the last of each sequence, in one list."""
        return self.model(input_ids=ids).logits[:, :-1].flatten(0, 1)


LIBRARIES = {"msif": Msif, "kronfluence": Kronfluence, "bergson": Bergson, "curvlinops": Curvlinops}
PACKAGES = {
    "msif": "msif",
    "kronfluence": "kronfluence",
    "bergson": "bergson",
    "curvlinops": "curvlinops-for-pytorch",
}
# those with a damping relative to each layer's mean eigenvalue
COMPARED = (
    "kronfluence",
    "bergson",
)
