"""The front door: from two checkpoints to a table of documents, in memory or in a working folder.

    base, tuned = msif.load("my/base"), msif.load("my/fine-tuned")
    docs, rows = base.documents(texts), tuned.answers(prompts, answers)
    stages = [msif.Stage(base, msif.fit(base, docs), damping=1e-3),
              msif.Stage(tuned, msif.fit(tuned, rows), alpha=0.1)]
    scores = msif.trace(stages, ["Where was Ada born?"], docs)
    msif.show(scores)

Every step is one call of `msif.core` or `msif.scale`, with the same numbers; those take more
options. Given a `folder`, the same calls are planned, keep what they finish on disk, go on where
they were interrupted, and share the work among processes that `torchrun` starts. One working folder
serves all of them: what is written lies below it under a name made from all that it depends on, so
that equal inputs find it again and others never meet it.
"""

from msif.api.loading import load
from msif.api.models import Model
from msif.api.planning import plan
from msif.api.scores import Ranked, Scores
from msif.api.showing import show
from msif.api.stages import Stage, fit, load_factors
from msif.api.streams import Stream
from msif.api.tracing import trace
from msif.core.influence import Damping

__all__ = [
    "Damping",
    "Model",
    "Ranked",
    "Scores",
    "Stage",
    "Stream",
    "fit",
    "load",
    "load_factors",
    "plan",
    "show",
    "trace",
]
