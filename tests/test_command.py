"""`python -m msif` on one's own pair: table and page, equal bits after a kill, one-line errors."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pandas
import pytest
import torch
from support import ROOT
from support.command import files_of, run, table_of
from support.own_pair import add_adapters, build
from transformers import AutoTokenizer

import msif
from msif.__main__ import main, parser

pytestmark = pytest.mark.filterwarnings("ignore:the largest score:UserWarning")  # tiny data


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("pair"))
    both = {"prompt": "a", "answer": "b", "messages": [{"role": "user", "content": "a"}]}
    (made / "both.jsonl").write_text(json.dumps(both))
    return made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "mistral"])
def test_from_files_to_a_table_on_any_architecture(kind, tmp_path, capfd):
    """Twice, with different pairs in one working folder; the table is that of the Python calls."""
    work = tmp_path / "work"
    for seed in (0, 1):
        pair = build(tmp_path / f"pair{seed}", kind, seed)
        asked = ["--questions", pair / "questions.jsonl", "--top", 4]
        assert run("plan", *files_of(pair, work)) == 0
        assert run("trace", *files_of(pair, work), *asked) == 0
        printed = capfd.readouterr().out
        assert "partitions 1" in printed and "Where was Hal born? → " in printed
        path = printed.split("table  ")[-1].splitlines()[0]
        found = pandas.read_parquet(path)
        base, tuned = msif.load(pair / "base"), msif.load(pair / "tuned")
        docs, rows = base.documents(pair / "documents.jsonl"), tuned.answers(pair / "rows.jsonl")
        options = {"folder": tmp_path / f"python{seed}"}
        stages = [
            msif.Stage(base, msif.fit(base, docs, **options), damping=1e-3),
            msif.Stage(tuned, msif.fit(tuned, rows, **options), alpha=0.1),
        ]
        questions = tuned.questions(pair / "questions.jsonl", new_tokens=1)
        scores = msif.trace(stages, questions, docs, top=4, **options)
        expected = [x for row in scores.top() for x in row]
        assert found["document"].tolist() == [x.document for x in expected]
        assert found["score"].tolist() == [x.score for x in expected]
        assert found["answer"].tolist()[0] == tuned.text(questions[0]).split()[-1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_folder_of_adapters_stands_in_place_of_the_tuned_model(pair, tmp_path, capfd):
    pytest.importorskip("peft")
    lora, work = add_adapters(pair), tmp_path / "work"
    named = [str(lora) if x == str(pair / "tuned") else x for x in files_of(pair, work)]
    assert run("plan", *named) == 0
    assert "adapters: 6 layers, 6 of them solved exactly" in capfd.readouterr().out
    asked = ["--ask", "Where was Gus born?", "--answer", "Rome"]
    assert run("trace", *named, *asked) == 0
    assert "Where was Gus born? → Rome" in capfd.readouterr().out
    base, tuned = msif.load(pair / "base"), msif.load(lora)
    docs, rows = base.documents(pair / "documents.jsonl"), tuned.answers(pair / "rows.jsonl")
    stages = [
        msif.Stage(base, msif.fit(base, docs), damping=1e-3),
        msif.Stage(tuned, msif.fit(tuned, rows), alpha=0.1),
    ]
    scores = msif.trace(stages, [("Where was Gus born?", "Rome")], docs)
    expected = [x.document for x in scores.top()[0]]
    assert table_of(work)["document"].tolist()[:3] == expected[:3]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "folder of adapters (LoRA)" in capfd.readouterr().out


@pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong")
def test_a_stage_of_preferences_follows_and_is_remembered(pair, tmp_path, capfd):
    """Scores are those of the Python calls; any model will do as DPO's end."""
    work, asked = tmp_path / "work", ["--ask", "Where was Gus born?", "--answer", "Rome"]
    names = ["Ada", "Bo", "Cy"]
    rows = [{"prompt": f"Where was {x} born?", "chosen": "Rome", "rejected": "Oslo"} for x in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    dpo = ["--aligned", pair / "base", "--pairs", tmp_path / "pairs.jsonl", "--beta", 0.5]
    assert run("plan", *files_of(pair, work), *dpo, "--seconds", 0.2) == 0
    printed = capfd.readouterr().out
    assert "on this machine" in printed.partition("aligned: ")[2].partition("scoring: ")[0]
    assert run("fit", *files_of(pair, work), *dpo) == 0
    assert "factors of all 3 stages" in capfd.readouterr().out
    assert run("trace", "--folder", work, *asked, "--aligned-alpha", 0.01) == 0
    assert "α 0.1, 0.01; of its" in capfd.readouterr().out
    base, tuned, aligned = (msif.load(pair / x) for x in ("base", "tuned", "base"))
    docs, answers = base.documents(pair / "documents.jsonl"), tuned.answers(pair / "rows.jsonl")
    pairs = aligned.preferences(tmp_path / "pairs.jsonl")
    stages = [
        msif.Stage(base, msif.fit(base, docs), damping=1e-3),
        msif.Stage(tuned, msif.fit(tuned, answers), alpha=0.1),
        msif.Stage(aligned, msif.fit(aligned, pairs, start=tuned, b=0.5), alpha=0.01),
    ]
    question = [("Where was Gus born?", "Rome")]
    scores = msif.trace(stages, question, docs).top()[0]
    assert table_of(work)["document"].tolist()[:3] == [x.document for x in scores[:3]]
    assert run("trace", "--folder", work, *asked, "--among", "pairs", "--aligned-alpha", 0.01) == 0
    assert "Rome ≻ Where was" in capfd.readouterr().out
    found = pandas.read_parquet(work / "pairs.parquet")
    expected = [x.score for x in msif.trace(stages, question, pairs, stage=2).top()[0]]
    assert found["score"].tolist() == pytest.approx(expected, rel=1e-3)
    assert run("trace", *files_of(pair, tmp_path / "new"), *asked, *dpo[:2]) == 1
    assert "--aligned and --pairs belong together" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["trace", "--help"])
    assert "a stage of preferences (DPO) after fine-tuning" in capfd.readouterr().out


def test_a_plan_says_the_time_where_it_may_take_some(pair, tmp_path, capfd):
    work = tmp_path / "work"
    assert run("plan", *files_of(pair, work)) == 0
    assert "on this machine" not in capfd.readouterr().out
    assert run("plan", *files_of(pair, work), "--seconds", 0.2) == 0
    assert capfd.readouterr().out.count("on this machine") == 3 and not work.exists()
    assert run("plan", *files_of(pair, work), "--seconds", -1) == 1
    assert "seconds is -1" in capfd.readouterr().err


def test_conversations_are_read_as_prompts_and_answers_are(pair, tmp_path, capfd):
    """With a template that puts words behind words, tables are the same to the bit; completions are
    answers."""
    tables = []
    for kind, made_of in FORMS.items():
        made = tmp_path / kind
        shutil.copytree(pair, made)
        for name in ("rows", "questions"):
            lines = (made / f"{name}.jsonl").read_text().splitlines()
            found = [made_of(**json.loads(x)) for x in lines]
            (made / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in found))
        if kind in ("chat", "parted"):
            tokenizer = AutoTokenizer.from_pretrained(made / "tuned")
            tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
            tokenizer.save_pretrained(made / "tuned")
        asked = ["--questions", made / "questions.jsonl"]
        assert run("trace", *files_of(made, made / "work"), *asked) == 0
        ask = ["--ask", "Where was Gus born?", "--answer", "Rome", "--ask", "Where was Hal born?"]
        assert run("trace", *files_of(made, made / "again"), *ask) == 0
        tables.append([table_of(made / "work"), table_of(made / "again")])
        turned = "--ask is a turn of the user here" in capfd.readouterr().out
        assert turned == (kind in ("chat", "parted"))
    for table in tables[1:]:
        assert table[0].equals(tables[0][0]) and table[1].equals(tables[0][1])


def turns(prompt, answer):
    told = [{"role": "assistant", "content": answer}] if answer else []
    return [{"role": "user", "content": prompt}], told


def parted(prompt, answer=None):
    asked, told = turns(prompt, answer)
    return {"prompt": asked, "completion": told or None}


FORMS = {
    "text": lambda prompt, answer=None: {"prompt": prompt, "answer": answer},
    "completion": lambda prompt, answer=None: {"prompt": prompt, "completion": answer},
    "chat": lambda prompt, answer=None: {"messages": sum(turns(prompt, answer), [])},
    "parted": parted,
}


def test_a_table_says_what_the_model_itself_says(pair, tmp_path, capsys):
    asked = ["--ask", "Where was Bo born?", "--answer", "Oslo", "--ask", "Where was Bo born?"]
    assert run("trace", *files_of(pair, tmp_path / "work"), *asked) == 0
    printed = capsys.readouterr().out
    assert "Where was Bo born? → Oslo   (log p = -" in printed
    assert "nats; the model says: Paris)" in printed
    assert "Where was Bo born? → Paris   (log p = " in printed


def test_an_answer_belongs_to_the_question_before_it():
    asked = parser().parse_args(shlex.split('trace --ask a --ask b --answer c --ask "d e"')).ask
    assert asked == [["a", None], ["b", "c"], ["d e", None]]
    for wrong in ("trace --answer c", "trace --ask a --answer b --answer c"):
        with pytest.raises(SystemExit):
            parser().parse_args(shlex.split(wrong))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"base": None}, "--base expected"),
        ({"tuned": "/nowhere"}, "nothing could be loaded from '/nowhere'"),
        ({"documents": "/nowhere.jsonl"}, "/nowhere.jsonl does not exist"),
        ({"rows": "{pair}/documents.jsonl"}, "no column 'prompt'; its columns are text"),
        ({"rows": "{pair}/both.jsonl"}, "row 0 has 'messages' and 'answer', and which of them"),
        ({"damping": "-1"}, "--damping is -1.0: expected a finite number"),
        ({"alpha": "0"}, "stage 2 has α = 0"),
        ({"memory": "1MiB x"}, "memory is '1MiB x'"),
        ({"memory": "1KiB"}, "the budget is"),
        ({"among": "both"}, "--among is 'both'"),
        ({"ask": None}, "no question"),
        ({"pattern": "nothing_like_it"}, "no layer to track"),
        ({"questions": "{pair}/base/config.json", "ask": None}, "no column 'prompt'"),
        ({"questions": "{pair}/questions.jsonl"}, "--ask and --questions: expected one"),
        ({"top": "0"}, "--top is 0"),
        ({"folder": "{pair}"}, "is not one that msif has made"),
        ({"folder": "{pair}/rows.jsonl"}, "is not one that msif has made"),
    ],
)
def test_a_wrong_turn_ends_in_one_line(wrong, message, pair, tmp_path, capfd):
    given = {"ask": "Where was Gus born?"} | wrong
    arguments = files_of(pair, tmp_path / "work")
    for name, value in given.items():
        if f"--{name}" in arguments:
            at = arguments.index(f"--{name}")
            arguments[at : at + 2] = []
        if value is not None:
            arguments += [f"--{name}", value.format(pair=pair)]
    assert run("trace", *arguments) == 1
    error = [x for x in capfd.readouterr().err.splitlines() if x.startswith("msif trace: ")]
    assert len(error) == 1 and message in error[0]


def test_help_says_enough_to_begin(capsys):
    for command in ([], ["plan"], ["fit"], ["trace"], ["show"], ["study"]):
        with pytest.raises(SystemExit) as done:
            main([*command, "--help"])
        assert done.value.code == 0
        assert "usage: msif" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["make", "run", "report", "claims", "preflight"])
def test_the_studys_commands_are_reached(what):
    done = subprocess.run(
        [sys.executable, "-m", "msif", "study", what, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and f"usage: msif study {what}" in done.stdout


def killed_when(pattern, command, folder):
    """Start the command and kill -9 it as soon as a file like this is in the folder."""
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(6000):
        if list(folder.glob(pattern)) or child.poll() is not None:
            break
        time.sleep(0.01)
    killed = child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return killed


@pytest.mark.slow
def test_killed_at_any_point_the_same_command_ends_in_the_same_bits(pair, tmp_path):
    """kill -9 during the fit of each stage and after it; then once more, to the end."""

    def command(work):
        asked = ["--ask", "Where was Hal born?", "--batch-size", "1"]
        return [sys.executable, "-m", "msif", "trace", *files_of(pair, work), *asked]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, cwd=ROOT, capture_output=True)
    patterns = [".factors-*.work/sums.*", ".factors-*.work/*.bases.*", "factors-*/header.json"]
    patterns += ["scores-*/w.safetensors"]
    kills = [killed_when(pattern, command(broken), broken) for pattern in patterns]
    assert sum(kills) >= 3
    subprocess.run(command(broken), check=True, cwd=ROOT, capture_output=True)
    written = [x.relative_to(whole) for x in whole.glob("*/*.safetensors")]
    written += [x.relative_to(whole) for x in whole.glob("scores-*/part-*")]
    assert len(written) > 20
    for path in written:
        assert (whole / path).read_bytes() == (broken / path).read_bytes(), path
    assert torch.equal(*(torch.tensor(table_of(x)["score"].to_numpy()) for x in (whole, broken)))
