"""What objects lead to is found by one walk, and restored."""

import array
import contextvars
import functools
import itertools
import random
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from stepscope.errors import UsageError
from stepscope.objective.state import State

VARIABLE = contextvars.ContextVar("variable")
SETTINGS = types.ModuleType("settings_of_a_user")
SETTINGS.step = 0
COUNT = 0


class Counting:
    """A descriptor with state of its own."""

    def __init__(self):
        self.reads = 0

    def __get__(self, owner, kind):
        self.reads += 1
        return self.reads


class Slotted:
    __slots__ = ("count", "later")

    def __init__(self):
        self.count = 0


class Holder:
    calls = 0
    described = Counting()


def of_a_global():
    def work():
        global COUNT
        COUNT += 1

    return work, lambda: COUNT


def of_a_module():
    def work():
        SETTINGS.step += 1

    return work, lambda: SETTINGS.step


def of_a_list():
    seen = [1]
    return lambda: seen.append(2), lambda: list(seen)


def of_a_default():
    def work(seen={}):  # noqa: B006
        seen["more"] = 1

    return work, lambda: dict(work.__defaults__[0])


def of_an_attribute():
    holder = Holder()

    def work():
        holder.new = 3

    return work, lambda: dict(vars(holder))


def of_a_class():
    holder = Holder()

    def work():
        type(holder).calls += 1
        type(holder).fresh = 1

    return work, lambda: (Holder.calls, hasattr(Holder, "fresh"))


def of_a_descriptor():
    holder = Holder()
    return lambda: holder.described, lambda: vars(Holder)["described"].reads


def of_a_slot():
    holder = Slotted()

    def work():
        holder.count, holder.later = 5, 6

    return work, lambda: (holder.count, hasattr(holder, "later"))


def of_a_thread():
    local = threading.local()
    local.n = 0

    def work():
        local.n += 1

    return work, lambda: local.n


def of_a_context():
    VARIABLE.set(0)
    return lambda: VARIABLE.set(VARIABLE.get() + 1), lambda: VARIABLE.get()


def of_a_bytearray():
    held = bytearray(b"ab"), array.array("d", [1.0])

    def work():
        held[0][0] = 0
        held[1][0] = 2.0

    return work, lambda: (bytes(held[0]), held[1][0])


def of_an_array():
    held = np.zeros(3)

    def work():
        held[1] += 1

    return work, lambda: held.tolist()


def of_a_generator():
    held = random.Random(0), np.random.default_rng(0), torch.Generator().manual_seed(0)

    def work():
        held[0].random(), held[1].random(), torch.rand(1, generator=held[2])

    return work, lambda: (held[0].getstate(), str(held[1].bit_generator.state), held[2].get_state().tolist())


def of_a_cache():
    @functools.lru_cache
    def draw(n):
        return random.random()

    return lambda: draw(1), lambda: draw.cache_info().currsize


def of_a_set():
    seen = {1}
    return lambda: seen.add(2), lambda: set(seen)


def of_a_weak_reference():
    holder = Holder()
    reference = weakref.ref(holder)

    def work(_=holder):
        reference().new = 1

    return work, lambda: dict(vars(holder))


FOUND = [
    of_a_global, of_a_module, of_a_list, of_a_default, of_an_attribute, of_a_class, of_a_descriptor, of_a_slot,
    of_a_thread, of_a_context, of_a_bytearray, of_an_array, of_a_generator, of_a_cache, of_a_set, of_a_weak_reference,
]  # fmt: skip


@pytest.mark.parametrize("made", FOUND)
def test_it_is_found_and_restored(made):
    work, look = made()
    before = look()
    state = State({"work": work})
    work()
    assert look() != before
    assert state.changed()
    state.restore()
    assert look() == before
    assert state.unrestored() == []


def test_what_cannot_be_restored_is_named():
    @functools.lru_cache
    def draw(n):
        return random.random()

    @functools.lru_cache(maxsize=1)
    def draw_full(n):
        return random.random()

    draw(0), draw_full(0)
    large = np.zeros(2**23)

    def work():
        large[0] += draw(1) + draw_full(1)

    state = State({"work": work})
    work()
    state.restore()
    assert sorted(state.unrestored()) == ["work's draw", "work's draw_full", "work's large"]


@pytest.mark.parametrize("place", ["closure", "tuple", "partial", "default", "list"])
def test_iterators_are_spared(place):
    count, drawn = itertools.count(), (n for n in range(9))
    work = {
        "closure": lambda: lambda: (count, drawn),
        "tuple": lambda: functools.partial(lambda pair: pair, (count, drawn)),
        "partial": lambda: functools.partial(lambda a, b: (a, b), count, drawn),
        "default": lambda: lambda a=count, b=drawn: (a, b),
        "list": lambda: functools.partial(lambda pair: tuple(pair), [count, drawn]),
    }[place]()
    state = State({"work": work})
    state.spare_iterators()
    copied, refused = work()
    assert (next(copied), next(copied)) == (0, 1)
    with pytest.raises(UsageError, match="is an iterator"):
        next(refused)
    state.restore()
    a, b = work()
    assert (a, b) == (count, drawn)
    assert (next(count), next(drawn)) == (0, 0)


def test_a_proxy_stands_for_what_it_points_to():
    net = nn.Linear(2, 2)
    proxy = weakref.proxy(net)
    assert list(State({"work": lambda: proxy}).modules.values()) == [net]


@pytest.mark.parametrize(
    "leading_to",
    [weakref.ref, lambda holder: holder.append, lambda holder: type("Own", (), {"__module__": __name__, "it": holder})],
    ids=["a weak reference", "a method of a builtin class", "a class"],
)
def test_what_an_object_leads_to_is_restored(leading_to):
    class Numbers(list):
        pass

    numbers = Numbers([1])
    state = State({"root": leading_to(numbers)})
    numbers.append(2)
    state.restore()
    assert numbers == [1]


class Odd:
    @property
    def __class__(self):
        raise RuntimeError


def test_what_does_not_let_itself_be_looked_at_is_left_alone():
    dead = weakref.proxy(Holder())
    seen = [Odd(), dead]
    State({"work": lambda: seen}).restore()
    assert len(seen) == 2


def test_a_long_chain_takes_memory_in_proportion():
    first = node = Holder()
    for _ in range(5000):
        node.next = Holder()
        node = node.next
    state = State({"first": first})
    node.value = 1
    (place,) = state.changed()
    assert len(place.path) < 400
    state.restore()
    assert not hasattr(node, "value")


def test_a_module_is_named_by_how_it_is_reached():
    sys.modules[SETTINGS.__name__] = SETTINGS
    net = nn.Linear(2, 2)
    assert list(State({"loss": lambda x: net(x)}).modules) == ["loss's net"]
    del sys.modules[SETTINGS.__name__]
