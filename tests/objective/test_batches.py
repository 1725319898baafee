"""Batches are copied, never rebuilt by their constructors; what isn't a tensor is shared."""

import collections
import dataclasses
import types
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn

from stepscope import Objective, UsageError
from stepscope.objective import averaged_over
from stepscope.objective.batches import digest, moved, tensors


def doubled(batch):
    return moved(batch, torch.device("cpu"), lambda _: torch.float64)


@dataclasses.dataclass
class Normalizing:
    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self):
        self.x = (self.x - 128) / 64


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor
    n: int = 3


class Slots:
    __slots__ = ("empty", "x")


class Scaled(list):
    scale = 1.0


class Pair(tuple):
    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Strict(dict):
    def __init__(self, x):
        super().__init__(x=x)

    def __setitem__(self, key, value):
        raise AssertionError


class Store(collections.UserDict):
    def __init__(self, graph, **content):
        super().__init__(content)
        self.graph = weakref.ref(graph)


class Graph:
    """As those of PyG: what it has lies in a store that refers back to it."""

    def __init__(self, **content):
        self.__dict__["store"] = Store(self, **content)

    def __getattr__(self, name):
        if name == "store" or name not in self.store:
            raise AttributeError(name)
        return self.store[name]

    def __setattr__(self, name, value):
        raise AssertionError


def test_a_constructor_that_normalizes_does_not_run_again():
    batch = Normalizing(torch.randn(5, 6) * 64 + 128, torch.randint(0, 3, (5,)))
    batch.temperature = 3.0
    model = nn.Linear(6, 3)

    def loss_fn(model, b):
        return nn.functional.cross_entropy(model(b.x) * b.temperature, b.y)

    assert Objective(model, loss_fn, [batch]).loss() == pytest.approx(loss_fn(model, batch).item(), rel=1e-6)


def test_what_a_container_has_beside_its_elements_is_kept():
    x, y = torch.randn(3, 2), torch.arange(3)
    scaled = Scaled([x, y])
    scaled.scale = 3.0
    slots = Slots()
    slots.x = x
    ordered = collections.OrderedDict(a=x, b=y)
    ordered.move_to_end("a")
    for batch in (Frozen(x), slots, scaled, Pair(x, y), Named(x, y), Strict(x), ordered, torch.max(x, 1)):
        copy = doubled(batch)
        assert type(copy) is type(batch)
        found, before = list(tensors(copy)), list(tensors(batch))
        assert [t.shape for t in found] == [t.shape for t in before]
        assert [t.dtype for t in found] == [torch.float64 if t.is_floating_point() else t.dtype for t in before]
        assert not {t.data_ptr() for t in found} & {t.data_ptr() for t in before}
    assert doubled(scaled).scale == 3.0
    assert doubled(Frozen(x)).n == 3
    assert not hasattr(doubled(slots), "empty")
    assert list(doubled(ordered)) == ["b", "a"]
    assert doubled(collections.defaultdict(list, x=x))["new"] == []


def test_an_object_is_copied_with_its_inner_references():
    x = torch.randn(3, 2)
    graph = Graph(x=x, edge_index=torch.arange(4), name="g")
    batch = (graph, {"again": [graph], "note": types.SimpleNamespace(x=x)})
    first, rest = doubled(batch)
    assert first is rest["again"][0]
    assert first is first.store.graph()
    assert first.x is rest["note"].x
    assert (first.x.dtype, graph.x.dtype) == (torch.float64, torch.float32)
    assert [tuple(t.shape) for t in tensors(batch)] == [(3, 2), (4,)]
    loop = [x]
    loop.append(loop)
    assert doubled(loop)[1][0].dtype == torch.float64


def test_what_holds_no_tensor_and_what_is_no_part_of_a_batch_is_shared():
    batch = types.SimpleNamespace(x=torch.ones(2), notes={"a": [1]}, model=nn.Linear(2, 2), function=lambda: None)
    copy = doubled(batch)
    assert copy.notes is batch.notes
    assert copy.model is batch.model
    assert copy.function is batch.function
    assert list(tensors(batch)) == [batch.x]


def test_sequences_that_are_packed_weigh_by_their_labels_and_not_by_their_elements():
    def batch(*lengths):
        packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)
        return packed, torch.randint(0, 2, (len(lengths),))

    def loss_fn(model, batch):
        _, hidden = model(batch[0])
        return nn.functional.cross_entropy(hidden[0], batch[1])

    objective = Objective(nn.GRU(3, 2), loss_fn, [batch(1, 6), batch(1, 2), batch(2, 2, 1, 1)])
    assert objective.weights == [0.25, 0.25, 0.5]
    assert averaged_over(batch(2, 5)[0], shifted=False) == 7


def test_a_packed_sequence_keeps_its_sizes_on_the_cpu():
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 3), torch.ones(4, 3)], enforce_sorted=False)
    copy = doubled(packed)
    assert type(copy) is type(packed)
    assert (copy.data.dtype, copy.batch_sizes.dtype) == (torch.float64, torch.int64)
    nn.LSTM(3, 2).double()(copy)
    away = moved(packed, torch.device("meta"), lambda dtype: dtype)
    assert [t.device.type for t in away] == ["meta", "cpu", "meta", "meta"]


def test_tokenizers_and_models_own_containers():
    transformers = pytest.importorskip("transformers")
    encoded = doubled(transformers.BatchEncoding({"input_ids": torch.arange(3), "weights": torch.ones(3)}))
    assert encoded.weights is encoded["weights"]
    assert encoded["weights"].dtype == torch.float64
    output = doubled(transformers.modeling_outputs.BaseModelOutput(last_hidden_state=torch.ones(2)))
    assert output.last_hidden_state is output["last_hidden_state"]
    assert output[0].dtype == torch.float64


def test_what_cannot_be_copied_is_said_in_one_line():
    with pytest.raises(UsageError, match=r"a batch holds a mappingproxy that can't be copied .*: give its tensors in"):
        doubled([types.MappingProxyType({"x": torch.ones(1)})])


def test_of_an_object_the_first_dimension_says_nothing():
    """Of a graph it is the number of nodes, where the mean may be over graphs."""
    with pytest.raises(UsageError, match="cannot tell how many examples a Graph holds"):
        averaged_over(Graph(x=torch.ones(5, 2)), shifted=False)
    assert averaged_over((Graph(x=torch.ones(5, 2)), torch.ones(3)), shifted=False) == 3


def test_a_digest_tells_examples_from_others_however_they_are_cut():
    x, y = torch.randn(4, 3), torch.arange(4)
    whole = digest([(x, y)])
    assert digest([(x[:1], y[:1]), (x[1:].clone(), y[1:])]) == whole
    assert digest([(x.T.contiguous().T, y)]) == whole
    others = [[(y, x)], [(x, y + 1)], [(x, y.to(torch.int32))], [(x[:3], y[:3])], []]
    assert whole not in [digest(other) for other in others]
    assert digest([(x.to_sparse(), y)]) is None
    assert digest([x.bfloat16()]) != digest([x.half()])
