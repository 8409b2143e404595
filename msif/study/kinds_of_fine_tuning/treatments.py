"""What fine-tuning lets through, by its own formula and by wrong ones.

Of a chain of stages, pre-training first, each treatment makes the vector w that a pre-training
document's gradient is multiplied with. They differ in T of the later stages alone:

    own        each stage's own: α (H + α)⁻¹ of full fine-tuning, 1 − (G − X)ᵀ S of adapters,
               (X + α)ᵀ (H + α)⁻¹ of preferences (`core.stages`, `curvature.lora`)
    own, R     likewise, with the bilinear remainder R of adapters
    identity   T := 1, as if fine-tuning changed nothing
    as full    α (H + α)⁻¹ whatever the stage was, as if it had trained all weights on rows
    single     no chain: (H + d)⁻¹ of the last stage, query and documents at its model
"""

from dataclasses import replace

from msif.core.influence import Damping, Stage, precondition
from msif.curvature.lora import LoRA

OWN, REMAINDER, IDENTITY, AS_FULL, SINGLE = "own", "own, R", "identity", "as full", "single"


def vectors(q, stages, alpha, curvatures=None, remainder=True):
    """{treatment: w} of all but `single`; those that equal `own` by definition are left out.

    q: ∇(−f) at the last model {layer: (q, o, i)}; stages: `core.influence.Stage`. alpha: of
    `as full`, relative to the mean eigenvalue. curvatures: H of `as full`, one a stage; by default
    the stages' own. remainder: False leaves out `own, R`.
    """
    first, *later = stages
    found = {OWN: precondition(q, stages)[0]}
    if remainder and any(isinstance(x, LoRA) for x in later):
        found[REMAINDER] = precondition(q, [first, *map(_with_remainder, later)])[0]
    found[IDENTITY] = first.inverse(q)
    if any(isinstance(x, LoRA) or x.cross is not None for x in later):
        curvatures = curvatures or [x.curvature for x in stages]
        full = [Stage(x, alpha=Damping(alpha)) for x in curvatures[1:]]
        found[AS_FULL] = precondition(q, [first, *full])[0]
    return found


def single(q, curvature, damping):
    """w of `single`, to be multiplied with gradients at the last model, whose curvature is given.
    damping: relative to its mean eigenvalue."""
    return Stage(curvature, Damping(damping)).inverse(q)


def _with_remainder(stage):
    return replace(stage, remainder=True) if isinstance(stage, LoRA) else stage
