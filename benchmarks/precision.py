"""What the precision of the model, and of the eigendecompositions,
does to two-stage scores of a trained model.

    .venv/bin/python benchmarks/precision.py
    .venv/bin/python benchmarks/precision.py --report-only    # table and figure from precision.json

The test-bed of profile `tiny` (seed 0). Factors, queries and scores are computed anew in each
precision, with the same random numbers. Compared with the model in float32 and eigendecompositions
in float64, as msif has them: Pearson's correlation over documents of each query's scores, and the
relative error ‖s − s₃₂‖ / ‖s₃₂‖ of each query. msif holds gradients and factors in float32 whatever
the model's lower precision.
"""

from unittest.mock import patch

import workload
from workload import ROOT, markdown, number, read, write

from msif.core.layers import Tracked, tracked_layers

DAMPINGS = (1e-3, 1e-1)  # × the mean eigenvalue of each layer
ALPHA = 0.1
REFERENCE = ("float32", "float64")
VARIANTS = (
    REFERENCE,
    ("float32", "float32"),
    ("float64", "float64"),
    ("bfloat16", "float64"),
    ("float16", "float64"),
)


def trained():
    """The test-bed of profile `tiny`: two trained models, their documents,
    fine-tuning rows and queries."""
    import yaml

    from msif.study.beds import testbed
    from msif.study.corpora.corpus import generate

    settings = yaml.safe_load((ROOT / "params.yaml").read_text())["tiny"]["testbed"]
    corpus = {name: value for name, value in settings["corpus"].items() if name != "source"}
    rest = {name: x for name, x in settings.items() if name not in ("seeds", "corpus")}
    return testbed.trained(0, generate(seed=0, **corpus), **rest)


def low_precision_eigh(M):
    """msif.core.ekfac.eigh without its float64."""
    import torch

    values, vectors = torch.linalg.eigh((M + M.mT) / 2)
    return values.clamp(min=0), vectors


def scores(bed, dtype, eigh, documents, queries):
    """{damping: two-stage scores (queries, documents)}, of documents spread over the corpus;
    eigh: "float64" or "float32"."""
    from msif.core import ekfac
    from msif.core.influence import Damping, Stage, precondition, query_gradients, score

    base, tuned = bed.model("pretrained", dtype), bed.model("finetuned", dtype)
    layers = tracked_layers(base)
    tracked_base = Tracked(base, layers)
    tracked_tuned = Tracked(tuned, layers)
    documents = bed.documents[:: len(bed.documents) // documents][:documents]
    with patch.object(ekfac, "eigh", low_precision_eigh if eigh == "float32" else ekfac.eigh):
        first = ekfac.fit(tracked_base, documents, samples=2, batch_size=64)
        second = ekfac.fit(tracked_tuned, bed.finetuning, samples=4, batch_size=64)
    q, found = query_gradients(tracked_tuned, bed.queries[:queries], batch_size=64), {}
    for damping in DAMPINGS:
        stages = [Stage(first, Damping(damping)), Stage(second, Damping(damping), Damping(ALPHA))]
        found[damping] = score(
            tracked_base, documents, precondition(q, stages)[0], batch_size=64
        ).values.double()
    return found


def compare(values, reference):
    """{correlation, error}: of each query (q,)."""
    a, b = (x - x.mean(1, keepdim=True) for x in (values, reference))
    return {
        "correlation": (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)),
        "error": (values - reference).norm(dim=1) / reference.norm(dim=1),
    }


def record(variant, damping, values, reference, documents):
    """One line of precision.json: median and worst query."""
    found = compare(values, reference)

    def rounded(x):
        return round(x.item(), 8)

    return {
        "model": variant[0],
        "eigendecomposition": variant[1],
        "damping": damping,
        "alpha": ALPHA,
        "queries": len(values),
        "documents": documents,
        "correlation": rounded(found["correlation"].median()),
        "correlation_worst": rounded(found["correlation"].min()),
        "error": float(f"{found['error'].median().item():.3g}"),
        "error_worst": float(f"{found['error'].max().item():.3g}"),
    }


def run(out, documents, queries, variants=VARIANTS):
    """All variants to out/precision.json; one that the processor or msif refuses is recorded with
    the reason."""
    workload.one_thread()
    bed, records, reference = trained(), [], None
    for variant in variants:
        try:
            found = scores(bed, *variant, documents, queries)
        except (RuntimeError, FloatingPointError, ValueError) as error:
            reason = str(error).split(";")[0].splitlines()[0]
            records.append(
                {"model": variant[0], "eigendecomposition": variant[1], "refused": reason}
            )
            print(f"{variant}: {error}", flush=True)
            continue
        reference = reference or found
        records += [
            record(variant, damping, x, reference[damping], x.shape[1])
            for damping, x in found.items()
        ]
        for r in records[-len(DAMPINGS) :]:
            agreement = f"correlation {r['correlation']}, error {r['error']}"
            print(f"{variant}, damping {r['damping']}: {agreement}", flush=True)
    write(out / "precision.machine.json", workload.machine())
    write(out / "precision.json", records)
    report(out)


def name(r):
    """How a record is named: by both precisions."""
    return f"{r['model']}, eigh {r['eigendecomposition']}"


def compared(records):
    """What was neither refused nor is the reference."""
    return [
        r
        for r in records
        if "refused" not in r and (r["model"], r["eigendecomposition"]) != REFERENCE
    ]


def finding(records):
    """What the numbers say, in one line."""

    def worst(model, eigh):
        values = [
            r["error_worst"]
            for r in compared(records)
            if (r["model"], r["eigendecomposition"]) == (model, eigh)
        ]
        return f"{max(values):.0e}" if values else "–"

    return (
        f"Largest relative error of a query's scores against float32: "
        f"{worst('bfloat16', 'float64')} with a bfloat16 model, "
        f"{worst('float16', 'float64')} with float16, "
        f"{worst('float32', 'float32')} with eigh in float32"
    )


def table(records):
    """precision.md."""
    r = compared(records)[0]
    rows = [
        [
            name(r),
            f"{r['damping']:g}",
            number(r["correlation"], 6),
            number(r["correlation_worst"], 6),
            f"{r['error']:.1e}",
            f"{r['error_worst']:.1e}",
        ]
        for r in compared(records)
    ]
    refused = [f"{name(x)} was refused: {x['refused']}." for x in records if "refused" in x]
    text = [
        f"# {finding(records)}",
        f"Two-stage scores of {r['documents']} documents for {r['queries']} queries "
        f"on the trained test-bed (profile `tiny`, α = {r['alpha']:g} × the mean eigenvalue), "
        "against a float32 model with eigendecompositions in float64. "
        "Made by `benchmarks/precision.py`.",
        markdown(
            [
                "model",
                "damping",
                "correlation, median query",
                "worst query",
                "relative error, median query",
                "worst query",
            ],
            rows,
        ).rstrip(),
        *refused,
    ]
    return "\n\n".join(text) + "\n"


def figure(records):
    """precision.png: relative error of the median and the worst query,
    and what is missing of a correlation of 1."""
    import matplotlib.pyplot as plt
    import numpy as np

    from msif.study.figures import PALETTE

    found = compared(records)
    names, dampings = list(dict.fromkeys(map(name, found))), sorted({r["damping"] for r in found})
    drawn, axes = plt.subplots(
        1, 2, figsize=(9.5, 1.6 + 0.5 * len(names)), sharey=True, layout="constrained"
    )
    for k, damping in enumerate(dampings):
        rs = {name(r): r for r in found if r["damping"] == damping}
        y = np.arange(len(names)) + (k - 0.5) * 0.25
        for ax, pick in zip(
            axes, (lambda r, w: r[f"error{w}"], lambda r, w: max(1 - r[f"correlation{w}"], 1e-8))
        ):
            median, worst = (np.array([pick(rs[n], w) for n in names]) for w in ("", "_worst"))
            ax.errorbar(
                median,
                y,
                xerr=[0 * median, np.maximum(worst - median, 0)],
                fmt="os"[k],
                color=PALETTE[k],
                capsize=3,
                label=f"damping {damping:g} × mean: median query, bar to the worst",
            )
    axes[0].set(xscale="log", xlabel="relative error of a query's scores")
    axes[1].set(xscale="log", xlabel="1 − Pearson correlation")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    drawn.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small"
    )
    drawn.suptitle(
        finding(records).replace(": ", ":\n"),
        fontweight="bold",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    return drawn


def report(out):
    """precision.md and precision.png from precision.json."""
    records = read(out / "precision.json")
    (out / "precision.md").write_text(table(records))
    figure(records).savefig(out / "precision.png", dpi=160, metadata={"Software": None})


def main():
    """The command line."""
    parser = workload.options(
        __doc__, documents={"type": int, "default": 1000}, queries={"type": int, "default": 48}
    )
    given = parser.parse_args()
    report(given.out) if given.report_only else run(given.out, given.documents, given.queries)


if __name__ == "__main__":
    main()
