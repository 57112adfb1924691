"""Which answer is read from a final text, case by case: the last statement, JSON, letters with text, contradictions."""

from __future__ import annotations

import pytest

from axpo.benchmarks.scorers import dynamath, letters, mathvision
from axpo.rewards import REWARDS
from axpo.rewards.answers import extract_answer
from axpo.rewards.choice import extract_choice, read_letter
from axpo.types import Content, Message, Problem

COLORS = ("red", "blue", "green", "white")
LENGTHS = ("10 cm", "13 cm", "20 cm", "25 cm")
ANGLES = ["45°", "90°", "$120^{\\circ}$", "150°", "$135^{\\circ}$"]


def asked(answer: str, *, text: str = "Which?", **metadata: object) -> Problem:
    message = Message(role="user", content=(Content(text=text),))
    return Problem(id="q", messages=(message,), answer=answer, answer_kind="choice", metadata=metadata)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is C. Wait, the answer is A.", "A"),
        ("The answer is C.\nWait, the answer is A.\nYes.", "A"),
        ("Answer: C. After a second look, the final answer is **D**.", "D"),
        ("The answer is 3. Checking again: answer = 4", "4"),
        ("答案是A", "A"),
        ("所以正确答案是 B。因为它最长。", "B"),
        ("答案：**C**", "C"),
        ("答案选D。", "D"),
        ('{"answer": "A"}', "A"),
        ('{"reason": "the answer is B, as I thought", "answer": "A"}', "A"),
        ('{"answer": "A", "reason": "because the answer is in the image"}', "A"),
        ('```json\n{\n  "reason": "x",\n  "final_answer": "two \\"words\\""\n}\n```', 'two "words"'),
        ("{'answer': 'C'}", "C"),
        ('{"answer": 3.5}', "3.5"),
        # a remark or a hypothesis behind the answer is none
        ("The answer is B. I am confident that the answer is correct.", "B"),
        ("The answer is B.\nThe answer is not A, since A is red.", "B"),
        ("The answer is B. If the answer is A, the sum is odd.", "B"),
        ("The answer is B, and therefore the answer is", "B, and therefore the"),
        # what does not change
        ("Therefore the answer is (B). Done.", "(B)"),
        ("The answer is:\n(C)\nI am sure.", "(C)"),
        ("The answer is not A.", "not A"),
        ("The answer is correct.", "correct"),
        ("The direction is left. No, the answer is right.", "right"),
        ("My answers are 3 and 4.", "My answers are 3 and 4."),
    ],
)
def test_the_last_statement_is_the_answer(text: str, answer: str) -> None:
    assert extract_answer(text)[0] == answer


@pytest.mark.parametrize("text", ["<answer>A</answer>. The answer is B.", "\\boxed{A}, as the answer is B."])
def test_a_tag_or_a_box_stands_above_statements(text: str) -> None:
    assert extract_answer(text)[0] == "A"


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("D - white", COLORS, "D"),
        ("D – it is white", COLORS, "D"),
        ("D - white", (), "D"),
        ("D.white", COLORS, "D"),
        ("D.5", (), "D"),
        ("C:green", COLORS, "C"),
        ("(B) B, as it is larger", (), "B"),
        ("B. 13.0 cm", LENGTHS, "B"),
        ("(B) because 5 is odd", LENGTHS, "B"),
        ("(B) 13%", ("12", "13"), "B"),
        ("(B) 0.13 m", LENGTHS, "B"),  # another unit: not compared
        ("(B) " + "9" * 5000, LENGTHS, "B"),  # too long for a number
        # text of another option, or another number
        ("D - red", COLORS, None),
        ("D.red", COLORS, None),
        ("(B)red", COLORS, None),
        ("(B) 12 cm", LENGTHS, None),
        ("B. 14", LENGTHS, None),
        # several options are none
        ("A - D", (), None),
        ("A - B - C - D", (), None),
        ("A.B.C.D", (), None),
        ("A: B", (), None),
        ("A - red or B", COLORS, None),
        ("A. red - B. blue", COLORS, None),
        ("not C", (), None),
        # letters that are none
        ("B-52", (), None),
        ("e.g. blue", (), None),
        ("A.M.", (), None),
        ("U.S.", (), None),
        ("a - blue car", (), None),
    ],
)
def test_a_letter_and_its_text(answer: str, choices: tuple[str, ...], letter: str | None) -> None:
    assert read_letter(answer, choices) == letter


CLOSINGS = [
    ("The side is \\boxed{40}.\n\nTherefore, the answer is (C).", "C"),
    ("The sum is \\boxed{540^{\\circ}}.The answer is: (C)", "C"),
    ("\\boxed{A}? I looked again.\n(C)", "C"),
    ("\\boxed{A}. Wait. The answer is C.", "C"),
    # what does not change
    ("\\boxed{C}", "C"),
    ("\\boxed{C}, so (A) is wrong.", "C"),
    ("\\boxed{C}\nOption A is too small.", "C"),
    ("\\boxed{C}. The answer is not (A).", "C"),
    ("\\boxed{C}. If the answer is A, nothing fits.", "C"),
    ("\\boxed{C}\n\nI hope that this answer is helpful.", "C"),
    ("\\boxed{C}\n(A) 1 (B) 2 (C) 3 (D) 4", "C"),
    ("The answer is A. \\boxed{C}", "C"),
    ("<answer>C</answer>\nThe answer is A.", "C"),
]


@pytest.mark.parametrize(("text", "letter"), CLOSINGS)
def test_a_closing_letter_wins_over_a_box_before_it(text: str, letter: str) -> None:
    answer, _ = extract_choice(text)
    assert answer is not None and read_letter(answer) == letter
    problem = asked(letter, choices=list(COLORS))
    assert REWARDS["choice"](text, problem) == 1.0
    assert letters.score(problem, text).is_correct
    assert mathvision.score(asked(letter, options=["A", "B", "C", "D", "E"]), text).is_correct
    kind = {"answer_type": "multiple choice"}
    assert dynamath.score(asked(letter, text="choice: (A) red (B) blue (C) 5 m (D) 7", **kind), text).is_correct


def test_a_number_keeps_its_box_whatever_is_said_behind_it() -> None:
    problem = asked("42")
    assert REWARDS["math"]("\\boxed{42}. Note that the answer is an integer.", problem) == 1.0
    assert REWARDS["math"]("\\boxed{41}. The answer is 42.", problem) == 0.0


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("(E)", True),
        ("(E) 135°", True),
        ("\\textbf{(E)}\\ 135^{\\circ}", True),
        ("(E) $135^\\circ$", True),
        ("E. 135 degrees", True),
        ("(E) 134.9", True),  # rounded
        ("(E) 270/2", True),
        ("(E) the largest, since 3 sides are equal", True),
        ("(E) 270°", False),
        ("\\text{(E)}\\; 270^\\circ", False),
        ("\\textbf{(E) } 4\\pi", False),
        ("E. 270", False),
        ("E - 270°", False),
        ("(E) 90°", False),
        ("(A) 135°", False),
    ],
)
def test_a_letter_with_another_value_behind_it_is_wrong_in_mathvision(answer: str, is_correct: bool) -> None:
    verdict = mathvision.score(asked("E", options=ANGLES), f"So it is $\\boxed{{{answer}}}$.")
    assert verdict.is_correct is is_correct


def test_a_percent_sign_and_a_huge_number_behind_a_letter_break_nothing() -> None:
    options = ["25 \\%", "$45 \\%$", "$\\pi$", "4", "5"]
    assert mathvision.score(asked("B", options=options), "\\boxed{(B) 45}").is_correct
    assert mathvision.score(asked("B", options=options), "\\boxed{(B) 45\\%}").is_correct
    assert not mathvision.score(asked("B", options=options), "\\boxed{(B) 88\\%}").is_correct
    assert not mathvision.score(asked("C", options=options), "\\boxed{(C) 1e999}").is_correct


@pytest.mark.parametrize(("answer", "is_correct"), [("(B) 13", True), ("(B) 14 cm", False), ("B. 10 cm", False)])
def test_a_letter_with_another_number_behind_it_is_right_nowhere(answer: str, is_correct: bool) -> None:
    choices = asked("B", choices=list(LENGTHS))
    assert REWARDS["choice"](f"<answer>{answer}</answer>", choices) == float(is_correct)
    verdict = letters.score(choices, f"<answer>{answer}</answer>")
    assert verdict.is_correct is is_correct and verdict.is_decided is is_correct  # what contradicts is a judge's matter
    inside = asked("B", text="choice: (A) 10 cm (B) 13 cm (C) 20 cm", answer_type="multiple choice")
    assert dynamath.score(inside, f"<answer>{answer}</answer>").is_correct is is_correct


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A. The answer is B. The answer is C. The answer is D.",
        "The answer is A, B, C or D.",
        '{"answer": "A"} {"answer": "B"} {"answer": "D"}',
        "A - red B - blue C - green D - white",
        "A.red B.blue C.green D.white",
        "答案是A或B或C",
        "\\boxed{A} \\boxed{B} \\boxed{D}\nThe answer is D.",
    ],
)
def test_naming_every_option_earns_nothing(text: str) -> None:
    assert REWARDS["choice"](text, asked("C", choices=list(COLORS))) == 0.0


def test_verdicts_keep_the_letter_that_was_read() -> None:
    assert letters.score(asked("B", choices=list(COLORS)), "<answer>white</answer>").letter == "D"
    assert mathvision.score(asked("E", options=ANGLES), "\\boxed{90°}").letter == "B"
    kind = {"answer_type": "multiple choice"}
    assert dynamath.score(asked("A", text="(A) yes (B) no", **kind), "\\boxed{no}").letter == "B"
    assert mathvision.score(asked("12"), "\\boxed{12}").letter is None
