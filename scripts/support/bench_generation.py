"""Our running batch (backends/generation.py) against transformers' own continuous batching."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from backends.hf import HFExpert
from config import Config
from experts import build_pool
from prompts import before_stop
from questions import load_splits

PAGE_TOKENS = 16  # of a page of keys and values: prompts and answers are short
STEP_TOKENS = 1024  # of one forward pass, at most


class ContinuousBatching:
    """A second copy of an expert's model, whose attention transformers changes."""

    def __init__(self, expert: HFExpert):
        expert.load()
        self.expert = expert
        dtype = expert.model.dtype
        model = AutoModelForCausalLM.from_pretrained(
            expert.source, dtype=dtype, attn_implementation="sdpa"
        )
        self.model = model.to(expert.model.device).eval()

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """The answers to prompts that are all there from the start."""
        ids, _ = self.expert.encode(prompts)
        max_new_tokens = self.expert.config.decoding.max_new_tokens
        pages = math.ceil((max(map(len, ids)) + max_new_tokens) / PAGE_TOKENS)
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.expert._end_ids),
            pad_token_id=self.expert.tokenizer.pad_token_id,
        )
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages * len(ids) + 2,
            max_batch_tokens=STEP_TOKENS,
            max_requests_per_batch=len(ids),
        )
        outputs = self.model.generate_batch(
            ids, generation_config=generation, continuous_batching_config=batching
        )
        texts = []
        for output in outputs.values():
            text = self.expert.tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
            texts.append(before_stop(text, self.expert.config.stop))
        return texts


def our_answers(expert: HFExpert, prompts: Sequence[str]) -> list[str]:
    texts = [""] * len(prompts)
    for batch in expert.answer(prompts):
        for index, answer in batch:
            texts[index] = answer.text
    return texts


def measure_expert(expert: HFExpert, prompts: Sequence[str], repeats: int) -> dict[str, float]:
    """Time of transformers' continuous batching over ours, in turns, and how many answers differ.

    Processor time, since both take it all.
    """
    theirs = ContinuousBatching(expert)
    our_answers(expert, prompts)  # the first pass takes longer
    ratios = []
    num_differing = 0
    for _ in range(repeats):
        start = time.process_time()
        our_texts = our_answers(expert, prompts)
        middle = time.process_time()
        their_texts = theirs.answer(prompts)
        ratios.append((time.process_time() - middle) / (middle - start))
        num_differing = sum(a != b for a, b in zip(our_texts, their_texts, strict=True))
    name = expert.config.name
    return {
        f"rollout_vs_continuous_batching/{name}": float(np.median(ratios)),
        f"rollout_vs_continuous_batching/{name}/differing": num_differing / len(prompts),
    }


def measure(config: Config, repeats: int, num_questions: int) -> dict[str, float]:
    """Every local expert that is no encoder-decoder, which continuous batching does not take."""
    questions = load_splits(config.data).test[:num_questions]
    pool = build_pool(config)
    figures: dict[str, float] = {}
    for expert in pool.experts:
        if isinstance(expert, HFExpert) and not expert.model_config.is_encoder_decoder:
            prompts = [expert.render(question.text, None, pool.ktp) for question in questions]
            figures |= measure_expert(expert, prompts, repeats)
    return figures
