"""Expert kind `hf`: a Hugging Face causal or sequence-to-sequence model run in this process."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from backends.answer_store import Answer
from backends.dispatch import Inbox
from backends.generation import Row, RunningBatch, SeededSampling, keeps_only_keys_and_values
from backends.model_source import hide_loading_bars, resolve_source, weights_fingerprint
from backends.placement import check_placement, loading_options, weights_gb
from config import HFExpertConfig
from prompts import KTP_TEMPLATES, PromptFormat, before_stop, cut_middle
from runtime.errors import ExpertError, PromptError

SPARED_TOKENS = 256  # of padding: prompts of unequal length are read apart where it spares so much
MIN_OPENING = 32  # tokens; reusing a shorter opening's keys and values gains nothing


class HFExpert:
    """One local model. Cheap to create: tokenizer and weights are loaded when first needed."""

    is_remote = False

    def __init__(
        self,
        config: HFExpertConfig,
        device: torch.device,
        *,
        max_batch_tokens: int = 16384,
        max_batch_size: int = 128,
    ):
        self.config, self.device = config, device
        self.max_batch_tokens, self.max_batch_size = max_batch_tokens, max_batch_size
        self.source = resolve_source(config.source)
        self.prompt_format = PromptFormat.of(config)
        self.model: Any = None
        self._opening_caches: dict[tuple[int, ...], Any] = {}
        self.work: Counter[str] = Counter()  # answers, and what RunningBatch counts

    def identity(self) -> dict[str, Any]:
        """What makes this expert's answers its own: weights, precision, prompt format."""
        is_local = Path(self.source).is_dir()
        weights = (
            weights_fingerprint(self.source)
            if is_local
            else f"{self.source}@{self.config.revision or self._hub_commit()}"
        )
        identity = {
            "kind": "hf",
            "weights": weights,
            "gguf": self.config.gguf_file,
            "dtype": self.config.dtype,
            "format": self.prompt_format.identity(),
            "stop": list(self.config.stop),
        }
        return identity | (
            {"quantization": self.config.quantization} if self.config.quantization else {}
        )

    def decoding(self) -> dict[str, Any]:
        return self.config.decoding.model_dump()

    @functools.cached_property
    def tokenizer(self) -> Any:
        tokenizer = self._from_pretrained(AutoTokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if self.model_config.is_encoder_decoder else "left"
        return tokenizer

    @functools.cached_property
    def model_config(self) -> Any:
        return self._from_pretrained(AutoConfig)

    def _hub_commit(self) -> str:
        return getattr(self.model_config, "_commit_hash", None) or "unpinned"

    def _from_pretrained(self, auto_class: Any, **kwargs: Any) -> Any:
        if self.config.gguf_file:
            kwargs["gguf_file"] = self.config.gguf_file
        try:
            return auto_class.from_pretrained(
                self.source,
                revision=self.config.revision or "main",
                trust_remote_code=self.config.trust_remote_code,
                **kwargs,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            hint = (
                "the folder exists, so a file in it is missing or broken"
                if Path(self.source).is_dir()
                else "there is no such folder, and the hub has no such model or cannot be reached"
            )
            raise ExpertError(
                f"expert {self.config.name}: cannot load {self.config.source!r}: {hint}.\n   "
                f" {str(error).splitlines()[0]}"
            ) from error

    def render(self, question: str, previous_answer: str | None, ktp: str) -> str:
        """The prompt text as this expert wants it."""
        template = (
            self.tokenizer.apply_chat_template
            if self.config.prompt_format == "chat" and self.tokenizer.chat_template
            else None
        )
        try:
            return self.prompt_format.render(question, previous_answer, ktp, template)
        except PromptError as error:
            raise PromptError(f"expert {self.config.name}: {error}") from error

    @property
    def memory_gb(self) -> float:
        """Estimated memory of the loaded weights."""
        return weights_gb(self.config)

    def load(self) -> None:
        """Load the weights. Raises ConfigError and ExpertError."""
        if self.model is not None:
            return
        check_placement(self.config)
        auto_class = (
            AutoModelForSeq2SeqLM if self.model_config.is_encoder_decoder else AutoModelForCausalLM
        )
        hide_loading_bars()
        options = loading_options(self.config, self.device)
        model, report = self._from_pretrained(auto_class, output_loading_info=True, **options)
        self._check_weights(model, report)
        self.model = (model if options["device_map"] else model.to(self.device)).eval()
        if (
            not self.config.trust_remote_code
        ):  # such code runs to the end in one call, and may have its reasons
            self.model.generation_config.update(
                use_cache=True, cache_implementation=None
            )  # rounds go on from what the last one kept
        if self.model.device.type == "meta":
            self.unload()
            raise ExpertError(
                f"expert {self.config.name}: not even its first layer fits the memory that"
                " device_map and max_memory leave it; raise max_memory"
            )
        if self.config.quantization:
            self._try_quantized()

    def _check_weights(self, model: Any, report: dict[str, Any]) -> None:
        """Raises ExpertError where weights are missing, of another shape, or not numbers.

        transformers fills what is missing with random numbers and only warns.
        """
        problems = {
            "missing": sorted(report["missing_keys"]),
            "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
        }
        if self.config.quantization is None:
            problems["not a number"] = [
                name
                for name, weight in model.named_parameters()
                if weight.device.type != "meta" and not torch.isfinite(weight).all()
            ]
        for what, names in problems.items():
            if names:
                raise ExpertError(
                    f"expert {self.config.name}: {self.source}: {len(names)} weights are {what},"
                    f" first {names[0]}. The model folder is incomplete or damaged: fetch it again"
                )

    def _try_quantized(self) -> None:
        """Read one token: not every backend of bitsandbytes can multiply weights of every shape."""
        try:
            self.model.generate(
                input_ids=torch.tensor([[self.tokenizer.pad_token_id]], device=self.model.device),
                max_new_tokens=1,
            )
        except (AssertionError, RuntimeError) as error:
            self.unload()
            raise ExpertError(
                f"expert {self.config.name}: bitsandbytes cannot compute with its"
                f" {self.config.quantization} weights on {self.device}: {error}. Try the other"
                " width or none"
            ) from error

    def unload(self) -> None:
        """Free the weights' memory."""
        self.model = None
        self._opening_caches.clear()
        gc.collect()
        if torch.cuda.is_available():  # device_map may have used GPUs other than the run's device
            torch.cuda.empty_cache()

    @property
    def context(self) -> int | None:
        """Tokens that fit, prompt and answer together (prompt alone for encoder-decoders); None
        where there is no fixed limit.
        """
        limits = [
            getattr(self.model_config.get_text_config(), name, None)
            for name in ("max_position_embeddings", "n_positions")
        ]
        limit = next((value for value in limits if value), None)
        return (
            None
            if limit is None and self.tokenizer.model_max_length > 10**6
            else limit or self.tokenizer.model_max_length
        )

    def encode(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each prompt, and whether it was cut: a prompt too long for the context loses
        its middle.
        """
        ids = self.tokenizer(list(prompts), add_special_tokens=self.config.prompt_format != "chat")[
            "input_ids"
        ]
        if self.context is None:
            return ids, [False] * len(ids)
        room = self.context - (
            0 if self.model_config.is_encoder_decoder else self.config.decoding.max_new_tokens
        )
        if room < 2:
            raise ExpertError(
                f"expert {self.config.name}: max_new_tokens {self.config.decoding.max_new_tokens}"
                f" leaves no room in its context of {self.context} tokens"
            )
        return [cut_middle(row, room) for row in ids], [len(row) > room for row in ids]

    @functools.cached_property
    def _openings(self) -> list[tuple[int, ...]]:
        """Token ids that all first calls, or all calls with one Knowledge Transfer Prompt, begin
        with: worked examples, a system prompt.
        """
        if self.model_config.is_encoder_decoder:
            return []
        found = []
        for previous_answer, versions in ((None, ["paper-v1"]), ("1", KTP_TEMPLATES)):
            for version in versions:
                ids, _ = self.encode(
                    [
                        self.render(question, previous_answer, version)
                        for question in ("What?", "7 + 1")
                    ]
                )
                same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ids, strict=False))
                found.append(tuple(token for token, _ in same))
        return sorted(
            {opening for opening in found if len(opening) >= MIN_OPENING}, key=len, reverse=True
        )

    @functools.cached_property
    def _reuses_openings(self) -> bool:
        """Whether padding between opening and question changes nothing: a recurrent model would
        read it, and one that is not told positions count it.
        """
        return (
            not self.config.trust_remote_code
            and keeps_only_keys_and_values(self.model)
            and "position_ids" in inspect.signature(self.model.forward).parameters
        )

    @property
    def _window(self) -> float:
        """Tokens that attention reaches back, or that it takes at a time."""
        text = self.model_config.get_text_config()
        return min(
            getattr(text, name, None) or math.inf
            for name in ("sliding_window", "window_size", "attention_chunk_size")
        )

    def _opening_of(self, ids: list[int]) -> tuple[int, ...]:
        """The opening whose keys and values a prompt reuses; empty: none.

        In a batch the padding then stands between opening and question: a window of attention would
        be used up by it.
        """
        if (
            not self._reuses_openings
            or len(ids) + self.config.decoding.max_new_tokens > self._window
        ):
            return ()
        return next(
            (
                opening
                for opening in self._openings
                if tuple(ids[: len(opening)]) == opening and len(ids) > len(opening)
            ),
            (),
        )

    def under_budget(
        self, ids: list[list[int]], order: list[int], max_size: int
    ) -> Iterator[list[int]]:
        """Row numbers in batches under the token budget; `order` is by falling length."""
        while order:
            size = self._num_fitting(len(ids[order[0]]), max_size)
            yield order[:size]
            order = order[size:]

    def _num_fitting(self, longest: int, max_size: int) -> int:
        """How many rows may be in a batch whose longest prompt has `longest` tokens."""
        return max(
            1,
            min(max_size, self.max_batch_tokens // (longest + self.config.decoding.max_new_tokens)),
        )

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        """Answers to rendered prompts as (number, answer) lists, one after every round of tokens,
        empty ones too. Loads the model if needed.

        Longer prompts go first: an out-of-memory shows at once. On CUDA out-of-memory everything
        under way starts anew in half the size.
        """
        self.load()
        inbox = Inbox.of(prompts)
        waiting: list[Row] = []
        batch, max_size = self._new_batch(), self.max_batch_size
        while inbox or waiting or batch.rows:
            if inbox:
                waiting = sorted(waiting + self._rows(inbox.take()), key=lambda row: -len(row.ids))
            size = self._num_fitting(
                max(len(row.ids) for row in batch.rows + waiting[:1]), max_size
            ) - len(batch.rows)
            joining = waiting[: max(0, size)] if batch.takes_rows else []
            waiting, together = waiting[len(joining) :], batch.rows + joining
            try:
                ended, left_out = self._round(batch, joining)
            except torch.cuda.OutOfMemoryError as error:
                if len(together) == 1:
                    raise ExpertError(
                        f"expert {self.config.name}: a single prompt of {len(together[0].ids)}"
                        " tokens does not fit the GPU's memory"
                    ) from error
                ended = None
            if ended is None:  # out here, where no traceback holds on to the tensors
                for row in together:
                    row.completion = []
                ended, left_out, max_size, batch = (
                    [],
                    together,
                    len(together) // 2,
                    self._new_batch(),
                )
                torch.cuda.empty_cache()
            waiting = left_out + waiting
            yield ended

    def _new_batch(self) -> RunningBatch:
        options = {
            "end_ids": self._end_ids,
            "pad_id": self.tokenizer.pad_token_id,
            "in_chunks": not self.config.trust_remote_code,
        }
        return RunningBatch(self.model, self.config.decoding, **options, work=self.work)

    def _rows(self, numbered: list[tuple[int, str]]) -> list[Row]:
        """Prompts, tokenised."""
        decoding, (ids, was_cut) = (
            self.config.decoding,
            self.encode([prompt for _, prompt in numbered]),
        )
        return [
            Row(number, i, cut, SeededSampling.seed(decoding, prompt))
            for (number, prompt), i, cut in zip(numbered, ids, was_cut, strict=True)
        ]

    @torch.inference_mode()
    def _round(
        self, batch: RunningBatch, joining: list[Row]
    ) -> tuple[list[tuple[int, Answer]], list[Row]]:
        """Let rows join and generate a round of tokens for all; returns the answers that this ends,
        and the rows that could not join yet.
        """
        left_out = []
        for opening, rows in self._groups(joining):
            if batch.takes_rows:
                batch.join(rows, *self._prefix(opening, [row.ids for row in rows]))
            else:
                left_out += rows
        ended = batch.advance()
        texts = (
            self.tokenizer.batch_decode([row.completion for row in ended], skip_special_tokens=True)
            if ended
            else []
        )
        self.work["answers"] += len(ended)
        answers = [
            Answer(
                before_stop(text, self.config.stop),
                len(row.ids),
                len(row.completion),
                row.seconds,
                row.was_cut,
            )
            for row, text in zip(ended, texts, strict=True)
        ]
        return [
            (row.request_id, answer) for row, answer in zip(ended, answers, strict=True)
        ], left_out

    def _groups(self, rows: list[Row]) -> Iterator[tuple[tuple[int, ...], list[Row]]]:
        """Openings, and the rows (by falling length) that are read together: of one opening, and of
        lengths that leave little padding.
        """
        by_opening: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            by_opening.setdefault(self._opening_of(row.ids), []).append(row)
        for opening, group in by_opening.items():
            while group:
                spared = [
                    (len(group[0].ids) - len(row.ids)) * (len(group) - index)
                    for index, row in enumerate(group)
                ]  # padding, if these and the rest are read apart
                cut = spared.index(max(spared))
                if (
                    spared[cut] < SPARED_TOKENS or self.model_config.is_encoder_decoder
                ):  # whose rows start together
                    cut = len(group)
                yield opening, group[:cut]
                group = group[cut:]

    def _prefix(
        self, opening: tuple[int, ...], ids: list[list[int]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """What generation starts from: tokens (B, T) to continue, and the other arguments of
        `generate`.
        """
        inputs = self.tokenizer.pad(
            {"input_ids": [row[len(opening) :] for row in ids]}, return_tensors="pt"
        ).to(self.model.device)  # (B, T)
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if self.model_config.is_encoder_decoder:
            settings = self.model.generation_config
            first = (
                settings.bos_token_id
                if settings.decoder_start_token_id is None
                else settings.decoder_start_token_id
            )
            tokens = input_ids.new_full((len(ids), 1), first)
            encoded = self.model.get_encoder()(input_ids=input_ids, attention_mask=mask)
            return tokens, {
                "encoder_outputs": encoded,
                "attention_mask": mask,
                "decoder_attention_mask": torch.ones_like(tokens),
            }
        if not opening:
            return input_ids, {"attention_mask": mask}
        shared = input_ids.new_tensor(opening).expand(len(ids), -1)
        mask = torch.cat([torch.ones_like(shared), mask], dim=1)
        return torch.cat([shared, input_ids], dim=1), {
            "attention_mask": mask,
            "past_key_values": self._opening_cache(opening, len(ids)),
        }

    def _opening_cache(self, opening: tuple[int, ...], batch_size: int) -> Any:
        """Keys and values of an opening for a batch; computed once while the model is loaded."""
        if opening not in self._opening_caches:
            ids = torch.tensor([opening], device=self.model.device)
            self._opening_caches[opening] = self.model(
                ids, use_cache=True, logits_to_keep=1
            ).past_key_values
        cache = copy.deepcopy(self._opening_caches[opening])
        cache.batch_repeat_interleave(batch_size)
        return cache

    @functools.cached_property
    def _end_ids(self) -> set[int]:
        """Tokens that end a completion: the model's own, and every token that holds a stop string.

        A stop string that spans tokens ends the text all the same, only not the generation.
        """
        ends = self.model.generation_config.eos_token_id
        own = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if not self.config.stop:
            return own
        pieces = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return own | {
            token
            for token, piece in enumerate(pieces)
            if any(stop in piece for stop in self.config.stop)
        }
