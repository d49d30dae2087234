"""Builds, and re-measures, the embedded pool: five small Hugging Face experts trained from scratch
on reasoning-gym tasks.

    python scripts/build_tiny_pool.py --questions        # data/tiny_questions/*.jsonl, seconds
    # data/tiny_pool/*, tens of minutes on two idle CPU cores; continues where it stopped
    python scripts/build_tiny_pool.py --train
    # the table of data/README.md again; fails if a bound does not hold
    python scripts/build_tiny_pool.py --check
    python scripts/build_tiny_pool.py --check --seed 7   # the same on freshly generated questions

An expert first learns its cells from bare questions. Then every expert answers further training
questions, and each learns to work from those real drafts of the others in the Knowledge Transfer
Prompt. No validation or test question is ever trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.command_line import load_config, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", action="store_true", help="write data/tiny_questions")
    parser.add_argument("--train", action="store_true", help="train the experts")
    parser.add_argument(
        "--check", action="store_true", help="measure the pool and hold it to its bounds"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help=(
            "with --check: generate fresh questions from this seed instead of reading the test"
            " split"
        ),
    )
    parser.add_argument(
        "--fresh",
        type=Path,
        metavar="FILE",
        help="with --seed: write fresh test questions, to evaluate on with --data.test.path FILE",
    )
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from config import SourceConfig
from prompts import knowledge_transfer_prompt
from questions import Question, read_questions
from scripts.support.tiny_check import check, write_card
from scripts.support.tiny_models import (
    ANSWER_CUE,
    TINY_EXPERTS,
    TinyExpert,
    build_model,
    build_tokenizer,
)
from scripts.support.tiny_tasks import CELLS, CHAINED, make_questions, training_entries

POOL_DIR = ROOT / "data" / "tiny_pool"
QUESTION_DIR = ROOT / "data" / "tiny_questions"
WORK_DIR = ROOT / "models" / "tiny_pool_build"  # git-ignored: unfinished experts and the drafts
SPLITS = {"train": 2400, "validation": 480, "test": 800}
SEED = 20250816  # of the questions and of the training
EXAMPLES_PER_CELL = 16_000
DRAFTS_PER_CELL = 1_500
# Of examples from cells an expert is not taught, so that it answers them in the right form, if
# wrongly
FOREIGN_SHARE = 0.06
BATCH_SIZE = 64
IGNORED = -100  # label of a token that the loss leaves out
LONGEST_REVERSED = 16  # letters of a draft that is worth spelling backward

Example = tuple[str, str]  # prompt without the answer cue, answer


def reserved_texts() -> set[str]:
    """Texts of the validation and test questions, which no expert may train on."""
    return texts_of(("validation", "test"))


def texts_of(splits: Iterable[str]) -> set[str]:
    """Texts of all questions of some splits."""
    texts = set()
    for split in splits:
        for line in (QUESTION_DIR / f"{split}.jsonl").read_text().splitlines():
            texts.add(json.loads(line)["text"])
    return texts


def target(expert: TinyExpert, cell: str, entry: dict, draft: str | None) -> str | None:
    """What `expert` should say to the question, given a draft from another expert or none; None:
    nothing sensible to teach.
    """
    if cell not in CHAINED:
        return str(entry["answer"])
    if cell in expert.halves:
        return entry["metadata"]["half"]
    if "reverse" in expert.halves and draft is not None:
        return draft[::-1] if 0 < len(draft) <= LONGEST_REVERSED else None
    # Neither half to do here: hand on what was given, unchanged
    return entry["metadata"]["payload"]


def examples(
    expert: TinyExpert,
    entries: dict[str, list[dict]],
    drafts: dict[str, dict[str, list[str]]] | None,
    rng: random.Random,
) -> list[Example]:
    """Bare examples, or with `drafts` (expert -> cell -> answers) examples in the Knowledge
    Transfer Prompt.
    """
    out = []
    for cell, cell_entries in entries.items():
        taught = (
            cell in expert.skills
            or cell in expert.halves
            or (cell in CHAINED and "reverse" in expert.halves and drafts is not None)
        )
        share = (
            1.0
            if taught
            else FOREIGN_SHARE * len(expert.skills) / (len(CELLS) - len(expert.skills))
        )
        for index, entry in enumerate(cell_entries):
            if rng.random() >= share:
                continue
            draft = None
            if drafts is not None:
                others = [name for name in drafts if name != expert.name]
                draft = drafts[rng.choice(others)][cell][index]
            answer = target(expert, cell, entry, draft)
            if answer is not None:
                prompt = entry["question"]
                if draft is not None:
                    prompt = knowledge_transfer_prompt(prompt, draft)
                out.append((prompt, answer))
    rng.shuffle(out)
    return out


def loss_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: list[Example]
) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, end of sequence included."""
    prompts = [prompt + ANSWER_CUE for prompt, _ in batch]
    answers = [answer for _, answer in batch]
    if model.config.is_encoder_decoder:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        labels = tokenizer(answers, return_tensors="pt", padding=True)["input_ids"]
        labels = labels.masked_fill(labels == tokenizer.pad_token_id, IGNORED)
        return model(**inputs, labels=labels).loss
    ids, labels = joined(tokenizer, prompts, answers)
    mask = (ids != tokenizer.pad_token_id).long()
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def joined(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], answers: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of each prompt with its answer, and labels that leave the prompts out: (N, T) each.

    They are padded on the right, which is fine in training: nothing is read after it.
    """
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        rows.append((prompt_ids, tokenizer(answer + tokenizer.eos_token)["input_ids"]))
    length = max(len(prompt_ids) + len(answer_ids) for prompt_ids, answer_ids in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt_ids, answer_ids) in enumerate(rows):
        end = len(prompt_ids) + len(answer_ids)
        ids[row, :end] = torch.tensor(prompt_ids + answer_ids)
        labels[row, len(prompt_ids) : end] = torch.tensor(answer_ids)
    return ids, labels


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: list[Example],
    steps: int,
    *,
    lr: float,
    rng: random.Random,
    name: str,
) -> None:
    """AdamW with a warm-up and a cosine decay, on batches of similar length."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    model.train()
    pending: list[list[Example]] = []
    for step in range(steps):
        if not pending:
            chunk = sorted(
                rng.sample(data, 8 * BATCH_SIZE),
                key=lambda example: len(example[0]) + len(example[1]),
            )
            pending = [
                chunk[start : start + BATCH_SIZE] for start in range(0, len(chunk), BATCH_SIZE)
            ]
            rng.shuffle(pending)
        loss = loss_of(model, tokenizer, pending.pop())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            print(f"{name}: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    batch_size: int = 128,
) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenizer(
            [prompts[row] + ANSWER_CUE for row in rows], return_tensors="pt", padding=True
        )
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        new = (
            output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
        )
        for row, text in zip(
            rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[row] = text.strip()
    return answers


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config.max_length = None
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    kind = (
        AutoModelForSeq2SeqLM
        if json.loads((folder / "config.json").read_text()).get("is_encoder_decoder")
        else AutoModelForCausalLM
    )
    return kind.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def seed_for(expert: TinyExpert, stage: int) -> int:
    return SEED + 100 * [e.name for e in TINY_EXPERTS].index(expert.name) + stage


def learn_alone(expert: TinyExpert) -> None:
    """Stage 1: bare questions."""
    if (WORK_DIR / expert.name).exists():
        return
    torch.set_num_threads(1)
    rng = random.Random(seed_for(expert, 1))
    set_seed(seed_for(expert, 1))
    tokenizer = build_tokenizer(seq2seq=expert.architecture == "t5gemma")
    model = build_model(expert, len(tokenizer))
    data = examples(
        expert, training_entries(SEED + 1, EXAMPLES_PER_CELL, reserved_texts()), None, rng
    )
    fit(model, tokenizer, data, expert.steps, lr=expert.lr, rng=rng, name=expert.name)
    save(model, tokenizer, WORK_DIR / expert.name)


def draft(expert: TinyExpert) -> dict[str, list[str]]:
    """Stage 2a: the expert's real answers to further training questions, by cell."""
    torch.set_num_threads(1)
    model, tokenizer = load(WORK_DIR / expert.name)
    entries = training_entries(SEED + 2, DRAFTS_PER_CELL, reserved_texts())
    answers = {}
    for cell, cell_entries in entries.items():
        questions = [entry["question"] for entry in cell_entries]
        answers[cell] = answer(model, tokenizer, questions)
    return answers


def learn_from_drafts(expert: TinyExpert, drafts: dict[str, dict[str, list[str]]]) -> None:
    """Stage 2b: bare questions and Knowledge Transfer Prompts, half and half."""
    if (POOL_DIR / expert.name).exists():
        return
    torch.set_num_threads(1)
    rng = random.Random(seed_for(expert, 2))
    set_seed(seed_for(expert, 2))
    model, tokenizer = load(WORK_DIR / expert.name)
    transfer = examples(
        expert, training_entries(SEED + 2, DRAFTS_PER_CELL, reserved_texts()), drafts, rng
    )
    bare = examples(
        expert, training_entries(SEED + 1, EXAMPLES_PER_CELL, reserved_texts()), None, rng
    )
    repeats = -(-len(bare) // len(transfer))
    fit(
        model,
        tokenizer,
        bare + repeats * transfer,
        expert.draft_steps,
        lr=expert.lr / 2,
        rng=rng,
        name=f"{expert.name} (drafts)",
    )
    save(model, tokenizer, POOL_DIR / expert.name)


def train() -> None:
    """All experts, two at a time; what is finished is not done again."""
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    POOL_DIR.mkdir(parents=True, exist_ok=True)
    longest_first = sorted(
        TINY_EXPERTS, key=lambda expert: -expert.steps * sum(expert.size.values())
    )
    with ProcessPoolExecutor(max_workers=2) as workers:
        list(workers.map(learn_alone, longest_first))
        drafts = {}
        for expert, answers in zip(longest_first, workers.map(draft, longest_first), strict=True):
            drafts[expert.name] = answers
        list(workers.map(learn_from_drafts, longest_first, [drafts] * len(longest_first)))


def write_lines(path: Path, questions: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))


def write_questions() -> None:
    QUESTION_DIR.mkdir(parents=True, exist_ok=True)
    for split, questions in make_questions(SEED, SPLITS).items():
        write_lines(QUESTION_DIR / f"{split}.jsonl", questions)
        print(f"{split}: {len(questions)} questions")


def fresh_questions(seed: int) -> list[dict[str, str]]:
    """As many questions as the test split has, of the same cells, none of which is in any split."""
    known = texts_of(SPLITS)
    made = make_questions(SEED + 1000 * (seed + 1), {"fresh": SPLITS["test"]})
    return [record for record in made["fresh"] if record["text"] not in known]


def check_pool(seed: int | None) -> str:
    """Re-measure data/README.md's table on the test split, or on fresh questions that no split
    holds; returns the table.
    """
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    if seed is None:
        questions = read_questions(SourceConfig(path=str(QUESTION_DIR / "test.jsonl")))
    else:
        questions = []
        for r in fresh_questions(seed):
            question = Question(r["id"], r["text"], r["task"], r["metric"], r["reference"])
            questions.append(question)
    cells = [question.id.split("-", 1)[1].rsplit("-", 1)[0] for question in questions]
    text = check(config, questions, cells)
    if seed is None:
        write_card(ROOT / "data" / "README.md", text)
    return text


def main(arguments: list[str]) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not (options.questions or options.train or options.check or options.fresh):
        parser.error("nothing to do: name --questions, --train, --check or --fresh")
    if options.fresh is not None:
        if options.seed is None:
            parser.error("--fresh needs --seed")
        write_lines(options.fresh, fresh_questions(options.seed))
    if options.questions:
        write_questions()
    if options.train:
        train()
    if options.check:
        os.chdir(ROOT)  # the configuration names its files from there
        check_pool(options.seed)


if __name__ == "__main__":
    run_command(main)
