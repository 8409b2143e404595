"""What to do with a LoRA model, in sentences that say what was measured, whatever that was."""

TESTS = ("finding the statements", "predicting retraining")


def adapters(finding, predicting):
    """Load the adapters as such, or merged? Both are `worlds.Mean` of own T minus α(H + α)⁻¹ at the
    merged weights, of the two `TESTS`."""
    leads = (finding, predicting)
    at = {
        place: " and ".join(test for test, x in zip(TESTS, leads) if x.place == place)
        for place in ("ahead of", "level with", "behind")
    }
    level = f", and level at {at['level with']}" if at["level with"] else ""
    numbers = f"MRR {signed(finding)}, LDS {signed(predicting)}"
    if at["ahead of"] and at["behind"]:
        return (
            f"**Ask which test is yours**: the adapters' own T is better at {at['ahead of']}, "
            f"α(H + α)⁻¹ at the merged weights at {at['behind']} (own minus that: {numbers})."
        )
    if at["behind"]:
        return (
            "**Merge the adapters and rank documents as if all weights had been fine-tuned** "
            "(PEFT's `merge_and_unload()`, save, `msif.load`, `msif.Stage` with an `alpha`): that "
            f"is better at {at['behind']}{level} (the adapters' own T minus that: {numbers})."
        )
    if at["ahead of"]:
        return (
            "**Load the adapters as adapters** (`msif.load` of their folder): their own T is "
            f"better than α(H + α)⁻¹ at the merged weights at {at['ahead of']}{level} ({numbers})."
        )
    return (
        "**Load the adapters as adapters, or merge them**: their own T and α(H + α)⁻¹ at the "
        f"merged weights are level in both tests (own minus merged: {numbers})."
    )


def without(name, finding, predicting):
    """What leaving the kind's own T out does: `worlds.Mean` of own minus the other, called name."""
    worse = {"ahead of": "worse", "level with": "level", "behind": "better"}
    tests = ", ".join(
        f"{worse[x.place]} at {test} ({unit} {signed(x, -1)})"
        for test, unit, x in zip(TESTS, ("MRR", "LDS"), (finding, predicting))
    )
    return f"{name} in place of the own T is {tests}"


def signed(mean, sign=1):
    """A difference with its sign and standard error."""
    return f"{sign * mean.value:+.2f} ± {mean.error:.2f}"
