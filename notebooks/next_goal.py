# Databricks notebook source
# MAGIC %md
# MAGIC # Next goal
# MAGIC What does a client want next: to travel, a home, a car, to save? An LSTM reads the events, simpler heads stand beside
# MAGIC it, and the answers become offers. The bank is simulated, so the truth is known. At this size **the figures show
# MAGIC the road**; those of six thousand clients are in `docs/next-goal.md`.

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
out = Path(parameter("out", "build/notebooks/next_goal", "Folder of results"))

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline, a smaller `conf/next_goal.yaml`: goals are told by the kinds of shops; the heads learn on training
# MAGIC clients, and `recommend` turns probabilities into at most two offers a client, with a reason.

# COMMAND ----------
PIPELINE = f"""
pipeline: next_goal
data: datasets/simulated_bank.yaml
stages:
  simulate:
    banks: [{{bank: A, clients: {clients}, purchases: 60, months: 4}}]
  aggregate: {{max_codes: 40}}
  learn:
    task: next_goal
    inputs: {{categorical: [type, mcc, channel], metadata: [package], metadata_numbers: [tenure_years], max_events: 60}}
    network: {{width: 32, dense: 32, pooling: mean, dropout: 0.4}}
    learning: {{epochs: 12, patience: 4, event_dropout: 0.3, learning_rate: 0.002}}
  forecast: {{}}
  guess:
    task: next_goal
    symbols: &goals
      - {{name: travel, fields: {{mcc: [Travel Agencies and Tour Operators, "Hotels, Motels, Resorts", Sporting Goods Stores, Book Stores]}}}}
      - {{name: home, fields: {{mcc: [Home Supply Warehouse Stores, "Furniture, Home Furnishings Stores", Electronics Stores]}}}}
      - {{name: family, fields: {{mcc: ["Hobby, Toy, and Game Shops", Family Clothing Stores, Drug Stores and Pharmacies, Dentists and Orthodontists]}}}}
      - {{name: car, fields: {{mcc: ["Automotive Parts, Accessories Stores", Service Stations, Taxicabs and Limousines]}}}}
      - {{name: leisure, fields: {{mcc: [Eating Places and Restaurants, "Drinking Places, Bars, Taverns, Nightclubs", Motion Picture Theaters]}}}}
      - {{name: saving, fields: {{type: [Transfer to savings]}}, amount: out}}
  fit:
    tasks: [next_goal]
    representation: agg
    sources: [{{table: features}}]
    kind: logistic_regression
  score: {{reasons: 0}}
  compare:
    tasks: [next_goal]
    methods: {{lstm: forecast, regression on aggregates: score, markov1: "guess:markov1", own frequency: "guess:own_frequency", frequency: "guess:frequency"}}
    baseline: own frequency
  recommend:
    scores: forecast
    task: next_goal
    evidence: {{rules: *goals, days: 90}}
    contacts: type = 'CON'
    policy: {{opt_out: "package = 'basic' AND tenure_years < 1", per_client: 2, period_days: 30, rest_days: 7}}
    offers:
      - {{name: travel_card, goal: travel, text: card without fees abroad, acceptance: 0.15, value: 60, cost: 1}}
      - {{name: home_loan, goal: home, text: loan for home works, acceptance: 0.08, value: 220, cost: 3, eligible: tenure_years >= 1}}
      - {{name: dining_cashback, goal: leisure, text: cashback in restaurants, acceptance: 0.3, value: 25, cost: 0.5}}
      - {{name: savings_plan, goal: saving, text: savings plan with a bonus, acceptance: 0.18, value: 70, cost: 1}}
"""
out.mkdir(parents=True, exist_ok=True)
(out / "pipeline.yaml").write_text(PIPELINE)
spark = session()
code = run_pipeline(str(out / "pipeline.yaml"), [f"out={out}/results"])

# COMMAND ----------
# MAGIC %md
# MAGIC The figures on test clients: log loss (lower is better) and the share that is right. `bayes` knows the simulator's
# MAGIC probabilities: nobody does better, and even it is right in less than half of the cases.
# MAGIC From a thousand clients the LSTM learns little more than how frequent each goal is, so its offers are much alike;
# MAGIC from six thousand it is ahead of the frequencies.

# COMMAND ----------
board = pd.DataFrame(json.loads((out / "results" / "report.json").read_text())["leaderboard"])
board = board[board["split"] == "compare/test"]
board[board["metric"].isin(["log_loss", "accuracy"])].pivot_table(
    index="method", columns="metric", values="mean"
).round(3)

# COMMAND ----------
# MAGIC %md
# MAGIC The log loss as a picture, with intervals over resampled clients and the difference to a client's own frequencies.

# COMMAND ----------
figure, axes = plt.subplots(figsize=(6.8, 2.6), layout="constrained")
draw_board(
    axes, board[board["metric"] == "log_loss"], "log loss on test clients: lower is better", lower_is_better=True
)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC The offers: to whom, why, and what each is expected to bring.

# COMMAND ----------
offers = Lake(f"{out.absolute()}/results/lake", spark).read("recommendations")
offers.orderBy(F.desc("expected_value")).select("client_id", "offer", "probability", "expected_value", "reason").limit(
    4
).toPandas()

# COMMAND ----------
# MAGIC %md
# MAGIC What the offers add up to: how many of each, and what they are worth before anybody has said yes.

# COMMAND ----------
worth = (
    offers.groupBy("offer")
    .agg(F.count("*").alias("offers"), F.sum("expected_value").alias("worth"))
    .orderBy("worth")
    .toPandas()
)
figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
bars = axes.barh(worth["offer"], worth["worth"])
axes.bar_label(bars, [f" {number} offers" for number in worth["offers"]])
axes.set(title="expected value of the offers")
axes.margins(x=0.2)
plt.show()
