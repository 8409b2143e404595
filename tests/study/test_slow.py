"""What takes minutes: the study on another processor, real weights and text from end to end."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from support import ROOT

from msif.core import ekfac
from msif.core.influence import precondition, query_gradients, score
from msif.core.layers import tracked
from msif.study import metrics
from msif.study.beds import testbed
from msif.study.corpora.stories import stories_corpus
from msif.study.tracing.case import Case

pytestmark = pytest.mark.slow


def test_the_claims_hold_on_another_processor_and_git_sees_no_change(checkout):
    """Other vector instructions change the last digits of training: no claim may change."""
    other = {"ATEN_CPU_CAPABILITY": "avx2", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}

    def run(*command):
        options = {"cwd": checkout, "env": os.environ | other, "capture_output": True, "text": True}
        return subprocess.run(command, **options)

    made = run(sys.executable, "-m", "msif.study.pipeline.study")
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    held = run(sys.executable, "-m", "msif.study.pipeline.claims")
    assert held.returncode == 0, held.stderr
    assert run("git", "status", "--porcelain").stdout == ""


def test_real_weights_and_real_text_from_training_to_scores(tmp_path):
    """stories260K (Llama) and TinyStories: for facts that only the planted documents state, those
    rank far above chance."""
    data = ROOT / "data"
    if not (data / "stories260K").exists():
        pytest.skip("data/ is absent; docs/profiles.md says what to put there")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["stories"]["testbed"]
    settings = {name: value for name, value in params["corpus"].items() if name != "source"}
    corpus = stories_corpus(seed=0, **settings | {"folder": data})
    training = {key: params[key] for key in ("pretraining", "finetuning", "max_length")}
    testbed.build(tmp_path, corpus, model={"source": str(data / "stories260K")}, **training)
    bed = testbed.load(tmp_path)
    base, tuned = tracked(bed.model("pretrained")), tracked(bed.model("finetuned"))
    kinds = {name.split(".")[-1] for name in base.names}
    assert kinds >= {"q_proj", "k_proj", "v_proj", "down_proj"}
    factors = {
        "pretrained": ekfac.fit(base, bed.documents[:200]),
        "finetuned": ekfac.fit(tuned, bed.finetuning),
    }
    case = Case(bed, base.layers, factors, bed.queries)
    q = query_gradients(tuned, case.queries)
    scores = score(base, bed.documents, precondition(q, case.chain(1e-3, 0.1))[0]).values
    chance = metrics.reciprocal_ranks(torch.rand(scores.shape), case.proponents).mean()
    assert metrics.reciprocal_ranks(scores, case.proponents).mean() > 3 * chance
