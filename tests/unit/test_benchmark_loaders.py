"""The nine benchmarks' loaders on faithful small files in their published containers, and on real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axpo.benchmarks.loaders import (
    dynamath,
    hrbench,
    hrmmsearch,
    mathvision,
    mathvr,
    mmsearch,
    prompts,
    visualprobe,
    vstar,
)
from axpo.errors import DataError
from axpo.evaluation.summary import summarize
from axpo.images import ContentImageStore
from axpo.types import Message, Problem
from benchmark_files import (
    dynamath_row,
    hrbench_rows,
    hrmmsearch_rows,
    mathvision_rows,
    mathvr_rows,
    mmsearch_rows,
    published_hrbench_rows,
    visualprobe_rows,
    vstar_rows,
    write_dynamath,
    write_dynamath_parquet,
    write_hrbench,
    write_hrmmsearch,
    write_hrmmsearch_jsonl,
    write_json,
    write_jsonl,
    write_mathvision,
    write_mathvision_parquet,
    write_mathvision_tsv,
    write_mathvr,
    write_mmsearch,
    write_parquet,
    write_saved_to_disk,
    write_visualprobe,
    write_vstar,
    write_vstar_original,
    write_vstar_parquet,
    write_vstar_tsv,
)
from benchmark_records import info

FIXTURES = Path(__file__).parents[1] / "fixtures"
LOADERS: dict[str, tuple[Callable[..., tuple[Problem, ...]], Callable[[Path], Path]]] = {
    "mathvision": (mathvision.load, write_mathvision),
    "dynamath": (dynamath.load, write_dynamath),
    "mathvr": (mathvr.load, write_mathvr),
    "vstar": (vstar.load, write_vstar),
    "visualprobe": (visualprobe.load, write_visualprobe),
    "hrbench_4k": (hrbench.load_4k, write_hrbench),
    "hrbench_8k": (hrbench.load_8k, lambda folder: write_hrbench(folder, resolution="8k")),
    "hrmmsearch": (hrmmsearch.load, write_hrmmsearch),
    "mmsearch": (mmsearch.load, write_mmsearch),
}


def read(load: Callable[..., tuple[Problem, ...]], folder: Path, **options: Any) -> tuple[Problem, ...]:
    return load(folder, **{"preset": "axpo", "store": ContentImageStore(), "limit": None} | options)


def shown(problem: Problem) -> list[str]:
    """The message: its texts without the last line (how to answer), and the widths of its pictures."""
    blocks = [b.text if b.image is None else f"{b.image.width_px}px" for b in problem.messages[0].content]
    texts = [str(block) for block in blocks]
    return [text for text in [*texts[:-1], texts[-1].rpartition("\n")[0]] if text]


def by_id(problems: tuple[Problem, ...]) -> dict[str, Problem]:
    return {problem.id: problem for problem in problems}


@pytest.mark.parametrize("name", LOADERS)
def test_every_problem_carries_what_scorers_and_tables_need(tmp_path: Path, name: str) -> None:
    load, write = LOADERS[name]
    problems = read(load, write(tmp_path / "files"))
    assert problems
    for problem in problems:
        assert problem.answer and problem.metadata["benchmark"] == name and problem.metadata["cluster"]
        assert all(isinstance(value, str) for value in problem.metadata["categories"].values())
        assert isinstance(problem.metadata["choices"], list) and isinstance(problem.metadata["aliases"], list)
        assert json.loads(json.dumps(problem.metadata)) == problem.metadata
        assert [message.role for message in problem.messages] == ["user"]
        assert re.search(r"\\boxed\{\}\.$|<answer> and </answer>\.$", problem.messages[0].text)
        assert "<image" not in problem.messages[0].text


@pytest.mark.parametrize("name", LOADERS)
def test_a_limit_keeps_evenly_spaced_rows_and_stores_only_their_pictures(tmp_path: Path, name: str) -> None:
    load, write = LOADERS[name]
    folder = write(tmp_path / "files")
    problems = read(load, folder)
    store = ContentImageStore(tmp_path / "store")
    kept = read(load, folder, store=store, limit=2)
    assert [problem.id for problem in kept] == [problems[0].id, problems[len(problems) // 2].id]
    stored = {path.stem for path in (tmp_path / "store").glob("*")}
    assert stored == {image.sha256 for problem in kept for image in problem.images}
    assert not store._bytes


@pytest.mark.parametrize("name", LOADERS)
def test_a_folder_without_the_files_says_what_was_looked_for_and_what_lies_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"Looked for .*; found notes\.txt\. Put the published files there"):
        read(LOADERS[name][0], tmp_path)


# MathVision


@pytest.mark.parametrize("write", [write_mathvision, write_mathvision_parquet, write_mathvision_tsv])
def test_mathvision_reads_every_container(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    problems = read(mathvision.load, write(tmp_path))
    rows = mathvision_rows()
    assert [problem.answer for problem in problems] == [row["answer"] for row in rows]
    assert [problem.metadata["options"] for problem in problems] == [row["options"] for row in rows]
    letters = ["A", "B", "C", "D", "E"]
    texts = ["red", "a (b)", "1", "2", "3"]
    assert [problem.metadata["choices"] for problem in problems] == [[], letters, texts, letters, [], []]
    assert [shown(problem) for problem in problems] == [
        ["How many?\n", "20px"],
        ["Which one?\n", "20px"],
        ["20px", "Which colour?\n(A) red\n(B) a (b)\n(C) 1\n(D) 2\n(E) 3"],
        ["20px", "Which graph?"],
        ["The ant (picture 1) meets (picture 3).\nWhere?\n", "20px"],
        ["Area?\n", "20px"],
    ]
    endings = ["letter" in problem.messages[0].text for problem in problems]
    assert endings == [bool(row["options"]) for row in rows]


def test_mathvision_has_subjects_and_levels(tmp_path: Path) -> None:
    problem = read(mathvision.load, write_mathvision_parquet(tmp_path))[0]
    assert problem.id == problem.metadata["cluster"] == "4"
    assert problem.metadata["categories"] == {"subject": "counting", "level": "2"}
    assert (problem.metadata["subject"], problem.metadata["level"]) == ("counting", 2)


def test_mathvision_full_is_the_test_file_and_testmini_is_no_substitute(tmp_path: Path) -> None:
    write_mathvision(tmp_path)
    with pytest.raises(DataError, match=r"no MathVision test \(preset full\)\. Looked for test\.jsonl, .*testmini"):
        read(mathvision.load, tmp_path, preset="full")
    write_mathvision(tmp_path, split="test", rows=mathvision_rows()[:2], under="data")
    assert len(read(mathvision.load, tmp_path, preset="full")) == 2


def test_mathvision_saved_to_disk_is_read_when_it_is_the_split_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{**row, "decoded_image": {"bytes": None, "path": "p.png"}} for row in mathvision_rows()]
    write_saved_to_disk(tmp_path / "one", rows, split="testmini")
    with pytest.raises(DataError, match=r"no such picture, got text \"p\.png\""):
        read(mathvision.load, tmp_path / "one")
    with pytest.raises(DataError, match="no MathVision test "):
        read(mathvision.load, tmp_path / "one", preset="full")


def test_a_missing_picture_is_named_with_the_places_that_were_looked_at(tmp_path: Path) -> None:
    folder = write_mathvision(tmp_path)
    (folder / "images" / "9.jpg").unlink()
    message = r"testmini\.jsonl, line 3, field image: no such picture, got text \"images/9\.jpg\"\. Looked for .*9\.jpg"
    with pytest.raises(DataError, match=message):
        read(mathvision.load, folder)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    folder = write_mathvision(tmp_path, rows=[mathvision_rows()[0]] * 2)
    with pytest.raises(DataError, match=r"line 2: its id was used before, in .*line 1, got text \"4\""):
        read(mathvision.load, folder)


# DynaMath


@pytest.mark.parametrize("under", ["", "samples and result/10trials"])
def test_dynamath_reads_the_repository_s_trials(tmp_path: Path, under: str) -> None:
    write_dynamath(tmp_path, variants=(1, 2, 10), under=under)
    problems = read(dynamath.load, tmp_path)
    assert [problem.id for problem in problems] == ["1-v1", "2-v1", "3-v1", "4-v1", "5-v1"]
    full = read(dynamath.load, tmp_path, preset="full")
    assert len(full) == 15
    assert Counter(problem.metadata["cluster"] for problem in full) == dict.fromkeys("12345", 3)
    last = full[-1]
    assert (last.id, last.metadata["seed"], last.metadata["variant"]) == ("5-v10", "5", 10)


def test_dynamath_reads_the_hub_s_parquet_to_the_same_problems(tmp_path: Path) -> None:
    trials = read(dynamath.load, write_dynamath(tmp_path / "git", variants=(1, 2)), preset="full")
    parquet = read(dynamath.load, write_dynamath_parquet(tmp_path / "hub", variants=(1, 2)), preset="full")
    assert [(p.id, p.answer, p.metadata) for p in parquet] == [(p.id, p.answer, p.metadata) for p in trials]


def test_dynamath_options_are_found_in_the_question(tmp_path: Path) -> None:
    problems = read(dynamath.load, write_dynamath(tmp_path))
    choices = [problem.metadata["choices"] for problem in problems]
    assert choices == [[], ["yes", "no"], [], ["[1, 2]", "[3]"], ["1", "2", "3", "4", "5", "6"]]
    assert problems[1].metadata["categories"] == {
        "subject": "algebra",
        "level": "high school",
        "answer_type": "multiple choice",
        "variant": "1",
    }
    endings = [problem.messages[0].text.rpartition("\n")[2] for problem in problems]
    assert ["letter" in ending for ending in endings] == [False, True, False, True, True]
    assert "decimal" in endings[0] and "decimal" not in endings[2]


def test_dynamath_without_variant_1_has_no_axpo_preset(tmp_path: Path) -> None:
    write_dynamath(tmp_path, variants=(2,))
    with pytest.raises(DataError, match=r"no DynaMath variant 1 .*trial1/dataset\.json.*found trial2/"):
        read(dynamath.load, tmp_path)
    assert len(read(dynamath.load, tmp_path, preset="full")) == 5


def test_dynamath_refuses_an_unknown_answer_type(tmp_path: Path) -> None:
    write_dynamath(tmp_path)
    write_json(tmp_path / "trial1" / "dataset.json", {"1": dynamath_row(1, 1) | {"answer_type": "essay"}})
    with pytest.raises(DataError, match=r"field answer_type: expected one of float.*got text \"essay\""):
        read(dynamath.load, tmp_path)


# Math-VR


@pytest.mark.parametrize("as_text", [False, True])
def test_mathvr_reads_lists_and_lists_as_text(tmp_path: Path, as_text: bool) -> None:
    rows = mathvr_rows(as_text=as_text)
    write_mathvr(tmp_path, rows=rows)
    problems = read(mathvr.load, tmp_path)
    assert [problem.metadata["answers"] for problem in problems] == [["2", "3"], ["5"], ["7", "8"], ["[3, 5]"]]
    assert [problem.metadata["scores"] for problem in problems] == [[1.0, 1.0], [1.0], [1.0, 1.0], [1.0]]
    assert problems[0].metadata["scoring_points"] == ["finds 2", "finds 3"]
    assert problems[0].metadata["total_score"] == 2.0 and problems[0].metadata["number_of_answers"] == 2
    assert [problem.answer for problem in problems] == ["2; 3", "5", "7; 8", "[3, 5]"]


def test_mathvr_puts_pictures_where_the_question_shows_them_and_needs_none(tmp_path: Path) -> None:
    assert [shown(problem) for problem in read(mathvr.load, write_mathvr(tmp_path))] == [
        ["What is 1 + 1? And 1 + 2?"],
        ["See ", "10px", ". Find $x$."],
        ["In ", "10px", " and ", "30px", " (the same as (picture 1))?"],
        ["Give the interval."],
    ]


def test_mathvr_needs_the_pictures_that_a_question_shows(tmp_path: Path) -> None:
    rows = mathvr_rows()
    rows[1]["image3"] = None
    with pytest.raises(DataError, match=r"row 2, field image3: the question shows <image3>, so it must hold a picture"):
        read(mathvr.load, write_mathvr(tmp_path, rows=rows))


def test_mathvr_reads_a_saved_split(tmp_path: Path) -> None:
    write_saved_to_disk(tmp_path / "test", mathvr_rows(), split="test")
    assert len(read(mathvr.load, tmp_path)) == len(read(mathvr.load, tmp_path / "test")) == 4


# V*


@pytest.mark.parametrize("write", [write_vstar, write_vstar_parquet, write_vstar_tsv])
def test_vstar_reads_layouts_b_c_and_d_with_their_options_whole(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    problems = read(vstar.load, write(tmp_path))
    rows = vstar_rows()
    assert [problem.id for problem in problems] == ["direct_attributes-0", "direct_attributes-1", "relative_position-2"]
    assert [problem.metadata["choices"] for problem in problems] == [row["options"] for row in rows]
    assert [problem.answer for problem in problems] == ["C", "B", "A"]
    assert shown(problems[1]) == ["40px", "Is it?\n(A) the cup (left) is (B) red\n(B) no"]
    assert problems[2].metadata["categories"] == {"category": "relative_position"}


def test_vstar_in_the_original_layout_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_vstar_original(tmp_path)
    with pytest.raises(DataError, match=r"the first option is always the right one.*Add test_questions\.jsonl"):
        read(vstar.load, tmp_path)
    write_vstar(tmp_path)
    assert len(read(vstar.load, tmp_path)) == 3, "beside the shuffled questions its pictures are welcome"


def test_vstar_refuses_a_label_beyond_the_options_of_its_question(tmp_path: Path) -> None:
    row = {"image": "x.jpg", "text": "Is it?\n(A) yes\n(B) no", "category": "c", "label": "C", "question_id": 0}
    write_vstar(tmp_path)
    write_jsonl(tmp_path / "test_questions.jsonl", [row | {"image": "direct_attributes/sa_1.jpg"}])
    with pytest.raises(DataError, match=r'line 1, field label: expected the letter of one of 2 options, got text "C"'):
        read(vstar.load, tmp_path)


# VisualProbe


def test_visualprobe_strips_the_placeholder_and_finds_pictures_behind_the_data_set_s_name(tmp_path: Path) -> None:
    (problem, *_) = read(visualprobe.load, write_visualprobe(tmp_path))
    assert shown(problem) == ["50px", "What is written on sign 0?"]
    assert (problem.id, problem.answer) == ("hard-probe_0", "exit 0")
    assert problem.metadata["categories"] == {"difficulty": "hard"}


def test_visualprobe_axpo_is_the_hard_level_and_full_all_three(tmp_path: Path) -> None:
    write_visualprobe(tmp_path, levels=("hard", "medium"))
    assert {problem.id.split("-")[0] for problem in read(visualprobe.load, tmp_path)} == {"hard"}
    with pytest.raises(DataError, match=r"no VisualProbe easy rows \(preset full\)"):
        read(visualprobe.load, tmp_path, preset="full")
    write_visualprobe(tmp_path, levels=("easy",))
    full = read(visualprobe.load, tmp_path, preset="full")
    assert Counter(p.metadata["categories"]["difficulty"] for p in full) == {"hard": 3, "medium": 3, "easy": 3}


def test_visualprobe_reads_one_level_from_a_folder_of_any_name(tmp_path: Path) -> None:
    write_visualprobe(tmp_path / "x", levels=("hard",))
    (tmp_path / "x" / "VisualProbe_Hard").rename(tmp_path / "snapshot")
    assert len(read(visualprobe.load, tmp_path / "snapshot")) == 3


def test_visualprobe_needs_exactly_one_picture(tmp_path: Path) -> None:
    write_visualprobe(tmp_path, levels=("hard",))
    rows = [row | {"images": []} for row in visualprobe_rows("hard")]
    write_json(tmp_path / "VisualProbe_Hard" / "val.json", rows)
    with pytest.raises(DataError, match=r"row 1, field images: expected one picture, got list \[\]"):
        read(visualprobe.load, tmp_path)


# HR-Bench


@pytest.mark.parametrize("container", ["parquet", "tsv"])
def test_hrbench_axpo_is_one_rotation_of_each_picture_and_question(tmp_path: Path, container: str) -> None:
    folder = write_hrbench(tmp_path, container=container)
    problems = read(hrbench.load_4k, folder)
    assert [(problem.id, problem.answer) for problem in problems] == [("1", "A"), ("4", "B"), ("11", "C")]
    full = read(hrbench.load_4k, folder, preset="full")
    assert len(full) == 12
    clusters = [problem.metadata["cluster"] for problem in full]
    assert [clusters[i] for i in (0, 4, 8)] == [p.metadata["cluster"] for p in problems]
    assert clusters == [clusters[i] for i in (0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8)] and len(set(clusters)) == 3


@pytest.mark.parametrize("load", [hrbench.load_4k, hrbench.load_8k])
@pytest.mark.parametrize(
    ("preset", "limit", "num_rows", "num_questions"),
    [
        ("axpo", None, 20, 20),
        ("axpo", 4, 4, 4),
        ("axpo", 8, 8, 8),
        ("axpo", 99, 20, 20),
        ("full", None, 80, 20),
        ("full", 4, 4, 4),
        ("full", 20, 20, 20),  # different questions first: they say more than rotations of one
        ("full", 40, 40, 20),
        ("full", 99, 80, 20),
    ],
)
def test_hrbench_has_every_gold_letter_equally_often(
    tmp_path: Path, load: Any, preset: str, limit: int | None, num_rows: int, num_questions: int
) -> None:
    resolution = "4k" if load is hrbench.load_4k else "8k"
    write_hrbench(tmp_path, resolution=resolution, rows=published_hrbench_rows(20))
    problems = read(load, tmp_path, preset=preset, limit=limit)
    assert Counter(problem.answer for problem in problems) == dict.fromkeys("ABCD", num_rows // 4)
    assert len({problem.id for problem in problems}) == num_rows
    assert len({problem.metadata["cluster"] for problem in problems}) == num_questions


def test_hrbench_rotations_move_the_right_option(tmp_path: Path) -> None:
    full = read(hrbench.load_4k, write_hrbench(tmp_path), preset="full")
    assert [problem.answer for problem in full[:4]] == ["B", "A", "D", "C"]
    assert all(p.metadata["choices"]["ABCD".index(p.answer)] == "blue" for p in full)
    assert full[1].metadata["categories"] == {"category": "single", "rotation": "cycle_1"}
    assert shown(full[0]) == ["64px", "What colour is the sign?\n(A) red (dark)\n(B) blue\n(C) green\n(D) white"]


def test_hrbench_rows_in_any_order_keep_their_clusters(tmp_path: Path) -> None:
    rows = hrbench_rows()
    shuffled = rows[0::4] + rows[1::4] + rows[2::4] + rows[3::4]
    problems = read(hrbench.load_4k, write_hrbench(tmp_path, rows=shuffled))
    assert [problem.id for problem in problems] == ["4", "1", "11"]  # in the file's order
    assert len({problem.metadata["cluster"] for problem in problems}) == 3


def test_hrbench_reads_the_resolution_that_is_asked_for(tmp_path: Path) -> None:
    write_hrbench(tmp_path, resolution="4k")
    with pytest.raises(DataError, match=r"no HR-Bench-8K\. Looked for hr_bench_8k\.parquet"):
        read(hrbench.load_8k, tmp_path)


def test_hrbench_whose_last_picture_is_cut_off_gives_one_error(tmp_path: Path) -> None:
    path = write_hrbench(tmp_path, container="tsv") / "hr_bench_4k.tsv"
    path.write_bytes(path.read_bytes()[:-41])
    with pytest.raises(DataError, match=r"hr_bench_4k\.tsv, row 12, field image: "):
        read(hrbench.load_4k, tmp_path, preset="full")


def test_a_wrong_column_and_a_truncated_parquet_each_give_one_clear_error(tmp_path: Path) -> None:
    rows = [{("image_base64" if name == "image" else name): row[name] for name in row} for row in hrbench_rows()]
    write_hrbench(tmp_path, rows=rows)
    with pytest.raises(DataError, match=r"expected columns index, .*; found index, .*image_base64; missing image\."):
        read(hrbench.load_4k, tmp_path)
    path = write_hrbench(tmp_path) / "hr_bench_4k.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"hr_bench_4k\.parquet: not a complete Parquet file"):
        read(hrbench.load_4k, tmp_path)


# HR-MMSearch


def test_hrmmsearch_reads_the_hub_s_parquet(tmp_path: Path) -> None:
    problem = read(hrmmsearch.load, write_hrmmsearch(tmp_path))[1]
    assert (problem.id, problem.answer, problem.metadata["aliases"]) == ("s1", "team 1", [])
    assert problem.metadata["categories"] == {"category": "sports", "difficulty": "hard"}
    assert shown(problem) == ["60px", "Who won event 1?"]


def test_hrmmsearch_reads_the_project_s_own_file(tmp_path: Path) -> None:
    problem = read(hrmmsearch.load, write_hrmmsearch_jsonl(tmp_path))[1]
    assert (problem.id, problem.answer, problem.metadata["aliases"]) == ("1", "team 1", ["the team 1"])
    assert shown(problem) == ["60px", "Who won event 1?"]


def test_hrmmsearch_without_a_picture_names_the_row(tmp_path: Path) -> None:
    rows = hrmmsearch_rows()
    rows[2]["query_image"] = None
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match=r"row 3, field query_image: expected a picture, got nothing"):
        read(hrmmsearch.load, tmp_path)


# MMSearch


@pytest.mark.parametrize(
    "alternatives",
    [(["June 1", "1 June"], [], None), ('["June 1", "1 June"]', "[]", None), ("['June 1', '1 June']", "", None)],
)
def test_mmsearch_reads_alternatives_as_lists_as_text_and_as_null(tmp_path: Path, alternatives: Any) -> None:
    problems = read(mmsearch.load, write_mmsearch(tmp_path, rows=mmsearch_rows(alternatives)))
    assert [problem.metadata["aliases"] for problem in problems] == [["June 1", "1 June"], [], []]


def test_mmsearch_questions_without_a_picture_are_text_alone(tmp_path: Path) -> None:
    problems = read(mmsearch.load, write_mmsearch(tmp_path))
    assert [len(problem.images) for problem in problems] == [1, 0, 0]
    assert [p.metadata["categories"]["has_image"] for p in problems] == ["yes", "no", "no"]
    assert problems[0].metadata["categories"] == {"area": "news", "subfield": "sports", "has_image": "yes"}
    assert problems[0].metadata["timestamp"] == "2024-06-01"
    assert problems[1].messages[0].text.startswith("When was event 1?\n")


# Real files


def test_real_questions_of_testmini_load(tmp_path: Path) -> None:
    problems = read(mathvision.load, FIXTURES / "mathvision", store=ContentImageStore(tmp_path))
    assert len(problems) == 18
    subjects = Counter(problem.metadata["categories"]["subject"] for problem in problems)
    assert len(subjects) == 16 and set(subjects.values()) == {1, 2}
    assert Counter(len(problem.metadata["choices"]) for problem in problems) == {5: 13, 0: 5}
    assert all(len(problem.images) == 1 and "<image" not in problem.messages[0].text for problem in problems)
    found = by_id(problems)
    assert found["59"].answer == "C" and found["59"].metadata["choices"] == []
    assert found["2673"].metadata["choices"] == ["A", "B", "C", "D", "E"]
    assert found["2673"].metadata["options"][2] == "<image3>"


def test_real_questions_of_the_first_variant_load(tmp_path: Path) -> None:
    problems = read(dynamath.load, FIXTURES / "dynamath", store=ContentImageStore(tmp_path))
    assert len(problems) == 18 and all(problem.id.endswith("-v1") and problem.images for problem in problems)
    kinds = Counter(problem.metadata["answer_type"] for problem in problems)
    assert kinds == {"float": 8, "multiple choice": 6, "text": 4}
    levels = Counter(problem.metadata["categories"]["level"] for problem in problems)
    assert set(levels) == {"high school", "undergraduate", "elementary school"}
    for problem in problems:
        choices = problem.metadata["choices"]
        assert bool(choices) == (problem.metadata["answer_type"] == "multiple choice")
        assert not choices or problem.answer in "ABCDEF"[: len(choices)], problem.id


@pytest.mark.parametrize(("name", "num_questions"), [("mathvision_golds.jsonl", 1532), ("dynamath/golds.jsonl", 58)])
def test_no_letter_dominates_the_golds_of_real_questions(name: str, num_questions: int) -> None:
    rows = [json.loads(line) for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()]
    problems = [
        Problem(
            id=row["id"],
            messages=(Message(role="user"),),
            answer=row["answer"],
            metadata={"choices": row["options"] if "options" in row else prompts.inline_options(row["question"])},
        )
        for row in rows
        if row.get("answer_type", "multiple choice") == "multiple choice"
    ]
    summary = summarize(info(), problems, [], num_samples=1)
    assert summary.letters is not None and summary.letters.num_questions == num_questions
    assert "one_gold_letter" not in {alarm.name for alarm in summary.alarms}
