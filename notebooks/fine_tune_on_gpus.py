# Databricks notebook source
# MAGIC %md
# MAGIC # Fine-tune on GPUs
# MAGIC What to set so that `finetune` trains a language model of billions of weights on GPUs, and the same stage with a tiny
# MAGIC model on this machine's processor. **What runs below runs on a CPU**: the settings for GPUs are checked here as every
# MAGIC run checks them, and nothing more is claimed.

# COMMAND ----------
# MAGIC %md
# MAGIC Where the weights of a large model are (a folder in Hugging Face format; nothing is downloaded here), how many GPUs
# MAGIC there are, and where results go.

# COMMAND ----------
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from ledgerlm.config import load_yaml, shipped
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.notebook import parameter, session
from ledgerlm.runs.pipeline import load_pipeline

weights = parameter("weights", "/models/Qwen3-1.7B", "Folder of the weights")
gpus = parameter("gpus", "4", "GPUs, one rank each")
out = Path(parameter("out", "build/notebooks/fine_tune_on_gpus", "Folder of results"))
print(f"GPUs that are here: {torch.cuda.device_count()}")

# COMMAND ----------
# MAGIC %md
# MAGIC The models that ship with settings: base, context, learning rate, DeepSpeed file and ranks, as LLM4ES published them.

# COMMAND ----------
names = ("llama-3.2-1b", "llama-3.2-3b", "qwen3-0.6b", "qwen3-1.7b", "mistral-7b")
pd.DataFrame({name: load_yaml(shipped(f"backbones/{name}.yaml")) for name in names}).T.drop(
    columns=["published"], errors="ignore"
)

# COMMAND ----------
# MAGIC %md
# MAGIC What to set, in one stage. `backbone` brings the settings above; `workers` gives each rank a GPU; ZeRO-2 splits
# MAGIC gradients and the optimizer's state over the ranks (`zero3` splits the weights as well, `zero3_offload` keeps them in
# MAGIC the processor's memory); `lora` trains adapters in place of all weights; `recompute` buys memory with time.

# COMMAND ----------
LARGE = {
    "stages.finetune.backbone": "qwen3-1.7b",
    "stages.finetune.base": weights,
    "stages.finetune.workers": f"{{ranks: {gpus}, threads: 4, gpu: true}}",
    "stages.finetune.deepspeed": "deepspeed/zero2.json",
    "stages.finetune.precision": "bf16",
    "stages.finetune.lora": "{rank: 16, alpha: 32, dropout: 0.05}",
    "stages.finetune.learning_rate": "2e-4",
    "stages.finetune.recompute": "true",
    "stages.embed.device": "cuda",
}
large = load_pipeline("demo.yaml", [f"out={out}/large", *(f"{key}={value}" for key, value in LARGE.items())])
finetune = next(plan.stage.conf for plan in large.plans if plan.stage.name == "finetune")
pd.Series(
    finetune.model_dump(include={"base", "context", "workers", "deepspeed", "precision", "lora", "recompute"})
).to_frame("value")

# COMMAND ----------
# MAGIC %md
# MAGIC The same stage where there is no GPU: two ranks of DeepSpeed on the processor, ZeRO-1, a model of some tens of
# MAGIC thousands of weights, 40,000 tokens. Spark writes the texts, Ray starts the ranks.

# COMMAND ----------
PIPELINE = """
pipeline: tiny_training
data: datasets/simulated_bank.yaml
stages:
  simulate:
    banks: [{bank: A, clients: 300, purchases: 30, months: 4}]
  serialize: {format: compact, fields: [days, weekday, type, mcc, amount], max_events: 60}
  finetune:
    formats: {compact: 1.0}
    shape: {width: 32, layers: 2, heads: 2, ffn: 64}
    context: 256
    vocabulary: 600
    batch_tokens: 1024
    max_tokens: 40000
    evaluations: 4
    precision: fp32
    deepspeed: deepspeed/zero1.json
    workers: {ranks: 2, threads: 1}
"""
out.mkdir(parents=True, exist_ok=True)
(out / "pipeline.yaml").write_text(PIPELINE)
spark = session()
code = run_pipeline(str(out / "pipeline.yaml"), [f"out={out}/results"])

# COMMAND ----------
# MAGIC %md
# MAGIC The loss of the next token while it trained, and what the stage says of itself. The folder opens with
# MAGIC `transformers.AutoModelForCausalLM`, and `ledgerlm.embed(texts, folder)` reads with it.

# COMMAND ----------
details = json.loads((out / "results" / "report.json").read_text())["details"]["finetune"]
curve = details["curve"]
figure, axes = plt.subplots(figsize=(5.4, 2.4), layout="constrained")
axes.plot(curve["tokens"], curve["loss"], label="training", linewidth=1)
axes.plot(curve["held_out_tokens"], curve["held_out_loss"], marker="o", label="unseen clients")
axes.set(xlabel="tokens read", ylabel="nats a token")
axes.legend(frameon=False)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC What it will cost at the size of your bank, before you pay for it: `ledgerlm plan conf/plan.yaml`
# MAGIC (`docs/planning.md`). All settings: `ledgerlm finetune --help`; which of them matter: `docs/fine-tuning.md`.
