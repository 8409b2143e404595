"""Time and memory of a fit, and of a scoring pass, from a few of their own batches on this machine.

Batches of the user's own sequences go through the user's own model and layers, with everything that
a fit or a score does with them; layers of one shape share their sums, so that it takes little
memory beside a batch's. The largest batch comes first and says what a batch takes of memory; then
others, as many as the seconds allow, say how fast the machine is: operations per second of what a
`FitPlan` or `ScorePlan` counts. What reading and writing files takes is not in it.
"""

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice

import torch

from msif.core import ekfac, influence, sums
from msif.core.backward import backpropagate, frozen
from msif.core.capture import groups
from msif.core.data import Sequence, check, collate
from msif.core.kronecker import block_shape
from msif.core.layers import Layer, Tracked, Vectors
from msif.core.models import limits
from msif.core.objectives import fisher_losses
from msif.core.products import aligned
from msif.core.resources import memory_taken
from msif.scale.plan import EIGH_FLOPS, Needs, fit_products, score_products
from msif.scale.plans import Calibration

SECONDS = 10.0  # of a calibration, about
LARGEST = 1536  # rows of a decomposition that is timed; the time of larger ones grows by the cube
MOST = 8  # batches that are timed


def of_fit(
    tracked: Tracked,
    sequences: list[Sequence],
    *,
    labels: str = "gaussian",
    samples: int = 2,
    seed: int | str = 0,
    batch_size: int = 32,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """The `Calibration` of `fitting.fit` with these arguments, for `plan.plan_fit`.

    seconds: about how long it may take; clock: seconds of what. Raises what `capture.groups` and
    `backpropagate` raise.
    """
    objectives, work = fisher_losses(labels, samples, seed), _Work(tracked, clock)
    draws = len(objectives)

    def run(few):
        batch = collate(few)
        with frozen(tracked.model):
            backpropagate(tracked, batch, objectives, lambda *seen: work.consume(*seen, batch))

    def products(few):
        return fit_products(tracked.layers, _lengths(few), draws)

    trial = _Trial(tracked, sequences, batch_size, seconds, clock)
    memory = trial.memory(run)
    work.spent, total, done = 0.0, 0.0, []
    for few in trial.batches():
        total += trial.timed(lambda few=few: run(few))
        done += few
    tokens = sum(_lengths(done))
    return Calibration(
        memory=memory,
        model=(1 + draws) * trial.needs.forward(tokens) / max(total - work.spent, 1e-9),
        products=products(done) / max(work.spent, 1e-9),
        eigh=_eigh_rate(tracked, clock),
        seconds=clock() - trial.start,
        batches=trial.count,
    )


def of_scores(
    tracked: Tracked,
    documents: list[Sequence],
    queries: int,
    *,
    batch_size: int = 32,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """The `Calibration` of `influence.score` for that many queries, for `plan.plan_score`.

    seconds, clock and errors as in `of_fit`.
    """
    w = _vectors(tracked, queries)

    def run(few):
        influence.score(tracked, few, w, batch_size=batch_size)

    trial = _Trial(tracked, documents, batch_size, seconds, clock)
    memory = trial.memory(run)
    shortest = min(documents, key=lambda x: len(x.input_ids))
    once = trial.timed(lambda: run([shortest]))  # the vectors are read through in every call
    total, done = 0.0, []
    for few in trial.batches():
        total += max(trial.timed(lambda few=few: run(few)) - once, 1e-9)
        done += few
    lengths = _lengths(done)
    flops = 2 * trial.needs.forward(sum(lengths))
    rate = (flops + score_products(tracked.weights, lengths, queries)) / total
    return Calibration(memory, rate, rate, None, clock() - trial.start, trial.count)


class _Trial:
    """Which batches are run, and how long they took. count: so far; start: by the clock."""

    def __init__(self, tracked, sequences, batch_size, seconds, clock):
        if next(tracked.model.parameters()).is_meta:
            raise ValueError(
                "a model on the meta device has no numbers to time: load its weights, or plan "
                "without a calibration"
            )
        check(sequences, *limits(tracked.model))
        self.device = next(tracked.model.parameters()).device
        self.clock, self.start, self.count = clock, clock(), 0
        self.tracked, self.sequences, self.seconds = tracked, sequences, seconds
        self.groups = groups(tracked, sequences, batch_size)
        self.needs = Needs(tracked, _lengths(self._of(self.groups[0])), len(self.groups[0]))

    def _of(self, group):
        return [self.sequences[n] for n in group]

    def timed(self, call):
        """Seconds of call()."""
        start = self._now()
        call()
        return self._now() - start

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def memory(self, run):
        """`Calibration.memory` by the largest batch, or as much of it as half of the time allows,
        the larger of two runs: a long run's peak is its worst batch's, which an allocator fits now
        better, now worse. What is taken once, such as imports, came before."""
        first = self._of(self.groups[0])
        least = [first[-1]]
        run(least)
        each = self.timed(lambda: run(least)) / len(least[0].input_ids)
        affordable = self.seconds / 4 / max(each, 1e-9) / len(first[0].input_ids)
        few, needs = first[: max(1, int(affordable))], self.needs
        self.count += 1
        taken = max(memory_taken(lambda: run(few), self.device) or 0 for _ in range(2))
        if len(few) < len(first):
            needs = Needs(self.tracked, _lengths(few), len(few))
        return max(0.1, taken / needs.batch(self.tracked.layers)) if taken else None

    def batches(self):
        """Batches to be timed, spread over the lengths, as many as the time allows; one at
        least."""
        size = len(self.groups)
        places = (int(size * share) for share in _spread())
        for place in islice(places, MOST):
            self.count += 1
            yield self._of(self.groups[place])
            if self.clock() - self.start >= self.seconds:
                return


def _spread():
    """1/2, 1/4, 3/4, 1/8, … of the way."""
    parts = 2
    while True:
        yield from (k / parts for k in range(1, parts, 2))
        parts *= 2


class _Work:
    """What a fit does with a layer's inputs and gradients, in both passes; in sums and bases that
    all layers of one shape share. spent: seconds."""

    def __init__(self, tracked, clock):
        self.clock, self.spent = clock, 0.0
        self.like = _alike(tracked)
        self.sums, self.rotations = {}, {}
        for x in {x.name: x for x in self.like.values()}.values():
            self.sums |= sums.covariance_zeros(tracked.model, x)
            self.sums |= sums.eigenvalue_zeros(tracked.model, x)
            device = tracked.model.get_parameter(x.parameter).device
            blocks, r = block_shape(x)
            shapes = (x.inputs, x.inputs), (blocks, r, r)
            dtype = sums.precision(tracked.model)
            basis_in, basis_out = (_random(*shape).to(device, dtype) for shape in shapes)
            self.rotations[x.name] = aligned(basis_in), basis_out

    def consume(self, layer, a, g, draw, batch):
        like, start = self.like[layer.name], self._now(g)
        sums.add_covariances(self.sums, like, a, g, draw, batch)
        ekfac.add_eigenvalues(self.sums, self.rotations, like, a, g, draw, batch)
        self.spent += self._now(g) - start

    def _now(self, x):
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return self.clock()


def _alike(tracked: Tracked) -> dict[str, Layer]:
    """{layer: the first layer of its shape}."""
    firsts: dict[tuple[object, ...], Layer] = {}

    def first(x):
        key = (x.in_features, x.out_features, x.bias, *block_shape(x), x.expert is None)
        return firsts.setdefault((*key, tracked.model.get_parameter(x.parameter).device), x)

    return {x.name: first(x) for x in tracked.layers}


def _vectors(tracked: Tracked, queries: int) -> Vectors:
    """Random query vectors, of which layers of one shape share theirs; as `influence.score` reads
    them without a copy."""
    like, found = _alike(tracked), {}
    for x in tracked.layers:
        if x.name == like[x.name].name:
            device = tracked.model.get_parameter(x.parameter).device
            found[x.name] = _random(queries, x.inputs, x.out_features).to(device).mT
        else:
            found[x.name] = found[like[x.name].name]
    return found


def _random(*shape):
    """Numbers of the size of an orthonormal basis's, without a trace in torch's random state."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def _eigh_rate(tracked, clock):
    """FLOP per second, as `FitPlan` counts them, of all decompositions."""
    counts: Counter[int] = Counter()
    for x in tracked.layers:
        blocks, r = block_shape(x)
        counts.update({x.inputs: 1})
        counts.update({r: blocks})
    device, spent, timed = next(tracked.model.parameters()).device, 0.0, {}
    for d, count in counts.items():
        at = min(d, LARGEST)
        if at not in timed:
            x = _random(2 * at, at).to(device)
            moment = x.mT @ x
            start = clock()
            ekfac.eigh(moment)[0].sum().item()
            timed[at] = clock() - start
        spent += count * timed[at] * (d / at) ** 3
    flops = sum(EIGH_FLOPS * count * d**3 for d, count in counts.items())
    return flops / max(spent, 1e-9)


def _lengths(sequences):
    return [len(x.input_ids) for x in sequences]
