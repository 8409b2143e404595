"""LDS against how smooth the training is. Arrays in, figures out, as in `figures`, whose looks they
share."""

import numpy as np

from msif.study.figures import PALETTE, plt

LOOKS = "osD^vPX*"


def against_smoothness(names, smooth, panels, title):
    """One point a recipe, with ± one standard error both ways, its number beside it.

    names: of the recipes. smooth: [(metasmoothness, error)]. panels: {panel: {method: [(LDS, error)
    for each recipe]}}."""
    size = {"figsize": (2.4 + 3.4 * len(panels), 4.2), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False, **size)
    x, dx = np.array(smooth, dtype=float).T
    beside = 0.012 * max(float(np.ptp(x)), 0.01)  # so that no method hides another
    for ax, (panel, methods) in zip(axes[0], panels.items()):
        shifts = beside * (np.arange(len(methods)) - len(methods) / 2)
        for (method, points), color, marker, shift in zip(methods.items(), PALETTE, LOOKS, shifts):
            y, dy = np.array(points, dtype=float).T
            look = {"fmt": marker, "color": color, "capsize": 2, "markersize": 5, "label": method}
            ax.errorbar(x + shift, y, xerr=dx, yerr=dy, **look)
        top = np.nanmax([[value for value, _ in points] for points in methods.values()], axis=0)
        for n, (at, y) in enumerate(zip(x, top), 1):
            ax.annotate(str(n), (at, y), (0, 7), textcoords="offset points", ha="center")
        ax.axhline(0, color="0.25", linestyle="--", linewidth=1)
        ax.set(xlabel="metasmoothness of the recipe", title=panel)
    axes[0, 0].set(ylabel="LDS")
    told = "\n".join(f"{n}  {name}" for n, name in enumerate(names, 1))
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, title=told, loc="outside right center", fontsize="small")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
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
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure
