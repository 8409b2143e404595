"""LAMA's facts and T-REx's sentences that state them.

Read from one folder, in the formats in which both data sets are published:

    relations.jsonl, TREx/P19.jsonl, …   LAMA (Petroni et al. 2019; data.zip of
        facebookresearch/LAMA, CC BY-NC 4.0), its T-REx facts, a JSON object a line: {"relation":
        "P19", "label", …}, and {"sub_uri", "sub_label", "predicate_id", "obj_uri", "obj_label", …}
        (evidences are not read)
    T-REx/re-nlg_0-10000.json, …         T-REx (Elsahar et al. 2018; JSON dump, CC BY-SA 4.0), each
        a list of articles {"docid", "text", "sentences_boundaries": [[start, end], …] in
        characters, "triples": [{"sentence_id", "annotator", "subject": {"uri"}, "predicate":
        {"uri"}, "object": {"uri"}}, …]}; of a URI only what follows its last "/" counts
    digests.json                         written here by msif.study.corpora.pinned: what the first
        run has read, which later runs must find again
"""

import json
from collections import defaultdict
from pathlib import Path

from msif.core.files import json_lines
from msif.study import scratch
from msif.study.corpora.pinned import pinned_files

FIELDS = ("sub_uri", "sub_label", "predicate_id", "obj_uri", "obj_label")
LAYOUT = __doc__.split("\n\n")[2].rstrip()  # which files `folder` has, for errors


def statements(folder, facts, annotators=None):
    """[{"text", "facts", "article"}]: the sentences of T-REx that state one of `facts`.

    facts: of `read_facts`. They are read once for the same files, and kept in scratch/.
    """
    folder = Path(folder)
    key = {"files": [lama_files(folder), trex_files(folder)], "annotators": annotators}

    def extract(target):
        with open(target / "sentences.jsonl", "w", encoding="utf-8") as file:
            for name in key["files"][1]:
                for sentence in stating_sentences(folder / name, facts, annotators):
                    file.write(json.dumps(sentence, ensure_ascii=False) + "\n")

    return list(json_lines(scratch.built("lama-sentences", key, extract) / "sentences.jsonl"))


def stating_sentences(path, facts, annotators=None):
    """The sentences of one T-REx file that state one of `facts`, in its order.

    Raises ValueError, naming file and article, for another format.
    """
    with open(path, encoding="utf-8") as file:
        articles = json.load(file)
    parts = ("subject", "predicate", "object")
    for article in articles:
        try:
            found = defaultdict(set)
            for triple in article["triples"]:
                fact = tuple(triple[part]["uri"].rsplit("/", 1)[-1] for part in parts)
                if fact in facts and (annotators is None or triple["annotator"] in annotators):
                    found[int(triple["sentence_id"])].add(fact)
            for number in sorted(found):
                start, end = article["sentences_boundaries"][number]
                yield {
                    "text": article["text"][start:end].strip(),
                    "facts": [list(x) for x in sorted(found[number])],
                    "article": article["docid"],
                }
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            named = article.get("docid") if isinstance(article, dict) else repr(article)[:40]
            raise ValueError(
                f"{path}, article {named}: {type(error).__name__} {error}; "
                f"expected T-REx's JSON format, see msif.study.corpora.trex"
            ) from error


def read_facts(folder):
    """The facts of LAMA's T-REx part; rows without a label are left out.

    Returns {(subject, relation, object) ids: {"subject", "relation", "object"} labels}. Raises
    ValueError for a relation that relations.jsonl lacks and for a file without a single fact.
    """
    folder, facts, files = Path(folder), {}, lama_files(folder)
    labels = {
        row["relation"]: row.get("label") or row["relation"]
        for row in json_lines(folder / "relations.jsonl")
    }
    for name in files:
        if not name.startswith("TREx/"):
            continue
        rows = [
            row
            for row in json_lines(folder / name)
            if all(str(row.get(key) or "").strip() for key in FIELDS)
        ]
        if not rows:
            raise ValueError(
                f"{folder / name} has no row with {', '.join(FIELDS)}; "
                f"expected LAMA's T-REx format, see msif.study.corpora.trex"
            )
        if unknown := {Path(name).stem, *(row["predicate_id"] for row in rows)} - labels.keys():
            raise ValueError(
                f"{folder / name} has the relation {min(unknown)}, which relations.jsonl lacks; "
                f"take both from the same release of LAMA"
            )
        facts |= {
            (row["sub_uri"], row["predicate_id"], row["obj_uri"]): {
                "subject": row["sub_label"],
                "relation": labels[row["predicate_id"]],
                "object": row["obj_label"],
            }
            for row in rows
        }
    return facts


def lama_files(folder):
    """{name: sha256} of LAMA's files in `folder`, the same as in the first run (`pinned_files`)."""
    return pinned_files(folder, "LAMA", ["relations.jsonl", "TREx/*.jsonl"], LAYOUT)


def trex_files(folder):
    """{name: sha256} of T-REx's files in `folder`, likewise; in the order of their names."""
    return pinned_files(folder, "T-REx", ["T-REx/*.json"], LAYOUT)
