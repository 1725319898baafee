"""On a GPU: the same numbers as on the CPU, and training as without the probe."""

import pytest
import torch

import stepscope
from cases import FAMILIES, case, dense, flat
from stepscope import Probe, clip_optimizer
from traces import outcome, same

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def on_gpu(name, dtype=torch.float64):
    c = case(name, dtype)
    c.model.cuda()
    return c


@pytest.mark.parametrize("name", FAMILIES)
def test_sharpness_against_the_dense_hessian(name):
    c = on_gpu(name)
    objective = c.objective()
    _, _, hessian = dense(name)
    direction = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in objective.parameters.items()}
    u = flat(c, direction) / flat(c, direction).norm()
    m = stepscope.measure(objective, {"d": direction})["d"]
    bar = c.tolerance * float(torch.linalg.matrix_norm(hessian, 2))
    assert m.sharpness == pytest.approx(float(u @ hessian @ u), abs=10 * bar)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", ["batch norm", "t5 gelu", "llama", "gpt-2"])
def test_training_is_bit_identical(name, precision):
    """With fused AdamW and, in float16, autocast and a gradient scaler."""
    results = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for probed in (False, True):
            c = on_gpu(name, torch.float32)
            loss_fn = c.loss_fn or (lambda model, batch: model(**batch).loss)
            optimizer = torch.optim.AdamW(c.model.parameters(), lr=1e-3, fused=True)
            scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, enabled=precision == "float16")
            batches = [_moved(batch) for batch in c.batches]
            torch.manual_seed(3)
            if probed:
                probe = Probe(c.model, optimizer, loss_fn, c.batches, every=5, max_overhead=None, quiet=True)
            for step in range(10):
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.float16, enabled=precision == "float16"):
                    loss = loss_fn(c.model, batches[step % len(batches)])
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            results.append([*outcome(c.model, optimizer), torch.cuda.get_rng_state()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(*results)
    assert {r["step"] for r in probe.records} == {5, 10}


def _moved(batch):
    if isinstance(batch, torch.Tensor):
        return batch.cuda()
    if isinstance(batch, dict):
        return {key: _moved(value) for key, value in batch.items()}
    return type(batch)(_moved(value) for value in batch)


@pytest.mark.parametrize("target", ["grad", "first_moment", "update"])
@pytest.mark.parametrize("fused", [False, True])
def test_clipping_waits_for_nothing(target, fused):
    """And gives what the CPU gives."""
    found = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in ((300, 70), (90,))]
        optimizer = torch.optim.Adam(weights, lr=0.1, fused=fused, capturable=device == "cuda" and not fused)
        handle = clip_optimizer(optimizer, 0.3, target=target)
        for _ in range(4):
            for p in weights:
                p.grad = torch.randn(p.shape, generator=generator).pow(3).to(device)
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append((torch.cat([p.detach().cpu().reshape(-1) for p in weights]), handle.stats()))
    (cpu, cpu_stats), (cuda, cuda_stats) = found
    torch.testing.assert_close(cuda, cpu, rtol=1e-4, atol=1e-5)
    assert cuda_stats.steps == cpu_stats.steps == 4
    assert cuda_stats.thresholds == pytest.approx(cpu_stats.thresholds, rel=1e-3)
