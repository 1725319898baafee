"""Everything that measuring could disturb, to be compared before and after."""

import pickle
import queue
import random

import numpy as np
import torch


class Log:
    """What a loss noted. A list would be as before after a measurement, like everything that a loss reaches."""

    def __init__(self):
        self._notes = queue.SimpleQueue()

    def __call__(self, note=None):
        self._notes.put(note)
        return self._notes.qsize()

    def __len__(self):
        return self._notes.qsize()

    def notes(self):
        found = [self._notes.get() for _ in range(len(self))]
        for note in found:
            self(note)
        return found


def fingerprint(model, optimizer=None):
    """Everything that measuring could disturb, as bytes and identities."""

    def raw(tensor):
        return (
            None if tensor is None else (id(tensor), tensor.data_ptr(), tensor.dtype, tensor._version, _bytes(tensor))
        )

    state = {
        "parameters": {n: (raw(p), raw(p.grad), id(p._backward_hooks)) for n, p in model.named_parameters()},
        "buffers": {n: raw(b) for n, b in model.named_buffers()},
        "training": [m.training for m in model.modules()],
        "rng": _bytes(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state()),
        "grad enabled": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
    }
    if optimizer is not None:
        state["optimizer"] = [
            [raw(t) if torch.is_tensor(t) else t for t in s.values()] for s in optimizer.state.values()
        ]
    return state


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def outcome(model, optimizer):
    """What a training leaves behind: weights, buffers, gradients, optimizer state, random state; to be compared by
    `same`."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return [t.detach().clone() for t in tensors] + [torch.get_rng_state()]


def same(a, b):
    """Whether two outcomes are the same, bit for bit."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and _bytes(x) == _bytes(y) for x, y in zip(a, b, strict=True)
    )


def equal(first, second):
    """Whether two ``{name: tensor}`` hold the same numbers under the same names."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
