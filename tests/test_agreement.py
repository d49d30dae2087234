"""Groups of answers that agree: expected groups are by hand."""

import pytest

from config import SourceConfig
from metrics.agreement import group_answers, group_question_answers
from metrics.registry import check_metrics, get_metric
from questions import Question, read_questions
from runtime.errors import DataError, MetricError


def test_groups_are_numbered_as_they_first_appear_and_an_unreadable_answer_agrees_with_none():
    answers = ["It is 7.", "I do not know", "#### 9", "7.0", "I do not know", "", "the 9 ducks"]
    assert group_answers("numeric_match", answers) == [0, None, 1, 0, None, None, 1]


@pytest.mark.parametrize(
    ("metric", "answers", "groups"),
    [
        ("multiple_choice", ["The answer is (B).", "**B**", "C", "b"], [0, 0, 1, None]),
        ("short_answer", ["The capital of France is Paris.", "paris", "Lyon"], [0, 0, 1]),
        ("exact_match", ["The Eiffel Tower", "eiffel tower!", "a tower"], [0, 0, 1]),
        ("reasoning_gym:spell_backward", [" olleh\n", "olleh", "Olleh"], [0, 0, 1]),
        ("numeric_match", ["0.3333333", "0.3333334", "0.34"], [0, 0, 1]),  # 1e-6, as it scores
    ],
)
def test_answers_agree_when_the_metric_reads_the_same_in_them(metric, answers, groups):
    assert group_answers(metric, answers) == groups


def test_free_texts_agree_from_a_similarity_on():
    # Without articles 4 words of 4 and of 5 are common: the F1 of 1 and .8 is .89.
    answers = ["a cat sat on the mat", "some cat sat on the mat", "nothing of that kind"]
    assert group_answers("rouge_l", answers, similarity=0.8) == [0, 0, 1]
    assert group_answers("rouge_l", answers, similarity=0.9) == [0, 1, 2]


def test_a_metric_of_a_users_own_reads_words_unless_it_says_otherwise(tmp_path, monkeypatch):
    (tmp_path / "length_metrics.py").write_text(
        "class Plain:\n"
        "    def compute(self, *, predictions, references):\n"
        "        return [1.0 for _ in predictions]\n"
        "class Length(Plain):\n"
        "    def read(self, answer):\n"
        "        return str(len(answer))\n"
        "    def same(self, a, b):\n"
        "        return abs(int(a) - int(b)) <= 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    answers = ["Yes.", "yes", "no"]
    assert group_answers("length_metrics:Plain", answers) == [0, 0, 1]
    assert group_answers("length_metrics:Length", answers) == [0, 0, 1]  # lengths 4, 3 and 2


def test_every_answer_is_read_once(monkeypatch):
    seen = []

    class Counting:
        def read(self, answer):
            seen.append(answer)
            return answer

    monkeypatch.setattr("metrics.agreement.get_metric", lambda name: Counting())
    for _ in range(3):
        group_answers("counting", ["one", "two"])
    assert seen == ["one", "two"]


def test_a_question_may_name_another_metric_for_agreement_than_for_quality(tmp_path):
    answers = ["It is 7.", "7"]
    scored = Question("q", "?", metric="recorded")
    assert group_question_answers(scored, answers) == [0, 1]  # exact_match: other words
    named = Question("q", "?", metric="recorded", agreement="numeric_match")
    assert group_question_answers(named.sealed(), answers) == [0, 0]  # it needs no reference


def test_agreement_is_read_from_the_row_or_the_source(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"text": "a", "reference": "1", "agreement": "numeric_match"}\n'
        '{"text": "b", "reference": "1"}\n'
        '{"question": "c", "answers": {"e": "1"}, "scores": {"e": 1},'
        ' "meta": {"metric": "recorded", "agreement": "short_answer"}}\n'
    )
    source = SourceConfig(path=str(path), agreement="rouge_l")
    names = [question.agreement for question in read_questions(source)]
    assert names == ["numeric_match", "rouge_l", "short_answer"]


@pytest.mark.parametrize("value", ["3", '"recorded"'])
def test_an_agreement_that_is_no_reading_metric_is_refused_with_its_line(tmp_path, value):
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"text": "a", "reference": "1", "agreement": {value}}}\n')
    with pytest.raises(DataError, match=r"q\.jsonl:1: agreement .*expected the name of a metric"):
        read_questions(SourceConfig(path=str(path)))


def test_an_unknown_agreement_metric_is_refused_before_answers_are_paid_for():
    question = Question("q", "?", _reference="1", agreement="numerc_match")
    with pytest.raises(MetricError, match="unknown metric 'numerc_match'"):
        check_metrics([question], [])


def test_metrics_read_what_they_compare():
    assert get_metric("numeric_match").read("so 1,234.50 dollars") == "1234.5"
    assert get_metric("multiple_choice").read("The answer is (b).") == "B"
    assert get_metric("short_answer").read("It is called the Nile.") == "nile"
    assert get_metric("exact_match").read(" \n") is None
