# Databricks notebook source
# MAGIC %md
# MAGIC # Every night
# MAGIC A bank sends its history and then a file a night. A study learns; each night takes in what is new, scores
# MAGIC everybody as of that night, and publishes all of it at once, or nothing where a gate refuses. Then: what readers
# MAGIC see, why a client has its scores, and the way back.

# COMMAND ----------
# MAGIC %md
# MAGIC Where everything goes (a folder of its own for each time this runs) and how many clients the simulated bank has.

# COMMAND ----------
import datetime as dt
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from pyspark.sql import functions as F

from ledgerlm.events.simulator.deliveries import DeliveriesConf
from ledgerlm.jobs.deliveries import write_deliveries
from ledgerlm.jobs.explain import explain
from ledgerlm.jobs.rescore import rescore
from ledgerlm.jobs.rollback import roll_back
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.jobs.status import tell_status
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.latest import latest
from ledgerlm.lake.publications import publications, published
from ledgerlm.notebook import parameter, session

clients = int(parameter("clients", "120", "Clients of the simulated bank"))
out = Path(parameter("out", "build/notebooks/every_night", "Folder of results")) / f"{dt.datetime.now():%Y%m%d-%H%M%S}"
bank = out / "bank"

# COMMAND ----------
# MAGIC %md
# MAGIC The bank's files: a history up to the first of January, and two nights whose second has late, corrected and
# MAGIC withdrawn (`D`) events.

# COMMAND ----------
spark = session()
write_deliveries(str(bank), DeliveriesConf(clients=clients, months=3, nights=2))
second = pd.read_csv(bank / "nights" / "night-2.csv", dtype=str)
second.groupby("op", dropna=False).tail(2)[["client_id", "event_id", "event_time", "type", "amount", "op"]]

# COMMAND ----------
# MAGIC %md
# MAGIC The study: `conf/nightly.yaml` at a small size. Its language model reads 20,000 tokens here, which is enough to see
# MAGIC the road and too little to judge it.

# COMMAND ----------
small = [
    f"source.path={bank}",
    f"out={out}/lake_and_models",
    "stages.finetune.max_tokens=20000",
    "stages.finetune.workers.ranks=1",
    "stages.finetune.shape={width: 32, layers: 2, heads: 2, ffn: 64}",
    "stages.finetune.evaluations=1",
    "stages.fit.lightgbm.n_estimators=60",
    "stages.fit.lightgbm.min_data_in_leaf=5",
]
code = run_pipeline("nightly.yaml", small)

# COMMAND ----------
# MAGIC %md
# MAGIC Two nights. What has learnt is taken as it stands; the model reads only the texts that changed.

# COMMAND ----------
for night in (1, 2):
    shutil.copy(bank / "nights" / f"night-{night}.csv", bank / "deliveries")
    rescore("nightly.yaml", small, as_of=dt.datetime(2025, 1, 1 + night))

# COMMAND ----------
# MAGIC %md
# MAGIC Where the lake stands: what readers see, what waits, how large it is.

# COMMAND ----------
code = tell_status("nightly.yaml", small)

# COMMAND ----------
# MAGIC %md
# MAGIC The gates that the last night passed: clients without a score, clients beside the night before, and the population
# MAGIC stability index (0.1 is a small shift, above 0.25 the night is refused).

# COMMAND ----------
lake = Lake(f"{out.absolute()}/lake_and_models/lake", spark)
seen = published(lake)
pd.DataFrame([{"gate": name.split("/")[0], "head": name.split("/")[1][:8], **one} for name, one in seen.gates.items()])

# COMMAND ----------
# MAGIC %md
# MAGIC How far scores moved from the study to the second night. A client without an event moves a little, since its clock
# MAGIC goes on; those with events are the ones to look at.

# COMMAND ----------
nights = sorted(publications(lake), key=lambda one: one.number)
scores = {
    one.number: latest(lake, "scores", one)
    .select("client_id", "task", F.element_at("probabilities", 2).alias("probability"))
    .toPandas()
    .set_index(["client_id", "task"])["probability"]
    for one in nights
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for axis, task in zip(axes, ("churn", "default"), strict=True):
    first, last = (scores[number].xs(task, level="task") for number in (nights[0].number, nights[-1].number))
    together = pd.concat([first, last], axis=1, keys=["study", "night"]).dropna()
    axis.scatter(together["study"], together["night"], s=8, alpha=0.6)
    axis.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    moved = (together["night"] - together["study"]).abs() > 0.01
    axis.set(title=f"{task}: {moved.mean():.0%} moved by more than .01", xlabel="study", ylabel="second night")
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC Why a client has its scores: the reasons, the texts that were read, the events, and the versions of all tables. The
# MAGIC one whose score moved most.

# COMMAND ----------
client, task = (scores[nights[-1].number] - scores[nights[0].number]).abs().idxmax()
print(f"most moved: {task} of")
code = explain("nightly.yaml", small, client=client)

# COMMAND ----------
# MAGIC %md
# MAGIC The way back: readers see the first night again, and nothing is deleted.

# COMMAND ----------
roll_back("nightly.yaml", small)
print(f"readers see publication {published(lake).number}, as of {published(lake).as_of:%Y-%m-%d}")

# COMMAND ----------
# MAGIC %md
# MAGIC The same by schedule: `deploy/` has a Databricks job, a crontab and an Airflow DAG that run the night and the upkeep.
