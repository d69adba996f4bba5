# Databricks notebook source
# MAGIC %md
# MAGIC # Safe for a bank
# MAGIC What a bank's security and risk teams ask first: who is in the tables and under which name, what happens to rows that
# MAGIC cannot be read, who decides that a night's scores are seen, and how a person is removed. On a small simulated bank,
# MAGIC with aggregate features alone, so that it takes minutes.

# COMMAND ----------
# MAGIC %md
# MAGIC Where everything goes, and how many clients the simulated bank has.

# COMMAND ----------
import datetime as dt
import hmac
import os
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pyarrow.parquet as pq
import yaml
from pyspark.sql import functions as F

from ledgerlm.config import load_yaml, shipped
from ledgerlm.errors import DataError
from ledgerlm.events.simulator.deliveries import DeliveriesConf
from ledgerlm.jobs.deliveries import write_deliveries
from ledgerlm.jobs.erase import erase_clients
from ledgerlm.jobs.promote import promote
from ledgerlm.jobs.quarantine import list_quarantine
from ledgerlm.jobs.rescore import rescore
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.champions import promotions
from ledgerlm.lake.erasures import tables_of_clients
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.latest import latest
from ledgerlm.lake.publications import publications, published
from ledgerlm.notebook import parameter, session

clients = int(parameter("clients", "120", "Clients of the simulated bank"))
place = Path(parameter("out", "build/notebooks/safe_for_a_bank", "Folder of results"))
out = place.absolute() / f"{dt.datetime.now():%Y%m%d-%H%M%S}"

# COMMAND ----------
# MAGIC %md
# MAGIC The bank's files. Into the first night's we put a row that nobody can read, and a note that names a card.

# COMMAND ----------
spark = session()
write_deliveries(str(out / "bank"), DeliveriesConf(clients=clients, months=3, nights=3))
night = out / "bank" / "nights" / "night-1.csv"
rows = pd.read_csv(night, dtype=str)
someone = str(rows["client_id"].iloc[0])
odd = rows.head(2).copy()
odd["event_id"] = ["odd-1", "odd-2"]
odd["event_time"] = ["31 February", odd["event_time"].iloc[1]]
odd["note"] = ["", "refund to card 4111 1111 1111 1111"]
pd.concat([rows, odd]).to_csv(night, index=False)
odd[["client_id", "event_id", "event_time", "note"]]

# COMMAND ----------
# MAGIC %md
# MAGIC The spec is the shipped one with a key more: ids become pseudonyms under a secret that the environment holds. What
# MAGIC names a person in texts is masked in any case. The pipeline reads, aggregates, learns, scores and publishes.

# COMMAND ----------
os.environ["BANK_KEY"] = secrets.token_hex(32)
spec = load_yaml(shipped("datasets/deliveries.yaml"))
spec["pseudonymise"] = {"key_env": "BANK_KEY"}
spec["source"]["path"] = str(out / "bank")
(out / "bank.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
pipeline = {
    "pipeline": "nightly",
    "data": str(out / "bank.yaml"),
    "out": str(out / "out"),
    "stages": {
        "ingest": {"append": True},
        "aggregate": {},
        "fit": {
            "tasks": ["churn", "default"],
            "representation": "agg",
            "sources": [{"table": "features"}],
            "lightgbm": {"n_estimators": 60, "min_data_in_leaf": 5},
        },
        "score": {},
        "publish": {},
    },
}
file = out / "nightly.yaml"
file.write_text(yaml.safe_dump(pipeline, sort_keys=False))
code = run_pipeline(str(file))

# COMMAND ----------
# MAGIC %md
# MAGIC Nothing that the run left behind holds the key or a client's own id: not the records, not the report, not the tables. The
# MAGIC same search finds the pseudonym.


# COMMAND ----------
def holds(one: Path, text: str) -> bool:
    """Whether a file has a text, in its bytes or in the rows that it holds compressed."""
    rows = str(pq.read_table(one, partitioning=None).to_pylist()) if one.suffix == ".parquet" else ""
    return text in rows or text.encode() in one.read_bytes()


left = [one for one in (out / "out").rglob("*") if one.is_file()]
mine = hmac.new(os.environ["BANK_KEY"].encode(), someone.encode(), "sha256").hexdigest()
for what, text in (("the key", os.environ["BANK_KEY"]), ("the id of a client", someone), ("the pseudonym", mine)):
    found = sum(holds(one, text) for one in left)
    print(f"{what}: in {found or 'none'} of {len(left)} files")

# COMMAND ----------
# MAGIC %md
# MAGIC A night, scored and not published. Readers see nothing of it yet, so there is time for a look.

# COMMAND ----------
shutil.copy(night, out / "bank" / "deliveries")
rescore(str(file), as_of=dt.datetime(2025, 1, 2), publish=False)
lake = Lake(f"{out}/out/lake", spark)
print(f"readers see publication {published(lake).number}, as of {published(lake).as_of:%Y-%m-%d}")

# COMMAND ----------
# MAGIC %md
# MAGIC What could not be read was set aside with reason and file. Its raw row holds the client's own id, so the row's hash under
# MAGIC the secret stands in its place: whoever has file and secret finds it. The card in the other note is masked.

# COMMAND ----------
code = list_quarantine(str(file))
note = lake.read("events").where("note LIKE 'refund%'").select("note").first()
print(note["note"])

# COMMAND ----------
# MAGIC %md
# MAGIC The look before anybody sees it: tonight's scores by head, beside those at the labels' time on which the heads learnt.

# COMMAND ----------
scores = lake.read("scores").select("task", "as_of", F.element_at("probabilities", 2).alias("probability")).toPandas()
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for axis, (task, one) in zip(axes, scores.groupby("task"), strict=True):
    for as_of, rows in one.groupby("as_of"):
        rows["probability"].plot.hist(ax=axis, bins=20, range=(0, 1), alpha=0.5, label=f"{as_of:%Y-%m-%d}")
    axis.set(title=task, xlabel="probability", ylabel="clients")
    axis.legend()
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC It is published: the same night once more, which finds it scored and holds it against the gates.

# COMMAND ----------
rescore(str(file), as_of=dt.datetime(2025, 1, 2))
seen = published(lake)
pd.DataFrame([{"gate": name.split("/")[0], "head": name.split("/")[1][:8], **one} for name, one in seen.gates.items()])

# COMMAND ----------
# MAGIC %md
# MAGIC Which heads have scored it; and one is made the champion of its task. Readers get its scores alone, and a head that learns
# MAGIC anew is shown to nobody before somebody promotes it and says why.

# COMMAND ----------
code = promote(str(file))
head = lake.read("scores").where("task = 'churn'").first()["head_id"]
code = promote(str(file), head=head, reason="validated on last year's clients", by="model risk")
pd.DataFrame([asdict(one) for one in promotions(lake)]).T

# COMMAND ----------
# MAGIC %md
# MAGIC A night that a gate refuses. So that it does, this one is told to bear no shift at all; readers stay where they were.

# COMMAND ----------
shutil.copy(out / "bank" / "nights" / "night-2.csv", out / "bank" / "deliveries")
try:
    rescore(str(file), ["stages.publish.most_shift=0"], as_of=dt.datetime(2025, 1, 3))
except DataError as error:
    print(error)
print(f"readers see publication {published(lake).number}")
code = rescore(str(file), as_of=dt.datetime(2025, 1, 3))

# COMMAND ----------
# MAGIC %md
# MAGIC A person asks to be removed. First what would be done, by the id that the bank's files have.

# COMMAND ----------
code = erase_clients(str(file), clients=[someone], dry_run=True)

# COMMAND ----------
# MAGIC %md
# MAGIC Then it is done: the rows go, readers see the night without them, and earlier publications are read no more.

# COMMAND ----------
before = {name: lake.rows(name) for name in tables_of_clients(lake)}
code = erase_clients(str(file), clients=[someone])
pd.DataFrame([{"table": name, "rows before": count, "rows after": lake.rows(name)} for name, count in before.items()])

# COMMAND ----------
# MAGIC %md
# MAGIC The bank's next file still has them. Nothing of it is taken, and how many rows were passed over is in the record.

# COMMAND ----------
third = pd.read_csv(out / "bank" / "nights" / "night-3.csv", dtype=str)
again = third.head(1).assign(client_id=someone, event_id="again-1")
pd.concat([third, again]).to_csv(out / "bank" / "deliveries" / "night-3.csv", index=False)
rescore(str(file), as_of=dt.datetime(2025, 1, 4))
print(f"rows after: {latest(lake, 'scores').select('client_id').distinct().count()} clients have scores")
pd.DataFrame(
    [
        {"publication": one.number, "as of": one.as_of, "status": one.status, "readable": one.readable}
        for one in publications(lake)
    ]
)

# COMMAND ----------
# MAGIC %md
# MAGIC Old versions of the tables hold the rows until `ledgerlm maintain` removes their files, a week from now or later; the
# MAGIC heads have learnt from them until they learn again, and the erasing says which. `docs/rescoring.md` has the limits.
