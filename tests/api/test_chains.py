"""Adapters that were trained on the merge of others: a chain with two stages of adapters."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import files_of, run
from support.own_pair import add_adapters, add_merge, build

import msif
from msif.api.lineage import foreign
from msif.api.models import Model
from msif.core import capture, ekfac, influence
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.core.stages import Damping, Stage
from msif.curvature.lora import LoRA

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:.*knows these documents no better than chance"),
    pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ASK = [("Where was Gus born?", "Rome"), ("Where was Hal born?", "Oslo")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("pair"))
    add_adapters(made)
    add_merge(made)
    more = {"base": "merged", "name": "second", "seed": 1, "target_modules": ["q_proj", "up_proj"]}
    add_adapters(made, epochs=9, **more)
    return made


def test_adapters_over_adapters_are_on_their_merge(folder):
    """Saved by PEFT, named as a folder of adapters, or loaded."""
    first = msif.load(folder / "lora")
    expected = msif.load(folder / "second")
    assert set(expected.adapters) != set(first.adapters)
    for below in (folder / "lora", first, msif.load(folder / "merged"), folder / "merged"):
        found = msif.load(folder / "second", base=below)
        assert found.adapters.keys() == expected.adapters.keys()
        for name, p in found.tracked.model.named_parameters():
            other = expected.tracked.model.get_parameter(name)
            torch.testing.assert_close(p, other, rtol=1e-5, atol=1e-6)  # merged in another order
        assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    with pytest.raises(ValueError, match="base is .*merged.*: .*base has no adapters that could"):
        msif.load(folder / "base", base=msif.load(folder / "merged"))


def test_a_chain_of_adapters_on_adapters_is_the_engine_s(folder):
    """Documents, rows of the first and of the second stage (1e-4: float32)."""
    models = [msif.load(folder / x) for x in ("base", "lora", "second")]
    docs = models[0].documents(folder / "documents.jsonl")
    given = [docs, *(x.answers(folder / "rows.jsonl") for x in models[1:])]
    numbers = [{"damping": 1e-3}, {"alpha": 0.1}, {"alpha": 0.3}]
    stages = [msif.Stage(x, msif.fit(x, y), **n) for x, y, n in zip(models, given, numbers)]
    chain = [Stage(ekfac.fit(models[0].tracked, docs), Damping(1e-3))]
    for model, rows, options in list(zip(models, given, numbers))[1:]:
        chain.append(
            LoRA(
                ekfac.fit(model.tracked, rows),
                alpha=Damping(options["alpha"]),
                adapters=model.adapters,
                mean=capture.mean_gradient(model.tracked, rows, loss),
                remainder=False,
            )
        )
    query = influence.query_gradients(models[2].tracked, models[2].questions(ASK))
    w = influence.precondition(query, chain)
    for stage, (model, rows) in enumerate(zip(models, given)):
        found = msif.trace(stages, ASK, rows, stage=stage).values
        expected = influence.score(model.tracked, rows, w[stage]).values
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_the_command_line_puts_them_on_the_merge_or_refuses(folder, tmp_path, capfd):
    names = ["Ada", "Bo", "Cy"]
    rows = [{"prompt": f"Where was {x} born?", "chosen": "Rome", "rejected": "Oslo"} for x in names]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(x) + "\n" for x in rows))
    given = [x.replace("/tuned", "/lora") for x in files_of(folder, tmp_path / "work")]
    dpo = ["--pairs", pairs, "--aligned"]
    assert run("plan", *given, *dpo, folder / "second") == 0
    assert "aligned: plan" in capfd.readouterr().out
    assert run("plan", *given, *dpo, folder / "lora") == 1
    assert "goes on training the same adapters is not traced" in capfd.readouterr().err


def test_a_stage_left_out_is_called_out_whatever_it_moved(folder, tmp_path):
    """Fine-tuning between moved layers that the adapters do not touch."""
    base, second = msif.load(folder / "base"), msif.load(folder / "lora")
    net = copy.deepcopy(second.tracked.model)
    between = next(x for x in base.tracked.names if x not in second.adapters)
    net.get_submodule(between).weight.data.mul_(1.01)
    other = Model(tracked(net), second.tokenizer, "adapters on another model", second.adapters)
    assert not foreign(base, second) and foreign(base, other)
    net.get_submodule(between).weight.data.copy_(base.tracked.model.get_submodule(between).weight)
    assert not foreign(base, other)
    net.get_input_embeddings().weight.data[0] += 1  # nor what is not tracked
    assert foreign(base, other)


def test_a_base_that_leaves_a_model_out_is_refused(folder, tmp_path, capfd):
    """Adapters that were trained on the merge, put on the base below it."""
    said = "were trained on .*/merged .*, and the base given is .*, whose weights differ"
    for base in (folder / "base", msif.load(folder / "base"), msif.load(folder / "tuned")):
        with pytest.raises(ValueError, match=said):
            msif.load(folder / "second", base=base)
    given = [x.replace("/tuned", "/second") for x in files_of(folder, tmp_path / "work")]
    assert run("plan", *given) == 1
    assert "is a model in between" in capfd.readouterr().err
    shutil.copytree(folder / "merged", tmp_path / "copy")
    assert msif.load(folder / "second", base=tmp_path / "copy").adapters
    shutil.copytree(folder / "second", tmp_path / "second")
    rename(tmp_path / "second", "somebody/on-the-hub")
    assert msif.load(tmp_path / "second", base=folder / "base").adapters
    rename(tmp_path / "second", str(folder / "base"))  # as PEFT has it where no merge was saved
    assert msif.load(tmp_path / "second", base=folder / "lora").adapters


def rename(folder, base):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_equal_merges_with_other_adapted_layers_share_a_folder(folder, tmp_path):
    """Adapters that add nothing (B = 0) are another stage all the same."""
    shutil.copytree(folder / "lora", tmp_path / "more")
    path = tmp_path / "more" / "adapter_model.safetensors"
    found = load_file(path)
    more = {x.replace("v_proj", "k_proj"): y for x, y in found.items() if "v_proj" in x}
    more = {x: y * ("lora_A" in x) for x, y in more.items()}
    save_file(found | more, path)
    models = [msif.load(x) for x in (folder / "lora", tmp_path / "more")]
    for model in (*models, *models[::-1]):
        rows = model.answers(folder / "rows.jsonl")
        factors = msif.fit(model, rows, folder=tmp_path / "work")
        assert factors.mean.keys() == model.adapters.keys()
        msif.Stage(model, factors, alpha=0.1)
