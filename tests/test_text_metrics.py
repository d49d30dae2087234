"""BERTScore, BARTScore and BLEURT on small random models: their arithmetic against formulas written
out here.

The real weights are not needed.
"""

import math
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    RobertaTokenizer,
)

from metrics.registry import get_metric, score_answers
from questions import Question
from runtime.errors import MetricError

PREDICTIONS = ["the sum is 7", "paris", "what no"]
REFERENCES = ["the sum of it is 8", "the capital of france is paris", "yes and yes"]


@pytest.fixture(scope="module")
def bart(roberta_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BART of width 32 with RoBERTa's tokenizer, as the real one has, and 40
    positions.
    """
    folder = tmp_path_factory.mktemp("bart")
    tokenizer = RobertaTokenizer.from_pretrained(roberta_encoder)
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()
    }
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        max_position_embeddings=40,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        init_std=0.4,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_bleurt(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    """`make_bleurt(name, num_labels)`: folder of a random BERT with a linear head."""

    def make(name: str, num_labels: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("bleurt") / name
        tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=num_labels,
            initializer_range=0.3,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def raw(name: str, predictions: list, references: list) -> list[float]:
    return get_metric(name).raw(predictions=predictions, references=references)


@pytest.mark.parametrize(
    ("name", "kind", "by_hand"),
    [("rouge_1", "rouge1", 2 / 3), ("rouge_2", "rouge2", 2 / 5), ("rouge_l", "rougeL", 1 / 2)],
)
def test_rouge_counts_words_pairs_and_the_longest_common_sequence(
    name: str, kind: str, by_hand: float
) -> None:
    # Six words each. Stemmed, common are: on, the, mat, cat (4 of 6); "on the", "the mat" (2 of 5);
    # in this order "on the mat" (3 of 6).
    prediction, reference = "on the mat cats were sitting", "a cat sat on the mat"
    (value,) = get_metric(name).compute(predictions=[prediction], references=[reference])
    assert (
        value
        == pytest.approx(by_hand)
        == pytest.approx(
            RougeScorer([kind], use_stemmer=True).score(reference, prediction)[kind].fmeasure
        )
    )


def test_bertscore_equals_the_package_called_directly(bert_encoder):
    import bert_score

    predictions, references = (
        ["the sum is 7", "paris", "what no"],
        [
            "the sum of it is 8",
            "the capital of france is paris",
            "yes and yes",
        ],
    )
    _, _, f1 = bert_score.score(predictions, references, model_type=str(bert_encoder), num_layers=2)
    metric = get_metric(f"bertscore:{bert_encoder}:2")
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(
        f1.tolist(), abs=1e-6
    )
    assert len({round(value, 3) for value in f1.tolist()}) == 3  # a random encoder tells them apart
    (best,) = metric.compute(predictions=["paris"], references=[["yes and no", "paris"]])
    # The best of the accepted references; an answer equals itself
    assert best == pytest.approx(1.0, abs=1e-5)


def log_likelihood(folder: Path, source: str, target: str) -> float:
    """Mean log-probability of the target's tokens, one decoder step at a time: p(y_t | y_<t,
    source) with y_-1 = </s>.
    """
    model, tokenizer = (
        BartForConditionalGeneration.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    source_ids, target_ids = (
        tokenizer(source, return_tensors="pt").input_ids,
        tokenizer(target).input_ids,
    )
    assert (target_ids[0], target_ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    total = 0.0
    for t, token in enumerate(target_ids):
        with torch.no_grad():
            logits = model(
                input_ids=source_ids, decoder_input_ids=torch.tensor([[2, *target_ids[:t]]])
            ).logits[0, -1]
        total += (logits[token] - torch.logsumexp(logits, dim=0)).item()
    return total / len(target_ids)


@pytest.mark.slow
def test_bartscore_is_the_mean_log_likelihood_of_the_reference_given_the_answer(bart: Path) -> None:
    expected = [
        log_likelihood(bart, prediction, reference)
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    # Padded in a batch, as alone
    assert raw(f"bartscore:{bart}", PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3
    other_way = [
        log_likelihood(bart, reference, prediction)
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    # The direction matters
    assert all(abs(a - b) > 0.01 for a, b in zip(expected, other_way, strict=True))
    quality = get_metric(f"bartscore:{bart}").compute(
        predictions=PREDICTIONS, references=REFERENCES
    )
    assert quality == pytest.approx([math.exp(value) for value in expected], abs=1e-6)
    # A geometric mean probability of the metric's own likelihood, which float32 carries no further
    (own, *_) = raw(f"bartscore:{bart}", PREDICTIONS, REFERENCES)
    assert quality[0] == pytest.approx(math.prod(math.exp(own) for _ in range(5)) ** (1 / 5))


def test_bartscore_reads_no_further_than_its_positions(bart: Path) -> None:
    long = "the sum of the answer and the question is france " * 9
    tokenizer = AutoTokenizer.from_pretrained(bart)
    kept = tokenizer(long, truncation=True, max_length=40).input_ids
    assert len(tokenizer(long).input_ids) > 40
    cut = tokenizer.decode(kept[1:-1])
    assert tokenizer(cut).input_ids == kept
    assert raw(f"bartscore:{bart}", [long], ["paris"]) == pytest.approx(
        [log_likelihood(bart, cut, "paris")], abs=1e-5
    )


def regression(folder: Path, first: str, second: str) -> float:
    """w . tanh(W h_[CLS] + b) + b' of the pair [CLS] first [SEP] second [SEP], segments 0 and 1."""
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    parts = [tokenizer(text, add_special_tokens=False).input_ids for text in (first, second)]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids, segments = (
        [cls, *parts[0], sep, *parts[1], sep],
        [0] * (len(parts[0]) + 2) + [1] * (len(parts[1]) + 1),
    )
    with torch.no_grad():
        hidden = model.bert(
            input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments])
        ).last_hidden_state[0, 0]
        pooler, head = model.bert.pooler.dense, model.classifier
        return (
            head.weight[0] @ torch.tanh(pooler.weight @ hidden + pooler.bias) + head.bias[0]
        ).item()


def test_bleurt_is_a_linear_head_on_the_pooled_pair_with_the_reference_first(make_bleurt) -> None:
    folder = make_bleurt("bleurt-tiny-128")
    expected = [
        regression(folder, reference, prediction)
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert raw(f"bleurt:{folder}", PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-5)
    other_way = [
        regression(folder, prediction, reference)
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert all(abs(a - b) > 0.001 for a, b in zip(expected, other_way, strict=True))
    quality = get_metric(f"bleurt:{folder}").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert quality == pytest.approx([1 / (1 + math.exp(-value)) for value in expected], abs=1e-6)


def test_bleurt_cuts_the_longer_text_to_the_length_in_the_checkpoints_name_or_else_to_its_positions(
    make_bleurt,
) -> None:
    long = "yes no and question answer " * 120
    # [CLS], two [SEP] and the reference's one are taken
    cut, cut_late = (" ".join(long.split()[: length - 3 - 1]) for length in (128, 512))
    short, free = make_bleurt("bleurt-tiny-128"), make_bleurt("bleurt-20")  # 20 is a version
    assert raw(f"bleurt:{short}", [long], ["paris"]) == pytest.approx(
        [regression(short, "paris", cut)], abs=1e-5
    )
    assert raw(f"bleurt:{short}", ["paris"], [long]) == pytest.approx(
        [regression(short, cut, "paris")], abs=1e-5
    )
    assert raw(f"bleurt:{free}", [long], ["paris"]) == pytest.approx(
        [regression(free, "paris", cut_late)], abs=1e-5
    )


def test_a_classifier_is_no_bleurt(make_bleurt) -> None:
    with pytest.raises(MetricError, match="a classifier of 3 labels"):
        raw(f"bleurt:{make_bleurt('three', num_labels=3)}", ["a"], ["b"])


def test_the_best_of_the_accepted_references_counts_and_batches_do_not_mix(
    bart: Path, make_bleurt, bert_encoder: Path
) -> None:
    predictions, references = PREDICTIONS * 7, REFERENCES * 7  # more than a batch
    for name in (
        f"bartscore:{bart}",
        f"bleurt:{make_bleurt('bleurt')}",
        f"bertscore:{bert_encoder}:2",
    ):
        alone = raw(name, predictions, references)
        assert alone == pytest.approx(
            [raw(name, [p], [r])[0] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)] * 7,
            abs=1e-5,
        )
        several = raw(
            name, [PREDICTIONS[0], PREDICTIONS[1]], [[REFERENCES[0], REFERENCES[1]], REFERENCES[1]]
        )
        assert several == pytest.approx(
            [max(raw(name, [PREDICTIONS[0]] * 2, REFERENCES[:2])), alone[1]], abs=1e-5
        )


def test_an_empty_answer_scores_nothing_though_exp_and_the_logistic_function_are_above_zero(
    bart: Path, make_bleurt
) -> None:
    questions = [
        Question(str(i), "q", metric=name, _reference="yes")
        for i, name in enumerate((f"bartscore:{bart}", f"bleurt:{make_bleurt('bleurt')}"))
    ]
    assert score_answers(questions, ["", " \n"], ["e", "e"]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "name", ["bertscore:no/such-model:3", "bartscore:no/such-model", "bleurt:no/such-model"]
)
def test_weights_that_cannot_be_had_are_named(name: str) -> None:
    with pytest.raises(MetricError, match="the weights of no/such-model cannot be had"):
        get_metric(name).compute(predictions=["a"], references=["b"])


def test_the_papers_models_are_the_defaults() -> None:
    models = {name: get_metric(name).model for name in ("bertscore", "bartscore", "bleurt")}
    assert models == {
        "bertscore": "bert-base-multilingual-cased",
        "bartscore": "facebook/bart-large-cnn",
        "bleurt": "Elron/bleurt-base-128",
    }
    assert (get_metric("bertscore").num_layers, get_metric("bleurt").max_tokens) == (9, 128)
