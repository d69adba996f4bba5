# Databricks notebook source
# MAGIC %md
# MAGIC # Quick start
# MAGIC From purchases to calibrated scores in six verbs, on a made-up shop: who buys fuel comes back, who buys food does not.
# MAGIC Frames of pandas here; Polars, Arrow and Spark go in, and come out, in the same way. Three minutes to read, no model
# MAGIC to download.

# COMMAND ----------
# MAGIC %md
# MAGIC How many clients the shop has, and where the trained head is kept. On Databricks these are widgets above the
# MAGIC notebook; elsewhere the environment's `LEDGERLM_CLIENTS` and `LEDGERLM_OUT`.

# COMMAND ----------
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ledgerlm
from ledgerlm.notebook import parameter

clients = int(parameter("clients", "120", "Clients of the shop"))
out = parameter("out", "build/notebooks/quick_start", "Folder of the head")

# COMMAND ----------
# MAGIC %md
# MAGIC What a bank would bring: rows of purchases, rows of answers (who came back), and a short description of both, the
# MAGIC spec. It says which column is the client, the time, the amount, and which have codes.

# COMMAND ----------
bought, came_back, spec = ledgerlm.example(clients)
# People are less tidy than the example: some buy the other thing once, and one answer in eight is the other one.
chance = np.random.default_rng(7)
swapped = chance.random(len(bought)) < 0.25
bought.loc[swapped, "item"] = bought.loc[swapped, "item"].map({"food": "fuel", "fuel": "food"})
came_back["back"] ^= (chance.random(len(came_back)) < 0.125).astype(int)
print(spec)
bought.head(3)

# COMMAND ----------
# MAGIC %md
# MAGIC `ingest` reads them exactly, or sets a row aside with a reason. One purchase gets a date that does not exist, to
# MAGIC see what that looks like.

# COMMAND ----------
rows = bought.astype({"day": str})
rows.loc[4, "day"] = "2024-02-31 00:00:00"
bank = ledgerlm.ingest(rows, spec, {"back": came_back}, max_quarantined_share=0.01)
print(
    f"{len(rows)} rows in, {len(bank.events)} events of {len(bank.clients)} clients, {len(bank.quarantine)} set aside"
)
bank.quarantine[["reason", "payload"]]

# COMMAND ----------
# MAGIC %md
# MAGIC `serialize` tells each history as a text, newest events last: what a language model reads. Here the last three
# MAGIC purchases of two clients.

# COMMAND ----------
texts = ledgerlm.serialize(bank, fields=["days", "item", "amount"], max_events=3)
print("\n\n".join(texts.sort_values("client_id")["text"].head(2)))

# COMMAND ----------
# MAGIC %md
# MAGIC `aggregate` counts and sums the same histories: the baseline that any embedding has to beat. Each client has the
# MAGIC features that are not zero; four of them.

# COMMAND ----------
features = ledgerlm.aggregate(bank)
ordered = features.sort_values("client_id").set_index("client_id")["features"].head(3)
pd.DataFrame(ordered.tolist(), index=ordered.index)[["count", "amount:sum", "item=food:count", "item=fuel:count"]]

# COMMAND ----------
# MAGIC %md
# MAGIC `fit` trains a head on the clients whose split is `train` and calibrates it; `score` asks it about everybody. A
# MAGIC logistic regression serves for so few; leave `kind` out and it is LightGBM, trained on Ray.

# COMMAND ----------
heads = ledgerlm.fit(bank, features, kind="logistic_regression", folder=out, folds=3)
scores = ledgerlm.score(heads, features)
scores["probability"] = scores["probabilities"].map(lambda one: one[1])
both = scores.merge(bank.labels, on=["client_id", "task", "as_of"]).merge(bank.clients, on="client_id")
both[["client_id", "probability", "decile", "label", "split"]].head(4)

# COMMAND ----------
# MAGIC %md
# MAGIC Do the probabilities tell them apart? Only clients of the split `test` count, which nothing has learnt from.

# COMMAND ----------
test = both[both["split"] == "test"]
right = ((test["probability"] > 0.5) == (test["label"] == 1)).mean()
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for label, name in ((0, "did not come back"), (1, "came back")):
    axes.hist(test.loc[test["label"] == label, "probability"], bins=np.linspace(0, 1, 21), alpha=0.7, label=name)
axes.set(
    xlabel="probability of coming back", ylabel="test clients", title=f"{right:.0%} of {len(test)} test clients right"
)
axes.legend(frameon=False)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC Next: `your_own_data` for files of your own, and `ledgerlm.embed(texts, folder)` once a backbone is there
# MAGIC (`what_is_a_good_embedding` trains one).
