"""Archives of the shape of the packages whose texts demo and evidence read, with sentences of our own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from anabranch.cluster.demo.texts import FOLDER, WHEEL
from benchmarks.quality import texts


def write_texts(folder: Path) -> Path:
    """The four tasks of the demo, and ratings of two more kinds."""
    reviews = ["id\tsentiment\ttext", *(f"{i}\t{2 if i % 2 else -2}\tnumber {i} is {i % 2}" for i in range(40))]
    reviews += ["41\t0.1\tneither good nor bad", "42\t2\tnumber 1 is 1"]
    messages = [",spam,text", *(f'{i},{int(i % 10 == 0)},"win {i}, or lose"' for i in range(40))]
    questions = [f"{'LOC:city' if i % 3 else 'NUM:count'} What is {i} ?" for i in range(40)]
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("movieReviewSnippets", "amazonReviewSnippets", "tweets", "nytEditorialSnippets"):
            archive.writestr(f"{FOLDER}/hutto_ICWSM_2014/{name}_GroundTruth.txt", "\r\n".join(reviews))
        archive.writestr(f"{FOLDER}/sms-spam.csv", "\n".join(messages))
        archive.writestr(f"{FOLDER}/question_labels.txt", "\n".join(questions))
    return path


def write_more_texts(folder: Path) -> Path:
    """News and newsgroups."""
    rows = ["class\ttext", "d\tstring", "class\tmeta", *(f"{'ab'[i % 2]}\treport {i} on {i % 2}" for i in range(40))]
    path = folder / texts.MORE_TEXTS
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("reuters-r8-train", "reuters-r8-test", "20newsgroups-train", "20newsgroups-test"):
            archive.writestr(f"{texts.FOLDER}/{name}.tab", "\n".join(rows))
    return path
