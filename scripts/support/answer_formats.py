"""Answers of several models in formats that other tools write: lm-evaluation-harness' logged
samples, AlpacaEval's model outputs, RouterBench's wide table.

A reader is a function (folder, choices) -> (model, reply) pairs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from questions import text_key
from runtime.errors import DataError
from scripts.support.recorded_rows import Reply, digest_of
from scripts.support.upstream_files import expect, json_lines, number, read_json, take

SAMPLES = re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
RESPONSE, COST = "|model_response", "|total_cost"  # endings of RouterBench's columns


class Choices(NamedTuple):
    """What to take where a file offers several."""

    question: str = "question"  # field of an lm_eval doc that holds the question
    score: str | None = None
    filter: str | None = None


@dataclass(frozen=True)
class AnswerFormat:
    read: Callable[[Path, Choices], Iterator[tuple[str, Reply]]]
    agreement: str  # metric that decides agreement unless --agreement names another
    holds: str  # what a folder of this format holds


def _one(offered: list[str], chosen: str | None, place: str, what: str) -> str:
    """The one offered, or the one chosen. Raises DataError where that is not one."""
    if chosen is None and len(offered) == 1:
        return offered[0]
    if chosen in offered:
        return str(chosen)
    asked = "choose one" if chosen is None else f"{chosen!r} is none of them"
    raise DataError(f"{place}: {what}s {', '.join(offered) or 'none'}; {asked} with --{what} NAME")


def _generated(row: Any, place: str) -> str:
    """The first text that a model generated for an lm_eval sample: resps hold a list for each
    request, with an item for each repeat.
    """
    of_requests = take(row, "resps", list, place)
    of_first = of_requests[0] if of_requests else None
    text = of_first[0] if isinstance(of_first, list) and of_first else of_first
    if not isinstance(text, str):
        raise DataError(
            f"{place}: scores without texts: resps hold log-likelihoods. Import samples of a task"
            " with output_type generate_until"
        )
    return text


def _lm_eval_score(row: Any, place: str, chosen: str | None) -> float:
    if chosen is not None and "metrics" not in row:  # older versions do not list them
        return number(take(row, chosen, object, place), place, f"field {chosen!r}")
    metrics = take(row, "metrics", list, place)
    offered = [expect(metric, str, place, "each of its metrics") for metric in metrics]
    name = _one(offered, chosen, place, "score")
    return number(take(row, name, object, place), place, f"field {name!r}")


def _lm_eval_sample(row: Any, task: str, place: str, choices: Choices) -> Reply:
    doc = take(row, "doc", dict, place)
    if not isinstance(doc.get(choices.question), str):
        raise DataError(
            f"{place}: doc has no text in field {choices.question!r}; its fields are"
            f" {', '.join(doc)}. Name the one that asks with --question FIELD"
        )
    return Reply(
        key=f"{task}-{take(row, 'doc_id', int, place)}",
        question=doc[choices.question],
        reference=str(take(row, "target", object, place)),
        task=task,
        answer=_generated(row, place),
        score=_lm_eval_score(row, place, choices.score),
        place=place,
    )


def read_lm_eval(folder: Path, choices: Choices) -> Iterator[tuple[str, Reply]]:
    """FOLDER/MODEL/samples_TASK_TIME.jsonl, as `lm_eval --log_samples --output_path FOLDER` writes
    them.

    Every filter has lines of its own; those of the filter chosen are taken.
    """
    for path in sorted(folder.rglob("samples_*.jsonl")):
        if path.parent == folder:
            raise DataError(f"{path}: put each model's samples into a folder of the model's name")
        found = SAMPLES.fullmatch(path.name)
        task = found[1] if found else path.stem
        lines = list(json_lines(path))
        if not lines:
            raise DataError(
                f"{path}: no samples in it: was its evaluation cut off? Run it again, or remove the"
                " file"
            )
        filters: dict[str, None] = {}
        for place, row in lines:
            name = expect(row, dict, place, "the line").get("filter", "none")
            filters[expect(name, str, place, "its filter")] = None
        wanted = _one(list(filters), choices.filter, str(path), "filter")
        for place, row in lines:
            if row.get("filter", "none") == wanted:
                yield path.parent.name, _lm_eval_sample(row, task, place, choices)


def _preferences(folder: Path, chosen: str | None) -> dict[tuple[str, str], tuple[float, str]]:
    """(model, question) -> score and the text it was compared with, from a model's annotations.

    AlpacaEval's preference runs from 1, the first output is better, to 2, the second is. Older
    files have 0 for a draw.
    """
    found = {path.parent.name: path for path in sorted(folder.glob("*/annotations.json*"))}
    if not found:
        return {}
    path = found[_one(list(found), chosen, str(folder), "score")]
    preferences = {}
    for idx, row in enumerate(expect(read_json(path), list, str(path), "the file")):
        place = f"{path}[{idx}]"
        if take(row, "preference", object, place) is None:
            continue  # the annotator gave no verdict
        preference = number(take(row, "preference", object, place), place, "its preference")
        if not (preference == 0 or 1 <= preference <= 2):
            raise DataError(f"{place}: preference {preference:g} is neither 0 nor from 1 to 2")
        second_is_better = preference - 1.0 if preference else 0.5
        key = text_key(take(row, "instruction", str, place))
        first, second = take(row, "output_1", str, place), take(row, "output_2", str, place)
        preferences[take(row, "generator_1", str, place), key] = (1.0 - second_is_better, second)
        preferences[take(row, "generator_2", str, place), key] = (second_is_better, first)
    return preferences


def read_alpaca_eval(folder: Path, choices: Choices) -> Iterator[tuple[str, Reply]]:
    """FOLDER/MODEL/model_outputs.json as AlpacaEval writes them, with the verdicts of
    FOLDER/MODEL/ANNOTATOR/annotations.json where these lie there.

    The reference is the output that a model was compared with. A question that a file repeats is
    taken once.
    """
    for path in sorted(folder.rglob("model_outputs.json*")):
        preferences = _preferences(path.parent, choices.score)
        seen = set()
        for idx, row in enumerate(expect(read_json(path), list, str(path), "the file")):
            place = f"{path}[{idx}]"
            question = take(row, "instruction", str, place)
            model = take(row, "generator", str, place)
            key = text_key(question)
            if key in seen:
                continue
            seen.add(key)
            if preferences and (model, key) not in preferences:
                continue  # not judged, so missing
            score, reference = preferences.get((model, key), (None, ""))
            yield (
                model,
                Reply(
                    key=f"alpaca_eval-{digest_of(key)[:16]}",
                    question=question,
                    reference=reference,
                    task=expect(row.get("dataset") or "alpaca_eval", str, place, "its dataset"),
                    answer=take(row, "output", str, place),
                    score=score,
                    place=place,
                ),
            )


def _find_table(source: Path) -> Path:
    files = [source] if source.is_file() else sorted(source.iterdir())
    tables = []
    for path in files:
        if path.suffix in (".pkl", ".pickle"):
            raise DataError(
                f"{path}: a pickle can run code as it is opened, so none is read here. Convert one"
                " that you trust with pandas.read_pickle(FILE).to_parquet('routerbench.parquet'),"
                " and move the pickle away"
            )
        if path.suffix in (".csv", ".parquet"):
            tables.append(path)
    if len(tables) != 1:
        raise DataError(f"{source}: expected one .csv or .parquet table, found {len(tables)}")
    return tables[0]


def _table(path: Path) -> Any:
    """A pandas table. In a CSV file "None" and "18" are answers, not what pandas makes of them."""
    import pandas  # type: ignore[import-untyped]  # slow to import

    try:
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
        texts = {}
        for column in pandas.read_csv(path, nrows=0).columns:
            if column in ("sample_id", "prompt", "eval_name") or column.endswith(RESPONSE):
                texts[column] = str
        return pandas.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise DataError(
            f"{path}: not a whole CSV or Parquet table ({error}); write it again"
        ) from error


def _text_of(cell: Any) -> str:
    """A cell of RouterBench, which keeps some texts as a list of texts, or as its repr."""
    if isinstance(cell, str):
        if not (cell.startswith("[") and cell.endswith("]")):
            return cell
        try:
            parts = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # no list after all
            return cell
    else:
        parts = list(cell) if hasattr(cell, "__iter__") else []
    if not all(isinstance(part, str) for part in parts):
        return str(cell)
    return "\n\n".join(parts)


def _routerbench_models(columns: list[str], path: Path) -> list[str]:
    models = []
    for column in columns:
        if column.endswith(RESPONSE):
            models.append(column.removesuffix(RESPONSE))
    if not models:
        raise DataError(
            f"{path}: scores without texts: no column ends with {RESPONSE!r}; its columns are"
            f" {', '.join(columns)}. Import a table that holds the models' answers"
        )
    return models


def read_routerbench(source: Path, choices: Choices) -> Iterator[tuple[str, Reply]]:
    """RouterBench's wide table: sample_id, prompt, eval_name, and for each MODEL the columns MODEL
    (score), MODEL|model_response and MODEL|total_cost (USD).

    `source` is a .csv or .parquet file, or a folder with one.
    """
    path = _find_table(source)
    table = _table(path)
    models = _routerbench_models(list(table.columns), path)
    for idx, row in enumerate(table.to_dict("records")):
        for model in models:
            reply = _routerbench_reply(row, model, f"{path}[{idx}]")
            if reply is not None:
                yield model, reply


def _routerbench_reply(row: dict[str, Any], model: str, place: str) -> Reply | None:
    """None where the table has no score of that model: an empty cell, which is read as NaN."""
    score, cost = take(row, model, object, place), row.get(model + COST)
    if score is None or score != score:
        return None
    return Reply(
        key=f"{take(row, 'sample_id', object, place)}-{place.rpartition('[')[2][:-1]}",
        question=_text_of(take(row, "prompt", object, place)),
        reference="",
        task=take(row, "eval_name", str, place),
        answer=_text_of(row[model + RESPONSE]),
        score=number(score, place, f"the score of {model}"),
        place=place,
        usd=None if cost is None or cost != cost else number(cost, place, f"the cost of {model}"),
    )


ANSWER_FORMATS = {
    "lm_eval": AnswerFormat(
        read=read_lm_eval,
        agreement="exact_match",
        holds="MODEL/samples_TASK_TIME.jsonl of lm_eval --log_samples, a folder a model",
    ),
    "alpaca_eval": AnswerFormat(
        read=read_alpaca_eval,
        agreement="rouge_l",
        holds="MODEL/model_outputs.json of AlpacaEval, a folder a model",
    ),
    "routerbench": AnswerFormat(
        read=read_routerbench,
        agreement="exact_match",
        holds="RouterBench's wide table as .csv or .parquet",
    ),
}
