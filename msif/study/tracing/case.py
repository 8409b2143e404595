"""One seed's pair of models with everything that its queries' scores depend on."""

from dataclasses import dataclass, replace

import numpy as np

from msif.core import store
from msif.core.data import digest
from msif.core.influence import Damping, Stage
from msif.core.layers import Tracked, tracked_layers
from msif.study.beds import testbed
from msif.study.beds.fitted import fitted


@dataclass(frozen=True)
class Case:
    """One seed's test-bed with its tracked layers, factors {model name: EKFAC} and the queries to
    be traced."""

    bed: testbed.Testbed
    layers: list
    factors: dict
    queries: list

    @property
    def rows(self):
        """The corpus rows of the queries: prompt, answer, proponents, …"""
        return [self.bed.corpus.queries[query.index] for query in self.queries]

    @property
    def proponents(self):
        """For each query the numbers of the documents that state its answer."""
        return [row["proponents"] for row in self.rows]

    def tracked(self, name):
        """A model of the test-bed, read anew, with the tracked layers."""
        return Tracked(self.bed.model(name), self.layers)

    @property
    def ends(self):
        """θ₁ and θ₂, both `tracked`, and the factors of both."""
        names = ("pretrained", "finetuned")
        return *map(self.tracked, names), *(self.factors[name] for name in names)

    def key(self):
        """What the scores depend on, beside their settings."""
        return {
            "factors": {name: f.header for name, f in self.factors.items()},
            "layers": [str(x) for x in self.layers],
            "queries": digest(self.queries),
            "documents": digest(self.bed.documents),
        }

    def parts(self, count):
        """The case with some of its layers at a time: at most `count` groups that follow each
        other, of about as many weights each. Their scores and squared norms add up to the
        whole's."""
        if count == 1:
            return [self]
        groups = _groups(self.layers, count)
        return [replace(self, layers=few, factors=_of_layers(self.factors, few)) for few in groups]

    def chain(self, damping, alpha):
        """The two stages, with damping and α relative to each layer's mean eigenvalue."""
        return [
            Stage(self.factors["pretrained"], Damping(damping)),
            Stage(self.factors["finetuned"], alpha=Damping(alpha)),
        ]


def _groups(layers, count):
    """`layers` in at most `count` groups. Raises ValueError for more groups than layers."""
    if not 1 <= count <= len(layers):
        raise ValueError(f"parts is {count}; expected 1 to {len(layers)}, the tracked layers")
    weights = np.cumsum([x.out_features * x.inputs for x in layers])
    ends = np.searchsorted(weights, weights[-1] * np.arange(1, count) / count) + 1
    return [list(few) for few in np.split(np.array(layers, dtype=object), ends) if len(few)]


def _of_layers(factors, layers):
    """{model: EKFAC} of some layers."""
    names = [x.name for x in layers]
    return {model: replace(f, factors=_few(f.factors, names)) for model, f in factors.items()}


def _few(factors, names):
    if isinstance(factors, store.LayerFiles):
        return store.LayerFiles({name: factors.read[name] for name in names})
    return {name: factors[name] for name in names}


def load_case(
    testbed_folder, factors_folder, layers, only_correct=True, limit=None, in_memory=True
):
    """Read one seed's case; the queries are those that the fine-tuned model answers correctly, or
    all, up to `limit`.

    layers: {"pattern", "per_head"}, as the factors were fitted with (arguments of
    `tracked_layers`). in_memory: of the factors (`store.load`); always where the models are on a
    GPU, as the machine's own memory is free then."""
    bed = testbed.load(testbed_folder)
    tuned = bed.model("finetuned")
    layers = tracked_layers(tuned, **layers)
    queries = asked(bed, tuned, only_correct, limit)
    in_memory = in_memory or testbed.where() != "cpu"
    factors = {
        name: store.load(factors_folder / name, Tracked(bed.model(name), layers), in_memory)
        for name in [*bed.checkpoints, "finetuned"]
    }
    return Case(bed, layers, factors, queries)


def asked(bed, tuned, only_correct=True, limit=None):
    """The queries of a test-bed that its fine-tuned model answers correctly, or all, up to `limit`.

    tuned: that model. Raises ValueError where there are none."""
    right = [ok for _, ok in testbed.answers(tuned, bed.tokenizer, bed.corpus.queries)]
    queries = [query for query, ok in zip(bed.queries, right) if ok or not only_correct][:limit]
    if not queries:
        raise ValueError(
            f"{bed.folder}: the fine-tuned model answers none of {len(right)} queries "
            "correctly; train longer, or set only_correct to false"
        )
    return queries


def trained_case(recipe, seed, checkpoints, samples=(2, 4), batch_size=64):
    """The `Case` of one seed: both stages trained on everything, factors of every checkpoint and of
    θ₂; all queries."""
    bed = testbed.trained(
        seed,
        recipe.corpus,
        recipe.model,
        recipe.finetuning,
        pretraining=recipe.pretraining,
        checkpoints=checkpoints,
        max_length=recipe.max_length,
    )
    layers = tracked_layers(bed.model("finetuned"))
    settings = {"labels": "gaussian", "batch_size": batch_size}

    def factors_of(name, data, draws):
        tracked = Tracked(bed.model(name), layers)
        return fitted(tracked, data, samples=draws, seed=f"{seed}/{name}", **settings)[0]

    factors = {name: factors_of(name, bed.documents, samples[0]) for name in bed.checkpoints}
    factors["finetuned"] = factors_of("finetuned", bed.finetuning, samples[1])
    return Case(bed, layers, factors, bed.queries)
