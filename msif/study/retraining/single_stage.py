"""The single-stage score at several dampings: as much tuning as other rivals get."""

from msif.core.influence import Damping, Stage, query_gradients
from msif.study.tracing.methods import FORMS, score_together


def single_stage_scores(case, dampings, batch_size=64):
    """[{"single_stage_finetuned/form": (q, N)}], one for each damping d₂ relative to each layer's
    mean eigenvalue, from one pass over the candidates.

    ⟨(H₂ + d₂)⁻¹ q, ∇ℓ_z(θ₂)⟩, q = ∇(−f)(θ₂), as `tracing.methods` has it at one damping."""
    tuned, factors = case.tracked("finetuned"), case.factors["finetuned"]
    q = query_gradients(tuned, case.queries)
    vectors = {d: Stage(factors, Damping(d)).inverse(q) for d in dampings}
    found = score_together(tuned, case.bed.documents, vectors, batch_size, "single-stage")
    return [
        {
            f"single_stage_finetuned/{form}": x
            for form, x in zip(FORMS, (found[d].values, found[d].normalised()))
        }
        for d in dampings
    ]
