"""The published protocol of fact tracing: bloom-560m → bloomz-560m, LAMA's T-REx facts, the sentences of T-REx that state them.

Read from one folder, in the formats in which both data sets are published:

    relations.jsonl, TREx/P19.jsonl, …   LAMA (Petroni et al. 2019; data.zip of facebookresearch/LAMA, CC BY-NC 4.0), a JSON object a
        line: {"relation": "P19", "label", …}, and {"sub_uri", "sub_label", "predicate_id", "obj_uri", "obj_label", …} (evidences
        are not read)
    T-REx/re-nlg_0-10000.json, …         T-REx (Elsahar et al. 2018; JSON dump, CC BY-SA 4.0), each a list of articles {"docid", "text",
        "sentences_boundaries": [[start, end], …] in characters, "triples": [{"sentence_id", "annotator", "subject": {"uri"},
        "predicate": {"uri"}, "object": {"uri"}}, …]}; of a URI only what follows its last "/" counts
    digests.json                         written here: what the first run has read, which later runs must find again

A document is one sentence that states at least one LAMA fact, as T-REx has aligned them; the facts it states are in its `facts`.
A query asks for the object of a fact that some sentence states. It is to be ranked among its `candidates` alone: all true
proponents, BM25's first for question + answer (by words), sentences that state another fact of the same object, and random sentences
that all queries of an experiment share.
"""
import hashlib
import json
import os
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from msif import scratch, testbed
from msif.corpus import Corpus
from msif.data import split_answer
from msif.extras import need
from msif.models import load_tokenizer
from msif.paths import from_root
from msif.retrieval import bm25
from msif.testbed import Testbed

# One question per T-REx relation of LAMA.
QUESTIONS = dict(line.strip().split(" ", 1) for line in """
    P17 Which country is [X] in?
    P19 Where was [X] born?
    P20 Where did [X] die?
    P27 What is the citizenship of [X]?
    P30 Which continent is [X] on?
    P31 What kind of thing is [X]?
    P36 What is the capital of [X]?
    P37 What is the official language of [X]?
    P39 Which position did [X] hold?
    P47 What does [X] share a border with?
    P101 Which field does [X] work in?
    P103 What is the native language of [X]?
    P106 What is the profession of [X]?
    P108 Who employs [X]?
    P127 Who owns [X]?
    P131 Which region does [X] lie in?
    P136 Which genre does [X] belong to?
    P138 What was [X] named after?
    P140 What is the religion of [X]?
    P159 Where are the headquarters of [X]?
    P176 Who makes [X]?
    P178 Who developed [X]?
    P190 What is the twin city of [X]?
    P264 Which record label does [X] belong to?
    P276 Where is [X] located?
    P279 What is [X] a type of?
    P361 What is [X] a part of?
    P364 What is the original language of [X]?
    P407 Which language is [X] written in?
    P413 Which position does [X] play?
    P449 Which network first aired [X]?
    P463 What is [X] a member of?
    P495 Which country does [X] come from?
    P527 What does [X] consist of?
    P530 Which country does [X] have diplomatic relations with?
    P740 Where was [X] founded?
    P937 Where does [X] work?
    P1001 Where does [X] have legal force?
    P1303 Which instrument does [X] play?
    P1376 What is [X] the capital of?
    P1412 Which language does [X] speak?""".strip().splitlines())
FIELDS = ("sub_uri", "sub_label", "predicate_id", "obj_uri", "obj_label")
SHUFFLED = 10_000        # rows of a streamed data set among which each next one is drawn


def prepared(seed, **settings):
    """The `Testbed` of one experiment, arguments as for `prepare`; done once and kept in scratch/."""
    settings |= {"folder": _at_root(settings["folder"]), "finetuning": from_root(settings["finetuning"], "source"),
                 "models": {name: from_root(model, "source") for name, model in settings["models"].items()},
                 "device": settings.get("device") or _device()}     # another machine may have another
    folder, source = Path(settings["folder"]), settings["finetuning"]
    key = {**settings, "seed": seed, "data": [lama_files(folder), trex_files(folder), pinned_rows(folder, source),
                                              pinned_models(folder, settings["models"])]}
    return testbed.load(scratch.built("lama-testbed", key, lambda target: prepare(target, seed, **settings)))


def prepare(target, seed, *, folder, models, finetuning, max_length, dtype="float32", device=None, **corpus):
    """Write the test-bed of one experiment into `target`, for `testbed.load`; the models stay where they are.

    models: {"pretrained": …, "finetuned": …}, each {"source": hub id or folder, "revision": of a hub id}; the commit that the first run
    finds behind a revision is what models.json and all later runs load. finetuning: arguments of `fine_tuning_rows`. folder: the data;
    corpus: further arguments of `lama_corpus`. max_length: tokens. device: by default a GPU, if there is one.

    Raises, before long work: FileNotFoundError that says what to put where; ValueError for data or models that differ from the first run's,
    an unknown relation, a missing question, or two models that do not share a tokenizer; OSError for what the hub does not give.
    """
    models = {name: at | {"dtype": dtype, "device": device or _device()} for name, at in pinned_models(folder, models).items()}
    tokenizer = _shared_tokenizer(models)
    pinned_rows(folder, finetuning)
    found = lama_corpus(folder, seed, **corpus)
    rows = fine_tuning_rows(folder, tokenizer, max_length, seed=seed, **finetuning)
    testbed.given(target, replace(found, finetuning=rows), models, tokenizer, max_length)


def lama_corpus(folder, seed=42, queries=200, factor_documents=10_000, relations=None, questions=QUESTIONS, first=100, same_object=100,
                shared=200, annotators=None):
    """One experiment's documents and queries, without fine-tuning rows.

    The paper draws three experiments in a row from seed 42; here each has a seed of its own (42, 43, 44), so that one can be rerun alone.
    queries: facts drawn among those that a sentence states. factor_documents: a random sample of all sentences, which comes first, so that
    pre-training's factors are fitted on `documents[:factor_documents]`; candidates that it lacks follow in random order.
    relations: ids of those to ask about (None: all of LAMA's); questions: {relation: a question with one [X]}. Per query at most:
    first, sentences by BM25; same_object, random sentences that state another fact of that object; shared, random sentences that are the
    same for all queries. annotators: T-REx's aligners whose triples count ("SPOAligner", …; None: all, as published).

    Raises as `prepare` does. Memory: all sentences, and BM25's scores of them, 4 bytes for each query and sentence, twice.
    """
    facts = read_facts(folder)
    _check_questions(folder, facts, relations, questions)
    sentences = statements(folder, facts, annotators)
    asked = {fact: labels for fact, labels in facts.items() if relations is None or fact[1] in relations}
    stating, of_object = _by_fact(sentences)
    known = sorted(stating.keys() & asked.keys())
    if not 1 <= queries <= len(known):
        raise ValueError(f"queries is {queries}; expected 1 to {len(known)}, the facts that a sentence of T-REx states")
    rng = random.Random(seed)
    rows = [_query(fact, facts[fact], questions) for fact in rng.sample(known, queries)]
    common = rng.sample(range(len(sentences)), min(shared, len(sentences)))
    search = bm25([x["text"] for x in sentences], [f"{row['prompt']} {row['answer']}" for row in rows])
    for row, scores in zip(rows, search):
        fact = tuple(row["fact"])
        own = set(stating[fact])
        near = sorted(set(of_object[fact[2]]) - own)
        best = [n for n in np.argsort(-scores, kind="stable")[:first].tolist() if scores[n] > 0]
        row |= {"proponents": own, "candidates": own | {*best, *common, *rng.sample(near, min(same_object, len(near)))}}
    return _numbered(rng, sentences, rows, factor_documents)


def _by_fact(sentences):
    """{fact: numbers of the sentences that state it}, {object: numbers of the sentences that state a fact about it}."""
    stating, of_object = defaultdict(list), defaultdict(list)
    for n, sentence in enumerate(sentences):
        for fact in sentence["facts"]:
            stating[tuple(fact)].append(n)
        for o in {fact[2] for fact in sentence["facts"]}:
            of_object[o].append(n)
    return stating, of_object


def _query(fact, labels, questions):
    prompt = questions[fact[1]].replace("[X]", labels["subject"])
    return {"prompt": prompt, "answer": labels["object"], "kind": "query", **labels, "fact": list(fact)}


def _numbered(rng, sentences, rows, factor_documents):
    """The corpus of a random sample and all candidates, with `proponents` and `candidates` as numbers in it."""
    wanted = set().union(*(row["candidates"] for row in rows))
    order = rng.sample(range(len(sentences)), min(factor_documents, len(sentences)))
    rest = sorted(wanted - set(order))
    rng.shuffle(rest)
    number = {old: new for new, old in enumerate(order + rest)}
    documents = [sentences[n] | {"kind": "candidate" if n in wanted else "sample"} for n in number]
    return Corpus(documents, [], [row | {name: sorted(number[n] for n in row[name]) for name in ("proponents", "candidates")}
                                  for row in rows])


def candidate_scores(case, methods, at_once=4):
    """{method: (raw, normalised)}, each (q, n) on the CPU and −inf outside a query's own candidates: what `methods` gives for all queries
    and documents, at the cost of candidates alone and in the memory of a few queries.

    case: a `tracing.Case`. methods: a function of a case, such as `tracing.all_methods` with its settings. at_once: queries that share a
    pass over the union of their candidates; their vectors are held at once, of each method as many numbers as there are tracked weights.
    """
    bed, found = _Loaded(**vars(case.bed)), {}
    for start in range(0, len(case.queries), at_once):
        few = case.queries[start:start + at_once]
        wanted = [case.bed.corpus.queries[query.index]["candidates"] for query in few]
        union = sorted(set().union(*wanted))
        here = methods(replace(case, queries=few, bed=replace(bed, documents=[bed.documents[n] for n in union])))
        at = {n: i for i, n in enumerate(union)}
        for name, pair in here.items():
            whole = found.setdefault(name, [torch.full((len(case.queries), len(bed.documents)), -torch.inf) for _ in pair])
            for into, values in zip(whole, pair):
                for i, own in enumerate(wanted):
                    into[start + i, own] = values[i, [at[n] for n in own]].float().cpu()
    return {name: tuple(pair) for name, pair in found.items()}


@dataclass(frozen=True)
class _Loaded(Testbed):
    """A test-bed that reads each model once, however often it is asked for."""
    nets: dict = field(default_factory=dict)

    def model(self, name, *precision):
        if name not in self.nets:
            self.nets[name] = super().model(name, *precision)
        return self.nets[name]


# The data sets.

def statements(folder, facts, annotators=None):
    """[{"text", "facts", "article"}]: the sentences of T-REx that state one of `facts` (of `read_facts`).

    They are read once for the same files, and kept in scratch/."""
    folder = Path(folder)
    key = {"files": [lama_files(folder), trex_files(folder)], "annotators": annotators}

    def extract(target):
        with open(target / "sentences.jsonl", "w", encoding="utf-8") as file:
            for name in key["files"][1]:
                for sentence in stating_sentences(folder / name, facts, annotators):
                    file.write(json.dumps(sentence, ensure_ascii=False) + "\n")
    return list(_read(scratch.built("lama-sentences", key, extract) / "sentences.jsonl"))


def stating_sentences(path, facts, annotators=None):
    """The sentences of one T-REx file that state one of `facts`, in its order.

    Raises ValueError, naming file and article, for another format."""
    with open(path, encoding="utf-8") as file:
        articles = json.load(file)
    for article in articles:
        try:
            found = defaultdict(set)
            for triple in article["triples"]:
                fact = tuple(triple[part]["uri"].rsplit("/", 1)[-1] for part in ("subject", "predicate", "object"))
                if fact in facts and (annotators is None or triple["annotator"] in annotators):
                    found[int(triple["sentence_id"])].add(fact)
            for number in sorted(found):
                start, end = article["sentences_boundaries"][number]
                yield {"text": article["text"][start:end].strip(), "facts": [list(x) for x in sorted(found[number])],
                       "article": article["docid"]}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            named = article.get("docid") if isinstance(article, dict) else repr(article)[:40]
            raise ValueError(f"{path}, article {named}: {type(error).__name__} {error}; expected T-REx's JSON format, "
                             f"see msif.lama") from error


def read_facts(folder):
    """{(subject, relation, object) ids: {"subject", "relation", "object"} labels} of LAMA's T-REx part; rows without a label are left out.

    Raises ValueError for a relation that relations.jsonl lacks and for a file without a single fact."""
    folder, facts, files = Path(folder), {}, lama_files(folder)
    labels = {row["relation"]: row.get("label") or row["relation"] for row in _read(folder / "relations.jsonl")}
    for name in files:
        if not name.startswith("TREx/"):
            continue
        rows = [row for row in _read(folder / name) if all(str(row.get(key) or "").strip() for key in FIELDS)]
        if not rows:
            raise ValueError(f"{folder / name} has no row with {', '.join(FIELDS)}; expected LAMA's T-REx format, see msif.lama")
        if unknown := {Path(name).stem, *(row["predicate_id"] for row in rows)} - labels.keys():
            raise ValueError(f"{folder / name} has the relation {min(unknown)}, which relations.jsonl lacks; "
                             f"take both from the same release of LAMA")
        facts |= {(row["sub_uri"], row["predicate_id"], row["obj_uri"]): {
            "subject": row["sub_label"], "relation": labels[row["predicate_id"]], "object": row["obj_label"]} for row in rows}
    return facts


def _check_questions(folder, facts, relations, questions):
    """Every relation that will be asked about exists and has one good question."""
    there = {fact[1] for fact in facts}
    if unknown := sorted(set(relations or ()) - there):
        raise ValueError(f"relations: {', '.join(unknown)} unknown; {folder} has {', '.join(sorted(there))}")
    asked = sorted(there if relations is None else relations)
    if missing := [x for x in asked if questions.get(x, "").count("[X]") != 1]:
        raise ValueError(f"no question for {', '.join(missing)}: expected one for each relation, with exactly one [X] for the "
                         f"subject; add it to `questions` (msif.lama.QUESTIONS), or leave the relation out of `relations`")


def fine_tuning_rows(folder, tokenizer, max_length, *, source, prompt="inputs", answer="targets", limit=2000, seed=0, files=None,
                     revision=None):
    """A random sample of `limit` rows {"prompt", "answer", "kind"} of the data that fine-tuning saw (bloomz: xP3), for its factors.

    source: a .jsonl file (every row is as likely as any other), or a folder or hub data set, which is streamed and shuffled over 10,000 rows;
    files: of these, a pattern such as "en/*.jsonl". prompt, answer: names of the columns. A row of more than `max_length` tokens loses the
    beginning of its prompt. Rows without text, or with an answer of `max_length` tokens, are left out.
    Raises ValueError naming a column that is not there, or when no row is left.
    """
    commit = pinned_rows(folder, {"source": source, "revision": revision}).get("commit")
    columns, found = (prompt, answer), []
    for row in _sampled(source, limit, seed, files, commit):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(f"{source} has no column {missing[0]!r}; its columns are {', '.join(sorted(row))}")
        texts = [str(row[name] or "").strip() for name in columns]
        if all(texts) and (kept := _fitted(*texts, tokenizer, max_length)):
            found.append({"prompt": kept, "answer": texts[1], "kind": "row"})
    if not found:
        raise ValueError(f"{source}: none of {limit} rows has a prompt and an answer that fit into max_length = {max_length} tokens")
    return found


def _sampled(source, limit, seed, files, commit):
    if Path(source).suffix == ".jsonl":
        rng, kept = random.Random(seed), []
        with open(source, encoding="utf-8") as lines:
            for n, line in enumerate(lines):                       # a reservoir: each line is kept with the same probability
                place = n if n < limit else rng.randrange(n + 1)
                if place < limit:
                    kept[place:place + 1] = [(n + 1, line)]
        return [_parsed(source, *found) for found in kept]
    rows = need("datasets").load_dataset(str(source), data_files=files, revision=commit, split="train", streaming=True)
    return rows.shuffle(seed=seed, buffer_size=SHUFFLED).take(limit)


def _fitted(prompt, answer, tokenizer, max_length):
    """The prompt, or as much of its end as fits before the answer; "" if nothing does."""
    def size(prompt):
        return sum(map(len, split_answer(prompt, answer, tokenizer)))

    head, excess = split_answer(prompt, answer, tokenizer)[0], size(prompt) - max_length
    if excess <= 0:
        return prompt
    for cut in range(excess, len(head)):                           # a cut inside a word can make more tokens of what is left
        kept = tokenizer.decode(head[cut:]).lstrip("\ufffd").strip()
        if kept and size(kept) <= max_length:
            return kept
    return ""


# What the first run has seen, later runs must find again.

def lama_files(folder):
    """{name: sha256} of LAMA's files in `folder`, checked against digests.json (`enforced`). FileNotFoundError says what to put where."""
    return _files(Path(folder), "LAMA", "relations.jsonl", "TREx/*.jsonl")


def trex_files(folder):
    """{name: sha256} of T-REx's files in `folder`, likewise; in the order of their names."""
    return _files(Path(folder), "T-REx", "T-REx/*.json")


def _files(folder, group, *patterns):
    found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
    if missing := [pattern for pattern, files in found.items() if not files]:
        layout = __doc__.split("\n\n")[2]
        raise FileNotFoundError(f"{folder} lacks {' and '.join(missing)}. Put there, as files or links:\n{layout}")
    return enforced(folder, group, {p.relative_to(folder).as_posix(): _sha256(p) for files in found.values() for p in files})


def pinned_rows(folder, finetuning):
    """{"commit"} of a hub data set, or {name: sha256} of the file or folder that is the source of fine-tuning rows, likewise."""
    return _pinned(folder, finetuning["source"], finetuning.get("revision"), "dataset", "**/*.*")


def pinned_models(folder, models):
    """`models` with the commit of each hub id as its revision; the files of a local one are checked against digests.json."""
    found = {name: _pinned(folder, at["source"], at.get("revision"), "model", "*.*") for name, at in models.items()}
    return {name: at | {"revision": found[name].get("commit")} for name, at in models.items()}


def _pinned(folder, source, revision, kind, pattern):
    path = Path(source)
    if path.exists():
        files = {path.name: path} if path.is_file() else {
            p.relative_to(path).as_posix(): p for p in sorted(path.glob(pattern)) if p.is_file()}
        return enforced(folder, str(source), {name: _sha256(file) for name, file in files.items()})
    if path.suffix or path.is_absolute() or str(source).count("/") != 1:
        raise FileNotFoundError(f"{source} does not exist; expected a file, a folder or the id of a {kind} on the hub")
    group = f"{source} at {revision or 'main'}"
    return _recorded(folder).get(group) or enforced(folder, group, {"commit": _commit(source, revision or "main", kind)})


def _commit(source, revision, kind):
    """The commit behind a revision, asked of the hub, or of what was downloaded from it before."""
    hub = need("huggingface_hub")
    try:
        return hub.HfApi().repo_info(source, repo_type=kind, revision=revision).sha
    except Exception as error:                                     # offline, in any of many ways: a download may still be there
        file = {"model": "config.json", "dataset": "README.md"}[kind]
        cached = hub.try_to_load_from_cache(source, file, revision=revision, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise OSError(f"the hub does not say which commit of the {kind} {source} revision {revision} is, and it was not downloaded "
                      f"before. Connect, or give a folder in its place. The cause: {error}") from error


def enforced(folder, group, found):
    """`found` ({name: digest}); recorded in folder/digests.json the first time, and from then on the only one that is accepted.

    Raises ValueError naming the first file that differs, is missing or new, what was expected and what to do."""
    recorded = _recorded(folder)
    if group not in recorded:
        path = Path(folder) / "digests.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(recorded | {group: found}, indent=1) + "\n", "utf-8")
        os.replace(temporary, path)
        return found
    for name in sorted(recorded[group].keys() | found.keys()):
        expected, here = recorded[group].get(name, "no such file"), found.get(name, "no such file")
        if expected != here:
            raise ValueError(f"{group}: {name} has changed since the first run. Expected {expected}, found {here}. Put the first one "
                             f"back; or, if the change is meant, remove {group!r} from {Path(folder) / 'digests.json'}: results "
                             f"until then are of other data")
    return found


def _recorded(folder):
    path = Path(folder) / "digests.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _sha256(path):
    status = path.stat()
    return _sha256_of(str(path.resolve()), status.st_size, status.st_mtime_ns)


@cache
def _sha256_of(path, size, changed):                               # size and time: a file is read again when it was written again
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shared_tokenizer(models):
    first, second = (load_tokenizer(models[name]["source"], models[name]["revision"]) for name in ("pretrained", "finetuned"))
    if first.get_vocab() != second.get_vocab():
        raise ValueError(f"{models['pretrained']['source']} and {models['finetuned']['source']} have different vocabularies: a document and "
                         f"a query must be read by one tokenizer; choose a model and its own fine-tuning")
    return first


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def _at_root(folder):
    return from_root({"folder": str(folder)}, "folder")["folder"]


def _read(path):
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield _parsed(path, number, line)


def _parsed(path, number, line):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error.msg}): download it anew") from error
