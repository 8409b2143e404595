"""WebNLG in small: invented towns, in the published format."""

import json

from msif.study.corpora.webnlg_texts import FILES, readable

NAMES = "Aba Bec Cid Dov Eno Fil Gur Hob Ivo Jun Kip Lom".split()
SMALL = dict(held_out=5, statements=4, documents_per_fact=4, others=3)


def entry(number, triples, texts, split="train"):
    return dict(
        id=f"{split}/{number}", category="City", size=len(triples), triples=triples, texts=texts
    )


def write(folder, rows):
    (folder / "webnlg").mkdir(parents=True)
    for file in FILES:
        lines = [
            json.dumps(row, ensure_ascii=False)
            for row in rows
            if file.startswith(f"webnlg/{row['id'].split('/')[0]}")
        ]
        (folder / file).write_text("".join(line + "\n" for line in lines), "utf-8")
    return folder


def miniature():
    """Twelve towns with a leader and a river each; one has two leaders, one is named in its river,
    some texts state both."""
    rows = []
    for n, name in enumerate(NAMES):
        leader, river = f'"Leader{n}"@en', f"River{n}_(water)" if name != "Lom" else "Lom_water"
        stated = {"leaderName": (leader, f"Leader{n}"), "riverBank": (river, readable(river))}
        for p, (o, spelt) in stated.items():
            rows.append(
                entry(
                    f"{name}-{p}",
                    [[f"{name}_town", p, o]],
                    [
                        f"{name} town {verb} {spelt}, {n} é."
                        for verb in ("has", "knows", "praises", "honours", "likes")
                    ],
                )
            )
        rows.append(
            entry(
                f"{name}-both",
                [[f"{name}_town", p, o] for p, (o, _) in stated.items()],
                [f"{name} town has Leader{n} and {readable(river)}."],
                "dev",
            )
        )
        rows.append(
            entry(
                f"{name}-area",
                [[f"{name}_town", "area", f"{n}.5"]],
                [f"Nobody measured {name} town.", "All towns are old."],
                "test",
            )
        )
    return rows + [
        entry(
            "Aba-again", [["Aba_town", "leaderName", "Other"]], ["Aba town has Other now."], "test"
        )
    ]
