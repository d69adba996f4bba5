# Databricks notebook source
# MAGIC %md
# MAGIC # What is a good embedding?
# MAGIC One that tells a head something about a client which counts and sums do not. So each representation gets the same
# MAGIC head on the same folds, and what counts is the difference to the aggregates with its interval. This is the road of
# MAGIC LLM4ES at a size that ends in minutes: **its figures show the road, not the method**. The real ones are those of
# MAGIC `make demo` (README) and of `docs/leaderboards.md`.

# COMMAND ----------
# MAGIC %md
# MAGIC The shipped purchases of 2,377 households lie in the repository; where the wheel alone is installed, name their
# MAGIC folder. More tokens make a better model and a longer wait.

# COMMAND ----------
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.notebook import draw_board, parameter, session

purchases = parameter("purchases", "", "Folder of the purchases; empty: the repository's")
tokens = parameter("tokens", "300000", "Tokens that the language model reads")
out = Path(parameter("out", "build/notebooks/what_is_a_good_embedding", "Folder of results"))

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline, a smaller `conf/demo.yaml`: histories become texts of at most 60 purchases, a small language model
# MAGIC learns from them without any label, reads them again and leaves a vector of each client. Three rivals: the
# MAGIC aggregates, the embedding, both side by side.

# COMMAND ----------
PIPELINE = """
pipeline: good_embedding
data: datasets/complete_journey.yaml
stages:
  ingest: {}
  serialize:
    format: compact
    fields: [days, weekday, department, category, store, amount]
    max_events: 60
  finetune:
    formats: {compact: 1.0}
    shape: {width: 64, layers: 2, heads: 4, ffn: 192}
    context: 512
    evaluations: 4
    precision: fp32
    workers: {ranks: 1, threads: 2}
  embed:
    definition: {parts: [mean, std, surprise], dtype: fp32}
  aggregate: {max_codes: 60}
  evaluate:
    tasks: [income]
    stratify: [age, income]
    representations:
      agg: [{table: features}]
      embedding: [{table: embeddings, parts: [mean, std, surprise]}]
      both: [{table: embeddings, parts: [mean, std, surprise]}, {table: features}]
    heads: [linear]     # the better one for either side on these data; the demo lets inner folds choose
    seeds: [42]
"""
out.mkdir(parents=True, exist_ok=True)
(out / "pipeline.yaml").write_text(PIPELINE)
spark = session()
settings = [
    f"out={out}/results",
    f"stages.finetune.max_tokens={tokens}",
    *([f"source.path={purchases}"] if purchases else []),
]
code = run_pipeline(str(out / "pipeline.yaml"), settings)

# COMMAND ----------
# MAGIC %md
# MAGIC How it learnt: the loss of the next token, in nats. Where it still falls on households that it has not seen, more
# MAGIC tokens help.

# COMMAND ----------
report = json.loads((out / "results" / "report.json").read_text())
curve = report["details"]["finetune"]["curve"]
figure, axes = plt.subplots(figsize=(5, 2.2), layout="constrained")
axes.plot(curve["tokens"], curve["loss"], label="training", linewidth=1)
axes.plot(curve["held_out_tokens"], curve["held_out_loss"], marker="o", label="unseen households")
axes.set(xlabel="tokens read", ylabel="nats a token")
axes.legend(frameon=False)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC The leaderboard: ROC-AUC of "income of 50,000 dollars and more" over five folds of 721 households, its 95 %
# MAGIC interval, and the paired difference to `agg`. An interval of the difference that holds zero shows nothing.

# COMMAND ----------
board = pd.DataFrame(report["leaderboard"])
board = board[board["metric"] == "roc_auc"]
board[["method", "mean", "low", "high", "delta", "delta_low", "delta_high"]].round(3)

# COMMAND ----------
# MAGIC %md
# MAGIC The same as a picture; clients are resampled for the intervals, so they hold the luck of the clients, not of the
# MAGIC training.

# COMMAND ----------
figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
draw_board(axes, board, "ROC-AUC, income of 50,000 dollars and more")
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC Does the space of the vectors know the income? Each household at its first two principal components: a good
# MAGIC embedding need not show it so plainly, since a head weighs all of its numbers.

# COMMAND ----------
lake = Lake(f"{out.absolute()}/results/lake", spark)
labels = lake.read("labels").where("task = 'income'").select("client_id", "as_of", "label_text")
found = (
    lake.read("embeddings")
    .join(labels, ["client_id", "as_of"])
    .select("label_text", F.col("parts")["mean"].alias("mean"))
    .toPandas()
)
vectors = np.array(found["mean"].tolist())
vectors = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
places = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:2].T
figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
for name, color in zip(sorted(found["label_text"].unique()), ("tab:orange", "tab:blue"), strict=True):
    chosen = (found["label_text"] == name).to_numpy()
    axes.scatter(*places[chosen].T, s=7, alpha=0.6, color=color, label=name)
axes.set(title="embeddings of households, two principal components", xticks=[], yticks=[])
axes.legend(frameon=False)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC What matters for a good one (formats of text, which layers, how many tokens, how large a model): `conf/ablations/`,
# MAGIC and its figures in `docs/study-small-backbones.md`.
