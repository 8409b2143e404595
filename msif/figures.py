"""Arrays in, figures out. Colour-blind safe, at print size; the caller gives the finding as the title."""
import numpy as np

try:
    import matplotlib.pyplot as plt
    import seaborn as sns
except ModuleNotFoundError as error:
    raise ImportError(f'figures need {error.name}; install it with: pip install ".[study]" in the study') from error

PALETTE = sns.color_palette("colorblind")
sns.set_theme(context="notebook", style="ticks", palette="colorblind", rc={
    "figure.dpi": 110, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": "medium", "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False})


def losses(pretraining, finetuning, title):
    """Mean training loss of each epoch (nats per sequence), one line a seed; both are lists of lists."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for ax, runs, stage in zip(axes, (pretraining, finetuning), ("pre-training", "fine-tuning")):
        for seed, run in enumerate(runs):
            ax.plot(range(1, len(run) + 1), run, marker="o", color=PALETTE[0], alpha=0.9 if seed == 0 else 0.4)
        ax.set(xlabel=f"{stage} epoch", ylabel="loss [nats / sequence]", ylim=(0, None))
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


def shares(labels, values, errors, title, xlabel, chance=None):
    """Horizontal bars of shares in [0, 1] with standard errors; `chance` is drawn as a dashed line."""
    figure, ax = plt.subplots(figsize=(7, 0.5 * len(labels) + 1), layout="constrained")
    ax.barh(labels, values, xerr=errors, color=PALETTE[0], error_kw={"ecolor": "0.25", "capsize": 3})
    if chance is not None:
        ax.axvline(chance, color="0.25", linestyle="--", label=f"chance {chance:.2f}")
        ax.legend(loc="upper right")              # beside the short bar of chance level
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=xlabel, title=title)
    return figure


def spectra(stages, title):
    """Eigenvalues Λ of every layer, largest first, on log axes. stages: {stage: {layer: (P_layer,) eigenvalues}}."""
    size = {"figsize": (4.6 * len(stages), 3.6), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(stages), sharey=True, squeeze=False, **size)
    for ax, (stage, layers) in zip(axes[0], stages.items()):
        for (name, values), color in zip(layers.items(), sns.color_palette("viridis", len(layers))):
            values = np.sort(np.asarray(values))[::-1]
            ax.loglog(np.arange(1, len(values) + 1), values, color=color, label=name)
        ax.set(xlabel="rank of the eigenvalue", title=stage)
    axes[0, 0].set(ylabel="eigenvalue Λ [nats / weight²]", ylim=(1e-8, None))
    if len(layers) <= 10:
        axes[0, -1].legend(fontsize="x-small", loc="lower left")
    else:
        axes[0, -1].text(0.03, 0.03, f"{len(layers)} layers, dark: first, light: last", transform=axes[0, -1].transAxes)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


def convergence(sizes, curves, title, xlabel):
    """Lines with a band of ± one standard error over layers. curves: {label: (layers, sizes)}; first axis averaged."""
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for (label, values), color, marker in zip(curves.items(), PALETTE, "osD^v"):
        values = np.asarray(values)
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        ax.plot(sizes, mean, marker=marker, color=color, label=label)
        ax.fill_between(sizes, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    ax.set(xscale="log", xlabel=xlabel, ylabel="relative error (Frobenius)", ylim=(0, None), title=title)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend()
    return figure


def tracing(names, intervals, title, xlabel):
    """Dot-and-interval plot. intervals: {form: [(mean, low, high) for each name]} for the forms "raw", "normalised"."""
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(names) + 1.2), layout="constrained")
    at = np.arange(len(names))
    for (form, values), color, marker, shift in zip(intervals.items(), (PALETTE[0], PALETTE[1]), "os", (-0.13, 0.13)):
        mean, low, high = np.array(values).T
        ax.errorbar(mean, at + shift, xerr=[mean - low, high - mean], fmt=marker, color=color, capsize=3, label=form)
    ax.set_yticks(at, names)
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.9")
    ax.set(xlim=(0, 1.02), xlabel=xlabel, title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def differences(names, intervals, title, xlabel):
    """Paired differences with their intervals [(mean, low, high)], against a line at zero."""
    figure, ax = plt.subplots(figsize=(8, 0.45 * len(names) + 1.1), layout="constrained")
    mean, low, high = np.array(intervals).T
    ax.errorbar(mean, np.arange(len(names)), xerr=[mean - low, high - mean], fmt="o", color=PALETTE[2], capsize=3)
    ax.axvline(0, color="0.25", linestyle="--")
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, title=title, ylim=(len(names) - 0.5, -0.5))
    return figure


def grid(table, rows, columns, title, xlabel, ylabel):
    """Heat maps of one number over two settings. table: {form: (rows, columns)}, values in [0, 1]."""
    size = {"figsize": (4 * len(table), 0.5 * len(rows) + 1.8), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(table), sharey=True, **size)
    low = min(np.min(values) for values in table.values())
    for ax, (form, values) in zip(axes, table.items()):
        sns.heatmap(np.array(values), ax=ax, annot=True, fmt=".2f", cmap="cividis", vmin=low, vmax=1, cbar=False,
                    xticklabels=columns, yticklabels=rows)
        ax.set(title=form, xlabel=xlabel, ylabel=ylabel if ax is axes[0] else "")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure
