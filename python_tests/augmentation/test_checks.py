"""What may pass for a paraphrase or a hint, case by case."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from diva_engine.augmentation.checks import judge_paraphrases, judge_steps
from diva_engine.augmentation.prompts import messages_for, numbered_markers, restored_markers, tagged
from diva_engine.augmentation.texts import numbers_in, split_options, symbols_in
from diva_engine.rewards.answers import compare
from python_tests.data.pictures import problem_of

ANGLE = "<image>In triangle ABC, the angle at B is 40° and AB = 1,200 cm. Find x."
PRIME = "Which of these is not a prime?\nA. 7\nB. 9\nC. 11\nD. 13"


def problem(text, answer="70"):
    return replace(problem_of(text, *[b""] * text.count("<image>")), answer=answer)


PARAPHRASES = {
    "other words": (ANGLE, "70", "[image 1] Look at triangle ABC: B measures 40°, AB = 1200 cm. What is x?", ""),
    "marker left out in front": (ANGLE, "70", "Triangle ABC has 40° at B, and AB = 1,200 cm. Find x.", ""),
    "marker in another place": (ANGLE, "70", "Triangle ABC [image 1] has 40° at B, and AB = 1200 cm. Find x.", ""),
    "two markers": (ANGLE, "70", "[image 1][image 1] ABC, 40° at B, AB = 1200. Find x.", "image markers changed"),
    "another image": (ANGLE, "70", "[image 2] ABC, 40° at B, AB = 1200. Find x.", "image markers changed"),
    "the literal marker": (ANGLE, "70", "<image>ABC, 40° at B, AB = 1200. Find x.", "image markers changed"),
    "another number": (ANGLE, "70", "ABC has 45° at B, and AB = 1200 cm. Find x.", "numbers changed"),
    "a number dropped": (ANGLE, "70", "ABC has 40° at B. Find x.", "numbers changed"),
    "a number twice": (ANGLE, "70", "ABC has 40° at B, yes 40°, and AB = 1200. Find x.", "numbers changed"),
    "the answer as a number": (ANGLE, "70", "ABC has 40° at B, AB = 1200, so x = 70. Why?", "numbers changed"),
    "another unknown": (ANGLE, "70", "ABC has 40° at B, and AB = 1200 cm. Find y.", "symbols changed"),
    "another point": (ANGLE, "70", "ABD has 40° at B, and AB = 1200 cm. Find x.", "symbols changed"),
    "the same": (ANGLE, "70", ANGLE.replace("<image>", "[image 1]"), "same as the question"),
    "nothing": (ANGLE, "70", "[image 1]", "empty"),
    "an essay": (ANGLE, "70", "ABC has 40° at B, and AB = 1200 cm. Find x. " + "Think! " * 99, "too long"),
    "options kept": (PRIME, "B", "One number here is not prime. Which?\n(A) 7 (B) 9 (C) 11 (D) 13", ""),
    "options in another order": (PRIME, "B", "One is not prime.\nA. 9\nB. 7\nC. 11\nD. 13", "options changed"),
    "an option dropped": (PRIME, "B", "One is not prime.\nA. 7\nB. 9\nC. 11 or 13", "options changed"),
    "options gone": (PRIME, "B", "Which of 7, 9, 11 and 13 is not prime?", "options changed"),
    "a negation dropped": (PRIME, "B", "Name the prime.\nA. 7\nB. 9\nC. 11\nD. 13", "a negation came or went"),
    "the letter told": (
        PRIME,
        "B",
        "Why is option B not a prime?\nA. 7\nB. 9\nC. 11\nD. 13",
        "symbols changed",
    ),
    "the option in brackets told": (
        PRIME.replace("D. 13", "D. 13\nE. see (B)"),
        "E",
        "Choose E: which is not a prime?\nA. 7\nB. 9\nC. 11\nD. 13\nE. see (B)",
        "symbols changed",
    ),
    "the answer in words": (
        "What gas do plants give off?",
        "oxygen",
        "What gas, namely oxygen, do plants give off?",
        "gives the answer away",
    ),
    "words of the question": ("Is iron or gold heavier?", "gold", "Which is heavier, iron or gold?", ""),
    "half of a formula": ("Simplify ½ + x².", "x", "Add ½ and x² into one fraction.", ""),
}


@pytest.mark.parametrize(("text", "answer", "wording", "reason"), PARAPHRASES.values(), ids=PARAPHRASES)
def test_a_paraphrase_is_taken_or_rejected_with_the_reason(text, answer, wording, reason):
    judged = judge_paraphrases(problem(text, answer), f"<paraphrase>{wording}</paraphrase>", False)
    assert [rejected.reason for rejected in judged.rejected] == [reason] * bool(reason)
    assert len(judged.accepted) == (not reason)
    for accepted in judged.accepted:
        assert accepted.count("<image>") == text.count("<image>")


def test_a_reply_is_judged_wording_by_wording():
    reply = "<think><paraphrase>no</paraphrase></think>Sure! " + "".join(
        f"<paraphrase>{wording}</paraphrase>" for wording in ("How much is 1 + 2?", "how much is 1 + 2 ?", "1 and 2?")
    )
    reply = reply.replace("2 ?", "2.")
    judged = judge_paraphrases(problem("What is 1 + 2?", "3"), reply, True, known=["1 AND 2?"])
    assert judged.accepted == ("How much is 1 + 2?", "how much is 1 + 2.")
    assert [one.reason for one in judged.rejected] == ["same as another paraphrase"]
    for is_cut_off, reason in ((False, "no <paraphrase> tags"), (True, "cut off at --max-tokens")):
        judged = judge_paraphrases(problem("What is 1 + 2?", "3"), "<paraphrase>How", is_cut_off)
        assert [one.reason for one in judged.rejected] == [reason]


LEAK = "a hint gives the answer away"
STEPS = {  # question, answer, steps, the solution's answer, reason
    "a good one": (ANGLE, "70", ["B is 40°.", "180 - 40 = 140 is left.", "Half of it: 70."], "70", ""),
    "same value, other form": (ANGLE, "70°", ["B is 40°.", "So 140 is left.", "Half."], r"\boxed{70}", ""),
    "the answer early": (ANGLE, "70", ["The base angles are 70 each.", "So x = 70."], "70", LEAK),
    "the answer early, with a unit": (ANGLE, r"70^\circ", ["Each is 70° wide.", "So x is that."], "70", LEAK),
    "part of a longer number": (ANGLE, "70", ["There are 170 and 7.70.", "So x = 70."], "70", ""),
    "a given of the question": (ANGLE, "40", ["B is 40°.", "Equal sides, so x = 40."], "40", ""),
    "a box": (ANGLE, "70", [r"So \boxed{x}.", "x = 70."], "70", LEAK),
    "the words": (ANGLE, "70", ["The final answer follows.", "x = 70."], "70", LEAK),
    "a small number in passing": (ANGLE, "2", ["Divide both by 2.", "x = 2."], "2", ""),
    "a small number as a result": (ANGLE, "2", ["Therefore x = 2.", "Done."], "2", LEAK),
    "a small number as a factor": (ANGLE, "2", ["The area is 2 * y.", "x = 2."], "2", ""),
    "a fraction": (ANGLE, r"\frac{1}{2}", [r"It is \frac 1 2.", "Done."], r"\frac{1}{2}", LEAK),
    "a formula": (ANGLE, r"2\sqrt{3}", [r"We get $ 2 \sqrt{3} $.", "Done."], r"2\sqrt3", LEAK),
    "another formula": (ANGLE, r"2\sqrt{3}", [r"We get $12\sqrt{3}$.", "Done."], r"2\sqrt{3}", ""),
    "an option by its letter": (PRIME, "B", ["So option B fits.", "B."], "B", LEAK),
    "an option in brackets": (PRIME, "B", ["9 = 3 * 3, see (B).", "B."], "B", LEAK),
    "an option by its value": (PRIME, "C", ["Look: 11 it is.", "C."], "C", LEAK),
    "a small option as a result": (PRIME, "B", ["3 * 3 makes 9.", "B."], "B", LEAK),
    "words": ("Which gas?", "carbon dioxide", ["Plants take in Carbon  Dioxide.", "That."], "carbon dioxide", LEAK),
    "yes in passing": ("Is it?", "no", ["There is no way around it.", "No."], "no", ""),
    "no as a result": ("Is it?", "no", ["So the verdict is no.", "No."], "no", LEAK),
    "another answer": (ANGLE, "70", ["B is 40°.", "x = 140."], "140", "another answer"),
    "one step": (ANGLE, "70", ["x = 70."], "70", "fewer than 2 steps"),
    "many steps": (ANGLE, "70", ["Go on."] * 21, "70", "more than 20 steps"),
    "an empty step": (ANGLE, "70", ["", "x = 70."], "70", "an empty step"),
    "a long step": (ANGLE, "70", ["a" * 2001, "x = 70."], "70", "a step is too long"),
    "a marker": (ANGLE, "70", ["See <image>.", "x = 70."], "70", "tags or image markers inside"),
    "the prompt": (ANGLE, "70", ["As the correct answer says.", "x."], "70", "speaks of the answer it was given"),
}


def same_answer(found, reference):
    return (
        compare(found.removeprefix(r"\boxed{").removesuffix("}") if "boxed" in found else found, reference) == "right"
    )


@pytest.mark.parametrize(("text", "answer", "steps", "found", "reason"), STEPS.values(), ids=STEPS)
def test_steps_are_taken_whole_or_rejected_with_the_reason(text, answer, steps, found, reason):
    reply = "".join(f"<step>{step}</step>\n" for step in steps) + f"<answer>{found}</answer>"
    judged = judge_steps(problem(text, answer), reply, False, same_answer)
    assert [one.reason for one in judged.rejected] == [reason] * bool(reason)
    assert judged.accepted == (() if reason else tuple(steps))


@pytest.mark.parametrize(
    ("reply", "is_cut_off", "reason"),
    [
        ("<step>a</step><step>b", True, "cut off at --max-tokens"),
        ("I cannot help.", False, "no <step> and <answer> tags"),
        ("<step>a</step><step>b</step>", False, "no <step> and <answer> tags"),
        ("", False, "no <step> and <answer> tags"),
    ],
)
def test_a_reply_without_a_solution_is_named(reply, is_cut_off, reason):
    judged = judge_steps(problem(ANGLE), reply, is_cut_off, same_answer)
    assert [(one.reason, one.text) for one in judged.rejected] == [(reason, reply)]


def test_what_is_kept_is_read_from_the_text():
    assert numbers_in("1,000 and 1000.0, x², .5 and 3,4") == {Decimal(n): c for n, c in
        (("1E+3", 2), ("2", 1), ("0.5", 1), ("3", 1), ("4", 1))}  # fmt: skip
    assert symbols_in("A line AB and I find x and y in the sine of F, \\sin") == set("ABxyF")
    options = split_options("The angle at A. is drawn. Choose: (A) 10° (B) 20° (C) both A and B")
    assert options.stem == "The angle at A. is drawn. Choose:"
    assert options.texts == {"A": "10°", "B": "20°", "C": "both A and B"}
    assert split_options("Point A. lies here").texts == {}


def test_markers_are_numbered_and_back():
    text = "<image>First<image> and second"
    assert numbered_markers(text) == "[image 1]First[image 2] and second"
    assert restored_markers("See [image 1] or [image 2]", text) == "See <image> or <image>"
    assert restored_markers("See [image 2] or [image 1]", text) is None
    assert restored_markers("none", text) is None, "the second marker does not stand in front"
    assert restored_markers("none", "<image> <image>Why?") == "<image> <image>none"
    assert tagged("<think>x</think><step> a\nb </step>", "step") == ["a\nb"]


def test_images_stand_before_the_question_in_their_order():
    (message,) = messages_for("steps", problem("<image>A<image>"), ["data:1", "data:2"], 1)
    kinds = [(part["type"], part.get("image_url", {}).get("url")) for part in message["content"]]
    assert kinds == [("text", None), ("image_url", "data:1"), ("text", None), ("image_url", "data:2"), ("text", None)]
    assert "Correct answer: 70" in message["content"][-1]["text"]
    (message,) = messages_for("paraphrases", problem("1 + {1}?"), [], 4)
    assert "Write 4 other" in message["content"]
    assert "1 + {1}?" in message["content"]
    assert "70" not in message["content"], "paraphrases are asked for without the answer"
