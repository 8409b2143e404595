"""LDS against how much is left out and against how smooth the training is. Arrays in, figures out,
as in `figures`, whose looks they share."""

import numpy as np

from msif.study.figures import PALETTE, headline, plt

LOOKS = "osD^vPX*"  # as many series as a figure may have


def regimes(shares, smooth, ceilings, names, title, share=0.5):
    """LDS over the share left out and over the metasmoothness of recipes, side by side.

    shares: ([share], {method: [(LDS, error)]}); smooth: ([(metasmoothness, error)], {method:
    [(LDS, error) of each recipe]}). ceilings: what noise allows in each panel, a list of both.
    names: of the recipes. share: left out where recipes are compared."""
    size = {"figsize": (11.5, 4.4), "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, sharey=True, **size)
    _series(left, *shares, ceilings[0])
    left.set(xlabel="share of the documents left out", ylabel="LDS, models averaged, other seeds")
    left.set(xscale="log", xticks=shares[0], xticklabels=[f"{x:.0%}" for x in shares[0]])
    left.minorticks_off()
    at, dx = np.array(smooth[0], dtype=float).T
    order = np.argsort(at)
    sorted_by = {m: [points[n] for n in order] for m, points in smooth[1].items()}
    _series(right, at[order], sorted_by, np.array(ceilings[1])[order], dx[order])
    right.set(xlabel=f"metasmoothness of the recipe ({share:.0%} left out)")
    for place, n in enumerate(order):
        above = {
            "xytext": (0, 2 + 11 * (place % 2)),
            "textcoords": "offset points",
        }  # some are close
        above |= {"xycoords": ("data", "axes fraction"), "annotation_clip": False}
        right.annotate(str(n + 1), (at[n], 1), ha="center", fontsize="small", **above)
    handles, labels = left.get_legend_handles_labels()
    told = "\n".join(f"{n}  {name}" for n, name in enumerate(names, 1))
    look = {"title": told, "fontsize": "small", "title_fontsize": "small"}
    figure.legend(handles, labels, loc="outside right center", **look)
    headline(figure, title)
    return figure


def _series(ax, x, methods, ceiling, dx=None):
    for (method, points), color, marker in zip(methods.items(), PALETTE, LOOKS):
        y, dy = np.array(points, dtype=float).T
        ax.plot(x, y, color=color, marker=marker, markersize=5, linewidth=1.2, label=method)
        ax.errorbar(x, y, yerr=dy, xerr=dx, fmt="none", color=color, alpha=0.3, linewidth=1)
    ax.plot(x, ceiling, color="0.25", linestyle="--", linewidth=1, label="what noise allows")
    ax.axhline(0, color="0.25", linewidth=0.8)


def against_smoothness(names, smooth, methods, title):
    """One point a recipe, with ± one standard error both ways, its number above it.

    names: of the recipes. smooth: [(metasmoothness, error)]. methods: {method: [(LDS, error) for
    each recipe]}."""
    figure, ax = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    x, dx = np.array(smooth, dtype=float).T
    beside = 0.012 * max(float(np.ptp(x)), 0.01)  # so that no method hides another
    shifts = beside * (np.arange(len(methods)) - len(methods) / 2)
    tops = []
    for (method, points), color, marker, shift in zip(methods.items(), PALETTE, LOOKS, shifts):
        y, dy = np.array(points, dtype=float).T
        look = {"fmt": marker, "color": color, "capsize": 2, "markersize": 5, "label": method}
        ax.errorbar(x + shift, y, xerr=dx, yerr=dy, **look)
        tops.append(y + np.nan_to_num(dy))
    for n, (at, y) in enumerate(zip(x, np.nanmax(tops, axis=0)), 1):
        ax.annotate(str(n), (at, y), (0, 4), textcoords="offset points", ha="center")
    ax.axhline(0, color="0.25", linestyle="--", linewidth=1)
    ax.set(xlabel="metasmoothness of the recipe", ylabel="LDS")
    told = "\n".join(f"{n}  {name}" for n, name in enumerate(names, 1))
    ax.legend(title=told, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    headline(figure, title)
    return figure


def over(sizes, methods, title, xlabel, ceiling=None):
    """Lines with bars of one standard error over a size; dashed, what noise allows.

    methods: {method: [(LDS, error) for each size]}. ceiling: one number for each size."""
    figure, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    beside = 0.008 * float(np.ptp(sizes))
    for n, (method, points) in enumerate(methods.items()):
        y, dy = np.array(points, dtype=float).T
        look = {"marker": LOOKS[n], "color": PALETTE[n], "capsize": 2, "label": method}
        ax.errorbar(np.array(sizes) + beside * (n - len(methods) / 2), y, yerr=dy, **look)
    if ceiling is not None:
        ax.plot(sizes, ceiling, color="0.25", linestyle="--", label="noise ceiling")
    ax.axhline(0, color="0.25", linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel="LDS, models averaged, other seeds")
    ax.set_xticks(sizes)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, title)
    return figure
