"""Figures of the case studies. Arrays in, figures out, as in `figures`, whose looks they share."""

import numpy as np

from msif.study.figures import PALETTE, headline, plt, sns


def before_after(effects, title):
    """Each answer's probability with and without its documents, one panel a kind of removal.
    effects: {label: (before, after)}, (answers,) each."""
    figure, axes = plt.subplots(
        1,
        len(effects),
        figsize=(1.2 + 2.6 * len(effects), 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (label, (before, after)) in zip(axes[0], effects.items()):
        ax.plot([0, 1], np.array([before, after]), color="0.7", linewidth=0.8, zorder=0)
        for x, values, color, marker in ((0, before, PALETTE[0], "o"), (1, after, PALETTE[1], "s")):
            ax.scatter(np.full(len(values), x), values, color=color, marker=marker, s=14, alpha=0.7)
            ax.plot([x - 0.12, x + 0.12], [np.mean(values)] * 2, color="0.1", linewidth=2.5)
        ax.set(xlim=(-0.35, 1.35), ylim=(-0.02, 1.02), title=label)
        ax.set_xticks([0, 1], ["all documents", "without them"])
    axes[0, 0].set(ylabel="probability of the answer")
    headline(figure, title)
    return figure


def heat(values, rows, columns, title, xlabel, ylabel):
    """One heat map of shares in [0, 1]. values: (rows, columns)."""
    figure, ax = plt.subplots(
        figsize=(2.5 + 1.3 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained"
    )
    sns.heatmap(
        np.array(values, dtype=float),
        ax=ax,
        annot=True,
        fmt=".2f",
        cmap="cividis",
        vmin=0,
        vmax=1,
        cbar=False,
        xticklabels=columns,
        yticklabels=rows,
    )
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    headline(figure, title)
    return figure


def spread(groups, title, xlabel):
    """Box plots on a log axis: median, quartiles, and the 5th to 95th percentile. groups:
    {label: (n,) positive values}."""
    figure, ax = plt.subplots(figsize=(8, 0.5 * len(groups) + 1.3), layout="constrained")
    ax.boxplot(
        list(groups.values()),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.55,
        boxprops={"facecolor": PALETTE[0], "alpha": 0.5},
        medianprops={"color": "0.1", "linewidth": 2},
    )
    labels = [f"{label} ({len(values)})" for label, values in groups.items()]
    ax.set_yticks(range(1, len(groups) + 1), labels)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel=xlabel)
    headline(figure, title)
    return figure


def groups(names, bars, title, ylabel):
    """Grouped bars with ± one standard error. names: along the axis; bars:
    {label: [(value, error) for each name]}."""
    figure, ax = plt.subplots(figsize=(4 + 2 * len(names), 3.6), layout="constrained")
    width, at = 0.8 / len(bars), np.arange(len(names))
    for n, (label, values) in enumerate(bars.items()):
        value, error = np.array(values, dtype=float).T
        ax.bar(
            at + (n - (len(bars) - 1) / 2) * width,
            value,
            width * 0.92,
            yerr=error,
            color=PALETTE[n],
            label=label,
            error_kw={"ecolor": "0.25", "capsize": 3},
            hatch=("", "//", "..", "xx")[n % 4],
            edgecolor="white",
        )
    ax.set_xticks(at, names)
    ax.set(ylabel=ylabel, ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, title)
    return figure
