"""Table and figure of peers.json, and what its records are of: shapes, libraries, costs."""

from workload import Shape, markdown, number

# Tokens where libraries are compared with each other alone;
# decompositions weigh four times as much.
FEWER = 2**14
BLOCKS = r"layers\.(0|15|29)\."
SHAPES = {
    "base": Shape(),
    "queries64": Shape(queries=64),
    "seq32": Shape(length=32, tokens=FEWER),
    "seq512": Shape(length=512, tokens=FEWER),
    "width128": Shape(width=128, tokens=FEWER),
    "layers4": Shape(layers=4, tokens=FEWER),
    # the first, the middle and the last of 30 blocks: what every library can hold
    "smollm": Shape(576, 30, 64, vocabulary=49_152, tokens=2**12, real=True, pattern=BLOCKS),
}
QUICK = {"quick": Shape(width=32, layers=1, length=16, queries=2, vocabulary=64, tokens=256)}
NAMES = ("msif", "kronfluence", "bergson", "curvlinops")
MEASURED = ("fit_ratio", "score_ratio", "fit_mb", "score_mb")


def label(r, version=""):
    """How a record is named: library, version, and mode where it is not the exact one."""
    return f"{r['library']} {version}".strip() + ("" if r["mode"] == "exact" else f", {r['mode']}")


def groups(records):
    """{shape: its records} in the order of SHAPES, then any others."""
    names = [x for x in SHAPES if x in {r["shape"] for r in records}] + [
        r["shape"] for r in records if r["shape"] not in SHAPES
    ]
    return {name: [r for r in records if r["shape"] == name] for name in dict.fromkeys(names)}


def described(name):
    """A shape in words."""
    s = (SHAPES | QUICK)[name]
    real = ", SmolLM2-135M-Instruct, three of its" * s.real
    return (
        f"{name}{real}: width {s.width}, {s.layers} layer{'s' * (s.layers > 1)}, "
        f"{s.sequences} sequences of {s.length} tokens, "
        f"{s.queries} queries, {s.candidates} candidates"
    )


def table(records):
    """peers.md."""
    head = [
        "library",
        "fit [passes]",
        "score [passes]",
        "fit [MB]",
        "score [MB]",
        "correlation with msif",
    ]
    repetitions = sorted({r["repetitions"] for r in records})
    text = [
        f"# {finding(records)}",
        "EK-FAC with labels sampled once per position, float32, one thread. "
        "A pass: one forward and backward pass over the training sequences, in CPU time; "
        "scores are for all queries and candidates. "
        "MB: growth of resident memory at the peak. "
        f"Median (least–largest) of {' or '.join(map(str, repetitions))} "
        f"repetition{'s' * (repetitions != [1])}. "
        "Correlation: of scores with the data's own labels, damping 0.1 × the mean eigenvalue of "
        "each layer, with those of msif, exact; "
        "bergson's eigenbasis leaves out the last position, which has no label. "
        "Made by `benchmarks/peers.py`.",
    ]
    for name, found in groups(records).items():
        rows = [
            [
                label(r, r["version"]),
                *(between(r, x, 2) for x in MEASURED[:2]),
                *(between(r, x, 0) for x in MEASURED[2:]),
                number(r["correlation"], 6),
            ]
            for r in found
        ]
        text += [f"## {described(name)}", markdown(head, rows).rstrip()]
    return "\n\n".join(text) + "\n"


def between(r, x, digits):
    """The median of a measure with its least and largest."""
    return (
        f"{number(r[x], digits)} ({number(r[f'{x}_low'], digits)}–{number(r[f'{x}_high'], digits)})"
    )


def finding(records):
    """What the numbers say of fitting, in one line."""

    def span(x, chosen):
        values = [
            r[x] for r in records if r["mode"] == "exact" and (r["library"] == "msif") == chosen
        ]
        ends = [f"{x:.2f}" for x in (min(values, default=0), max(values, default=0))]
        return "–".join(dict.fromkeys(ends)) if values else "–"

    return (
        f"In training passes, EK-FAC costs msif {span('fit_ratio', True)} to fit "
        f"and {span('score_ratio', True)} to score; "
        f"the other libraries {span('fit_ratio', False)} and {span('score_ratio', False)}"
    )


def figure(records):
    """peers.png: a panel for each measure, a row of dots for each shape,
    least to largest as a bar."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from msif.study.figures import PALETTE

    ordered = sorted(records, key=lambda r: NAMES.index(r["library"]))
    shapes, labels = groups(records), list(dict.fromkeys(map(label, ordered)))
    titles = {
        "fit_ratio": "fit [forward + backward passes]",
        "score_ratio": "score [forward + backward passes]",
        "fit_mb": "fit: peak memory growth [MB]",
        "score_mb": "score: peak memory growth [MB]",
    }
    drawn, axes = plt.subplots(
        2, 2, figsize=(9.5, 2.6 + 1.1 * len(shapes)), sharey=True, layout="constrained"
    )
    for ax, x in zip(axes.flat, MEASURED):
        for k, who in enumerate(labels):
            found = [
                (at, r) for at, rs in enumerate(shapes.values()) for r in rs if label(r) == who
            ]
            if x.startswith("fit") and found[0][1]["mode"] != "exact":  # the modes share their fit
                continue
            y = [at + (k - (len(labels) - 1) / 2) * 0.15 for at, _ in found]
            middle = [r[x] for _, r in found]
            spreads = [
                [r[x] - r[f"{x}_low"] for _, r in found],
                [r[f"{x}_high"] - r[x] for _, r in found],
            ]
            ax.errorbar(
                middle,
                y,
                xerr=spreads,
                fmt="oDs^v"[k],
                color=PALETTE[k],
                markersize=5,
                capsize=2,
                label=who,
            )
        ax.set(xscale="log", xlabel=titles[x])
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.set_yticks(range(len(shapes)), list(shapes))
        ax.grid(axis="x", alpha=0.25)
    axes[0, 0].set_ylim(len(shapes) - 0.5, -0.5)
    drawn.legend(
        *axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(labels)
    )
    drawn.suptitle(
        finding(records).replace("; ", ";\n"),
        fontweight="bold",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    return drawn
