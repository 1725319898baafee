"""Two lines in a Hugging Face Trainer: a small T5 that learns to reverse words."""

import random
import tempfile

import torch
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from stepscope.integrations.transformers import ProbeCallback


def pair(length):
    letters = [random.randint(2, 27) for _ in range(length)]
    return {"input_ids": letters, "labels": letters[::-1]}


def collate(pairs):
    longest = max(len(p["labels"]) for p in pairs)
    ids = torch.tensor([p["input_ids"] + [0] * (longest - len(p["input_ids"])) for p in pairs])
    labels = torch.tensor([p["labels"] + [-100] * (longest - len(p["labels"])) for p in pairs])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


random.seed(0)
torch.manual_seed(0)
model = T5ForConditionalGeneration(
    T5Config(vocab_size=28, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0)
)
data, held_out = ([pair(random.randint(2, 6)) for _ in range(n)] for n in (960, 64))
arguments = TrainingArguments(tempfile.mkdtemp(), max_steps=60, per_device_train_batch_size=16, use_cpu=True)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=held_out, data_collator=collate)
callback = ProbeCallback(trainer, every=30, run_dir=f"{arguments.output_dir}/probe", max_overhead=None)
trainer.add_callback(callback)
trainer.train()
for record in callback.probe.records:
    print(f"step {record['step']}: {record['direction']}: sharpness {record['sharpness']:.3g}, {record['gradient']}")
