"""Small files in the containers, columns and layouts in which the nine benchmarks are published, awkward rows included.

Questions and pictures are made up; each writer returns the folder that a loader takes. `rows` given to a writer replace
its own.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]
LARGE_SIZE = (7680, 4320)


def picture(color: str = "red", size: tuple[int, int] = (8, 6), image_format: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format=image_format)
    return buffer.getvalue()


def large_picture() -> bytes:
    """An 8K picture: white, so that it compresses to some kilobytes."""
    return picture("white", LARGE_SIZE, mode="L")


def as_base64(data: bytes) -> str:
    """As tables hold pictures: without `data:` in front."""
    return base64.b64encode(data).decode()


def as_struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """As the hub's image columns hold pictures."""
    return {"bytes": data, "path": path}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Rows, *, row_group_size: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def write_saved_to_disk(folder: Path, rows: Rows, *, split: str) -> Path:
    """As `datasets.Dataset.save_to_disk` writes one split."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=2)
    write_json(folder / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split})
    return folder


def write_picture(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# MathVision


def mathvision_rows() -> Rows:
    """A free question; letters only; texts; options that are placeholders; placeholders in a sentence; dirty labels."""
    empty = {"solution": None, "level": 2, "subject": "counting"}
    letters = ["A", "B", "C", "D", "E"]
    return [
        {"id": "4", "question": "How many?\n<image1>", "options": [], "answer": "6", **empty},
        {"id": "6", "question": "Which one?\n<image1>", "options": letters, "answer": "D", **empty},
        {"id": "9", "question": "<image1>\nWhich colour?", "options": ["red", "a (b)", "1", "2", "3"], **empty}
        | {"answer": "B"},
        {"id": "2673", "question": "Which graph?", "options": [f"<image{i}>" for i in range(1, 6)], **empty}
        | {"answer": "A"},
        {"id": "33", "question": "The ant <image1> meets <image3>.\nWhere?\n<image6>\n<image7>", "options": []}
        | {"answer": "$7/3$", **empty},
        {"id": "2830", "question": "Area?<image1>", "options": [], "answer": "\x0crac{36}{13}", **empty},
    ]


def write_mathvision(folder: Path, *, split: str = "testmini", rows: Rows | None = None, under: str = "") -> Path:
    """The repository's JSONL and pictures. `under="data"`: as the repository lies."""
    rows = [{**row, "image": f"images/{row['id']}.jpg"} for row in (mathvision_rows() if rows is None else rows)]
    write_jsonl(folder / under / f"{split}.jsonl", rows)
    for row in rows:
        write_picture(folder / row["image"], picture(size=(20, 10), image_format="JPEG"))
    return folder


def write_mathvision_parquet(folder: Path, *, split: str = "testmini") -> Path:
    """The hub's: `image` is a path, `decoded_image` the picture."""
    rows = [
        {**row, "image": f"images/{row['id']}.jpg", "decoded_image": as_struct(picture(size=(20, 10)))}
        for row in mathvision_rows()
    ]
    write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    return folder


def write_mathvision_tsv(folder: Path) -> Path:
    """VLMEvalKit's: options are the string of a Python list."""
    rows: Rows = [
        {
            "index": index,
            "image": as_base64(picture(size=(20, 10))),
            "question": row["question"],
            "choices": str(row["options"]),
            "answer": row["answer"],
            "category": row["subject"],
        }
        for index, row in enumerate(mathvision_rows())
    ]
    write_tsv(folder / "MathVision_MINI.tsv", rows)
    return folder


# DynaMath


def dynamath_row(seed: int, variant: int) -> dict[str, str]:
    kinds = (
        ("Find the area.", "2.0944", "float"),
        ("Is it? choice: (A) yes (B) no", "B", "multiple choice"),
        ("Where is the point? Answer like (_, _)", "(-2.777, -1.136)", "text"),
        ("Which?\nA: [1, 2]\nB: [3]\n", "A", "multiple choice"),
        ("Pick. choice: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5 (F) 6", "F", "multiple choice"),
    )
    question, answer, kind = kinds[(seed - 1) % len(kinds)]
    return {
        "question": f"{question}" if variant == 1 else f"Variant {variant}. {question}",
        "answer": answer,
        "image": f"image/image{seed}.png",
        "answer_type": kind,
        "subject": "algebra",
        "level": "high school",
    }


def write_dynamath(folder: Path, *, variants: Sequence[int] = (1,), num_seeds: int = 5, under: str = "") -> Path:
    """The repository's trials. `under="samples and result/10trials"`: as the repository lies."""
    for variant in variants:
        trial = folder / under / f"trial{variant}"
        seeds = range(1, num_seeds + 1)
        write_json(trial / "dataset.json", {str(seed): dynamath_row(seed, variant) for seed in seeds})
        for seed in seeds:
            write_picture(trial / "image" / f"image{seed}.png", picture("#ff000080", (12, 9), mode="RGBA"))
    return folder


def write_dynamath_parquet(folder: Path, *, variants: Sequence[int] = (1,)) -> Path:
    for variant in variants:
        rows: Rows = []
        for seed in range(1, 6):
            row = dynamath_row(seed, variant)
            rows.append(
                {
                    "id": str(seed),
                    "question": row["question"],
                    "image": row["image"],
                    "decoded_image": as_struct(picture(), row["image"]),
                    "ground_truth": row["answer"],
                    "answer_type": row["answer_type"],
                    "subject": row["subject"],
                    "knowledge_level": row["level"],
                }
            )
        write_parquet(folder / "data" / f"sample_variant{variant}-00000-of-00001.parquet", rows)
    return folder


# Math-VR


def mathvr_rows(*, as_text: bool = False) -> Rows:
    """No picture; `<image3>` alone; two pictures, one of them mentioned twice; one answer that reads like a list."""

    def row(question: str, answers: list[str], category: str, **pictures: bytes) -> dict[str, Any]:
        columns = {f"image{i}": as_struct(pictures[f"image{i}"]) if f"image{i}" in pictures else None for i in range(9)}
        del columns["image0"]
        scores = [1.0] * len(answers)
        points = [f"finds {answer}" for answer in answers]
        single = as_text and len(answers) == 1
        return {
            "question": question,
            **columns,
            "category": category,
            "number_of_answers": len(answers),
            "answers": answers[0] if single else json.dumps(answers) if as_text else answers,
            "total_score": float(len(answers)),
            "scoring_points": json.dumps(points) if as_text else points,
            "scores": json.dumps(scores) if as_text else scores,
        }

    red, blue = picture("red", (10, 5)), picture("blue", (30, 5))
    rows = [
        row("What is 1 + 1? And 1 + 2?", ["2", "3"], "text"),
        row("See <image3>. Find $x$.", ["5"], "multimodal", image3=red),
        row("In <image1> and <image2> (the same as <image1>)?", ["7", "8"], "multimodal", image1=red, image2=blue),
        row("Give the interval.", ["[3, 5]"], "text"),
    ]
    return [{"id": str(index), **row} for index, row in enumerate(rows)]


def write_mathvr(folder: Path, *, rows: Rows | None = None) -> Path:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", mathvr_rows() if rows is None else rows)
    return folder


# V*

VSTAR_ENDING = "Answer with the option's letter from the given choices directly."


def vstar_rows() -> Rows:
    """Four options; two options; options with parentheses and with letters in them."""
    texts = (
        ("direct_attributes", "sa_1.jpg", "What is the colour?", ["red", "blue", "green", "white"], "C"),
        ("direct_attributes", "sa_2.jpg", "Is it?", ["the cup (left) is (B) red", "no"], "B"),
        ("relative_position", "sa_3.jpg", "Where is the dog?", ["left (of it)", "right (of it)"], "A"),
    )
    return [
        {
            "image": f"{category}/{name}",
            "question": question,
            "options": options,
            "category": category,
            "label": label,
            "question_id": index,
        }
        for index, (category, name, question, options, label) in enumerate(texts)
    ]


def _vstar_text(row: Mapping[str, Any]) -> str:
    options = [f"({'ABCD'[index]}) {option}" for index, option in enumerate(row["options"])]
    return "\n".join([row["question"], *options, VSTAR_ENDING])


def write_vstar(folder: Path, *, with_pictures: bool = True) -> Path:
    """Layout B: the authors' shuffled questions beside their folders."""
    columns = ("image", "category", "label", "question_id")
    rows = [{**{name: row[name] for name in columns}, "text": _vstar_text(row)} for row in vstar_rows()]
    write_jsonl(folder / "test_questions.jsonl", rows)
    for row in rows if with_pictures else ():
        write_picture(folder / row["image"], picture(size=(40, 30), image_format="JPEG"))
    return folder


def write_vstar_parquet(folder: Path) -> Path:
    """Layout C."""
    rows: Rows = [
        {
            "image": as_struct(picture(size=(40, 30)), row["image"]),
            "text": _vstar_text(row),
            "category": row["category"],
            "label": row["label"],
            "question_id": str(row["question_id"]),
        }
        for row in vstar_rows()
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def write_vstar_tsv(folder: Path) -> Path:
    """Layout D: absent options are empty cells."""
    rows: Rows = [
        {
            "index": row["question_id"],
            "image": as_base64(picture(size=(40, 30))),
            "question": row["question"],
            **{letter: dict(enumerate(row["options"])).get(i, "") for i, letter in enumerate("ABCD")},
            "answer": row["label"],
            "category": row["category"],
        }
        for row in vstar_rows()
    ]
    write_tsv(folder / "VStarBench.tsv", rows)
    return folder


def write_vstar_original(folder: Path) -> Path:
    """Layout A, in which the first option is always right."""
    for row in vstar_rows():
        path = write_picture(folder / row["image"], picture(image_format="JPEG"))
        write_json(path.with_suffix(".json"), {"question": row["question"], "options": row["options"], "bbox": []})
    return folder


# VisualProbe


def write_visualprobe(folder: Path, *, levels: Sequence[str] = ("hard", "medium", "easy"), count: int = 3) -> Path:
    """One data set a level; the pictures' paths begin with its name."""
    for level in levels:
        name = f"VisualProbe_{level.title()}"
        rows = visualprobe_rows(level, count)
        write_json(folder / name / "val.json", rows)
        for row in rows:
            write_picture(folder / row["images"][0], picture(size=(50, 20), image_format="JPEG"))
    return folder


def visualprobe_rows(level: str, count: int = 3) -> Rows:
    return [
        {
            "images": [f"VisualProbe_{level.title()}/data/{index}.jpg"],
            "doc_id": f"probe_{index}",
            "problem": f"<image>\nWhat is written on sign {index}?",
            "solution": f"exit {index}",
            "data_source": f"visual_probe_{level}",
        }
        for index in range(count)
    ]


# HR-Bench


def hrbench_rows(*, pictures: Sequence[bytes] | None = None) -> Rows:
    """Three base questions, two of them the same question about two pictures, in four rotations each."""
    red, blue = pictures or (picture("red", (64, 32)), picture("blue", (64, 32)))
    asked = (
        ("What colour is the sign?", "single", red),
        ("What colour is the sign?", "single", blue),
        ("Where is A (the cup)?", "cross", red),
    )
    options = ["red (dark)", "blue", "green", "white"]
    rows: Rows = []
    for question, category, data in asked:
        for turn in range(4):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": len(rows),
                    "question": question,
                    "answer": "ABCD"[turned.index("blue")],
                    "category": category,
                    **dict(zip("ABCD", turned, strict=True)),
                    "cycle_category": f"cycle_{turn}",
                    "image": as_base64(data),
                }
            )
    return rows


def published_hrbench_rows(num_questions: int) -> Rows:
    """As the published 4K file is: in each block of four rows the golds are A, B, C, D, in this order."""
    data = as_base64(picture("red", (64, 32)))
    rows: Rows = []
    for question in range(num_questions):
        for turn, gold in enumerate("ABCD"):
            options = ["left", "right", "above"]
            options.insert(turn, f"behind {question}")
            rows.append(
                {
                    "index": len(rows),
                    "question": f"Where is cup {question}?",
                    "answer": gold,
                    "category": "single" if question < num_questions / 2 else "cross",
                    **dict(zip("ABCD", options, strict=True)),
                    "cycle_category": f"cycle_{turn}",
                    "image": data,
                }
            )
    return rows


def write_hrbench(
    folder: Path, *, resolution: str = "4k", rows: Rows | None = None, container: str = "parquet"
) -> Path:
    rows = hrbench_rows() if rows is None else rows
    path = folder / f"hr_bench_{resolution}.{container}"
    if container == "tsv":
        write_tsv(path, rows)
    else:
        write_parquet(path, rows)
    return folder


# HR-MMSearch


def hrmmsearch_rows() -> Rows:
    return [
        {
            "sample_id": f"s{index}",
            "query": f"Who won event {index}?",
            "query_image": as_struct(picture(size=(60, 40))),
            "ground_truth": f"team {index}",
            "difficulty": "hard",
            "category": "sports",
        }
        for index in range(3)
    ]


def write_hrmmsearch(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", hrmmsearch_rows())
    return folder


def write_hrmmsearch_jsonl(folder: Path) -> Path:
    """The project's own evaluation file."""
    rows: Rows = [
        {
            "prompt": [
                {"role": "system", "content": "Search."},
                {"role": "user", "content": f"<image>\n{row['query']}"},
            ],
            "image": [f"images/{row['sample_id']}.jpg"],
            "reward_model": {"ground_truth": [row["ground_truth"], "the " + row["ground_truth"]]},
            "image_search_title_list": ["a title"],
        }
        for row in hrmmsearch_rows()
    ]
    write_jsonl(folder / "data.jsonl", rows)
    for row in rows:
        write_picture(folder / row["image"][0], picture(size=(60, 40), image_format="JPEG"))
    return folder


# MMSearch


def mmsearch_rows(alternatives: Sequence[Any] = (["1 June 2024"], [], ["invalid"])) -> Rows:
    """With and without a picture; `alternatives`: of each row, a list, a JSON string or null."""
    pictures = (as_struct(picture(size=(30, 30))), None, None)
    return [
        {
            "sample_id": f"m{index}",
            "query": f"When was event {index}?",
            "query_image": pictures[index],
            "image_search_result": pictures[index],
            "area": "news",
            "subfield": "sports",
            "timestamp": "2024-06-01",
            "gt_requery": f"event {index}",
            "gt_answer": "2024-06-01",
            "alternative_gt_answers": alternative,
        }
        for index, alternative in enumerate(alternatives)
    ]


def write_mmsearch(folder: Path, *, rows: Rows | None = None) -> Path:
    write_parquet(folder / "end2end" / "end2end-00000-of-00001.parquet", mmsearch_rows() if rows is None else rows)
    return folder
