"""Cost of msif against the width of the model: where the time goes,
beside the multiplications that a formula predicts.

    .venv/bin/python benchmarks/size.py
    .venv/bin/python benchmarks/size.py --report-only     # table and figure from size.json

All numbers are divided by one plain forward and backward pass over the training sequences, measured
(CPU time, one thread, float32) or counted (multiplications). Parts: passes, forward and backward
without weight gradients, twice for a fit; products, what is done with the layers' inputs and
gradients, and for scores the solves; eigendecompositions. Nothing is padded.
"""

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import workload
from workload import Shape, cpu_seconds, markdown, number, read, spread, write

WIDTHS = (32, 64, 128, 256)
PARTS = ("passes", "products", "eigendecompositions")


# ----------------------------------------------------------------------------------------- measured


def parts(call):
    """({part: CPU seconds}, what call() returned).
    Passes: all that is neither their consumers nor algebra."""
    import time

    from msif.core import capture, ekfac, influence

    spent = Counter()

    def timed(part, f):
        def run(*arguments, **more):
            start = time.process_time()
            try:
                return f(*arguments, **more)
            finally:
                spent[part] += time.process_time() - start

        return run

    def watched(passes):
        return lambda tracked, data, objectives, size, consume, *rest: passes(
            tracked, data, objectives, size, timed("products", consume), *rest
        )

    with ExitStack() as stack:
        for module in (capture, ekfac, influence):
            stack.enter_context(patch.object(module, "passes", watched(module.passes)))
        stack.enter_context(patch.object(ekfac, "eigh", timed("eigendecompositions", ekfac.eigh)))
        stack.enter_context(
            patch.object(ekfac.EKFAC, "apply", timed("products", ekfac.EKFAC.apply))
        )
        total, found = cpu_seconds(call)
    return {**{part: spent[part] for part in PARTS}, "passes": total - sum(spent.values())}, found


def measured(shape):
    """{"fit", "score": {part: share of the plain pass}} of one repetition."""
    from ours import MsifInMemory

    model, data = workload.build_model(shape), workload.build_data(shape)

    def unit():
        return cpu_seconds(lambda: workload.plain(model, data["train"], shape.batch))[0]

    workload.plain(model, data["train"][: 2 * shape.batch], shape.batch)
    first, run = unit(), MsifInMemory(model, data, shape, None, "sampled")
    fit, _ = parts(run.fit)
    score, _ = parts(lambda: run.score("exact"))
    plain = (first + unit()) / 2
    return {
        "fit": {k: x / plain for k, x in fit.items()},
        "score": {k: x / plain for k, x in score.items()},
    }


# ---------------------------------------------------------------------------------------- predicted


def gram(d):
    """Multiplications of a symmetric d × d product for one position:
    its upper triangle, by tiles."""
    from msif.core.products import TILE

    width = max(TILE, -(-d // 8))
    return sum((min(first + width, d) - first) * (d - first) for first in range(0, d, width))


def squares(s, i, o):
    """Multiplications of one sequence's (Q_Bᵀ D Q_A)²: each side rotated where that is cheaper."""
    from msif.core.products import ALIGNED

    columns = i + 1 + -(i + 1) % ALIGNED
    inputs = s * i * columns + s * columns * o if s < o else s * i * o + o * (i + 1) * columns
    return inputs + (s * o * o if s < i + 1 else columns * o * o)


def attention(model, s):
    """Multiplications of the s² products with keys and with values, of one sequence forward;
    twice that backward."""
    return 2 * model.config.num_hidden_layers * s * s * model.config.hidden_size


def forward(model, s):
    """F: multiplications of one sequence of s tokens forward.
    A plain forward and backward pass has 3 F."""
    c, w = model.config, model.config.hidden_size
    return s * (
        c.num_hidden_layers * (4 * w * w + 2 * w * c.intermediate_size) + w * c.vocab_size
    ) + attention(model, s)


def one_pass(model, s):
    """The same without the gradients of weights, and of the embedding,
    which two layers of the first block read."""
    w = model.config.hidden_size
    return (
        2 * forward(model, s)
        + attention(model, s)
        - s * w * (3 * w + model.config.intermediate_size)
    )


def predicted(model, layers, shape):
    """{"fit", "score": {part: multiplications / those of the plain pass}} with i inputs (no bias),
    o outputs, s tokens:

    passes       `one_pass`: two for each sequence of a fit, one for each query and candidate
    fit          products: `gram` of the inputs and of the gradients, `squares`
                 eigendecompositions: 9 n³ operations, 4.5 n³ multiplications
                 (Golub & Van Loan, §8.3), n = i + 1 and o
    score        products: s·i·o for D, q (i + 1) o for the scores of q queries;
                 a query has a pass, D and two rotations
    """
    s, q, n, m = shape.length, shape.queries, shape.sequences, shape.candidates
    one, plain = one_pass(model, s), 3 * n * forward(model, s)
    sizes = [(x.in_features, x.out_features) for x in layers]
    products = sum(s * (gram(i) + gram(o)) + squares(s, i, o) for i, o in sizes)
    fit = {
        "passes": 2 * n * one,
        "products": n * products,
        "eigendecompositions": 4.5 * sum((i + 1) ** 3 + o**3 for i, o in sizes),
    }
    solve = sum(2 * o * (i + 1) * (o + i + 1) for i, o in sizes)
    score = {
        "passes": (q + m) * one,
        "eigendecompositions": 0,
        "products": sum((q + m) * s * i * o + m * q * (i + 1) * o for i, o in sizes) + q * solve,
    }
    return {
        "fit": {k: x / plain for k, x in fit.items()},
        "score": {k: x / plain for k, x in score.items()},
    }


# --------------------------------------------------------------------------- the run, table, figure


def run(out, widths, repetitions, shape=Shape):
    """Records of all widths to out/size.json; repetitions go round the widths."""
    from msif.core.layers import tracked_layers

    workload.one_thread()
    runs = {width: [] for width in widths}
    for n in range(repetitions):
        for width in widths:
            runs[width].append(measured(shape(width=width)))
            print(f"repetition {n + 1} of {repetitions}: width {width}", flush=True)
    write(out / "size.machine.json", workload.machine())
    records = []
    for width, found in runs.items():
        at, model = shape(width=width), workload.build_model(shape(width=width))
        layers = tracked_layers(model)
        r = {
            "width": width,
            "layers": at.layers,
            "sequences": at.sequences,
            "tokens": at.length,
            "queries": at.queries,
            "candidates": at.candidates,
            "weights": sum(x.out_features * (x.in_features + x.bias) for x in layers),
            "repetitions": len(found),
        }
        counts = predicted(model, layers, at)
        for what in ("fit", "score"):
            r |= spread(f"{what}_ratio", [sum(x[what].values()) for x in found])
            for part in PARTS:
                r |= spread(f"{what}_{part}", [x[what][part] for x in found])
                r[f"{what}_{part}_predicted"] = float(f"{counts[what][part]:.4g}")
        records.append(r)
    write(out / "size.json", records)
    report(out)


def finding(records):
    """What the numbers say of the narrowest and the widest model, in one line."""
    first, last = records[0], records[-1]
    return (
        f"From width {first['width']} to {last['width']}, "
        f"a fit goes from {first['fit_ratio']:.1f} to {last['fit_ratio']:.1f} training passes, "
        f"scores from {first['score_ratio']:.1f} to {last['score_ratio']:.1f}"
    )


def costs(r, what, kinds):
    """Cells of a record, "measured / predicted": of a fit or of scores, then of each part."""
    whole, low, high = (number(r[f"{what}_ratio{end}"]) for end in ("", "_low", "_high"))
    predicted = [r[f"{what}_{x}_predicted"] for x in kinds]
    each = [f"{number(r[f'{what}_{x}'])} / {number(p)}" for x, p in zip(kinds, predicted)]
    return [f"{whole} ({low}–{high}) / {number(sum(predicted))}", *each]


def table(records):
    """size.md."""
    r = records[0]
    text = [
        f"# {finding(records)}",
        "In units of one plain forward and backward pass over the "
        f"{r['sequences']} training sequences of {r['tokens']} tokens: CPU time measured, "
        f"median (least–largest) of {r['repetitions']} repetition{'s' * (r['repetitions'] > 1)}; "
        "after the slash, the multiplications predicted. "
        f"{r['layers']} layers, {r['queries']} queries, {r['candidates']} candidates, "
        "one thread, float32. Made by `benchmarks/size.py`.",
    ]
    for what in ("fit", "score"):
        kinds = PARTS if what == "fit" else PARTS[:2]
        rows = [[f"{r['width']}", f"{r['weights']}", *costs(r, what, kinds)] for r in records]
        text += [f"## {what}", markdown(["width", "tracked weights", "all", *kinds], rows).rstrip()]
    return "\n\n".join(text) + "\n"


def figure(records):
    """size.png: stacked bars of the parts, measured beside predicted;
    spread of the whole as a bar."""
    import matplotlib.pyplot as plt
    import numpy as np

    from msif.study.figures import PALETTE

    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    at = np.arange(len(records))
    for ax, what in zip(axes, ("fit", "score")):
        for shift, suffix, hatch in ((-0.2, "", ""), (0.2, "_predicted", "///")):
            below = np.zeros(len(records))
            for part, color in zip(PARTS, PALETTE):
                height = np.array([r[f"{what}_{part}{suffix}"] for r in records])
                ax.bar(
                    at + shift,
                    height,
                    0.36,
                    bottom=below,
                    color=color,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.5,
                    label=f"{part}, {'predicted' if suffix else 'measured'}",
                )
                below += height
        whole = np.array(
            [[r[f"{what}_ratio{end}"] for r in records] for end in ("", "_low", "_high")]
        )
        ax.errorbar(
            at - 0.2,
            whole[0],
            yerr=[whole[0] - whole[1], whole[2] - whole[0]],
            fmt="none",
            ecolor="0.2",
            capsize=3,
        )
        ax.set_xticks(at, [r["width"] for r in records])
        ax.set(xlabel="width of the model", ylabel="forward + backward passes", title=what)
    drawn.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small"
    )
    drawn.suptitle(finding(records), fontweight="bold", x=0.01, ha="left", fontsize="medium")
    return drawn


def report(out):
    """size.md and size.png from size.json."""
    records = read(out / "size.json")
    (out / "size.md").write_text(table(records))
    figure(records).savefig(out / "size.png", dpi=160, metadata={"Software": None})


def main():
    """The command line."""
    parser = workload.options(
        __doc__,
        repetitions={"type": int, "default": 3},
        tokens={"type": int, "default": workload.TOKENS},
        widths={"type": lambda text: [int(x) for x in text.split(",")], "default": list(WIDTHS)},
    )
    given = parser.parse_args()
    if given.report_only:
        report(given.out)
    else:
        run(
            given.out,
            given.widths,
            given.repetitions,
            lambda width: Shape(width=width, tokens=given.tokens),
        )


if __name__ == "__main__":
    main()
