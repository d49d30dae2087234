import json
import time

import numpy as np
import pytest

from config import DataConfig, SourceConfig
from questions import Question, QuestionSampler, load_splits, read_questions
from runtime.errors import DataError, ReferenceSealedError


def write_jsonl(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return SourceConfig(path=str(path))


def row(text, reference="yes", **more):
    return {"text": text, "reference": reference, **more}


def test_broken_lines_are_named_by_file_and_number(tmp_path):
    source = write_jsonl(tmp_path / "bad.jsonl", [row("a"), "{not json", "", row("b"), "[1, 2]"])
    with pytest.raises(DataError) as error:
        read_questions(source)
    assert f"{tmp_path}/bad.jsonl:2: not valid JSON" in str(error.value)
    assert f"{tmp_path}/bad.jsonl:5: expected an object, found list" in str(error.value)


def test_many_broken_lines_are_counted_after_the_first_three(tmp_path):
    source = write_jsonl(tmp_path / "bad.jsonl", ["{"] * 7)
    with pytest.raises(DataError) as error:
        read_questions(source)
    assert "bad.jsonl:3" in str(error.value)
    assert "bad.jsonl:4" not in str(error.value)
    assert "and 4 more lines" in str(error.value)  # 7 - 3


@pytest.mark.parametrize("reference", [None, "", [], " ", "\t\n", ["", ""], ["a", " "], {}])
def test_a_row_without_a_reference_is_named_unless_none_is_needed(tmp_path, reference):
    source = write_jsonl(tmp_path / "q.jsonl", [row("a"), row("b", reference)])
    with pytest.raises(DataError, match=r"q\.jsonl:2: no reference answer in field 'reference'"):
        read_questions(source)
    assert [q.text for q in read_questions(source, need_reference=False)] == ["a", "b"]


def test_numbers_in_a_list_of_references_become_texts_and_what_is_no_text_is_named(tmp_path):
    source = write_jsonl(tmp_path / "q.jsonl", [row("a", [12, "twelve", 1.5])])
    assert read_questions(source)[0].reference == ["12", "twelve", "1.5"]
    for reference in ([None], ["x", ["y"]]):
        with pytest.raises(
            DataError,
            match=(
                r"q\.jsonl:2: the reference .* holds .*; expected text, a number, or a list of them"
            ),
        ):
            read_questions(write_jsonl(tmp_path / "q.jsonl", [row("a"), row("b", reference)]))


def test_a_row_without_text_names_the_fields_there_are(tmp_path):
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "a", "gold": "b"}])
    with pytest.raises(
        DataError,
        match=r"q\.jsonl:1: no text in field 'text'; its fields are question, gold\. Map yours",
    ):
        read_questions(source)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_questions(SourceConfig(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(DataError, match=r"empty\.jsonl: no questions in it"):
        read_questions(write_jsonl(tmp_path / "empty.jsonl", []))


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "Où?", "reference": "là"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl"):
        read_questions(SourceConfig(path=str(path)))


def test_a_line_separator_inside_a_text_does_not_break_its_line(tmp_path):
    path = tmp_path / "q.jsonl"
    # `str.splitlines` would cut here
    path.write_text(
        json.dumps(row("one\u2028two\u0085three"), ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert [q.text for q in read_questions(SourceConfig(path=str(path)))] == [
        "one\u2028two\u0085three"
    ]


def test_half_characters_are_replaced_wherever_a_row_has_them(tmp_path):
    source = write_jsonl(
        tmp_path / "q.jsonl",
        [row("a \ud83d", "b \ud83d", id="i \ud83d", task="t \ud83d"), row("c", ["d \ud83d"])],
    )
    first, second = read_questions(source)
    assert (first.text, first.reference, first.id, first.task) == (
        "a \ufffd",
        "b \ufffd",
        "i \ufffd",
        "t \ufffd",
    )
    assert second.reference == ["d \ufffd"]


def test_fields_are_mapped_into_nested_objects_and_defaults_fill_the_rest(tmp_path):
    rows = [
        {"qid": 7, "input": {"body": {"text": " Why? "}}, "output": {"gold": 42}},
        {
            "qid": 8,
            "input": {"body": {"text": "Who?"}},
            "output": {"gold": ["x", "y"]},
            "metric": "rouge_l",
        },
    ]
    fields = {"id": "qid", "text": "input.body.text", "reference": "output.gold"}
    source = write_jsonl(tmp_path / "q.jsonl", rows).model_copy(
        update={"fields": fields, "task": "trivia", "metric": "numeric_match"}
    )
    first, second = read_questions(source)
    assert first == Question("7", "Why?", "trivia", "numeric_match", "42")
    assert second == Question("8", "Who?", "trivia", "rouge_l", ["x", "y"])


@pytest.mark.parametrize("metric", ["os:abort", "builtins:exit", ":x", "evaluate:./mine.py"])
def test_code_that_a_row_names_is_refused_by_file_and_line(tmp_path, metric):
    source = write_jsonl(tmp_path / "q.jsonl", [row("a"), row("b", metric=metric)])
    with pytest.raises(DataError, match=rf"q\.jsonl:2: metric '{metric}' is code.*data\.metrics"):
        read_questions(source)
    assert len(read_questions(source, need_reference=False)) == 2  # nothing will be scored


def test_a_row_may_name_the_code_that_the_configuration_lists(tmp_path):
    sources = {}
    for name in ("train", "validation", "test"):
        rows = [row(name, metric="my_metrics:Share")]
        sources[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    splits = load_splits(DataConfig(**sources, metrics=["my_metrics:Share"]))
    assert splits.test[0].metric == "my_metrics:Share"
    with pytest.raises(DataError, match=r"test\.jsonl:1: metric 'my_metrics:Share' is code"):
        load_splits(DataConfig(**sources, metrics=["my_metrics:Other"]))
    of_the_split = sources["test"].model_copy(update={"metric": "my_metrics:Share"})
    assert read_questions(of_the_split)[0].metric == "my_metrics:Share"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": ' + "[" * 101 + "]" * 101 + "}", "nested more than 100 levels deep"),
        ("[" * 100_000, "nested more than 100 levels deep"),
        ('{"id": ' + "9" * 5000 + "}", "a number of more than 4,300 digits"),
    ],
)
def test_json_that_no_computer_wants_to_read_is_named_by_file_and_line(tmp_path, line, said):
    source = write_jsonl(tmp_path / "q.jsonl", [row("a"), line])
    with pytest.raises(DataError, match=rf"q\.jsonl:2: {said}"):
        read_questions(source)


def test_bytes_that_are_no_text_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"text": "a", "reference": "b"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"q\.jsonl:2: not UTF-8 text"):
        read_questions(SourceConfig(path=str(path)))


@pytest.mark.slow
def test_ids_are_compared_in_linear_time(tmp_path):
    rows = [row(f"{number}?", id=str(number)) for number in range(40_000)]
    sources = {
        "train": write_jsonl(tmp_path / "train.jsonl", [*rows, row("the last", id="39999")]),
        "validation": write_jsonl(tmp_path / "validation.jsonl", [row("v")]),
        "test": write_jsonl(tmp_path / "test.jsonl", [row("t")]),
    }
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"data\.train: id '39999' occurs twice"):
        load_splits(DataConfig(**sources))
    assert time.perf_counter() - began < 10  # counting each id in all of them took 60 s


def test_limit_reads_no_further_than_asked(tmp_path):
    source = write_jsonl(tmp_path / "q.jsonl", [row("a"), row("b"), row("c")]).model_copy(
        update={"limit": 2}
    )
    assert [q.id for q in read_questions(source)] == ["q-000000", "q-000001"]


def test_splits_are_disjoint_by_text_and_repeats_are_counted(tmp_path):
    data = DataConfig(
        test=write_jsonl(tmp_path / "test.jsonl", [row("a"), row("b"), row("a", "later")]),
        validation=write_jsonl(tmp_path / "validation.jsonl", [row("b"), row("c  d")]),
        train=write_jsonl(
            tmp_path / "train.jsonl", [row("c d"), row("a"), row("e"), row("e"), row("f")]
        ),
    )
    splits = load_splits(data)
    assert [q.text for q in splits.test] == ["a", "b"]
    assert [q.text for q in splits.validation] == ["c  d"]  # b is a test question
    assert [q.text for q in splits.train] == ["e", "f"]  # "c d" is "c  d" but for a space
    assert splits.num_merged == 5  # 10 rows read, 5 kept
    assert splits.test[0].reference == "yes"  # the first of two


def test_a_split_that_other_splits_use_up_is_an_error(tmp_path):
    same = write_jsonl(tmp_path / "q.jsonl", [row("a")])
    with pytest.raises(DataError, match=r"data\.validation: every question in it also occurs"):
        load_splits(DataConfig(train=same, validation=same, test=same))


def test_an_id_that_occurs_twice_is_an_error(tmp_path):
    sources = {
        name: write_jsonl(
            tmp_path / f"{name}.jsonl",
            [row(f"{name} 1", id="x"), row(f"{name} 2", id="x" if name == "train" else "y")],
        )
        for name in ("train", "validation", "test")
    }
    with pytest.raises(DataError, match=r"data\.train: id 'x' occurs twice"):
        load_splits(DataConfig(**sources))


def test_a_sealed_question_keeps_everything_but_its_reference():
    question = Question("q1", "2 + 2?", "sums", "numeric_match", "4")
    sealed = question.sealed()
    assert (sealed.id, sealed.text, sealed.task, sealed.metric) == (
        "q1",
        "2 + 2?",
        "sums",
        "numeric_match",
    )
    with pytest.raises(ReferenceSealedError, match="q1"):
        _ = sealed.reference
    assert question.reference == "4"
    assert "4" not in repr(question).replace("2 + 2", "")  # nor does a log line give it away


@pytest.mark.parametrize("form", ["parquet", "json"])
def test_any_source_that_datasets_reads_can_be_used(tmp_path, monkeypatch, form):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = datasets.Dataset.from_list(
        [
            {"q": {"text": "Why?"}, "a": ["x", "y"], "n": 1},
            {"q": {"text": "Who?"}, "a": ["z"], "n": 2},
        ]
    )
    (
        rows.to_parquet(folder / "data.parquet")
        if form == "parquet"
        else rows.to_json(folder / "data.json")
    )
    questions = read_questions(
        SourceConfig(
            path=str(folder),
            fields={"id": "n", "text": "q.text", "reference": "a"},
            metric="rouge_l",
        )
    )
    assert questions == [
        Question("1", "Why?", "default", "rouge_l", ["x", "y"]),
        Question("2", "Who?", "default", "rouge_l", ["z"]),
    ]


def test_a_folder_whose_rows_have_changed_is_read_afresh(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path:"
        " train-*\n---\n"
    )
    texts = []
    for text in ("before", "after"):
        write_jsonl(tmp_path / "mine" / "train-0.jsonl", [row(text)])
        texts += [
            question.text for question in read_questions(SourceConfig(path=str(tmp_path / "mine")))
        ]
    assert texts == ["before", "after"]


def test_a_folder_with_a_broken_line_is_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    write_jsonl(tmp_path / "mine" / "train.jsonl", [row("a"), '{"text": "b'])
    with pytest.raises(DataError, match=r"mine: datasets could not read all of it"):
        read_questions(SourceConfig(path=str(tmp_path / "mine")))


def test_a_source_that_datasets_cannot_find_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: datasets could not load it"):
        read_questions(SourceConfig(path=str(tmp_path / "nowhere")))


def test_the_sampler_hands_out_every_question_once_a_pass_in_changing_order():
    sampler = QuestionSampler(50, np.random.default_rng(0))
    passes = [[sampler.draw() for _ in range(50)] for _ in range(3)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_question_given_back_is_not_lost_from_its_pass():
    sampler = QuestionSampler(10, np.random.default_rng(0))
    first, unused = sampler.draw(), sampler.draw()
    sampler.give_back(unused)
    rest = [sampler.draw() for _ in range(9)]
    assert sorted([first, *rest]) == list(range(10))


def test_a_sampler_restored_from_its_state_goes_on_where_it_was():
    sampler = QuestionSampler(10, np.random.default_rng(0))
    for _ in range(13):
        sampler.draw()
    state = json.loads(json.dumps(sampler.state()))  # as a checkpoint would keep it
    expected = [sampler.draw() for _ in range(40)]
    restored = QuestionSampler(10, np.random.default_rng(99))
    restored.load_state(state)
    assert [restored.draw() for _ in range(40)] == expected
