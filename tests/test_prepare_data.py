import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
from local_hub import local_hub

from config import DataConfig, SourceConfig
from metrics.registry import get_metric, score_answers
from questions import load_splits, read_questions, text_key
from runtime.errors import DataError
from scripts import prepare_data
from scripts.support import data_sources

FIXTURES = Path(__file__).parent / "fixtures"  # invented rows in each source's own schema
SPLITS = ("train", "validation", "test")
# The hub names of LLM-Blender's table of models, without mpt-7b, whose base model the files hold as
# a twelfth
ELEVEN = [
    "alpaca-native", "chatglm-6b", "dolly-v2-12b", "flan-t5-xxl", "koala-7B-HF",
    "llama-7b-hf-baize-lora-bf16", "moss-moon-003-sft", "mpt-7b-instruct",
    "oasst-sft-4-pythia-12b-epoch-3.5", "stablelm-tuned-alpha-7b", "vicuna-13b-1.1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`prepared(name)`: folder of the prepared fixture, made once."""
    made = {}

    def prepare(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            source = FIXTURES if name == "multidomain" else FIXTURES / name
            prepare_data.main([name, "--source", str(source), "--out", str(made[name])])
        return made[name]

    return prepare


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_id(folder, split):
    return {question["id"]: question for question in lines(folder / f"{split}.jsonl")}


@pytest.mark.parametrize("name", prepare_data.NAMES)
def test_every_set_loads_as_the_project_reads_questions_and_its_splits_are_disjoint(prepared, name):
    folder = prepared(name)
    splits = load_splits(
        DataConfig(**{split: SourceConfig(path=str(folder / f"{split}.jsonl")) for split in SPLITS})
    )
    assert splits.num_merged == 0  # nothing is left to merge
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {split: len(getattr(splits, split)) for split in SPLITS} == provenance["questions"]


@pytest.mark.parametrize("name", [name for name in prepare_data.NAMES if name != "mixinstruct"])
def test_the_metric_of_every_question_scores_each_accepted_reference_as_1_and_another_text_as_0(
    prepared, name
):
    for split in SPLITS:
        for question in read_questions(SourceConfig(path=str(prepared(name) / f"{split}.jsonl"))):
            accepted = (
                question.reference if isinstance(question.reference, list) else [question.reference]
            )
            assert score_answers([question] * len(accepted), accepted, ["e"] * len(accepted)) == [
                1.0
            ] * len(accepted)
            assert score_answers([question], ["none of this"], ["e"]) == [0.0]


def test_the_graded_metric_of_mixinstruct_scores_the_reference_highest(prepared, bert_encoder):
    questions = read_questions(SourceConfig(path=str(prepared("mixinstruct") / "test.jsonl")))
    assert {question.metric for question in questions} == {"bertscore"}
    # The same metric with an encoder that is here
    small = get_metric(f"bertscore:{bert_encoder}:2")
    references = [question.reference for question in questions]
    assert small.compute(predictions=references, references=references) == pytest.approx(
        [1.0] * len(references), abs=1e-5
    )


def test_gsm8k_takes_the_number_after_the_mark_by_the_sources_own_rule(prepared):
    test = by_id(prepared("gsm8k"), "test")
    # From "#### 1,234", "#### -7", "#### 2.50"
    assert [test[f"gsm8k-test-00000{i}"]["reference"] for i in range(3)] == [
        "1234",
        "-7",
        "2.50",
    ]
    question = test["gsm8k-test-000001"]
    assert (
        question["text"]
        == "A diver at the surface sinks 7 metres. What is the diver's height in metres?\nEnd with"
        ' "####" and the final number alone.'
    )
    assert (question["task"], question["metric"]) == ("gsm8k", "numeric_match")


def test_a_worked_answer_in_the_form_asked_for_is_scored_by_its_last_number(prepared):
    question = next(
        q
        for q in read_questions(SourceConfig(path=str(prepared("gsm8k") / "test.jsonl")))
        if q.reference == "1234"
    )
    assert score_answers(
        [question] * 3,
        ["411*3=1233\n#### 1,234", "1,234 sacks, of which 1233\n#### 1233", "#### 1,234 sacks"],
        ["e"] * 3,
    ) == [1.0, 0.0, 1.0]


def test_a_row_without_a_final_number_is_left_out_and_counted(prepared):
    provenance = json.loads((prepared("gsm8k") / "provenance.json").read_text())
    assert provenance["left_out"] == {"repeats": 0, "unusable": 1}
    # 25 training rows, one of them without a number, and 3 test rows
    assert sum(provenance["questions"].values()) == 24 + 3


def test_choices_are_lettered_and_the_reference_is_the_letter(prepared):
    question = by_id(prepared("mmlu"), "test")["mmlu-test-000001"]
    assert (
        question["text"]
        == "The heart pumps\nA. air\nB. bile\nC. lymph\nD. blood\nAnswer with the letter of the"
        " right choice."
    )
    assert (question["reference"], question["task"], question["metric"]) == (
        "D",
        "anatomy",
        "multiple_choice",
    )
    [row] = [
        row
        for row in read_questions(SourceConfig(path=str(prepared("mmlu") / "test.jsonl")))
        if row.id == "mmlu-test-000001"
    ]
    assert score_answers([row] * 3, ["D", "The answer is (D).", "C. lymph"], ["e"] * 3) == [
        1.0,
        1.0,
        0.0,
    ]


def test_mmlu_trains_on_the_auxiliary_questions_and_never_on_a_test_question(prepared):
    folder = prepared("mmlu")
    assert {question["task"] for question in lines(folder / "train.jsonl")} == {"auxiliary_train"}
    assert len(lines(folder / "train.jsonl")) == 2  # of three: one is a test question
    assert "prime" not in (folder / "train.jsonl").read_text()
    assert json.loads((folder / "provenance.json").read_text())["left_out"]["repeats"] == 1


def test_arc_choices_labelled_by_number_or_five_strong_get_letters_by_position(prepared):
    test = by_id(prepared("arc_challenge"), "test")
    assert test["arc_challenge-test-000000"]["reference"] == "D"  # answerKey "4" of 1 to 4
    assert test["arc_challenge-test-000001"]["text"].splitlines()[1:6] == [
        "A. trout",
        "B. frog",
        "C. bat",
        "D. gecko",
        "E. crow",
    ]
    [validation] = lines(prepared("arc_challenge") / "validation.jsonl")
    assert validation["reference"] == "C"  # answerKey "3"


def test_triviaqa_accepts_every_alias_and_tests_on_the_split_that_has_answers(prepared):
    test = by_id(prepared("triviaqa"), "test")
    assert test["triviaqa-validation-000000"]["reference"] == [
        "Moby-Dick",
        "Moby Dick; or, The Whale",
        "Moby Dick",
    ]
    question = next(
        q
        for q in read_questions(SourceConfig(path=str(prepared("triviaqa") / "test.jsonl")))
        if q.id == "triviaqa-validation-000000"
    )
    assert score_answers(
        [question] * 3, ["moby dick", "Moby Dick; or, the Whale.", "Ahab"], ["e"] * 3
    ) == [1.0, 1.0, 0.0]
    assert not any(
        "<unk>" in str(row)
        for split in SPLITS
        for row in lines(prepared("triviaqa") / f"{split}.jsonl")
    )


def test_hellaswag_tests_on_the_split_that_has_labels_and_drops_layout_marks(prepared):
    [question] = lines(prepared("hellaswag") / "test.jsonl")
    assert (
        question["text"]
        == "Which ending continues the text best?\nPainting a fence: How to paint a fence Clean the"
        " wood. Brush off the dirt.\nA. Swallow the brush.\nB. Throw the fence away. Run.\nC."
        " Let it dry, then apply the first coat.\nD. Paint the grass.\nAnswer with the letter of"
        " the right choice."
    )
    assert question["reference"] == "C"  # label "2"


def test_validation_is_cut_from_training_by_the_text_alone(prepared, tmp_path):
    before = {question["text"] for question in lines(prepared("gsm8k") / "validation.jsonl")}
    grown = tmp_path / "gsm8k"
    (grown / "main").mkdir(parents=True)
    for path in ("README.md", "main/test-00000-of-00001.jsonl"):
        (grown / path).write_bytes((FIXTURES / "gsm8k" / path).read_bytes())
    rows = (FIXTURES / "gsm8k/main/train-00000-of-00001.jsonl").read_text().splitlines()
    more = [
        json.dumps({"question": f"What is {i} times 3?", "answer": f"#### {3 * i}"})
        for i in range(50)
    ]
    (grown / "main/train-00000-of-00001.jsonl").write_text(
        "\n".join([*more, *reversed(rows)]) + "\n"
    )
    prepare_data.main(
        ["gsm8k", "--source", str(grown), "--out", str(tmp_path / "out"), "--seed", "7"]
    )
    after = {question["text"] for question in lines(tmp_path / "out" / "validation.jsonl")}
    assert before < after
    assert {text for text in after if "times 3" not in text} == before


def test_the_share_held_out_is_the_share_asked_for():
    held_out = sum(prepare_data.is_held_out(f"question {i}", 0.1) for i in range(10_000))
    assert 880 < held_out < 1120  # 1,000 give or take four standard deviations of 30


def test_mixinstruct_joins_instruction_and_input_and_names_the_task_by_its_origin(prepared):
    validation = by_id(prepared("mixinstruct"), "validation")
    question = validation["mixinstruct-validation-000001"]
    assert (question["text"], question["reference"]) == (
        "Name the season that fits.\nLeaves fall and days get shorter.",
        "Fall.",
    )
    assert question["task"] == "dolly_15k"


def test_a_repeated_question_stays_in_test_then_in_validation(prepared):
    folder = prepared("mixinstruct")
    places = {
        text_key(question["text"]): split
        for split in SPLITS
        for question in lines(folder / f"{split}.jsonl")
    }
    assert places["What is a hash table?"] == "test"  # in train with two spaces
    assert places["Name the season that fits. Leaves fall and days get shorter."] == "validation"
    # One has no reference
    assert json.loads((folder / "provenance.json").read_text())["left_out"] == {
        "repeats": 2,
        "unusable": 1,
    }


def test_recorded_answers_are_the_eleven_experts_of_the_paper_with_their_bertscore(prepared):
    recorded = lines(prepared("mixinstruct") / "recorded.jsonl")
    questions = {
        q["text"]: (q["reference"], q["task"], split)
        for split in SPLITS
        for q in lines(prepared("mixinstruct") / f"{split}.jsonl")
    }
    assert {
        row["question"]: (row["reference"], row["meta"]["task"], row["meta"]["split"])
        for row in recorded
    } == questions
    for row in recorded:
        assert sorted(row["answers"]) == sorted(row["scores"]) == ELEVEN
        # Not the base model's, number 11
        assert row["answers"]["mpt-7b-instruct"].endswith("says model 10.")
        assert all(0.0 <= score <= 1.0 for score in row["scores"].values())
    boiling = next(row for row in recorded if row["meta"]["id"] == "unified_chip2/301")
    assert boiling["answers"]["koala-7B-HF"] == ""  # an expert may say nothing
    assert boiling["scores"]["koala-7B-HF"] == pytest.approx(0.98)
    assert boiling["scores"]["oasst-sft-4-pythia-12b-epoch-3.5"] == 1.0  # 1.0000002 upstream


def test_multidomain_mixes_all_domains_under_their_names(prepared):
    folder = prepared("multidomain")
    tasks = {
        split: Counter(question["task"] for question in lines(folder / f"{split}.jsonl"))
        for split in SPLITS
    }
    assert (
        set(tasks["train"])
        == set(tasks["validation"])
        == set(tasks["test"])
        == set(data_sources.MULTIDOMAIN)
    )
    assert tasks["test"] == {
        "gsm8k": 3,
        "mmlu": 2,
        "arc_challenge": 2,
        "triviaqa": 2,
        "hellaswag": 1,
    }
    order = [question["task"] for question in lines(folder / "train.jsonl")]
    assert order != sorted(order)
    assert len(json.loads((folder / "provenance.json").read_text())["sources"]) == 5


def test_limit_draws_a_sample_that_the_seed_alone_decides(prepared, tmp_path):
    def draw(seed):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        prepare_data.main(
            [
                "triviaqa",
                "--source",
                str(FIXTURES / "triviaqa"),
                "--out",
                str(out),
                "--limit",
                "5",
                "--seed",
                str(seed),
            ]
        )
        return (out / "train.jsonl").read_bytes()

    first = draw(0)
    assert len(first.splitlines()) == 5
    assert draw(0) == first != draw(1)
    full = (prepared("triviaqa") / "train.jsonl").read_bytes()
    assert full.startswith(first)  # the first N lines of the whole file


def test_a_limit_bounds_every_domain_of_the_mix(tmp_path):
    prepare_data.main(
        ["multidomain", "--source", str(FIXTURES), "--out", str(tmp_path), "--limit", "1"]
    )
    for split in SPLITS:
        assert Counter(
            question["task"] for question in lines(tmp_path / f"{split}.jsonl")
        ) == dict.fromkeys(data_sources.MULTIDOMAIN, 1)


@pytest.mark.parametrize("name", ["mmlu", "arc_challenge", "triviaqa", "hellaswag"])
def test_parquet_files_as_on_the_hub_give_the_same_questions(prepared, tmp_path, name):
    for path in (FIXTURES / name).rglob("*"):
        copy = tmp_path / "copy" / path.relative_to(FIXTURES / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_bytes(path.read_bytes())
    subset = data_sources.SOURCES[name].subset
    for split, rows in datasets.load_dataset(str(FIXTURES / name), subset).items():
        rows.to_parquet(tmp_path / "copy" / (subset or "data") / f"{split}-00000-of-00001.parquet")
    prepare_data.main([name, "--source", str(tmp_path / "copy"), "--out", str(tmp_path / "out")])
    for split in SPLITS:
        assert (tmp_path / "out" / f"{split}.jsonl").read_bytes() == (
            prepared(name) / f"{split}.jsonl"
        ).read_bytes()


def test_provenance_names_source_commit_versions_and_checksums(tmp_path):
    commit = data_sources.SOURCES["mixinstruct"].revision
    prepare_data.main(
        [
            "mixinstruct",
            "--source",
            str(FIXTURES / "mixinstruct"),
            "--revision",
            commit,
            "--out",
            str(tmp_path),
        ]
    )
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    [source] = provenance["sources"]
    assert (source["hub_id"], source["commit"]) == ("llm-blender/mix-instruct", commit)
    assert provenance["datasets"] == datasets.__version__
    assert provenance["recorded_answers"] == dict.fromkeys(ELEVEN, 6)
    assert lines(tmp_path / "recorded.jsonl")[0]["meta"]["commit"] == commit
    printed = subprocess.run(
        ["sha256sum", tmp_path / "train.jsonl", tmp_path / "recorded.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in printed.splitlines()] == [
        provenance["sha256"]["train.jsonl"],
        provenance["sha256"]["recorded.jsonl"],
    ]


def test_every_pinned_revision_is_a_commit():
    for source in data_sources.SOURCES.values():
        assert len(source.revision) == 40
        int(source.revision, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}],
)
def test_without_a_hub_the_message_says_within_seconds_what_to_run_where(
    project, tmp_path, environment
):
    start_s = time.perf_counter()
    command = [
        sys.executable,
        str(project / "scripts" / "prepare_data.py"),
        "gsm8k",
        "--out",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=60,
    )
    # Importing included; `datasets` alone retries for longer
    assert time.perf_counter() - start_s < 20
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "error: openai/gsm8k: the hub cannot be reached from this machine ("
    )
    assert (
        "\n    python scripts/prepare_data.py gsm8k\nand copy the folder data/gsm8k to the same"
        " place here." in result.stderr
    )
    assert (
        "hf download openai/gsm8k --repo-type dataset --revision"
        f" {data_sources.SOURCES['gsm8k'].revision} --local-dir FOLDER\n" in result.stderr
    )
    assert not (tmp_path / "out").exists()


def test_without_a_hub_multidomain_says_where_each_source_goes():
    with pytest.raises(
        DataError,
        match=(
            r"(?s)prepare_data\.py multidomain\n.*--local-dir FOLDER/gsm8k\n.*--local-dir"
            r" FOLDER/hellaswag\n.*multidomain --source FOLDER"
        ),
    ):
        prepare_data.main(["multidomain"])


def run_against(endpoint, project, tmp_path, *arguments):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [
        sys.executable,
        str(project / "scripts" / "prepare_data.py"),
        "gsm8k",
        "--out",
        str(tmp_path / "out"),
        *arguments,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize("revision", [[], ["--revision", "main"]])
def test_from_a_hub_the_commit_is_resolved_and_recorded(prepared, project, tmp_path, revision):
    commit = data_sources.SOURCES["gsm8k"].revision if not revision else "c0ffee" + "0" * 34
    with local_hub("openai/gsm8k", commit, FIXTURES / "gsm8k") as endpoint:
        result = run_against(endpoint, project, tmp_path, *revision)
    assert result.returncode == 0, result.stderr
    assert "22 train, 2 validation, 3 test" in result.stdout
    [source] = json.loads((tmp_path / "out" / "provenance.json").read_text())["sources"]
    assert source == {
        "name": "gsm8k",
        "hub_id": "openai/gsm8k",
        "subset": "main",
        "read_from": "openai/gsm8k",
        "commit": commit,
    }
    for split in SPLITS:
        assert (tmp_path / "out" / f"{split}.jsonl").read_bytes() == (
            prepared("gsm8k") / f"{split}.jsonl"
        ).read_bytes()


@pytest.mark.slow
def test_a_revision_that_the_hub_refuses_is_not_called_unreachable(project, tmp_path):
    with local_hub("openai/gsm8k", "c0ffee" + "0" * 34, FIXTURES / "gsm8k") as endpoint:
        result = run_against(endpoint, project, tmp_path, "--revision", "nonsense")
    assert result.stderr.startswith(
        "error: openai/gsm8k: refused by the hub (404 Client Error. Revision Not Found"
    )


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("gms8k", "gsm8k"),
        ("mix-instruct", "mixinstruct"),
        ("arc", "arc_challenge"),
        ("HellaSwag", "hellaswag"),
        ("trivia_qa", "triviaqa"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(typo, meant):
    with pytest.raises(DataError, match=rf"unknown data set '{typo}'; did you mean {meant}"):
        prepare_data.main([typo])


def test_a_name_like_no_other_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'xyz'; known: mixinstruct, gsm8k, mmlu"):
        prepare_data.main(["xyz"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "neither a folder nor a hub id"),
        (str(FIXTURES / "mmlu"), "datasets could not load it"),
    ],
)
def test_a_source_that_is_not_what_was_asked_for_is_named(source, message):
    with pytest.raises(DataError, match=message):
        prepare_data.main(["gsm8k", "--source", source])


def test_a_copy_of_another_schema_is_refused_with_the_row_and_its_fields(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "target": "b"}\n')
    (tmp_path / "test.jsonl").write_text('{"prompt": "c", "target": "d"}\n')
    with pytest.raises(DataError, match=r"only train, test; is it a copy of Rowan/hellaswag\?"):
        prepare_data.main(["hellaswag", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "validation.jsonl").write_text('{"prompt": "e", "target": "f"}\n')
    with pytest.raises(
        DataError,
        match=(
            r"\[validation\]\[0\]: not a row of Rowan/hellaswag \(KeyError: 'ctx'\); its fields are"
            r" prompt, target"
        ),
    ):
        prepare_data.main(["hellaswag", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "provenance.json").exists()  # nothing claims to be whole


def test_a_limit_or_seed_that_cannot_be_is_refused(capsys):
    for flag, value, least in (("--limit", "0", 1), ("--seed", "-1", 0)):
        with pytest.raises(SystemExit):
            prepare_data.main(["gsm8k", "--source", str(FIXTURES / "gsm8k"), flag, value])
        assert f"{flag}: at least {least}" in capsys.readouterr().err


def test_multidomain_takes_no_revision():
    with pytest.raises(DataError, match="each at its pinned commit"):
        prepare_data.main(["multidomain", "--revision", "main"])


def test_multidomain_names_the_copies_that_are_missing(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(DataError, match="no folder mmlu, arc_challenge, triviaqa, hellaswag in it"):
        prepare_data.main(["multidomain", "--source", str(tmp_path)])
