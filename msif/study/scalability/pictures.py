"""Accuracy against cost, and cost against size. Arrays in, figures out, as in `figures`, whose
looks they share."""

import numpy as np

from msif.study.figures import PALETTE, headline, plt, shared_legend


def accuracy_for_cost(panels, title):
    """Accuracy against cost, one line a method, the Pareto front in grey.

    panels: [(title, xlabel, ylabel, {method: [(cost, value, error)]})]. Costs on a log axis; error
    bars are ± one standard error (None: not known). A method has one look in every panel.
    """
    size = {"figsize": (5.6 * len(panels), 5.2), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), squeeze=False, **size)
    names = list(dict.fromkeys(name for *_, methods in panels for name in methods))
    looks = {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": "os^DvPX*<>hp"[i % 12]}
        for i, name in enumerate(names)
    }
    for ax, (heading, xlabel, ylabel, methods) in zip(axes[0], panels):
        costs, best = _front([point[:2] for points in methods.values() for point in points])
        grey = {"color": "0.75", "linewidth": 6, "zorder": 0}
        ax.step(costs, best, where="post", label="best at this cost", **grey)
        for name, points in methods.items():
            cost, value, error = zip(*sorted(points))
            error = None if error[0] is None else error
            look = looks[name] | {"capsize": 2, "linewidth": 1.2, "label": name}
            ax.errorbar(cost, value, yerr=error, **look)
        ax.axhline(0, color="0.25", linewidth=0.8)
        ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=heading, ylim=(None, 1.02))
    shared_legend(figure, axes[0])
    headline(figure, title)
    return figure


def power_laws(sizes, curves, title, xlabel, ylabel):
    """Costs against size on log axes, with the fitted power law dashed.

    curves: {label: (values, exponent)}.
    """
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    sizes = np.asarray(sizes, dtype=float)
    centred = np.log(sizes) - np.log(sizes).mean()
    for (label, (values, exponent)), color, marker in zip(curves.items(), PALETTE, "osD^v"):
        law = np.exp(np.mean(np.log(values)) + exponent * centred)
        ax.plot(sizes, values, marker=marker, color=color, linestyle="", label=label)
        ax.plot(sizes, law, color=color, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    ax.legend(fontsize="small")
    return figure


def _front(points):
    """(costs, values) of the points that no cheaper one equals, in the order of cost."""
    front = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return zip(*front)
