"""Everything that measuring could disturb, to be compared before and after."""

import random

import numpy as np
import torch


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
        "numpy": str(np.random.get_state()),
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
