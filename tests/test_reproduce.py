"""scripts/reproduce.py: a real run of the embedded pool's experts on a few questions, and what it
says where nothing can be run.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rouge_score.rouge_scorer import RougeScorer

import test_ppo_multi
import train_ppo_multi
from scripts import experiment, reproduce

REAL_TABLES, START_SCRIPT = reproduce.TABLES, experiment._python
TABLES = yaml.safe_load(REAL_TABLES.read_text(encoding="utf-8"))
MEASURES = {
    "quality": {"of": "quality", "decimals": 3},
    "per cent": {"of": "quality", "scale": 100},
    "calls": {"of": "calls"},
    "gain": {"of": "gain", "decimals": 3},
    "share": {"of": "share", "decimals": 4},
    "parameters": {"of": "params_b", "decimals": 6},
    "s": {"of": "latency_s", "decimals": 4},
    "ROUGE": {"of": "metric:rouge_l", "decimals": 4},
    "BLEURT": {"of": "metric:bleurt:no/such-model"},
    "GPT-Rank": {"why_not": "needs a judge"},
}
TOY = {
    "title": "a toy",
    "config": "configs/quickstart.yaml",
    "measures": MEASURES,
    "rows": [
        {"method": "DER", "policy": "DER", "paper": dict.fromkeys(MEASURES, 0.25)},
        {
            "method": "best",
            "policy": "best fixed: .*",
            "paper": {"quality": "about 1", "gain": 0.0},
        },
        {
            "method": "no Terminator",
            "policy": "DER",
            "evaluate": {"eval.use_terminator": False},
            "paper": {"calls": 2},
        },
        {"method": "T_max 1", "policy": "DER", "train": {"env.t_max": 1}, "paper": {"calls": 1}},
        {"method": "T_max 2", "policy": "DER", "train": {"env.t_max": 2}, "paper": {"calls": 2}},
        {"method": "absent", "why_not": "never built", "paper": {"quality": 0.5, "calls": 3}},
        {"method": "unknown", "policy": "no such policy", "paper": {"quality": 0.5}},
    ],
}
SMALL = {
    "threads": 1,
    "env.t_max": 2,
    "agent.max_tokens": 48,
    "train.epochs": 1,
    "train.updates_per_epoch": 1,
    "train.episodes_per_update": 8,
    "ppo.batch_size": 8,
    "terminator.steps": 5,
    "data.train.limit": 12,
    "data.validation.limit": 8,
    "data.test.limit": 8,
}


@pytest.fixture(scope="module")
def place(
    project: Path, tiny_pool_dir: Path, bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], list[str]]]:
    """A working directory with the toy table; yields the settings of its runs and the scripts that
    were started.
    """
    folder, started = tmp_path_factory.mktemp("reproduce"), []

    def in_process(script: str, *arguments: str) -> None:
        started.append(script)
        {"train_ppo_multi.py": train_ppo_multi.main, "test_ppo_multi.py": test_ppo_multi.main}[
            script
        ](list(arguments))
        gc.collect()

    for name in ("data", "configs"):
        (folder / name).symlink_to(project / name)
    (folder / "tables.yaml").write_text(
        yaml.safe_dump({"toy": TOY, "short": TOY | {"rows": TOY["rows"][:1]}}, sort_keys=False)
    )
    settings = [
        part
        for key, value in (
            SMALL | {"agent.encoder": bert_encoder, "pool.store": folder / "answers.sqlite"}
        ).items()
        for part in (f"--{key}", str(value))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(experiment, "_python", in_process)
        patch.setattr(reproduce, "TABLES", folder / "tables.yaml")
        reproduce.main(["toy", "--seeds", "0", *settings])
        yield settings, started


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing in it, the real tables and scripts started as processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "TABLES", REAL_TABLES)
    monkeypatch.setattr(experiment, "_python", START_SCRIPT)
    return tmp_path


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        capsys.readouterr()
        reproduce.main(list(arguments))
        return capsys.readouterr().out

    return run


def found(text: str, method: str) -> dict[str, list[str]]:
    """Measure -> words after it, of a method's lines."""
    out, current = {}, ""
    for line in text.splitlines():
        current = line[:40].strip() or current
        if current == method and line[40:].strip():
            measure = next(
                (
                    name
                    for name in sorted(MEASURES, key=len, reverse=True)
                    if line[41:].startswith(name + " ")
                ),
                None,
            )
            out[measure] = line[41 + len(measure or "") :].split()
    return out


def test_a_table_shows_paper_ours_with_its_interval_and_the_difference(
    place: tuple, show: Callable
) -> None:
    settings, started = place
    # T_max 2 is the configuration's own
    assert started == [
        "train_ppo_multi.py",
        "test_ppo_multi.py",
        "test_ppo_multi.py",
        "train_ppo_multi.py",
        "test_ppo_multi.py",
    ]
    started.clear()
    shown = show("toy", "--seeds", "0", *settings)
    assert started == []  # finished evaluations are read
    results = json.loads(Path("runs/paper-quickstart/report/results.json").read_text())
    der = results["rows"][0]
    ours = found(shown, "DER")
    spans = {
        "quality": (der["quality"], 1, 3),
        "per cent": (der["quality"], 100, 2),
        "calls": (der["calls"], 1, 2),
    }
    spans["gain"] = (der["vs_best_single"] | {"mean": der["vs_best_single"]["diff"]}, 1, 3)
    for name, (span, scale, digits) in spans.items():
        mean, lo, hi = (f"{scale * span[key]:.{digits}f}" for key in ("mean", "lo", "hi"))
        assert ours[name] == [
            f"{0.25:.{digits}f}",
            mean,
            f"[{lo},",
            f"{hi}]",
            f"{scale * span['mean'] - 0.25:+.{digits}f}",
        ]
    all_params_b = 0.000167872 + 0.000347232 + 0.000344832 + 0.000689664 + 0.000794752
    assert ours["share"][1] == f"{der['cost']['params_b'] / all_params_b:.4f}"
    assert ours["parameters"][1] == f"{der['cost']['params_b']:.6f}"
    # Deciding included
    assert ours["s"][1] == f"{der['cost']['latency_s'] + der['overhead']['latency_s']:.4f}"
    assert found(shown, "best")["quality"][:2] == ["about", "1"] and found(shown, "best")[
        "quality"
    ][-1].endswith("]")  # a text has no difference
    mean, lo, hi = (float(word.strip("[,]")) for word in found(shown, "best")["gain"][1:4])
    assert mean == 0 and lo == -hi < 0  # eight questions on which it does not differ


def test_text_metrics_are_measured_on_the_final_answers(place: tuple, show: Callable) -> None:
    ours = found(show("toy", "--seeds", "0", *place[0]), "DER")
    records = [
        json.loads(line)
        for line in Path("runs/paper-quickstart/routes.jsonl").read_text().splitlines()
    ]
    pairs = [(r["reference"], r["steps"][-1]["answer"]) for r in records if r["policy"] == "DER"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    mean = sum(scorer.score(*pair)["rougeL"].fmeasure for pair in pairs) / len(pairs)
    assert ours["ROUGE"][1] == f"{mean:.4f}"


def test_what_was_not_run_says_why_beside_what_was(place: tuple, show: Callable) -> None:
    shown = show("toy", "--seeds", "0", *place[0])
    assert " ".join(found(shown, "DER")["BLEURT"]).startswith(
        "0.25 not run: metric bleurt:no/such-model: no/such-model not on this machine, and"
        " HF_HUB_OFFLINE"
    )
    assert " ".join(found(shown, "DER")["GPT-Rank"]) == "0.25 not run: needs a judge"
    assert [" ".join(words) for words in found(shown, "absent").values()] == [
        "0.500 not run: never built",
        "3.00 not run",
    ]
    assert (
        "not run: no policy named 'no such policy' in runs/paper-quickstart/report/results.json"
        in " ".join(found(shown, "unknown")["quality"])
    )
    assert "  - never built" in shown.partition("Not run, because:")[2].splitlines()


def test_without_the_terminator_every_route_runs_to_t_max(place: tuple, show: Callable) -> None:
    assert found(show("toy", "--seeds", "0", *place[0]), "no Terminator")["calls"] == [
        "2.00",
        "2.00",
        "[2.00,",
        "2.00]",
        "+0.00",
    ]
    notes = json.loads(
        Path("runs/paper-quickstart-use_terminator_False/report/results.json").read_text()
    )["notes"]
    assert any(note.startswith("Without a Terminator") for note in notes)
    records = [
        json.loads(line)
        for line in (
            Path("runs/paper-quickstart-use_terminator_False/routes.jsonl").read_text().splitlines()
        )
    ]
    ends = {
        (r["stop_reason"], len(r["steps"]))
        for r in records
        if r["policy"] in ("DER", "random with KTP")
    }
    assert ends == {("t_max", 2)}
    assert found(show("toy", "--seeds", "0", *place[0]), "T_max 1")["calls"][1:4] == [
        "1.00",
        "[1.00,",
        "1.00]",
    ]


@pytest.mark.slow
def test_runs_that_are_there_are_evaluated_and_their_other_settings_named(
    place: tuple, show: Callable
) -> None:
    settings, started = place
    started.clear()
    run = "runs/paper-quickstart-s0"
    shown = show(
        "short", "--name", "again", "--reuse", run, "--seeds", "0", *settings, "--ppo.lr", "0.5"
    )
    assert started == ["test_ppo_multi.py"]
    assert f"{run} was trained with other settings than configs/quickstart.yaml: ppo" in shown
    assert (
        found(shown, "DER")["quality"]
        == found(show("toy", "--seeds", "0", *settings), "DER")["quality"]
    )


def test_another_configuration_is_shown_without_differences(place: tuple, show: Callable) -> None:
    shown = show("toy", "--config", "configs/quickstart.yaml", "--seeds", "0", *place[0])
    assert found(shown, "DER")["quality"][-1].endswith("]")


def test_a_results_file_of_other_settings_is_not_taken_for_ours(place: tuple) -> None:
    folder, runs, settings = (
        Path("runs/paper-quickstart"),
        [Path("runs/paper-quickstart-s0")],
        place[0],
    )

    def wanted(*more):
        return reproduce.load_config(Path("configs/quickstart.yaml"), [*settings, *more])

    assert reproduce.finished(folder, runs, settings, wanted())["seeds"] == [0]
    # To be trained otherwise
    assert reproduce.finished(folder, runs, settings, wanted("--ppo.lr", "0.5")) is None
    # To be evaluated otherwise
    assert (
        reproduce.finished(folder, runs, [*settings, "--eval.use_terminator", "false"], None)
        is None
    )
    assert reproduce.finished(folder, [*runs, *runs], settings, None) is None  # other runs
    assert reproduce.finished(Path("runs/none"), runs, settings, None) is None
    (Path("runs/old") / "report").mkdir(parents=True)
    (Path("runs/old") / "report" / "results.json").write_text(json.dumps({"seeds": [0]}))
    assert reproduce.finished(Path("runs/old"), runs, settings, None) is None  # of another format
    older = json.loads((folder / "report" / "results.json").read_text())
    older["evaluation"]["config"]["eval"]["retired"] = 1
    (Path("runs/old") / "report" / "results.json").write_text(json.dumps(older))
    # Of other settings than there are today
    assert reproduce.finished(Path("runs/old"), runs, settings, None) is None


@pytest.mark.slow
def test_a_run_that_fails_is_a_reason_in_its_own_words(
    show: Callable, empty: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "missing", lambda config: iter(()))
    shown = show(
        "embedded", "--config", str(project / "configs" / "quickstart.yaml"), "--seeds", "0"
    )
    assert (
        "  - train_ppo_multi.py ended with exit status 1: data/tiny_questions/test.jsonl: no such"
        " file. What was trained" in shown
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_table_ends_well_and_gives_a_reason_a_row_where_nothing_can_be_run(
    table: str, show: Callable, empty: Path
) -> None:
    shown = show(table)
    config = TABLES[table]["config"]
    for row in TABLES[table]["rows"]:
        first = next(line for line in shown.splitlines() if line.startswith(row["method"] + " "))
        assert f"not run: {row.get('why_not', f'{config}: no such configuration file')}" in first
    assert shown.count("not run") == sum(len(row["paper"]) for row in TABLES[table]["rows"])
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_missing_data_device_and_weights_are_each_named(
    show: Callable, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce.torch.cuda, "is_available", lambda: False)
    data = {
        name: {"path": f"data/mixinstruct/{name}.jsonl"} for name in ("train", "validation", "test")
    }
    experts = [
        {
            "name": f"e{size}",
            "source": f"no-such-owner/no-model-{size}b",
            "params_b": size,
            "dtype": "bfloat16",
        }
        for size in (7, 13, 2, 3)
    ]
    experts.append({"name": "told", "kind": "recorded", "path": "told.jsonl", "params_b": 175})
    (empty / "paper.yaml").write_text(
        yaml.safe_dump(
            {
                "device": "cpu",
                "data": data,
                "pool": {"experts": experts},
                "agent": {"encoder": "no-such-owner/encoder"},
            }
        )
    )
    reasons = (
        show("table1", "--config", "paper.yaml").partition("Not run, because:\n")[2].splitlines()
    )
    assert reasons[:7] == [
        "  - data/mixinstruct/train.jsonl is missing (python scripts/prepare_data.py mixinstruct)",
        (
            "  - data/mixinstruct/validation.jsonl is missing (python scripts/prepare_data.py"
            " mixinstruct)"
        ),
        "  - data/mixinstruct/test.jsonl is missing (python scripts/prepare_data.py mixinstruct)",
        "  - told.jsonl is missing: recorded answers",
        "  - no CUDA device: e13 has 13 billion parameters, 26 GB of weights",
        (
            "  - weights of experts: no-such-owner/no-model-7b, no-such-owner/no-model-13b,"
            " no-such-owner/no-model-2b and 1 more not on this machine, and HF_HUB_OFFLINE forbids"
            " to fetch them"
        ),
        (
            "  - the agent's encoder: no-such-owner/encoder not on this machine, and HF_HUB_OFFLINE"
            " forbids to fetch them"
        ),
    ]
