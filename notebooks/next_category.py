# Databricks notebook source
# MAGIC %md
# MAGIC # Next merchant category
# MAGIC Where does a client buy next: groceries, clothing or fuel? A small language model reads histories of bank A, is
# MAGIC tuned to answer this question, and is then asked about clients of bank B, whose codes it has never seen. Beside it
# MAGIC the simple heads that one should try first. At this size **the figures show the road**; those of twelve thousand
# MAGIC clients are in `docs/next-category.md`.

# COMMAND ----------
# MAGIC %md
# MAGIC How many clients the simulated banks have, and how many tokens the model reads.

# COMMAND ----------
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from pyspark.sql import functions as F

from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.notebook import draw_board, parameter, session

clients = parameter("clients", "600", "Clients of bank A; bank B has half as many")
tokens = parameter("tokens", "300000", "Tokens that the language model reads")
out = Path(parameter("out", "build/notebooks/next_category", "Folder of results"))

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline, a smaller `conf/next_category.yaml`. Learning ends in November and uses bank A's training clients
# MAGIC alone. The prompt is a history as the model has read them, and the answer the beginning of its next line.

# COMMAND ----------
PIPELINE = f"""
pipeline: next_category
data: datasets/simulated_bank.yaml
stages:
  simulate:
    banks:
      - {{bank: A, clients: {clients}, purchases: 60, months: 6}}
      - {{bank: B, clients: {int(clients) // 2}, purchases: 60, months: 6}}
  serialize: {{labels: false, format: compact, fields: &fields [mcc, weekday, pause], until: 2024-12-01}}
  finetune:
    formats: {{compact: 1.0}}
    shape: {{width: 64, layers: 2, heads: 4, ffn: 192}}
    context: 256
    max_tokens: {tokens}
    evaluations: 2
    precision: fp32
    workers: {{ranks: 1, threads: 2}}
  label:
    next_category:
      next_category:
        categories: &categories
          grocery: ["Grocery Stores, Supermarkets"]
          clothing: [Family Clothing Stores]
          fuel: [Service Stations]
        min_history: 9
        per_client: 2
  guess:
    task: next_category
    where: &learnt split = 'train' AND as_of < '2024-12-01'
  instruct:
    where: *learnt
    prompt:
      instruction: null
      question: null
      answers: {{grocery: "Grocery Stores, Supermarkets", clothing: Family Clothing Stores, fuel: Service Stations}}
      format: compact
      fields: *fields
    lengths: [15, 40]
    lora: null
    closed: true
    learning_rate: 2.0e-4
    batch_tokens: 4096
    epochs: 1
    precision: fp32
    workers: {{ranks: 1, threads: 2}}
  predict: {{}}
  compare:
    tasks: [next_category]
    methods: {{tuned model: predict, markov1: "guess:markov1", own frequency: "guess:own_frequency", frequency: "guess:frequency"}}
    baseline: markov1
    slices:
      unseen bank: bank = 'B'
      unseen clients: bank = 'A' AND split = 'test'
"""
out.mkdir(parents=True, exist_ok=True)
(out / "pipeline.yaml").write_text(PIPELINE)
spark = session()
code = run_pipeline(str(out / "pipeline.yaml"), [f"out={out}/results"])

# COMMAND ----------
# MAGIC %md
# MAGIC What the model is asked: the labels of a client, with the category that came next.

# COMMAND ----------
lake = Lake(f"{out.absolute()}/results/lake", spark)
lake.read("labels").where("task = 'next_category'").groupBy("label_text").count().orderBy(F.desc("count")).toPandas()

# COMMAND ----------
# MAGIC %md
# MAGIC The figures on clients of bank B: log loss (lower is better) and accuracy, with the difference to a Markov chain
# MAGIC of order 1. `bayes` knows the simulator's probabilities: nobody does better. With so little to read the chain is
# MAGIC ahead of the language model; with twelve thousand clients and twelve million tokens it is the other way round.

# COMMAND ----------
board = pd.DataFrame(json.loads((out / "results" / "report.json").read_text())["leaderboard"])
other = board[board["split"] == "compare/unseen bank"]
other[other["metric"].isin(["log_loss", "accuracy"])].pivot_table(
    index="method", columns="metric", values="mean"
).round(3)

# COMMAND ----------
# MAGIC %md
# MAGIC The log loss as a picture, with intervals over resampled clients.

# COMMAND ----------
figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
draw_board(
    axes,
    other[other["metric"] == "log_loss"],
    "log loss on clients of an unseen bank: lower is better",
    lower_is_better=True,
)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC Next: `docs/next-category.md` for LSTM, CNN, LightGBM, zero-shot and the adaptation to the bank's shares.
