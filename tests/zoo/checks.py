"""What a family of transformers is worth to the engine, against autograd one sequence at a time.

`python tests/zoo/checks.py` writes docs/architectures.md anew, which `test_zoo.py` compares with
what it finds.
"""

import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from support.tiny import plain_loss
from torch import nn
from transformers.pytorch_utils import Conv1D
from zoo import small

from msif.core import ekfac, influence
from msif.core.capture import gradients
from msif.core.coverage import coverage
from msif.core.data import NO_LOSS, Sequence
from msif.core.layers import tracked
from msif.core.model_digest import model_digest
from msif.core.objectives import loss
from msif.scale import fitting, streaming

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
LENGTHS = (6, 4, 7, 3, 5, 6)
# Many models take norms, softmax or rotations in float32 whatever they are in, but not all of them.
EXACT, DISK, WRITTEN = 1e-5, 1e-4, 1e-4


@dataclass(frozen=True)
class Row:
    """A line of the table. tracked: the share of the blocks' matrices, in words. left_out: names.
    verdict: "right", "refused" or "not built"; note: why, or by which pattern."""

    head: str
    family: str
    tracked: str
    left_out: str
    verdict: str
    note: str

    def cells(self):
        """What the table says of the family, under its head."""
        found = (self.head, self.verdict, self.tracked, self.left_out, self.note)
        return tuple(x.replace("|", "∣").strip() for x in found)

    def __str__(self):
        return f"| {' | '.join((self.family, *self.cells()))} |"


def examined(head, family):
    """The `Row` of a family. AssertionError for a number that is not autograd's."""
    try:
        model = small.build(head, family)
        documents = _documents(head, model)
        for document in documents:
            _scalar(model, document).backward()
        model.zero_grad()
    except Exception as error:  # noqa: BLE001 - whatever keeps a small model from being made
        return Row(head, family, "", "", "not built", _short(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net, note = _usable(family, model, documents)
            _check(net, documents)
        except (ValueError, FloatingPointError) as error:
            return Row(head, family, "", "", "refused", _short(error))
    found = coverage(net)
    left_out = ", ".join(f"`{x}`" for x in list(found.left_out)[:3])
    left_out += ", …" * (len(found.left_out) > 3)
    return Row(head, family, f"{int(100 * found.share)} %", left_out, "right", note)


def _documents(head, model):
    """Six sequences that end in the eos of a family that asks for one; some labels are left out."""
    g = torch.Generator().manual_seed(1)
    found = []
    for number, length in enumerate(LENGTHS):
        row = torch.randint(3, small.VOCAB, (length,), generator=g).tolist()
        if getattr(model.config, "is_encoder_decoder", False):
            row[-1] = 2
        labels = tuple(NO_LOSS if t % 3 == 2 and t + 1 < length else y for t, y in enumerate(row))
        found.append(Sequence(number, tuple(row), labels if head == "causal" else number % 3))
    return found


def _scalar(model, document):
    """The loss of one sequence alone, written out."""
    if not isinstance(document.labels, int):
        return plain_loss(model, document)
    ids = torch.tensor([document.input_ids])
    z = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return -z[0].log_softmax(-1)[document.labels]


def _usable(family, model, documents):
    """The model's default layers, or those of the pattern that the refusal of these offers, or of
    the family's own."""
    net = tracked(model)
    try:
        gradients(net, documents[:2], loss, 2)
        return net, ""
    except ValueError as error:
        offered = re.search(r"for instance pattern='(.*?)'", str(error))
        if not offered and family not in small.PATTERNS:
            raise
        pattern = offered[1].replace("\\\\", "\\") if offered else small.PATTERNS[family]
        net = tracked(model, pattern)
        gradients(net, documents[:2], loss, 2)
        which = "that the refusal offers" if offered else f"`{pattern}`"
        return net, f"with the pattern {which}; by default refused: {_short(error)[:70]}…"


def _check(net, documents):
    """The largest relative error of the engine's numbers in memory, beside autograd's."""
    digest, expected = model_digest(net.model), _expected(net, documents)
    g = torch.Generator().manual_seed(2)
    w = {
        name: torch.randn(2, *D.shape[1:], generator=g, dtype=torch.float64)
        for name, D in expected.items()
    }
    scores = sum(torch.einsum("qoi,noi->qn", w[name], D) for name, D in expected.items())
    errors = [_same(gradients(net, documents, loss, n), expected, f"D by {n}") for n in (1, 2, 6)]
    found = influence.score(net, documents, w, batch_size=2).values
    tokens = influence.token_scores(net, documents, w, batch_size=6)
    for row, document in enumerate(documents):
        assert not tokens[:, row, len(document.input_ids) :].any(), "a score of padding"
    errors.append(_near(found, scores, EXACT, "scores"))
    errors.append(_near(tokens.sum(2), scores, EXACT, "token scores, added up"))
    factors = ekfac.fit(net, documents, labels="true", batch_size=2)
    errors.append(_factors(net, documents, factors, expected))
    with tempfile.TemporaryDirectory() as folder:
        stored = fitting.fit(f"{folder}/f", net, documents, labels="true", batch_size=6)
        probed = (_probed(x, w) for x in (stored, factors))
        _near(*probed, DISK, "factors on disk")
        streaming.score_corpus(net, documents, w, f"{folder}/s", block=4, batch_size=2)
        parts = list(streaming.read_scores(f"{folder}/s"))
        _near(torch.cat([x.values for _, x in parts], 1), scores, WRITTEN, "scores on disk")
    assert model_digest(net.model) == digest, "the digest changed"
    return max(errors)


def _expected(net, documents):
    """{layer: (n, o, i)}: autograd's gradients of each sequence alone."""
    owned = {x.name: _parameters(net.model, x) for x in net.layers}
    flat = list({id(p): p for owns in owned.values() for p in owns}.values())
    found = {name: [] for name in owned}
    for document in documents:
        grads = torch.autograd.grad(_scalar(net.model, document), flat, allow_unused=True)
        of = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(flat, grads)}
        for x in net.layers:
            found[x.name].append(_joined(net.model, x, [of[id(p)] for p in owned[x.name]]))
    return {name: torch.stack(each) for name, each in found.items()}


def _parameters(model, layer):
    module = model.get_submodule(layer.module)
    if layer.expert is None:
        return [module.weight] + [module.bias] * layer.bias
    bias = [model.get_parameter(f"{layer.parameter}_bias")] if module.has_bias else []
    return [model.get_parameter(layer.parameter), *bias]


def _joined(model, layer, gradients):
    """(o, i): the weight's gradient and the bias's as its last column."""
    module, (weight, *bias) = model.get_submodule(layer.module), gradients
    if layer.expert is not None:
        weight, bias = weight[layer.expert], [x[layer.expert] for x in bias]
    transposed = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
    return torch.cat([weight.mT if transposed else weight, *(x[:, None] for x in bias)], 1)


def _factors(net, documents, factors, expected):
    """The largest error of A, B and Λ beside their formulas; A and B of experts are tested in
    tests/core/test_experts.py."""
    seen, errors = _seen(net, documents), []
    largest = max(D.square().mean(0).norm() for D in expected.values())
    for layer in net.layers:
        name, found = layer.name, factors.factors[layer.name]
        squares = (found.basis_out[0].mT @ expected[name] @ found.basis_in).square().mean(0)
        errors.append(_near(found.eigenvalues[0], squares, EXACT, f"Λ of {name}", largest))
        if layer.expert is None:
            bases = (found.basis_in, found.in_values), (found.basis_out[0], found.out_values[0])
            for M, (Q, values) in zip(seen[name], bases):
                mean, what = M.mT @ M / len(M), f"A or B of {name}"
                errors.append(_near(Q * values @ Q.mT, mean, EXACT, what, 1e-6))
    return max(errors)


def _seen(net, documents):
    """{layer: (a (positions, i), g (positions, o))} of the sequences one by one."""
    kept = {x.name: ([], []) for x in net.layers if x.expert is None}
    biased = {x.name: x.bias for x in net.layers}

    def keep(name):
        def hook(module, args, kwargs, output):
            (a,) = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            a = a.detach().flatten(0, -2).clone()
            ones = a.new_ones(len(a), int(biased[name]))
            kept[name][0].append(torch.cat([a, ones], 1))
            output.register_hook(lambda g: kept[name][1].append(g.flatten(0, -2)))
            return output.clone()

        return hook

    modules: dict[str, nn.Module] = dict(net.model.named_modules())
    handles = [modules[x].register_forward_hook(keep(x), with_kwargs=True) for x in kept]
    for document in documents:
        _scalar(net.model, document).backward()
    net.model.zero_grad()
    [x.remove() for x in handles]
    return {name: tuple(map(torch.cat, both)) for name, both in kept.items()}


def _probed(factors, w):
    found = factors.apply(lambda values, mean: 1 / (values + 0.1 * mean + 1e-9), w)
    return torch.cat([x.flatten() for x in found.values()])


def _same(found, expected, what):
    largest = max(D.norm() for D in expected.values())
    return max(
        _near(found[name], D, EXACT, f"{what}: {name}", largest) for name, D in expected.items()
    )


def _near(found, expected, tolerance, what, scale=0.0):
    """‖found − expected‖ over ‖expected‖, or over a thousandth of a larger scale."""
    error = ((found - expected).norm() / max(expected.norm(), 1e-3 * scale, 1e-30)).item()
    assert error < tolerance, f"{what}: relative error {error:.1e}"
    return error


def _short(error):
    """The first clause of an error, without numbers that vary."""
    text = " ".join(f"{error}".split())
    return re.split(r"(?<=[a-z]): |; |(?<=[^.0-9])\. ", text)[0][:160]


VERDICTS = ("right", "refused", "not built")
HEAD = """# Which architectures are right

Every causal and classifier family of transformers VERSION was made small, in float64, and what the
engine finds was compared with autograd, one sequence at a time: gradients, scores, token scores and
fitted factors; in batches of 1, 2 and 6 with padding; in memory and on disk. `tests/zoo/` does it
again (`make test-slow`), and `python tests/zoo/checks.py` writes this page.

- **right**: every number is autograd's. *tracked* is the share of the numbers in the matrices
  between embeddings and head that read text; the rest is left out by name, and counts as fixed in
  every score. Experts of mixtures are tracked one by one, where their weights are fused too.
- **refused**: an error says why, before any score.
- **not built**: no small float64 model of text alone was made; nothing is known.

| families | head | verdict | tracked | left out | note |
|---|---|---|---|---|---|
"""


def table(rows):
    """The page."""
    count = {x: str(sum(r.verdict == x for r in rows)) for x in VERDICTS}
    head = HEAD.replace("VERSION", transformers.__version__)
    for what, number in count.items():
        head = head.replace(f"**{what}**", f"**{what}** ({number})")
    alike = {}
    for x in sorted(rows, key=lambda x: VERDICTS.index(x.verdict)):
        alike.setdefault(x.cells(), []).append(x.family)
    return head + "".join(f"| {' | '.join((', '.join(x), *y))} |\n" for y, x in alike.items())


def said():
    """{(head, family): cells} of the page."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        families, *cells = [x.strip() for x in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in small.NAMES:
            found |= {(cells[0], family): tuple(cells) for family in families.split(", ")}
    return found


def families():
    """(head, family) of all."""
    return [(head, family) for head, names in small.NAMES.items() for family in sorted(names)]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for head, family in families():
        rows.append(examined(head, family))
        print(rows[-1], flush=True)
    PAGE.write_text(table(rows))
