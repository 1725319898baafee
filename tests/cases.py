"""Small models with the hard parts (normalization, attention, tied, frozen, unused parameters, ragged batches).

The dense reference for them is `torch.autograd.functional.hessian` (reverse over reverse) of a loss that is pooled by
hand; never `torch.func.hessian`, which is wrong on layer norm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepscope import Objective


@dataclass
class Case:
    """A model in float64, its micro-batches, and the pooled loss as a function of the outputs' own terms.

    Attributes:
        terms: ``terms(call, batch)``: the sum of the loss's terms over a micro-batch and their number.
        tolerance: how well float64 agrees (models that compute in float32 inside agree less well).
    """

    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor] | None
    batches: list[Any]
    terms: Callable[[Callable[..., Any], Any], tuple[Tensor, int]]
    tolerance: float = 1e-8
    weight_fn: Callable[[Any], float] | None = None

    def objective(self) -> Objective:
        return Objective(self.model, self.loss_fn, self.batches, self.weight_fn)


@contextmanager
def substituted(model: nn.Module, values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Plain tensors in the place of parameters (`torch.func.functional_call` loses a module under two names)."""
    places = [(m, n, p) for m in set(model.modules()) for n, p in m._parameters.items() if p in values]
    try:
        for module, name, parameter in places:
            del module._parameters[name]
            setattr(module, name, values[parameter])
        yield
    finally:
        for module, name, parameter in places:
            module.__dict__.pop(name, None)
            module._parameters[name] = parameter


@cache
def dense(name: str) -> tuple[float, dict[str, Tensor], Tensor]:
    """The dense reference of a case, see `dense_of`; made once."""
    return dense_of(case(name))


def dense_of(case: Case) -> tuple[float, dict[str, Tensor], Tensor]:
    """Loss, gradient by name, and the dense Hessian over the concatenated trainable parameters, in float64."""
    parameters = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    shapes = {n: p.shape for n, p in parameters.items()}
    point = torch.cat([p.detach().reshape(-1) for p in parameters.values()]).double()
    training = [(m, m.training) for m in case.model.modules()]
    case.model.eval()

    def pooled(x: Tensor) -> Tensor:
        parts = x.split([s.numel() for s in shapes.values()])
        values = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        total, count = torch.zeros((), dtype=x.dtype), 0
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for batch in case.batches:
                with substituted(case.model, {parameters[n]: value for n, value in values.items()}):
                    term, number = case.terms(case.model, batch)
                total, count = total + term, count + number
        return total / count

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        x = point.clone().requires_grad_()
        loss = pooled(x)
        (gradient,) = torch.autograd.grad(loss, x)
        hessian = torch.autograd.functional.hessian(pooled, point, vectorize=True)
    for module, was in training:
        module.training = was
    parts = gradient.split([s.numel() for s in shapes.values()])
    return loss.item(), {n: g.view(s) for (n, s), g in zip(shapes.items(), parts, strict=True)}, hessian


def flat(case: Case, direction: dict[str, Tensor]) -> Tensor:
    return torch.cat(
        [
            direction[n].reshape(-1) if n in direction else torch.zeros(p.numel(), dtype=torch.float64)
            for n, p in case.model.named_parameters()
            if p.requires_grad
        ]
    ).double()


class Quadratic(nn.Module):
    """``½ Σ hᵢxᵢ²`` of the paper's motivating example: one curvature of 100, the rest 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(12, dtype=torch.float64))
        self.register_buffer("h", torch.tensor([100.0] + [1.0] * 11, dtype=torch.float64))

    def forward(self, scale: Tensor) -> Tensor:
        return 0.5 * scale * (self.h * self.x**2).sum()


class Mlp(nn.Module):
    """Layer norm, an unused and a frozen parameter, and one tied weight."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.middle = nn.Linear(6, 6)
        self.tied = self.middle
        self.out = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.randn(2))
        self.inside.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.middle(F.gelu(self.norm(self.inside(x)))))
        return self.out(F.tanh(self.tied(x)))


def batchnorm_conv() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 16, 3)
    )
    net(torch.randn(16, 2, 6, 6))  # running statistics that aren't the initial ones
    return net


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _cross_entropy_terms(call: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return F.cross_entropy(call(batch[0]), batch[1], reduction="sum"), len(batch[1])


def _labeled(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, *shape, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in sizes]


def _ragged(vocabulary: int, rows: tuple[int, ...], *, source: bool) -> list[dict[str, Tensor]]:
    """Token batches whose valid label counts differ a lot."""
    batches = []
    for index, n in enumerate(rows):
        ids = torch.randint(3, vocabulary, (n, 7))
        labels = torch.randint(3, vocabulary, (n, 6)) if source else ids.clone()
        labels[:, 2 + 3 * index :] = -100
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def t5(activation: str, **settings: Any) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=11, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, feed_forward_proj=activation,
        decoder_start_token_id=0, relative_attention_num_buckets=4, **settings,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def gpt_neo() -> nn.Module:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=11, hidden_size=4, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2,
        intermediate_size=4, max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_embd=4, n_layer=1, n_head=2, n_inner=4, n_positions=8, bos_token_id=0, eos_token_id=1
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    """Grouped-query attention, rotary positions, RMS norm, SwiGLU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=6, max_position_embeddings=8,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    """Each token goes through two of four experts, by a router."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=4, num_local_experts=4, max_position_embeddings=8,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4, image_size=4, patch_size=2,
        num_channels=2, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=2, embedding_size=2, hidden_sizes=[2, 3], depths=[1, 1], layer_type="basic", num_labels=3
    )
    net = ResNetForImageClassification(config)
    net(torch.randn(16, 2, 16, 16))  # running statistics that aren't the initial ones
    return net


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 3)
        self.lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(ids))[0][:, -1])


def _token_terms(shift: int) -> Callable[..., tuple[Tensor, int]]:
    def terms(call: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        logits = call(**batch).logits
        labels = batch["labels"]
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum")
        return total, int((labels != -100).sum())

    return terms


def _classification_terms(call: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    return F.cross_entropy(call(**batch).logits, batch["labels"], reduction="sum"), len(batch["labels"])


def _bert_batches() -> list[dict[str, Tensor]]:
    return [
        batch | {"labels": torch.randint(0, 3, (len(batch["input_ids"]),))}
        for batch in _ragged(11, (2, 5), source=True)
    ]


def _images(size: int, sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return [{"pixel_values": x, "labels": y} for x, y in _labeled((2, size, size), sizes)]


def _sentences(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randint(0, 11, (n, 5)), torch.randint(0, 3, (n,))) for n in sizes]


def _quadratic() -> Case:
    scales = [torch.tensor(s, dtype=torch.float64) for s in (1.0, 2.0, 4.0)]
    return Case(Quadratic(), lambda m, b: m(b), scales, lambda call, b: (call(b), 1), weight_fn=lambda b: 1.0)


CASES: dict[str, Callable[[], Case]] = {
    "quadratic": _quadratic,
    "mlp": lambda: Case(Mlp(norm=False), _cross_entropy, _labeled((5,), (7, 2)), _cross_entropy_terms),
    "layer norm": lambda: Case(Mlp(norm=True), _cross_entropy, _labeled((5,), (7, 2, 1)), _cross_entropy_terms),
    "batch norm": lambda: Case(batchnorm_conv(), _cross_entropy, _labeled((2, 6, 6), (5, 2)), _cross_entropy_terms),
    "t5 gelu": lambda: Case(t5("gelu"), None, _ragged(11, (2, 4), source=True), _token_terms(0), 1e-6),
    "t5 relu": lambda: Case(t5("relu"), None, _ragged(11, (2, 4), source=True), _token_terms(0), 1e-6),
    "bert": lambda: Case(bert(), None, _bert_batches(), _classification_terms),
    "gpt-neo": lambda: Case(gpt_neo(), None, _ragged(11, (2, 4), source=False), _token_terms(1), 1e-6),
    "gpt-2": lambda: Case(gpt2(), None, _ragged(11, (2, 4), source=False), _token_terms(1), 1e-6),
    "llama": lambda: Case(llama(), None, _ragged(11, (2, 4), source=False), _token_terms(1), 1e-6),
    "mixtral": lambda: Case(mixtral(), None, _ragged(11, (2, 4), source=False), _token_terms(1), 1e-6),
    "vit": lambda: Case(vit(), None, _images(4, (5, 2)), _classification_terms),
    "resnet": lambda: Case(resnet(), None, _images(16, (5, 2)), _classification_terms),
    "lstm": lambda: Case(Lstm(), _cross_entropy, _sentences((5, 2)), _cross_entropy_terms),
}


FAMILIES = [name for name in CASES if name != "quadratic"]
"""The families of models that users train, each in its default configuration but for the size."""

SMOOTH = [name for name in CASES if name not in ("t5 relu", "resnet")]
"""Those without kinks, where differences of gradients have to agree with double backward."""


def case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """A fresh case, in training mode (measuring has to switch dropout and batch statistics off).

    The weights are the same numbers in float32 and float64.
    """
    torch.manual_seed(1)
    made = CASES[name]()
    made.model = made.model.to(dtype).train()
    made.batches = [cast(batch, dtype) for batch in made.batches]
    if name == "mixtral" and dtype == torch.float64:
        made.model.set_experts_implementation("eager")  # the default, a grouped product, takes no float64
    return made


def cast(batch: Any, dtype: torch.dtype) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: cast(value, dtype) for key, value in batch.items()}
    return type(batch)(cast(value, dtype) for value in batch)
