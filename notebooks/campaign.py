# Databricks notebook source
# MAGIC %md
# MAGIC # Campaign response
# MAGIC Who answers a campaign? ALIMN reads notes about a client beside its structured features; simpler heads stand beside
# MAGIC it; the scores become a contact list with a budget. The bank is simulated, so the truth is known. At this size
# MAGIC **the figures show the road**; those of twelve thousand clients are in `docs/alimn.md`.

# COMMAND ----------
# MAGIC %md
# MAGIC How many clients the simulated bank has.

# COMMAND ----------
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from pyspark.sql import functions as F

from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.notebook import draw_board, parameter, session

clients = parameter("clients", "1000", "Clients of the simulated bank")
out = Path(parameter("out", "build/notebooks/campaign", "Folder of results"))

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline, a smaller `conf/campaign.yaml`: notes are written from a client's contacts and fees, a small language
# MAGIC model learns from the notes and reads each, `fuse` trains the network, and `contact` weighs cost against value.

# COMMAND ----------
PIPELINE = f"""
pipeline: campaign
data: datasets/simulated_bank.yaml
stages:
  simulate:
    banks: [{{bank: A, clients: {clients}, purchases: 30, months: 6, heavy_share: 0.0, tail: 0.5}}]
  split: {{rule: hash, share: 0.3}}
  describe:
    most: 12
    sources:
      - {{of: events, domain: marketing, where: "type = 'CON'", text: note, document: "trunc(event_time, 'quarter')"}}
      - {{of: events, domain: regulatory, where: "type IN ('FEE', 'LON')", text: note, document: "'bank'"}}
  finetune:
    formats: {{notes: 1.0}}
    shape: {{width: 32, layers: 2, heads: 4, ffn: 64}}
    context: 256
    vocabulary: 512
    max_tokens: 150_000
    evaluations: 2
    precision: fp32
    workers: {{ranks: 1, threads: 2}}
  read: {{prompt: "Identify campaign-related interests."}}
  aggregate: {{max_codes: 20}}
  prepare:
    numeric: [tenure_years]
    categorical: [region, package]
    append: [{{table: features}}]
    components: 24
  fuse:
    task: campaign_response
    sources: [{{table: features, feature_set: structured}}]
    training: {{learning_rate: 0.001, epochs: 15}}
    workers: {{ranks: 1, threads: 2}}
    networks:
      alimn: &network {{l2: 0.003}}
      structured: {{<<: *network, inputs: structured}}
      text: {{<<: *network, inputs: text}}
  logistic_regression:
    job: fit
    tasks: [campaign_response]
    representation: structured+text
    kind: logistic_regression
    sources: [{{table: features, feature_set: structured}}, {{table: features, feature_set: text}}]
  score: {{stages: [logistic_regression], reasons: 0}}
  compare:
    tasks: [campaign_response]
    baseline: structured
    methods: {{alimn: "fuse:alimn", structured: "fuse:structured", text: "fuse:text", logistic regression: logistic_regression}}
  contact:
    campaign: product
    task: campaign_response
    head: fuse:alimn
    economy: {{cost: 1.0, value: 5.0}}
    policy: {{budget: 200}}
    fairness: [region]
"""
out.mkdir(parents=True, exist_ok=True)
(out / "pipeline.yaml").write_text(PIPELINE)
spark = session()
code = run_pipeline(str(out / "pipeline.yaml"), [f"out={out}/results"])

# COMMAND ----------
# MAGIC %md
# MAGIC What the network reads of a client: its notes, by domain.

# COMMAND ----------
lake = Lake(f"{out.absolute()}/results/lake", spark)
lake.read("sentences").orderBy("client_id").select("client_id", "domain", "text").limit(4).toPandas()

# COMMAND ----------
# MAGIC %md
# MAGIC The figures on test clients, which nothing has learnt from; `bayes` knows the simulator's probabilities.

# COMMAND ----------
board = pd.DataFrame(json.loads((out / "results" / "report.json").read_text())["leaderboard"])
board = board[(board["split"] == "compare/test") & (board["metric"] == "roc_auc")]
figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
draw_board(axes, board, "ROC-AUC on test clients, with the difference to structured")
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC The contact list: the clients with the highest expected profit, within the budget, with the reasons of each.

# COMMAND ----------
contacts = lake.read("contacts")
contacts.where("contact").orderBy(F.desc("expected_profit")).select(
    "client_id",
    F.round("probability", 3).alias("probability"),
    F.round("expected_profit", 2).alias("profit"),
    F.col("reasons.feature").alias("because"),
).limit(4).toPandas()

# COMMAND ----------
# MAGIC %md
# MAGIC Where to stop? Expected profit adds up as long as the next client's is above zero; the dashed line is the budget.

# COMMAND ----------
ordered = contacts.select("expected_profit", "contact").orderBy(F.desc("expected_profit")).toPandas()
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(ordered["expected_profit"].cumsum().to_numpy())
axes.axvline(int(ordered["contact"].sum()), color="grey", linestyle="--", linewidth=1)
axes.set(xlabel="clients contacted, the best first", ylabel="expected profit")
plt.show()
