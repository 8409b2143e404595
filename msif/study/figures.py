"""Arrays in, figures out. Colour-blind safe, at print size; the caller's title is the finding."""

import textwrap

import numpy as np

try:
    import matplotlib.pyplot as plt
    import seaborn as sns
except ModuleNotFoundError as error:
    raise ImportError(
        f'figures need {error.name}; install it with: pip install ".[study]" in the study'
    ) from error

PALETTE = sns.color_palette("colorblind")
FEW = 60  # rows of a figure that are named one by one
sns.set_theme(
    context="notebook",
    style="ticks",
    palette="colorblind",
    rc={
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "figure.hooks": ["msif.study.figures:described"],  # of every figure that pyplot makes
    },
)


def described(figure):
    """Have a notebook keep the figure's finding beside its PNG, as its alternative text.

    IPython asks for it when it shows the figure; `pipeline.report` puts it into the page."""
    figure._repr_mimebundle_ = lambda **_: ({}, {"image/png": {"alt": finding(figure)}})


def finding(figure):
    """A figure's headline, else the title of its first panel; on one line, "" without either."""
    titles = [figure.get_suptitle(), *(ax.get_title("left") for ax in figure.axes[:1])]
    return " ".join(next(filter(None, titles), "").split())


def losses(pretraining, finetuning, title):
    """Mean training loss of each epoch (nats per sequence), one line a seed.

    pretraining, finetuning: lists (seeds) of lists (epochs).
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for ax, runs, stage in zip(axes, (pretraining, finetuning), ("pre-training", "fine-tuning")):
        for seed, run in enumerate(runs):
            alpha = 0.9 if seed == 0 else 0.4
            ax.plot(range(1, len(run) + 1), run, marker="o", color=PALETTE[0], alpha=alpha)
        ax.set(xlabel=f"{stage} epoch", ylabel="loss [nats / sequence]", ylim=(0, None))
    headline(figure, title)
    return figure


def shares(labels, values, errors, title, xlabel, chance=None):
    """Horizontal bars of shares in [0, 1] with standard errors.

    chance: drawn as a dashed line.
    """
    figure, ax = plt.subplots(figsize=(7, 0.5 * len(labels) + 1), layout="constrained")
    whiskers = {"ecolor": "0.25", "capsize": 3}
    ax.barh(labels, values, xerr=errors, color=PALETTE[0], error_kw=whiskers)
    if chance is not None:
        ax.axvline(chance, color="0.25", linestyle="--", label=f"chance {chance:.2f}")
        ax.legend(loc="upper right")  # beside the short bar of chance level
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=xlabel, title=title)
    return figure


def spectra(stages, title):
    """Eigenvalues Λ of every layer, largest first, on log axes.

    stages: {stage: {layer: (P_layer,) eigenvalues}}.
    """
    size = {"figsize": (4.6 * len(stages), 3.6), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(stages), sharey=True, squeeze=False, **size)
    for ax, (stage, layers) in zip(axes[0], stages.items()):
        colors = sns.color_palette("viridis", len(layers))
        for n, (name, values) in enumerate(layers.items()):
            values = np.sort(np.asarray(values))[::-1]
            # As many ranks as a line shows: a large model has a million in each layer.
            ranks = np.unique(np.geomspace(1, len(values), 500).astype(int))
            look = {
                "marker": "osD^vPX*"[n % 8],
                "markevery": (0.03 * (n % 8), 0.2),
                "markersize": 5,
            }
            ax.loglog(ranks, values[ranks - 1], color=colors[n], label=name, **look)
        ax.set(xlabel="rank of the eigenvalue", title=stage)
    axes[0, 0].set(ylabel="eigenvalue Λ [nats / weight²]", ylim=(1e-8, None))
    last = axes[0, -1]
    if len(layers) <= 10:
        last.legend(fontsize="x-small", loc="lower left")
    else:
        note = f"{len(layers)} layers, dark: first, light: last"
        last.text(0.03, 0.03, note, transform=last.transAxes)
    headline(figure, title)
    return figure


def convergence(sizes, curves, title, xlabel):
    """Lines with a band of ± one standard error over layers.

    curves: {label: (layers, sizes)}, averaged over the layers.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for (label, values), color, marker in zip(curves.items(), PALETTE, "osD^v"):
        values = np.asarray(values)
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        ax.plot(sizes, mean, marker=marker, color=color, label=label)
        ax.fill_between(sizes, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    ax.set(xscale="log", xlabel=xlabel, ylabel="relative error (Frobenius)")
    ax.set(ylim=(0, None), title=title)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend()
    return figure


def tracing(names, intervals, title, xlabel, lines=()):
    """Dot-and-interval plot, with dashed lines across.

    intervals: {form: [(mean, low, high) for each name]} for the forms "raw", "normalised";
    lines: [(label, x)].
    """
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(names) + 1.2), layout="constrained")
    at = np.arange(len(names))
    looks = zip(PALETTE[:2], "os", (-0.13, 0.13))
    for (form, values), (color, marker, shift) in zip(intervals.items(), looks):
        mean, low, high = np.array(values).T
        look = {"fmt": marker, "color": color, "capsize": 3, "label": form}
        ax.errorbar(mean, at + shift, xerr=[mean - low, high - mean], **look)
    for label, x in lines:
        ax.axvline(x, color="0.25", linestyle="--", linewidth=1.2, label=label)
    _named(ax, at, names)
    ax.grid(axis="x", color="0.9")
    ax.set(xlim=(0, 1.02), xlabel=xlabel)
    headline(figure, title, fontsize="medium")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def beside(names, panels, title):
    """The same methods in several panels: dots with intervals, chance as a dashed line.

    panels: {panel: ([(mean, low, high) for each name], chance, xlabel)}, values in [0, 1].
    """
    size = {"figsize": (3.4 + 2.3 * len(panels), 0.42 * len(names) + 1.9), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
    at = np.arange(len(names))
    for ax, (panel, (intervals, chance, xlabel)) in zip(axes[0], panels.items()):
        for y, (mean, low, high) in zip(at, intervals):
            look = {"marker": "osD^vP"[y % 6], "color": PALETTE[y % 10], "capsize": 3}
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], **look)
        ax.axvline(chance, color="0.25", linestyle="--", linewidth=1.2)
        ax.text(chance, -0.75, " chance", fontsize="small", color="0.25")
        ax.grid(axis="x", color="0.9")
        ax.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), title=panel, xlabel=xlabel)
    _named(axes[0, 0], at, names)
    axes[0, 0].set_ylim(len(names) - 0.5, -1)
    headline(figure, title, fontsize="medium")
    return figure


def differences(names, intervals, title, xlabel):
    """Paired differences with their intervals [(mean, low, high)], against a line at zero."""
    figure, ax = plt.subplots(figsize=(8, 0.45 * len(names) + 1.1), layout="constrained")
    at = np.arange(len(names))
    mean, low, high = np.array(intervals).T
    ax.errorbar(mean, at, xerr=[mean - low, high - mean], fmt="o", color=PALETTE[2], capsize=3)
    ax.axvline(0, color="0.25", linestyle="--")
    _named(ax, at, names)
    ax.set(xlabel=xlabel, title=title, ylim=(len(names) - 0.5, -0.5))
    return figure


def grid(table, rows, columns, title, xlabel, ylabel):
    """Heat maps of one number over two settings.

    table: {form: (rows, columns)}, values in [0, 1].
    """
    size = {"figsize": (4 * len(table), 0.5 * len(rows) + 1.8), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(table), sharey=True, **size)
    low = min(np.min(values) for values in table.values())
    look = {"annot": True, "fmt": ".2f", "cmap": "cividis", "vmin": low, "vmax": 1, "cbar": False}
    for ax, (form, values) in zip(axes, table.items()):
        sns.heatmap(np.array(values), ax=ax, xticklabels=columns, yticklabels=rows, **look)
        ax.set(title=form, xlabel=xlabel, ylabel=ylabel if ax is axes[0] else "")
    headline(figure, title)
    return figure


def dots(names, series, title, xlabel, lines=(), limits=None):
    """Dot-and-error plot, with lines across.

    series: {label: [(value, standard error) for each name]}; lines: [(label, x)].
    """
    row = 0.36 if len(names) <= FEW else 0.05
    figure, ax = plt.subplots(figsize=(9, row * len(names) + 1.5), layout="constrained")
    at = np.arange(len(names))
    shifts = np.linspace(-0.2, 0.2, len(series)) if len(series) > 1 else [0]
    for (label, values), color, marker, shift in zip(series.items(), PALETTE, "osD^v", shifts):
        value, error = np.array(values, dtype=float).T
        look = {"fmt": marker, "color": color, "label": label}
        look |= {"capsize": 3, "markersize": 5} if len(names) <= FEW else {"markersize": 2.5}
        ax.errorbar(value, at + shift, xerr=error, **look)
    for (label, x), style in zip(lines, ("--", ":", "-.")):
        ax.axvline(x, color="0.25", linestyle=style, linewidth=1.2, label=label)
    _named(ax, at, names)
    ax.grid(axis="x", color="0.9")
    ax.set(xlabel=xlabel, xlim=limits)
    if len(series) > 1 or lines:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, title)
    return figure


def growth(sizes, curves, title, xlabel, ylabel, lines=()):
    """Lines with bars of one standard error over a size, with lines across.

    curves: {label: [(value, error)]}; lines: [(label, y)].
    """
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for (label, values), color, marker in zip(curves.items(), PALETTE, "osD^v"):
        value, error = np.array(values, dtype=float).T
        ax.errorbar(sizes, value, yerr=error, marker=marker, color=color, capsize=3, label=label)
    for (label, y), style in zip(lines, ("--", ":", "-.")):
        ax.axhline(y, color="0.25", linestyle=style, linewidth=1.2, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=(0, None))
    ax.set_xticks(sizes)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves(panels, title, xlabel, ylabel, ticks, scale="log"):
    """Lines with a band of ± one standard error, one panel a problem.

    panels: {panel: {label: (x, mean, error)}}.
    """
    size = {"figsize": (3 + 3 * len(panels), 3.9), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    for ax, (panel, lines) in zip(axes[0], panels.items()):
        for label, points in lines.items():
            x, mean, error = (np.asarray(part, dtype=float) for part in points)
            n = labels.index(label)
            marker, color = "osD^vPX*"[n % 8], PALETTE[n % 10]
            ax.plot(x, mean, marker=marker, color=color, label=label, markersize=5)
            ax.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
        ax.set(xscale=scale, title=panel)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(axis="y", color="0.9")
    figure.supxlabel(xlabel, fontsize="medium")
    axes[0, 0].set(ylabel=ylabel, ylim=(min(-0.05, axes[0, 0].get_ylim()[0]), 1.02))
    shared_legend(figure, axes[0])
    headline(figure, title)
    return figure


def shares_kept(names, panels, title, xlabel):
    """Dots with ± one standard error, one panel a problem.

    panels: {panel: {form: [(mean, error) for each name]}}; nan: not measured.
    """
    width, height = 4.5 + 2.2 * len(panels), 0.5 * len(names) + 1.6
    size = {"figsize": (width, height), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
    at = np.arange(len(names))
    for ax, (panel, forms) in zip(axes[0], panels.items()):
        looks = zip(PALETTE, "os", (-0.12, 0.12))
        for (form, values), (color, marker, shift) in zip(forms.items(), looks):
            mean, error = np.array(values, dtype=float).T
            look = {"fmt": marker, "color": color, "capsize": 3, "label": form}
            ax.errorbar(mean, at + shift, xerr=error, **look)
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.grid(axis="x", color="0.9")
        ax.set(xlim=(-0.1, 1.03), title=panel)
    figure.supxlabel(xlabel, fontsize="medium")
    _named(axes[0, 0], at, names)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, title)
    return figure


def _named(ax, at, names):
    """Names down the side, the first on top; long ones on two lines. Of more than `FEW`, such as a
    deep model's layers, the first words, each where it begins."""
    ax.set_yticks(at, [textwrap.fill(name, 36, break_on_hyphens=False) for name in names])
    if len(names) > FEW:
        first = [name.split(" ")[0] for name in names]
        begins = [n for n, word in enumerate(first) if n == 0 or word != first[n - 1]]
        ax.set_yticks(begins, [first[n] for n in begins])
        ax.set_ylim(-1, len(names))
    ax.invert_yaxis()


def headline(figure, title, **look):
    """The finding, above all panels."""
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left", **look)


def shared_legend(figure, axes):
    """One legend for all panels, beside them: each label once."""
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
