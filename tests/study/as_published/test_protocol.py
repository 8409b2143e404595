"""The paper's protocol: who is a candidate, what its settings compute, how ranks are counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.rivals import representations
from msif.study import paths, scratch
from msif.study.as_published import protocol
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.tracing.case import trained_case

TRAINING = {"epochs": 2, "rate": 1e-2, "batch_size": 16}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        people = generate(seed=0, fine_tuned=4, held_out=4, objects=3, near=1, fillers=10)
        recipe = Recipe(people, {"width": 8, "layers": 1, "heads": 2}, TRAINING, TRAINING, 32)
        yield trained_case(recipe, 0, (), samples=(1, 1))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


def test_candidates_are_what_states_it_what_search_finds_the_same_object_and_shared_ones(case):
    found = protocol.among(case, seed=0, first=5, same_object=3, shared=7)
    documents = case.bed.corpus.documents
    common = set.intersection(*map(set, found))
    assert len(common) >= 7 and protocol.among(case, 0, 5, 3, 7) == found
    for row, few in zip(case.rows, found):
        own = set(row["proponents"])
        assert own <= set(few) and len(few) <= len(own) + 5 + 3 + 7
        assert few == sorted(set(few))
    alone = protocol.among(case, seed=0, first=0, same_object=3, shared=0)
    for row, few in zip(case.rows, alone):
        others = set(few) - set(row["proponents"])
        assert len(others) == 3 and all(documents[n]["object"] == row["object"] for n in others)


def test_an_object_may_stand_in_any_of_a_documents_triples():
    triples = {"triples": [["a", "capital", "b"], ["a", "leader", "c"]], "text": "…"}
    assert {"b", "c"} <= protocol.objects_of(triples)
    assert protocol.objects_of({"object": "d"}) == {"d"}


def test_absolute_dampings_are_the_numbers_themselves_in_both_stages(case):
    found = protocol.by_damping(case, [1e-4, 1e-2], batch_size=7)
    tuned, base = case.tracked("finetuned"), case.tracked("pretrained")
    q, d = query_gradients(tuned, case.queries), Damping(1e-2, relative=False)
    first, second = case.factors["pretrained"], case.factors["finetuned"]
    w = precondition(q, [Stage(first, d), Stage(second, alpha=d)])[0]
    both = score(base, case.bed.documents, w)
    ours = found["multi_stage"][1e-2]
    close = {"rtol": 1e-4, "atol": 1e-5 * float(both.values.abs().max())}  # float32, other batches
    torch.testing.assert_close(ours.values, both.values, **close)
    assert ours.normalised().equal(ours.values / ours.norms)
    single = score(tuned, case.bed.documents, Stage(second, d).inverse(q)).values
    torch.testing.assert_close(found["single_stage_finetuned"][1e-2].values, single, **close)
    released = score(base, case.bed.documents, Stage(second, alpha=d).transfer(q)).values
    torch.testing.assert_close(found["finetuning_only"][1e-2].values, released, **close)
    assert not torch.allclose(found["multi_stage"][1e-4].values, both.values)
    assert list(found["multi_stage"]) == [1e-4, 1e-2]
    assert len(list(scratch.paths.scratch().glob("as-published-*"))) == 1


def test_strength_is_the_damping_over_each_layers_mean_eigenvalue(case):
    found = protocol.strength(case, 0.5)
    means = [float(x.eigenvalues.mean()) for x in case.factors["finetuned"].factors.values()]
    np.testing.assert_allclose(found["finetuned"] * means, 0.5, rtol=1e-6)
    assert set(found) == {"pretrained", "finetuned"}


def test_ranks_are_counted_among_the_candidates_alone(case):
    scores = torch.zeros(len(case.queries), len(case.bed.documents))
    own = [row["proponents"] for row in case.rows]
    for n, few in enumerate(own):
        scores[n] = 1.0  # whatever is no candidate is ahead
        scores[n, few] = 0.5
    candidates = {0: [[*few, max(set(range(99)) - set(few))] for few in own]}
    tables = {0: {"all ahead": scores, "first": -scores}}
    found = protocol.measured(tables, {0: case}, candidates)
    assert (found["all ahead"]["mrr"][0] == 1 / 2).all()
    assert (found["first"]["mrr"][0] == 1).all() and (found["first"]["recall"][0] == 1).all()


def test_candidates_that_a_corpus_brings_are_kept(case):
    rows = [row | {"candidates": [5, 2]} for row in case.bed.corpus.queries]
    bed = replace(case.bed, corpus=replace(case.bed.corpus, queries=rows))
    found = protocol.among(replace(case, bed=bed), 0)
    assert found == [[2, 5]] * len(case.queries)


def test_hidden_states_are_of_two_models_and_not_centred(case):
    found = protocol.hidden_states(case, batch_size=7)
    q = representations.states(case.bed.model("finetuned"), case.queries)[1]
    z = representations.states(case.bed.model("pretrained"), case.bed.documents)[3]
    expected = torch.nn.functional.cosine_similarity(q, z, dim=0)
    torch.testing.assert_close(found[1, 3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stale", ["shape", "values", None])
def test_scores_of_other_questions_or_documents_are_refused(case, tmp_path, monkeypatch, stale):
    how = {"only_correct": False, "queries": None}
    monkeypatch.setattr(protocol.params, "section", lambda *_: how)
    monkeypatch.setattr(protocol, "load_case", lambda *_: case)
    monkeypatch.setattr(paths, "_running", paths.Running("12_as_published", by_hand=False))
    folder = tmp_path / "results" / "tiny"
    (folder / "factors").mkdir(parents=True)
    (folder / "factors" / "layers.json").write_text("{}")
    (folder / "fact_tracing" / "seed-0").mkdir(parents=True)
    kept = torch.from_numpy(protocol.searched(case)).float()
    other = {"shape": kept[:, :3].contiguous(), "values": kept.flip(0), None: kept}[stale]
    save_file({"bm25/raw": other}, folder / "fact_tracing" / "seed-0" / "scores.safetensors")
    if stale:
        with pytest.raises(ValueError, match="not of the questions.*run notebook 3 again"):
            protocol.traced("tiny", 0)
    else:
        assert protocol.traced("tiny", 0)[1]["bm25/raw"].equal(kept)
