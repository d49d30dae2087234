"""The knowledge-transfer audit on experts whose use of the handed-on answer is known."""

from __future__ import annotations

from collections.abc import Callable

from evaluation.route_tree import grow
from evaluation.transfer import audit, best_pairs, swapped_partner
from questions import Question


def chain_pool(make_pool: Callable):
    """Expert 0 drafts (the question, in capitals); expert 1 needs the draft of this very question,
    except on "known" ones.
    """

    def finish(question: str, previous: str | None) -> str:
        return "yes" if previous == question.upper() or question.startswith("known") else "no"

    return make_pool([lambda q, a: q.upper(), finish])


QUESTIONS = [Question(f"c{i}", f"chain {i}", task="chain", _reference="yes") for i in range(8)] + [
    Question(f"k{i}", f"{'known' if i < 4 else 'hard'} {i}", task="plain", _reference="yes")
    for i in range(8)
]


def test_the_gain_is_there_with_the_true_answer_and_gone_with_another_questions(
    make_pool: Callable,
) -> None:
    pool = chain_pool(make_pool)
    found = audit(QUESTIONS, pool, {"chain": (0, 1)})
    rows = {(row["first"], row["second"], row["task_group"]): row for row in found["pairs"]}
    assert len(rows) == 8 and {row["n"] for row in rows.values()} == {8}
    means = {
        variant: value["mean"]
        for variant, value in rows["e0", "e1", "composition"]["variants"].items()
    }
    assert means == {"previous": 1.0, "none": 0.0, "swapped": 0.0, "own": 0.0}
    # e0 is never right
    assert (
        rows["e0", "e1", "composition"]["wrong_to_right"]["mean"] == 1.0
        and rows["e0", "e1", "composition"]["right_to_wrong"] is None
    )
    other = {
        variant: value["mean"] for variant, value in rows["e0", "e1", "other"]["variants"].items()
    }
    assert other == {"previous": 1.0, "none": 0.5, "swapped": 0.5, "own": 0.5}
    # e1 is right on all four hard questions with the answer, on none of them without: 4 of 8
    gain = rows["e0", "e1", "other"]["gains"]["none"]
    assert (gain["diff"], gain["wins"], gain["ties"], gain["losses"]) == (0.5, 4, 4, 0)
    back = rows["e1", "e0", "other"]  # e0 writes over whatever e1 had right
    assert back["right_to_wrong"]["mean"] == 1.0 and back["wrong_to_right"]["mean"] == 0.0
    (best,) = found["best"]
    assert (best["first"], best["second"], best["task_group"]) == ("e0", "e1", "chain")
    assert {
        variant: (gain["diff"], gain["verdict"]) for variant, gain in best["gains"].items()
    } == {v: (1.0, "better") for v in ("none", "swapped", "own")}


def test_the_pair_to_report_is_the_best_on_validation(make_pool: Callable) -> None:
    tree = grow(QUESTIONS, chain_pool(make_pool), 2, expand_solved=True)
    assert best_pairs(tree, ["chain", "never seen"], [0, 1]) == {"chain": (0, 1)}
    # The best whose second expert reads what it is handed
    assert best_pairs(tree, ["chain"], [0]) == {"chain": (0, 0)}
    assert best_pairs(tree, ["chain"], []) == {}
    assert (
        best_pairs(grow(QUESTIONS, chain_pool(make_pool), 1, expand_solved=True), ["chain"], [0, 1])
        == {}
    )


def test_an_answer_is_swapped_with_another_question_of_the_same_task() -> None:
    questions = [Question(str(i), str(i), task=task) for i, task in enumerate("abacab")]
    partner = swapped_partner(questions)
    assert partner.tolist() == [2, 5, 4, -1, 0, 1]  # c is alone
    assert all(
        partner[i] == -1 or (partner[i] != i and questions[partner[i]].task == questions[i].task)
        for i in range(6)
    )
