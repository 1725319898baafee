"""Models with state in every place that users keep it, each with the batches that it takes.

Of any model and batch a `Task` gives the plain loss, an output of three numbers an example and a view of six numbers
an example, so that any loss can be made of any model.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from drawn.batches import CONTAINERS, fields_of, sizes

VOCABULARY = 13

PLAIN = ("dict", "tuple", "list", "dataclass", "NamedTuple", "BatchEncoding", "ragged")
RECURRENT = (*PLAIN, "packed", "sequences")
NAMED = ("dict", "BatchEncoding", "ragged")


@dataclass
class Output:
    """What a loss is made of.

    Attributes:
        loss: the plain loss of the batch, a mean over examples or tokens.
        z: three numbers for each example, with their graph.
        view: six numbers for each example, of its input.
    """

    loss: Tensor
    z: Tensor
    view: Tensor


class Task:
    """A kind of input, and how a model is run on it.

    Args:
        shape: of an example; ``None`` for tokens.
        own_loss: whether the model computes its loss, as Hugging Face models do.
    """

    def __init__(self, shape: tuple[int, ...] | None, *, own_loss: bool = False) -> None:
        self.shape, self.own_loss = shape, own_loss

    def batches(self, count: int, kind: str, seed: int, dtype: torch.dtype) -> list[Any]:
        """Micro-batches in a container of the kind."""
        generator = torch.Generator().manual_seed(seed)
        return [
            CONTAINERS[kind](self._fields(n, index, generator, dtype)) for index, n in enumerate(sizes(kind, count))
        ]

    def run(self, model: nn.Module, batch: Any) -> Output:
        """The model's output on a batch."""
        if self.own_loss:
            found = model(**batch)
            logits = found.logits.mean(1) if found.logits.dim() == 3 else found.logits
            return Output(found.loss, logits[:, :3], _view(batch["input_ids"]))
        x, y = fields_of(batch)
        z = model(x)
        return Output(F.cross_entropy(z, y), z, _view(x))

    def _fields(self, n: int, index: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        if self.own_loss:
            length = (6, 8, 12, 7, 12, 3)[index % 6]  # a dynamic position encoding grows and shrinks
            ids = torch.randint(3, VOCABULARY, (n, length), generator=generator)
            return {"input_ids": ids, "labels": ids.clone()}
        if self.shape is None:
            x = torch.randint(0, VOCABULARY, (n, 5), generator=generator)
        else:
            x = torch.randn(n, *self.shape, generator=generator).to(dtype)
        return {"x": x, "y": torch.randint(0, 3, (n,), generator=generator)}


def _view(x: Any) -> Tensor:
    if isinstance(x, PackedSequence):
        x = pad_packed_sequence(x, batch_first=True)[0]
    if isinstance(x, list):
        x = torch.stack([row.mean(0) for row in x])
    if not x.is_floating_point():
        x = F.one_hot(x, VOCABULARY).float()
    while x.dim() > 2:
        x = x.mean(1)
    return F.pad(x, (0, max(0, 6 - x.shape[1])))[:, :6]


FLOATS, IMAGES, SEQUENCES, TOKENS, LANGUAGE = (
    Task((6,)), Task((2, 6, 6)), Task((5, 6)), Task(None), Task(None, own_loss=True)
)  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def parametrized(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(kind(nn.Linear(6, 8)), nn.Tanh(), kind(nn.Linear(8, 3)))


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()


class LazyBuffer(_Body):
    """Makes a table at the first call, of the type and device that it meets."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            scale = torch.linspace(0.5, 1, x.shape[1], dtype=x.dtype)
            self.register_buffer("scale", scale, persistent=False)
        return self.body(x * self.scale)


class LazyAttribute(_Body):
    """As `LazyBuffer`, in a plain attribute; of the data, so that who calls first decides."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "center"):
            self.center = x.mean(0).detach()
        return self.body(x - self.center)


class Counter(_Body):
    """A plain number that each call raises and that the output depends on."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.calls, self.always = 0, always

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training or self.always
        return self.body(x) / (1 + 0.01 * self.calls)


class Memory(_Body):
    """Remembers the last outputs in a list, and tables by size in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[Tensor] = []
        self.tables: dict[int, Tensor] = {}
        self.seen = {"rows": 0, "shapes": []}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.linspace(0.9, 1, len(x), dtype=x.dtype)[:, None]
        self.seen["rows"] += len(x)
        self.seen["shapes"].append(tuple(x.shape))
        z = self.body(x * self.tables[len(x)])
        if self.last and self.training:
            z = z + 0.1 * torch.stack(self.last).mean(0)
        self.last = [*self.last[-2:], z.detach().mean(0)]
        return z


class ClassCounter(_Body):
    """A number on the class, which all instances raise."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).calls = 0  # as at the start of a process

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return self.body(x) * (1 + 0.01 * (type(self).calls % 3 if self.training else 0))


class MaxNorm(nn.Module):
    """An embedding that rescales its weights when it is called."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6, max_norm=None if sparse else 1.0, sparse=sparse)
        self.body = mlp()

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embedding(ids).mean(1))


class SparseEmbedding(nn.Module):
    """Parameters that all have sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(VOCABULARY, 3, sparse=True)
        self.second = nn.Embedding(VOCABULARY, 3, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.first(ids).mean(1)) + self.second(ids).sum(1)


class Recurrent(nn.Module):
    """Takes a tensor, a packed sequence, or a list of sequences."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(6, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, list):
            x = pack_sequence(x, enforce_sorted=False)
        hidden = self.cells(x)[1]
        return self.out(hidden[0][-1] if isinstance(hidden, tuple) else hidden[-1])


class Experts(nn.Module):
    """A mixture of experts that leaves its balancing loss, with its graph, on itself; and counts tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.balance: Tensor | None = None
        self.register_buffer("load", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        if self.balance is not None and self.training:
            gates = gates * (1 + 0.01 * self.balance.detach())
        self.load = 0.9 * self.load + 0.1 * gates.detach().mean(0)
        self.balance = 4 * gates.mean(0).square().sum()
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        best = gates.topk(2).indices
        kept = torch.zeros_like(gates).scatter(1, best, 1.0) * gates
        return (kept[:, :, None] * outputs).sum(1)


class LowRank(nn.Module):
    """A frozen layer with a trained correction of low rank."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(0.3 * torch.randn(2, base.in_features))
        self.b = nn.Parameter(0.3 * torch.randn(base.out_features, 2))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(x) @ self.a.T @ self.b.T


def low_rank() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(6, 8)), nn.Tanh(), LowRank(nn.Linear(8, 3)))


def dynamic_positions(family: str) -> nn.Module:
    """A language model whose position frequencies depend on the longest sequence so far."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4, rope_scaling={"rope_type": "dynamic", "factor": 2.0},
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return getattr(transformers, f"{family}ForCausalLM")(config)


def rwkv() -> nn.Module:
    """Halves weights of its later layers while it is in evaluation mode."""
    import transformers

    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, intermediate_size=8, attention_hidden_size=8,
        context_length=16, rescale_every=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.RwkvForCausalLM(config)


def adapted() -> nn.Module:
    """A BERT classifier with adapters by peft."""
    import peft
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = peft.get_peft_model(
        transformers.BertModel(config, add_pooling_layer=False),
        peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1),
    )
    return _FirstToken(model)


class _FirstToken(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.out = inside, nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.inside(input_ids=ids).last_hidden_state[:, 0])


@dataclass(frozen=True)
class Spec:
    """A model of the table.

    Attributes:
        build: makes it.
        task: what it is run on.
        batches: the kinds of batch that it takes.
        dtype: of its parameters.
    """

    build: Callable[[], nn.Module]
    task: Task = FLOATS
    batches: tuple[str, ...] = PLAIN
    dtype: torch.dtype = torch.float32


MODELS: dict[str, Spec] = {
    "MLP": Spec(mlp),
    "layer norm, dropout": Spec(dropout),
    "convolution, batch norm": Spec(convolution, IMAGES),
    "spectral norm": Spec(lambda: parametrized(parametrizations.spectral_norm)),
    "orthogonal": Spec(lambda: parametrized(parametrizations.orthogonal)),
    "weight norm": Spec(lambda: parametrized(parametrizations.weight_norm)),
    "lazy buffer": Spec(LazyBuffer),
    "lazy buffer in bfloat16": Spec(LazyBuffer, dtype=torch.bfloat16),
    "lazy attribute": Spec(LazyAttribute),
    "counter in training": Spec(lambda: Counter(always=False)),
    "counter": Spec(lambda: Counter(always=True)),
    "caches": Spec(Memory),
    "counter on the class": Spec(ClassCounter),
    "max_norm embedding": Spec(MaxNorm, TOKENS),
    "sparse embedding": Spec(SparseEmbedding, TOKENS, ("dict", "tuple", "dataclass")),
    "LSTM": Spec(lambda: Recurrent(nn.LSTM), SEQUENCES, RECURRENT),
    "GRU": Spec(lambda: Recurrent(nn.GRU), SEQUENCES, RECURRENT),
    "mixture of experts": Spec(Experts),
    "low rank": Spec(low_rank),
    "MLP in bfloat16": Spec(mlp, dtype=torch.bfloat16),
    "Llama, dynamic positions": Spec(lambda: dynamic_positions("Llama"), LANGUAGE, NAMED),
    "Qwen2, dynamic positions": Spec(lambda: dynamic_positions("Qwen2"), LANGUAGE, NAMED),
    "Mistral, dynamic positions": Spec(lambda: dynamic_positions("Mistral"), LANGUAGE, NAMED),
    "RWKV": Spec(rwkv, LANGUAGE, NAMED),
}

if importlib.util.find_spec("peft") is not None:
    MODELS["BERT with adapters"] = Spec(adapted, TOKENS)
