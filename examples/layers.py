"""Where does the sharpness come from? A small GPT-2 on Python code: the share of each part, as it trains."""

import os
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import stepscope

TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library


def batch(seed):
    start = torch.randint(len(TEXT) - 32, (8, 1), generator=torch.Generator().manual_seed(seed))
    ids = TEXT[start + torch.arange(32)]
    return {"input_ids": ids, "labels": ids}


def part_of(name):
    parts = name.split(".")  # transformer.h.0.attn.c_attn.weight -> block 0 attn; transformer.wte.weight -> wte
    return f"block {parts[2]} {parts[3]}" if parts[1] == "h" else parts[1]


torch.manual_seed(0)
sizes = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
held_out = [batch(seed) for seed in range(10_000, 10_002)]
with stepscope.Probe(model, optimizer, None, held_out, every=20, layer=part_of, max_overhead=None, quiet=True) as probe:
    for step in range(60):
        optimizer.zero_grad()
        model(**batch(step)).loss.backward()
        optimizer.step()
for record in probe.records:
    if record["direction"] == "own AdamW":
        largest = sorted(record["layers"].items(), key=lambda item: -abs(item[1]))[:4]
        parts = " ".join(f"{value:+.3f} ({part})" for part, value in largest)
        print(f"step {record['step']}: uᵀHu = {record['sharpness']:.3f} = {parts} + the rest")
