"""The models that are measured: six architectures as transformers builds them, made on the spot, of any width.

All batches of a model are of one shape and without padding, so that every package means the same loss by their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepscope import PseudoUpdates

Batch = dict[str, Tensor]
Direction = dict[str, Tensor]
VOCABULARY = 1024
STEPS = 20


@dataclass(frozen=True)
class Workload:
    """A model in training, its micro-batches of evaluation, and what optimizers would do next.

    Attributes:
        model: in evaluation mode.
        batches: the micro-batches.
        directions: the next update of each of `OPTIMIZERS`, by its name, and mixtures of them beyond these.
    """

    model: nn.Module
    batches: list[Batch]
    directions: dict[str, Direction]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters."""
        return dict(self.model.named_parameters())

    @property
    def size(self) -> int:
        """How many coordinates these have."""
        return sum(p.numel() for p in self.parameters.values())


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of a micro-batch, as transformers computes it."""
    value: Tensor = model(**batch).loss
    return value


def t5(width: int, length: int) -> nn.Module:
    """Encoder and decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=width,
            d_ff=4 * width,
            d_kv=width // 4,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            relative_attention_max_distance=length,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )


def gpt2(width: int, length: int) -> nn.Module:
    """Causal, learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=4, n_head=4, n_positions=max(length, 32))
    )


def gpt_neo(width: int, length: int) -> nn.Module:
    """Causal, layers of global and of local attention in turn."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_layers=4,
            num_heads=4,
            attention_types=[[["global", "local"], 2]],
            window_size=16,
            max_position_embeddings=max(length, 32),
        )
    )


def bert(width: int, length: int) -> nn.Module:
    """Bidirectional, a classifier of tokens."""
    from transformers import BertConfig, BertForTokenClassification

    return BertForTokenClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=4 * width,
            max_position_embeddings=max(length, 32),
            num_labels=VOCABULARY,
        )
    )


def llama(width: int, length: int) -> nn.Module:
    """Causal, rotary positions, gated, grouped keys, RMS norm."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max(length, 32),
        )
    )


def resnet(width: int, length: int) -> nn.Module:  # noqa: ARG001
    """Convolutions and batch norm, on images of 32 × 32."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [width // 4, width // 2, width, 2 * width]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=sizes[0], hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
        )
    )


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "T5": t5,
    "GPT-2": gpt2,
    "GPT-Neo": gpt_neo,
    "BERT": bert,
    "Llama": llama,
    "ResNet": resnet,
}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


def workload(name: str, width: int = 128, length: int = 32, examples: int = 4, directions: int = 6) -> Workload:
    """A model of `MODELS` after 20 steps of AdamW on random batches, the optimizers following.

    Args:
        name: which model.
        width: its hidden size, a multiple of 16.
        length: tokens of an example.
        examples: in each of the two micro-batches.
        directions: how many.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MODELS[name](width, length).to(device).eval()
    parameters = dict(model.named_parameters())
    updates = PseudoUpdates(parameters, OPTIMIZERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss(model, batch(name, examples, length, device)).backward()
        gradients = {key: p.grad for key, p in parameters.items()}
        made = updates.step(gradients, capture=step == STEPS)
        optimizer.step()
    optimizer.zero_grad()
    return Workload(model, [batch(name, examples, length, device) for _ in range(2)], _as_many(made, directions))


def _as_many(made: dict[str, Direction], count: int) -> dict[str, Direction]:
    """The first of them, and random mixtures beyond these."""
    chosen = dict(list(made.items())[:count])
    while len(chosen) < count:
        weights = torch.rand(len(made)).tolist()
        chosen[f"mixture {len(chosen)}"] = {
            key: sum(w * d[key] for w, d in zip(weights, made.values(), strict=True)) for key in made["Adam"]
        }
    return chosen


def batch(name: str, examples: int, length: int, device: str) -> Batch:
    """A random micro-batch of the model's."""
    if name == "ResNet":
        pixels, labels = torch.randn(examples, 3, 32, 32), torch.randint(0, 10, (examples,))
        return {"pixel_values": pixels.to(device), "labels": labels.to(device)}
    tokens = torch.randint(1, VOCABULARY, (examples, length)).to(device)
    return {"input_ids": tokens, "labels": tokens.clone()}
