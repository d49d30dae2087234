"""What metrics read in answers as models write them. Expected readings are by hand."""

import threading
import time

import pytest

from metrics.agreement import group_answers
from metrics.choices import PHRASES, choice_in
from metrics.marks import MARKS, marked_parts
from metrics.mathematics import SPELLING, equals, read_expression, spell
from metrics.numbers import TYPESETTING, number_in
from metrics.registry import METRICS, get_metric
from runtime.errors import MetricError
from scripts import check_readings


def score(metric, prediction, reference):
    return get_metric(metric).compute(predictions=[prediction], references=[reference])[0]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (r"\boxed{72} since 8 x 9", 72),
        ("72\n(verified: 8*9)", 72),
        ("#### 70000\nThis holds for all 3 houses.", 70000),
        ("#### 70000 (of 3)", 70000),
        ("#### 3. Add them\nThat makes 12.", 12),  # a heading is no mark
        ("The total is 72 dollars, which is 3 more than 69.", 72),
        ("The total is 10 + 1, which equals 11.", 11),
        ("There are 7, which is odd. So it makes 12.", 12),  # a remark ends with its sentence
        ("The answer is 8 x 9 = 72.", 72),
        ("The answer is 72 because 8 x 9 is 72 and 3 is 3", 72),
        ("The answer to question 5 is 72", 72),
        ("The answer is:\n\n**72**", 72),
        ("**Answer:** The jar holds **72** more than 5", 72),
        ("**72**\n\nThe sum of 3 and 69.", 72),
        ("**Step 2: Add 5**\nThat makes 12", 12),
        ("It takes **45** minutes to cook 90 of them.", 45),
        (r"so \boxed{Tommy has 72 fish.}", 72),
        (r"$\boxed{$50.00}$", 50),
        (r"\(\boxed{70{,}000}\)", 70000),
        (r"\boxed{- $600}", -600),
        ("\\boxed{\u2212 \\$600}", -600),
        ("#### - 600", -600),
        ("The answer is 5 - 605 = - 600", -600),
        ("The answer is 5 - 605 = $- 600", -600),
        ("The answer is:\n- 600 apples", 600),  # an item of a list
        ("The answer is 605 - 600 =\n- 5 apples", 5),
        (r"\boxed{\text{72 km}}", 72),
        ("{boxed{70%}}", 70),
        (r"\boxed{6th} place. The answer is: 6", 6),
        ("12\n\nQuestion: What is 5 + 5?\nAnswer: 10", 12),  # its own next question
        ("1/2", 0.5),
        (r"\frac{1}{2}", 0.5),
        (r"\dfrac12", 0.5),
        (r"2\frac{1}{2}", 2.5),
        ("2 1/2 cups", 2.5),
        ("12/31/1999", 1999),  # a date is no fraction
        ("1.5 million", 1.5e6),
        ("10^5", 1e5),
        (r"5 \times 10^{3}", 5000),
        ("an area of 5 cm^2", 5),
        ("twelve", 12),
        ("forty-two", 42),
        ("five hundred", None),
        ("one of them has two", None),  # of several words none is the answer
        ("10^999", None),
        (r"She moves 1 place, to \boxed{6th} place.", 6),
        ("The answer is the 6th floor", 6),
        (r"Of 7 none is left. \boxed{\text{Out}}", None),  # a box says what the answer is
        ("So we subtract 14 from this year.\n\nHowever, the year is not mentioned.", None),
        ("There are 3 of 5.\n\nWe cannot determine how many came.\n\nI hope this helps!", None),
        ("8 x 9 = 72\n\nThis is what was asked.", 72),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_a_number_is_read_where_the_answer_marks_it_else_the_last(answer, number):
    assert number_in(answer) == number


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B is correct.", "B"),
        ("I think it's C", "C"),
        ("The best choice would be **(D)**.", "D"),
        ("\u7b54\u6848\u662fB", "B"),
        ("\u7b54\u6848\uff1aB\u3002", "B"),
        ("The answer is (G).\n\nNow, in short:\n\nThe answer is (H).", "G"),
        ("The closest option is (F).", "F"),
        ("So it is J, I would say.", "J"),
        ("It must be A.", "A"),
        ("A mammal is what I mean.", None),
        ("I am not sure that I know.", None),
        ("The answer is (C) and (B).", "C"),  # as the graders read it
        ("Answer: (C), and (B) is wrong.", "C"),
        ("The answer is:\na) 5 cm, b) 6 cm\n\nThe answer is (I).", "I"),
        ("The closest option is (F), but it is wrong. Answer: None of the above.", None),
        ("The answer is none of these. The closest option is (F).", "F"),
        ("The closest option is (E) 3025, but it is not the correct answer.", None),
        ("It is CBF. The correct options are A, ECB; B, CFB; and D, CBC.", None),
        ("Solving for C, we get C = 20 J / 5 m = 4.", None),  # a variable
        ("The force (F) times the", None),
        ("That makes it 8.6 km, or (B).<EOS_TOKEN>", "B"),
        ("A. means more\nB. means less\nC.", None),  # a list that is cut off
        ("A. One\nB. Two\nC. Three\n\nB.", "B"),
        ("It is close to option C for glass and option D for water.", None),
        ("The answer is (CB).", None),
        ("Therefore (C) and (D) are the correct ones.", None),
        ("The answer is (Insufficient information).", None),
        ("The final answer is:\n\nF[x] = 3", None),
        ("It has a charge of 3 C.", None),  # a unit
        ("Then $1-H(p)$ is 1", None),
        ("A. One\nB. Two\nC. Three", None),  # a list of options
        ("So (A) and (B) fit. Final Answer: A, B.", None),  # one is to be chosen
        ("So, the final answer is:\nC. It rises.\nH. It falls.", None),
        ("So, the final answer is:\nC. It rises.\n\nH would be wrong.", "C"),
        ("Answer: B, as A is too small.", "B"),
        ("In the second iteration K is decremented by 1, making J", None),  # cut off
        ("The only one that is left is J", "J"),
        (r"It is $5 \mathrm{~J}$. The change is $-7 \mathrm{~J", None),  # a formula, cut off
        ("Only one fits: the river (B).", "B"),
        ("D", "D"),
    ],
)
def test_a_letter_is_read_from_a_phrase_then_a_mark_then_alone(answer, letter):
    assert choice_in(answer) == letter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", 1),
        ("x = 5", "5", 1),
        (r"So $x^2+2x+1$.", "(x+1)^2", 1),
        (r"\boxed{[-2, 7]}", r"x \in [-2,7]", 1),
        (r"\boxed{[0, 1)}", "[0,1]", 0),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1),
        ("2 and 3", "2,3", 1),
        (r"\boxed{\pm\frac{3}{4}}", r"\frac{3}{4}, -\frac{3}{4}", 1),
        (r"\boxed{\sqrt{50}}", r"5\sqrt2", 1),
        (r"\begin{pmatrix} 1/5 \\ 2 \end{pmatrix}", r"\begin{pmatrix}\frac15\\2\end{pmatrix}", 1),
        (r"\boxed{\$15,\!000}", "15000", 1),
        (r"The answer is $8\frac{4}{7}$.", r"\frac{60}{7}", 1),
        (r"The range of $g(x)$ is $[0,25]$.", "[0,25]", 1),
        (r"\boxed{5\text{ cm}}", "5", 1),
        (r"\boxed{60^\circ}", "60", 1),
        ("3", "3:1", 0),  # a ratio is no fraction
        (r"\boxed{4:30 \text{ p.m.}}", r"\text{4:30 p.m.}", 1),
        ("664", "664_7", 1),  # the base may go without saying
        ("664_8", "664_7", 0),
        ("B", r"\text{(B)}", 1),
        ("odd", r"\text{odd}", 1),
        ("(1,234)", "1234", 0),
        (r"\boxed{0, 1}", "(0,1)", 0),  # two values are no interval and no point
        (r"\boxed{(0, 1)}", "0,1", 0),
        (r"\boxed{\sum_{n=1}^\infty \frac{1}{2^n}}", "1", 0),  # only says what is to be found
        (r"\boxed{\cot\frac{3\pi}{2}}", "0", 0),
        (r"\boxed{\sum_{n=1}^\infty \frac{1}{2^n} = 1}", "1", 1),
        (r"\boxed{\sin(3x)}", r"\sin 3x", 1),
        (r"\boxed{\text{a probability slightly greater than 0.5}}", r"\frac{1}{2}", 0),
        ("Let us add:\n\\[\n9 + 7 \\equiv 0\n\\]\n\\[\n0", "0", 0),  # cut off
        (r"Then $x^5 + 7x^4 - 2 = 0$, so that $x", "0", 0),  # cut off
        ("", "5", 0),
    ],
)
def test_expressions_are_right_when_they_mean_the_reference(answer, reference, expected):
    assert score("math", answer, reference) == expected


def test_a_reference_without_an_expression_is_refused():
    with pytest.raises(MetricError, match="math: no expression in the reference"):
        score("math", "5", "nobody knows what it is")


@pytest.mark.slow
def test_what_takes_too_long_to_compare_is_different_and_the_next_pair_is_compared():
    start = time.monotonic()
    assert not equals(r"9^{9^{9^9}}", "x+3")  # no signal stops this power
    assert equals("x+3", "3+x")
    assert time.monotonic() - start < 60


def test_expressions_are_compared_in_any_thread():
    found = []
    pairs = [("a+b", "b+a"), ("a+b", "a-b"), (r"\frac{x}{2}", "0.5x"), ("(x+1)^2", "x^2+2x+1")]
    threads = []
    for wanted, other in pairs:
        answer = threading.Thread(
            target=lambda w=wanted, o=other: found.append((w, o, equals(w, o)))
        )
        threads.append(answer)
        answer.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([(*pair, pair != ("a+b", "a-b")) for pair in pairs])


def test_equivalent_expressions_agree():
    answers = [r"\boxed{(x+1)^2}", "$x^2+2x+1$", "0.5", r"\frac12", "nothing is known of that"]
    assert group_answers("math", answers) == [0, 0, 1, 1, None]


@pytest.mark.parametrize(("name", "pattern", "example"), MARKS)
def test_every_mark_is_found_in_its_example(name, pattern, example):
    assert pattern.search(example)
    assert number_in(example + "\n" if name != "bold in the last line" else example) == 72


def test_the_strongest_mark_comes_first_and_of_one_kind_the_last():
    text = "The answer is 5.\n#### 6\n\\boxed{7} and \\boxed{8}"
    assert list(marked_parts(text)) == ["8", "7", "6", "5."]


@pytest.mark.parametrize(("pattern", "which", "example"), PHRASES)
def test_every_phrase_chooses_in_its_example(pattern, which, example):
    assert choice_in(example) in ("B", "D")


@pytest.mark.parametrize("example", [example for _, _, example in TYPESETTING])
def test_every_typeset_form_changes_in_its_example(example):
    assert any(pattern.search(example) for pattern, _, _ in TYPESETTING)


@pytest.mark.parametrize("example", [example for _, _, example in SPELLING if example])
def test_one_spelling_is_kept_as_it_is(example):
    assert spell(spell(example)) == spell(example)


# References of MATH as published (Hendrycks et al. 2021), each with the same retyped
RETYPED = [
    (r"\frac{3}{56}", r"\dfrac{3}{56}"),
    (r"\frac43", r"\frac{4}{3}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"),
    (r"50,\!625", "50625"),
    (r"x \in [-2,7]", r"$x\in[-2, 7]$"),
    (r"\begin{pmatrix} -2 \\ 3 \end{pmatrix}", r"\begin{pmatrix}-2\\3\end{pmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"2\sqrt{2} + 3", r"3+2\sqrt2"),
    (r"\$0.50", ".5"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\left(-\infty,2\right)\cup\left(3,\infty\right)"),
    (r"90^\circ", "90"),
    (r"\frac{12}{5,\!525}", r"\frac{12}{5525}"),
    ("2k+2", "2 + 2k"),
    (r"144 \mbox{ m}^3", "144"),
]


@pytest.mark.parametrize(("reference", "retyped"), RETYPED)
def test_a_reference_equals_itself_and_what_is_typed_otherwise(reference, retyped):
    assert score("math", reference, reference) == 1
    assert score("math", rf"Thus we get \boxed{{{retyped}}}.", reference) == 1
    assert read_expression(reference) is not None


NEED_MORE = ("bertscore", "bartscore", "bleurt")  # weights; tests/test_text_metrics.py has them


@pytest.mark.parametrize("name", [*sorted(set(METRICS) - set(NEED_MORE)), "reasoning_gym:rearc"])
@pytest.mark.parametrize("answer", ["", " \n", "<think>so far", "<think>72</think>"])
def test_an_empty_answer_never_scores_and_reads_nothing(name, answer):
    metric = get_metric(name)
    references = {"numeric_match": "0", "multiple_choice": "A", "math": "0"}
    if name.startswith("reasoning_gym"):
        references = {name: {"answer": "", "metadata": {"output": ()}}}
        answer = answer.partition("<")[0]
    reference = references.get(name, "")
    assert metric.compute(predictions=[answer], references=[reference]) == [0.0]
    assert metric.read(answer) is None


def test_the_letter_after_a_thinking_part_counts():
    assert score("multiple_choice", "<think>A or C?</think>\nB", "B") == 1
    assert score("multiple_choice", "A is wrong, so C?</think>\n\nB", "B") == 1
    assert score("numeric_match", "<think>\\boxed{5}</think> 72", "72") == 1


@pytest.mark.parametrize(
    ("metric", "text", "reference", "published", "kind"),
    [
        ("numeric_match", r"\boxed{230 miles}", "230", "230 miles", check_readings.OTHER_FORM),
        ("numeric_match", "It is 72.", "72", "ItisTo", check_readings.OTHER_PART),
        ("numeric_match", "The answer is: 3.5", "3", "3", check_readings.CUT_SHORT),
        ("numeric_match", "I do not know.", "3", "3", check_readings.UNLISTED),
        ("multiple_choice", "The closest option is (F).", "F", None, check_readings.NOT_FOUND),
        ("multiple_choice", "The answer is CBF.", "C", "C", check_readings.FIRST_OF_WORD),
    ],
)
def test_a_disagreement_with_a_publisher_is_of_the_kind_that_explains_it(
    metric, text, reference, published, kind
):
    is_published_right = kind in (check_readings.CUT_SHORT, check_readings.UNLISTED)
    judged = check_readings.Judged("m", "1", text, reference, published, is_published_right)
    is_right = check_readings.score(metric, text, reference) == 1
    assert check_readings.kind_of(metric, judged, is_right) == kind
