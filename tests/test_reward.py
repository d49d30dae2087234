import re

import pytest

from config import HFExpertConfig, RewardConfig
from metrics.choices import choice_in
from metrics.numbers import numbers_in
from metrics.registry import check_metrics, get_metric, score_answers
from questions import Question
from reward import Cost, call_cost, charge, final_reward, paper_reward
from runtime.errors import MetricError

# Constants of the authors' code (docs/paper.md): beta 5, gamma_bonus 2, discount 0.95, p0 0.73; C
# is already scaled, alpha 1.
PAPER = RewardConfig(kind="paper", alpha=1.0, beta=5.0, gamma_bonus=2.0, discount=0.95)
P0, T_MAX = 0.73, 5
WEAK, STRONG = (0.70, 0.007), (0.75, 0.012)  # quality, cost


def score(metric, prediction, reference):
    return get_metric(metric).compute(predictions=[prediction], references=[reference])[0]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("  The Eiffel\nTower. ", "eiffel tower", 1),
        ("São Tomé", "sao tome", 1),
        ("to-day", "today", 0),  # inside a word punctuation counts
        ("Eiffel", "Eiffel Tower", 0),
        ("b", ["a1", "B!"], 1),  # any accepted reference
        ("-5", "5", 0),
        ("(-5)", "5", 0),
        ("-$5", "5", 0),
        ("$-5", "-5", 1),
        ("\u22125", "-5", 1),  # the minus sign of typeset text
        (".5", "5", 0),
        ("(.5)", ".5", 1),
        ("...Paris (France).", "paris france", 1),
        (".", "A", 0),
        ("*", "+", 0),
    ],
)
def test_exact_match_forgives_form_but_not_content(prediction, reference, expected):
    assert score("exact_match", prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("112", "12", 0),  # reasoning-gym's substring scorer would give credit
        ("12", "112", 0),
        ("12 + 100 = 112.", "112", 1),  # the last number counts
        ("112 is 12 + 100", "112", 0),
        ("The total is 1,234.50 dollars", "1234.5", 1),
        ("$1,234,567", "1234567", 1),
        ("-3", "3", 0),
        ("7 - 10 = -3", "-3", 1),
        ("nothing", "3", 0),
        ("about 12.5kg", "12", 0),
        ("at 6 km/h for 12 h\n#### 72km", "72", 1),
        ("12 pounds less 17: -$5", "5", 0),
        ("7 \u2212 10 = \u22123", "-3", 1),
    ],
)
def test_numeric_match_compares_numbers_not_digits(prediction, reference, expected):
    assert score("numeric_match", prediction, reference) == expected


def test_numbers_are_read_whole_with_their_sign_and_separators():
    assert numbers_in("1,234.5 and -3, then 10-4 and v2 or 3x") == [1234.5, -3.0, 10.0, 4.0]
    # A unit may be attached, the rest are parts of words
    assert numbers_in("1,234kg, 2nd, GPT4, 5X and 3x2") == [1234.0]
    assert numbers_in("12,34,567 or 1000,000 or 1e-5 or 2E3") == [
        1234567.0,
        1000000.0,
        1e-5,
        2000.0,
    ]
    # A list: three digits follow a thousands separator
    assert numbers_in("5,6 and 1,2,3") == [
        5.0,
        6.0,
        1.0,
        2.0,
        3.0,
    ]
    assert numbers_in(".5, -.5, -$1,234.50 and \u22125") == [0.5, -0.5, -1234.5, -5.0]


def test_numeric_match_refuses_a_reference_without_a_number():
    with pytest.raises(MetricError, match="no number in the reference 'many'"):
        score("numeric_match", "3", "many")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(c) no", None),
        ("(C) because", "C"),
        ("D. Paris", "D"),
        ("The answer is (b).", "B"),
        ("Not A. The answer: C", "C"),
        ("Bananas", None),
        ("", None),
        ("I think the answer is B", "B"),
        ("A likely answer is D", "D"),
        ("The answer is A because", "A"),
        ("The answer is a mammal", None),
        ("Answer: I think B", "B"),  # no word after "Answer:" is a letter, but one stands alone
        ("The ANSWER IS b) Paris", "B"),
        ("answer: i", "I"),
        ("The correct answer is: B", "B"),
        ("The answer is: (B)", "B"),
        ("The correct answer is **B**.", "B"),
        ("**Answer:** B", "B"),
        ("**B**", "B"),
        ("**B. Paris**", "B"),
        ("B\n\nParis is the capital of France.", "B"),
        ("The correct choice is B.", "B"),
        (r"The answer is \(B\).", "B"),
        ("The answer is 'B'", "B"),
        ("[B]", "B"),
        ("The answer is choice B", "B"),
        ("So it must be Paris: $\\boxed{\\text{B}}$", "B"),
        ("Option B: Paris", "B"),
        ("The answer is option (b).", "B"),
        ("The answer is B. Option C is a river.", "B"),  # another option's letter is no answer
        ("The best option is a mammal", None),
        ("I think\nit is Paris", None),
    ],
)
def test_the_chosen_letter_is_found_and_no_other(text, letter):
    assert choice_in(text) == letter


def test_multiple_choice_gives_nothing_for_an_answer_without_a_choice():
    assert score("multiple_choice", "The answer is B", "b") == 1
    assert score("multiple_choice", "Bananas", "B") == 0


def test_the_reference_of_a_multiple_choice_is_read_as_answers_are_and_must_name_a_letter():
    assert [
        score("multiple_choice", "B", reference)
        for reference in ("(B)", "b. Paris", "The answer is B", "A")
    ] == [1, 1, 1, 0]
    with pytest.raises(MetricError, match="no letter A to J in the reference 'Paris'"):
        score("multiple_choice", "B", "Paris")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Paris", "Paris", 1),
        ("It's Paris!", "Paris", 1),
        ("The capital of France is Paris.", "Paris", 1),
        ("The capital of France is the city of Paris, on the Seine.", "paris", 1),
        ('The plural of "ox" is "oxen".', "oxen", 1),
        # More than four words: no short answer
        (
            "It is not Paris but Lyon that I would name here",
            "Paris",
            0,
        ),
        ("Paris, Texas", "Texas", 0),
        ("Lyon\nParis", "Paris", 0),  # the first line answers
        ("Fe", ["Iron", "Fe"], 1),
    ],
)
def test_short_answers_are_read_from_words_and_sentences(prediction, reference, expected):
    assert score("short_answer", prediction, reference) == expected


def test_rouge_l_is_the_packages_own_value():
    from rouge_score.rouge_scorer import RougeScorer

    prediction, reference = "the cats were sitting on mats", "a cat sat on the mat"
    expected = (
        RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure
    )
    # By hand, stemmed: "cat on mat" is common, so recall 3/6, precision 3/6, F1 0.5.
    assert score("rouge_l", prediction, reference) == pytest.approx(expected) == pytest.approx(0.5)
    assert score("rouge_l", prediction, ["nothing alike", reference]) == pytest.approx(expected)


def test_reasoning_gym_questions_are_scored_as_the_library_scores_them():
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("spell_backward", seed=3, size=4)
    for entry in dataset:
        for answer in (
            entry["answer"],
            entry["answer"][:-1] + "q",
            entry["answer"].upper(),
            "nothing of the sort",
        ):
            assert score(
                "reasoning_gym:spell_backward", answer, dict(entry)
            ) == dataset.score_answer(answer, entry)
    # The bare answer will do
    assert score("reasoning_gym:spell_backward", dataset[0]["answer"], dataset[0]["answer"]) == 1.0


def test_a_users_own_metric_is_named_by_import_path_and_asked_once_for_all_its_answers(
    tmp_path, monkeypatch
):
    (tmp_path / "my_metrics.py").write_text(
        "calls = []\nclass Share:\n    def compute(self, *, predictions, references):\n       "
        " calls.append(list(predictions))\n        return [len(p) / len(r) for p, r in"
        " zip(predictions, references)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    questions = [
        Question(str(i), f"q{i}", metric=metric, _reference="abcd")
        for i, metric in enumerate(
            ["my_metrics:Share", "exact_match", "my_metrics:Share", "my_metrics:Share"]
        )
    ]
    assert score_answers(questions, ["a", "ABCD", "abc", " \n"], ["e"] * 4) == [
        0.25,
        1.0,
        0.75,
        0.0,
    ]
    import my_metrics

    assert my_metrics.calls == [["a", "abc"]]  # one call, and none for the empty answer
    with pytest.raises(
        MetricError, match=r"my_metrics:Share: score 1\.25 of question 0 is outside \[0, 1\]"
    ):
        score_answers(questions[:1], ["abcde"], ["e"])


def test_empty_answers_score_nothing_under_every_metric(bert_encoder):
    metrics = [
        "exact_match",
        "short_answer",
        "rouge_l",
        "numeric_match",
        "multiple_choice",
        "reasoning_gym:spell_backward",
        f"bertscore:{bert_encoder}:2",
    ]
    # Even where the reference is as empty
    questions = [
        Question(str(i), "q", metric=metric, _reference="") for i, metric in enumerate(metrics)
    ]
    assert score_answers(questions, ["", " ", "\n", "", "", "\t", ""], ["e"] * 7) == [0.0] * 7


@pytest.mark.parametrize("name", ["bleu", "exact-match", "reasoning_gym:", "evaluate:"])
def test_an_unknown_metric_names_the_known_ones(name):
    with pytest.raises(
        MetricError,
        match=(
            f"unknown metric '{name}'; known: exact_match, short_answer, numeric_match,"
            " math, multiple_choice, rouge_1, rouge_2, rouge_l, bertscore"
        ),
    ):
        get_metric(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:Metric", "No module named 'no_such_package'"),
        ("json:Metric", "has no attribute 'Metric'"),
        ("json:JSONDecoder", "has no attribute 'compute'"),
        ("builtins:exit", "exit is no class"),
        ("tempfile:TemporaryFile", "TemporaryFile is no class"),
        ("bertscore:model", "expected bertscore:MODEL:LAYERS"),
    ],
)
def test_a_metric_that_cannot_be_had_says_why(name, message):
    with pytest.raises(MetricError, match=message):
        get_metric(name)


def test_reasoning_gym_takes_the_best_reference_and_scores_unreadable_answers_zero():
    import reasoning_gym

    assert score("reasoning_gym:spell_backward", "olleh", ["dlrow", "olleh"]) == 1.0
    # The library's scorer raises ValueError
    assert score("reasoning_gym:prime_factorization", "no idea", "2 x 3") == 0.0
    entry = dict(reasoning_gym.create_dataset("game_of_life", seed=0, size=1)[0])
    assert (
        score("reasoning_gym:game_of_life", "{}", entry) == 0.0
        and score("reasoning_gym:game_of_life", entry["answer"], entry) == 1.0
    )


def test_a_reasoning_gym_data_set_that_does_not_exist_is_named():
    with pytest.raises(MetricError, match="reasoning_gym:no_such_set"):
        score("reasoning_gym:no_such_set", "a", "a")


@pytest.mark.parametrize(
    ("metric", "reference", "message"),
    [
        ("numeric_match", "many", "question q1: numeric_match: no number in the reference 'many'"),
        (
            "numeric_match",
            ["3", "many"],
            "question q1: numeric_match: no number in the reference 'many'",
        ),
        (
            "multiple_choice",
            "Paris",
            "question q1: multiple_choice: no letter A to J in the reference 'Paris'",
        ),
        (
            "exact_match",
            {"answer": "a"},
            "question q1: this metric compares texts; the reference is an object",
        ),
        (
            "bertscore",
            {"answer": "a"},
            "question q1: this metric compares texts; the reference is an object",
        ),
        (
            "reasoning_gym:word_sorting",
            "a, b",
            (
                "question q1: reasoning_gym:word_sorting: the reference has no 'sorted_words'; its"
                " scorer needs the whole generated entry"
            ),
        ),
        (
            "reasoning_gym:spel_backward",
            "a",
            "reasoning_gym:spel_backward: no such data set; did you mean spell_backward?",
        ),
    ],
)
def test_a_reference_that_no_answer_can_be_scored_against_is_refused_before_any_answer_is_paid_for(
    metric, reference, message
):
    good = Question("q0", "Why?", metric="rouge_l", _reference="because")
    with pytest.raises(MetricError, match=re.escape(message)):
        check_metrics([good, Question("q1", "Who?", metric=metric, _reference=reference)], [])


def test_a_module_of_evaluate_takes_the_best_accepted_reference_and_says_which_keys_it_has(
    monkeypatch,
):
    class Module:
        def compute(self, *, predictions, references):
            return {"score": float(predictions == references), "counts": [1]}

    monkeypatch.setattr("evaluate.load", lambda name: Module())
    assert score("evaluate:made_up/score", "b", ["a", "b"]) == 1.0
    with pytest.raises(
        MetricError,
        match=(
            "evaluate:made_up: no 'made_up' in what it returns; name one of score, counts, as in"
            " evaluate:made_up/score"
        ),
    ):
        score("evaluate:made_up", "b", "b")


def test_text_metrics_refuse_an_object_as_reference():
    with pytest.raises(MetricError, match="the reference is an object"):
        score("exact_match", "a", {"answer": "a", "metadata": {}})


def discounted_paper_return(route):
    """Of calls (quality, cost) that end the episode, by the real reward."""
    total, previous = 0.0, 0.0
    for step_idx, (quality, cost) in enumerate(route):
        step = paper_reward(
            step_idx,
            quality,
            previous,
            cost,
            is_satisfied=quality >= P0,
            is_last=step_idx == T_MAX - 1,
            reward=PAPER,
        )
        total, previous = total + PAPER.discount**step_idx * step, quality
    return total


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ([STRONG], 2.738),  # .75 - .012 + 2
        ([WEAK, STRONG], 3.532),  # .693 + .95 (.75 + 5 (.75 - .70) - .012 + 2) = .693 + .95 x 2.988
        ([WEAK, WEAK, STRONG], 4.048),  # .693 + .95 x .693 + .9025 x 2.988
        ([WEAK] * 4 + [STRONG], 5.005),  # .693 (1 + .95 + .9025 + .857375) + .81450625 x 2.988
        ([WEAK] * 5, 1.506),  # .693 x 4.52438125 - .81450625 x 2
    ],
)
def test_the_papers_reward_pays_for_delay_as_the_paper_notes_work_out(route, expected):
    assert discounted_paper_return(route) == pytest.approx(expected, abs=5e-4)


def test_the_first_step_of_the_papers_reward_knows_no_gain():
    step = {
        "is_satisfied": False,
        "is_last": False,
        "reward": RewardConfig(kind="paper", alpha=2.0, beta=5.0),
    }
    assert paper_reward(0, 0.5, 0.0, 0.1, **step) == pytest.approx(0.3)  # .5 - 2 x .1, not + 5 x .5
    assert paper_reward(1, 0.5, 0.6, 0.1, **step) == pytest.approx(-0.2)  # .5 + 5 x (-.1) - 2 x .1
    # The bonus of 2 is lost where the last call does not satisfy
    assert paper_reward(1, 0.5, 0.6, 0.1, **(step | {"is_last": True})) == pytest.approx(-2.2)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_final_reward_sums_to_final_quality_minus_cost_whatever_came_between(discount):
    reward = RewardConfig(kind="final", alpha=0.5, discount=discount)
    route = [(0.4, 0.1), (0.9, 0.2), (0.6, 0.3)]  # an answer made better, then worse
    rewards, previous = [], 0.0
    for step_idx, (quality, cost) in enumerate(route):
        rewards.append(final_reward(quality, previous, cost, is_end=step_idx == 2, reward=reward))
        previous = quality
    # Undiscounted: .6 - .5 (.1 + .2 + .3) = .3. At .9: .81 x .6 - .5 (.1 + .9 x .2 + .81 x .3) =
    # .486 - .2615 = .2245.
    assert sum(discount**t * r for t, r in enumerate(rewards)) == pytest.approx(
        {1.0: 0.3, 0.9: 0.2245}[discount]
    )
    # Phi rises from 0 to .4 at once: a dense signal
    assert rewards[0] == pytest.approx(discount * 0.4 - 0.05)
    assert rewards[2] == pytest.approx(0.6 - 0.15 - 0.9)  # Phi of the better answer is handed back


def test_delay_never_pays_under_the_final_reward():
    def total(route):
        before = [0.0, *(quality for quality, _ in route)]
        reward = RewardConfig(kind="final", alpha=1.0, discount=1.0)
        return sum(
            final_reward(q, before[t], c, is_end=t == len(route) - 1, reward=reward)
            for t, (q, c) in enumerate(route)
        )

    returns = [total([WEAK] * waits + [STRONG]) for waits in range(5)]
    # .75 - .012, then .007 less for every weak call
    assert returns == pytest.approx([0.738, 0.731, 0.724, 0.717, 0.710])


def test_a_call_is_charged_in_every_unit():
    expert = HFExpertConfig(
        name="a",
        source="x",
        params_b=7.0,
        usd_per_million_prompt_tokens=0.5,
        usd_per_million_completion_tokens=2.0,
    )
    cost = call_cost(expert, prompt_tokens=300, completion_tokens=200, latency_s=1.5)
    assert cost.params_b == 7.0
    assert cost.flops == 7e12  # 2 x 7e9 parameters x 500 tokens
    assert cost.usd == pytest.approx(0.00055)  # 300 x 0.5 / 1e6 + 200 x 2 / 1e6
    units = {unit: cost.in_unit(unit) for unit in ("params", "flops", "tokens", "latency", "usd")}
    assert units == pytest.approx(
        {"params": 7.0, "flops": 7.0, "tokens": 0.5, "latency": 1.5, "usd": 0.00055}
    )
    # The authors' koala
    assert charge(cost, RewardConfig(cost_unit="trillion parameters")) == pytest.approx(0.007)
    assert charge(cost, RewardConfig(cost_unit="0.5 thousand tokens")) == pytest.approx(1.0)


def test_costs_add_up_and_a_call_without_a_price_leaves_no_price():
    first, second = Cost(7.0, 300, 200, 7e12, 1.5, 0.25), Cost(12.0, 10, 5, 3.6e11, 0.25, 0.5)
    assert first + second == Cost(19.0, 310, 205, 7.36e12, 1.75, 0.75)
    assert sum([first, second], Cost()) == first + second
    unpriced = first + Cost(1.0, 1, 1, 4e9, 0.1, None)
    assert unpriced.usd is None
    assert call_cost(HFExpertConfig(name="a", source="x", params_b=1.0), 1, 1, 0.1).usd is None
    with pytest.raises(MetricError, match="without a price cannot be charged in usd"):
        unpriced.in_unit("usd")
