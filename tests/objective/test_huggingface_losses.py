"""Hugging Face models whose mean loss isn't over labels other than −100: pooled rightly, or refused in one line.

Each is measured on one batch, and on the same examples in two micro-batches of unlike weight. Either both agree, or
the two are refused by an error that names ``weight_fn``; never is one silently another loss than the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stepscope
from stepscope import Objective, UsageError, measure

TEXT = {
    "vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16, "pad_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip

Batch = dict[str, Tensor]


@dataclass
class Trial:
    """A model with the two halves of a batch.

    Attributes:
        tolerance: 1e-6 for models that compute in float32 inside, or whose mean is one only so far.
    """

    model: nn.Module
    halves: list[Batch]
    tolerance: float = 1e-9


def _words(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, 13, (rows, length))


def _mask(valid: int, length: int, rows: int = 2) -> Tensor:
    """One for the first `valid` of each row."""
    return (torch.arange(length) < valid).long().expand(rows, length).contiguous()


def _padded(labels: Tensor, valid: int, ignored: int = -100) -> Tensor:
    return torch.where(torch.arange(labels.shape[1]) < valid, labels, ignored)


def _text(labels_of: Callable[[int], Batch], valid: tuple[int, int] = (2, 7)) -> list[Batch]:
    return [{"input_ids": _words(), "attention_mask": _mask(k, 7), **labels_of(k)} for k in valid]


def _images(count: int = 2, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size)


def segformer(T: Any) -> Trial:
    config = T.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[4, 8], num_attention_heads=[1, 2],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    labels = torch.randint(0, 3, (2, 16, 16))
    few = labels.clone()
    few[:, 2:] = config.semantic_loss_ignore_index
    halves = [{"pixel_values": _images(size=16), "labels": y} for y in (labels, few)]
    return Trial(T.SegformerForSemanticSegmentation(config), halves)


def electra_pretraining(T: Any) -> Trial:
    model = T.ElectraForPreTraining(T.ElectraConfig(**TEXT, embedding_size=8))
    return Trial(model, _text(lambda _: {"labels": torch.randint(0, 2, (2, 7))}), 1e-6)


def masked_images(T: Any) -> Trial:
    model = T.ViTForMaskedImageModeling(T.ViTConfig(**VISION, encoder_stride=4))
    halves = [{"pixel_values": _images(), "bool_masked_pos": _mask(k, 4).bool()} for k in (1, 3)]
    # The model divides by the number of masked pixels + 1e-5: a mean only to about 1e-6, in any precision.
    return Trial(model, halves, 1e-6)


def _ctc(T: Any, reduction: str) -> Trial:
    config = T.Wav2Vec2Config(
        vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, conv_dim=(4, 4),
        conv_kernel=(4, 3), conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, ctc_loss_reduction=reduction, feat_extract_norm="layer", mask_time_prob=0.0,
        pad_token_id=0, ctc_zero_infinity=True,
    )  # fmt: skip
    halves = [{"input_values": torch.randn(2, 60), "labels": _padded(torch.randint(1, 13, (2, 4)), k)} for k in (1, 4)]
    return Trial(T.Wav2Vec2ForCTC(config), halves, 1e-6)


def token_classification(T: Any) -> Trial:
    model = T.BertForTokenClassification(T.BertConfig(**TEXT, num_labels=3))
    return Trial(model, _text(lambda k: {"labels": _padded(torch.randint(0, 3, (2, 7)), k)}))


def question_answering(T: Any) -> Trial:
    model = T.BertForQuestionAnswering(T.BertConfig(**TEXT))

    def answers(rows: int) -> Batch:
        ends = {name: torch.randint(0, 7, (rows,)) for name in ("start_positions", "end_positions")}
        return {"input_ids": _words(rows), **ends}

    return Trial(model, [answers(1), answers(4)])


def question_answering_outside(T: Any) -> Trial:
    """An answer past the end of its text is ignored: the mean is over fewer than there are examples."""
    trial = question_answering(T)
    for name in ("start_positions", "end_positions"):
        trial.halves[1][name][:3] = 99
    return trial


def multi_label(T: Any) -> Trial:
    model = T.BertForSequenceClassification(
        T.BertConfig(**TEXT, num_labels=3, problem_type="multi_label_classification")
    )
    return Trial(model, [{"input_ids": _words(n), "labels": torch.randint(0, 2, (n, 3)).double()} for n in (1, 4)])


def regression(T: Any) -> Trial:
    model = T.BertForSequenceClassification(T.BertConfig(**TEXT, num_labels=1, problem_type="regression"))
    return Trial(model, [{"input_ids": _words(n), "labels": torch.randn(n).double()} for n in (1, 4)])


def classification(T: Any) -> Trial:
    model = T.BertForSequenceClassification(T.BertConfig(**TEXT, num_labels=3))
    return Trial(model, [{"input_ids": _words(n), "labels": torch.randint(0, 3, (n,))} for n in (1, 4)])


def multiple_choice(T: Any) -> Trial:
    model = T.BertForMultipleChoice(T.BertConfig(**TEXT))
    halves = [{"input_ids": torch.randint(3, 13, (n, 4, 5)), "labels": torch.randint(0, 4, (n,))} for n in (1, 3)]
    return Trial(model, halves)


def t5(T: Any) -> Trial:
    config = T.T5Config(
        vocab_size=13, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=4,
    )  # fmt: skip
    return Trial(T.T5ForConditionalGeneration(config), _text(lambda k: {"labels": _padded(_words(), k)}), 1e-6)


def causal(T: Any) -> Trial:
    config = T.GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1)
    halves = [
        batch | {"labels": _padded(batch["input_ids"], k)} for k, batch in zip((3, 7), _text(lambda _: {}), strict=True)
    ]
    return Trial(T.GPT2LMHeadModel(config), halves, 1e-6)


def masked_language(T: Any) -> Trial:
    model = T.BertForMaskedLM(T.BertConfig(**TEXT))
    return Trial(model, _text(lambda k: {"labels": _padded(_words(), k)}))


def bert_pretraining(T: Any) -> Trial:
    """The sum of a mean over masked tokens and one over pairs of sentences: no weights pool it."""
    model = T.BertForPreTraining(T.BertConfig(**TEXT))
    return Trial(
        model,
        _text(lambda k: {"labels": _padded(_words(), k), "next_sentence_label": torch.randint(0, 2, (2,))}),
    )


def contrastive(T: Any) -> Trial:
    """Each example is compared with the others of its batch."""
    text = {**TEXT, "bos_token_id": 0, "eos_token_id": 1}
    model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    halves = [{"input_ids": _words(n), "pixel_values": _images(n), "return_loss": torch.tensor(True)} for n in (2, 3)]
    return Trial(model, halves, 1e-6)


def captions(T: Any) -> Trial:
    decoder = T.GPT2Config(
        vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(T.ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = 0, 2
    halves = [{"pixel_values": _images(), "labels": _padded(_words(), k)} for k in (2, 7)]
    return Trial(T.VisionEncoderDecoderModel(config), halves, 1e-6)


def images(T: Any) -> Trial:
    model = T.ViTForImageClassification(T.ViTConfig(**VISION, num_labels=3))
    return Trial(model, [{"pixel_values": _images(n), "labels": torch.randint(0, 3, (n,))} for n in (1, 4)])


MODELS: dict[str, Callable[[Any], Trial]] = {
    "Segformer": segformer,
    "ELECTRA pretraining": electra_pretraining,
    "ViT, masked images": masked_images,
    "Wav2Vec2 CTC, mean": lambda T: _ctc(T, "mean"),
    "Wav2Vec2 CTC, sum": lambda T: _ctc(T, "sum"),
    "token classification": token_classification,
    "question answering": question_answering,
    "question answering, outside": question_answering_outside,
    "multi-label": multi_label,
    "regression": regression,
    "classification": classification,
    "multiple choice": multiple_choice,
    "T5": t5,
    "causal, ragged": causal,
    "masked language": masked_language,
    "BERT pretraining": bert_pretraining,
    "CLIP": contrastive,
    "image captions": captions,
    "image classification": images,
}

POOLED = (
    "token classification", "question answering", "multi-label", "regression", "classification", "multiple choice",
    "T5", "causal, ragged", "masked language", "image captions", "image classification",
)  # fmt: skip
"""Those whose mean is the documented default's: refusing them would be no help."""


def _trial(name: str) -> Trial:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    trial = MODELS[name](transformers)
    trial.model = trial.model.double().eval()
    with torch.no_grad():
        for parameter in trial.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    trial.halves = [
        {key: value.double() if value.is_floating_point() else value for key, value in half.items()}
        for half in trial.halves
    ]
    return trial


def _joined(halves: list[Batch]) -> Batch:
    return {key: torch.cat([h[key] for h in halves]) if halves[0][key].dim() else halves[0][key] for key in halves[0]}


def _measured(model: nn.Module, batches: list[Batch]) -> tuple[float, float, float, float]:
    """Loss, slope and sharpness along a random direction, and the gradient's length."""
    objective = Objective(model, None, batches)
    generator = torch.Generator().manual_seed(1)
    direction = {n: torch.randn(p.shape, generator=generator).double() for n, p in objective.parameters.items()}
    found = measure(objective, {"random": direction})["random"]
    return found.loss, found.slope, found.sharpness, found.gradient_norm


@pytest.mark.parametrize("name", MODELS)
def test_two_micro_batches_are_the_batch_or_refused(name, capsys):
    trial = _trial(name)
    whole = _measured(trial.model, [_joined(trial.halves)])
    refusal: str | None = None
    try:
        parts = _measured(trial.model, trial.halves)
    except UsageError as error:
        refusal = str(error)
    if refusal is not None:
        with capsys.disabled():
            print(f"\n{name}: refused: {refusal}")
        assert "weight_fn" in refusal
        assert name not in POOLED, "refused, though its mean is over its labels"
        return
    errors = [abs(a - b) / max(abs(a), abs(b), 1e-3 * whole[3], 1e-12) for a, b in zip(whole, parts, strict=True)]
    with capsys.disabled():
        print(f"\n{name}: agrees to {max(errors):.0e}")
    assert max(errors) <= trial.tolerance


@pytest.mark.parametrize("name", [name for name in MODELS if name not in POOLED])
def test_one_batch_needs_no_weights(name):
    """There is nothing to pool in one batch, so there is nothing to refuse."""
    trial = _trial(name)
    assert stepscope.Objective(trial.model, None, [_joined(trial.halves)]).weights == [1.0]


def test_weights_that_are_given_are_taken():
    """What the refusal asks for helps: ELECTRA's mean is over the attention mask."""
    trial = _trial("ELECTRA pretraining")
    whole = Objective(trial.model, None, [_joined(trial.halves)])
    parts = Objective(trial.model, None, trial.halves, weight_fn=lambda b: float(b["attention_mask"].sum()))
    assert parts.loss() == pytest.approx(whole.loss(), rel=trial.tolerance)
