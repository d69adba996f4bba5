# Databricks notebook source
# MAGIC %md
# MAGIC # Your own data
# MAGIC From a folder of files to texts, features, scores and their figures, without a line of code for the data set:
# MAGIC `init` looks at the files and drafts a spec, says why it guessed what, and marks what the files do not decide.

# COMMAND ----------
# MAGIC %md
# MAGIC Name a folder of CSV, JSON lines or Parquet files, and the columns that are labels where you know them. With none
# MAGIC named, a small made-up bank serves.

# COMMAND ----------
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from ledgerlm.events.guesses.roles import Hints
from ledgerlm.jobs.init import init
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.notebook import parameter, session

folder = parameter("folder", "", "Folder of your files")
labels = parameter("labels", "" if folder else "closed", "Columns that are labels")
out = Path(parameter("out", "build/notebooks/your_own_data", "Folder of results"))

# COMMAND ----------
# MAGIC %md
# MAGIC The made-up bank writes files as many do: semicolons, decimal commas, days before months, some rows that are wrong.
# MAGIC Customers who will close their account pay less often towards the end.


# COMMAND ----------
def write_bank(place: Path, customers: int = 200) -> None:
    """Payments of a year, who the customers are, and who closed the account after it."""
    chance = np.random.default_rng(5)
    closes = chance.random(customers) < 0.3
    kinds = np.array(["salary", "rent", "groceries", "fuel", "cash", "restaurant"])
    rows = []
    for who in range(customers):
        for month in range(1, 13):
            fades = 0.45 if closes[who] and month > 8 else 1.0
            for _ in range(chance.poisson(4 * fades)):
                kind = kinds[chance.choice(6, p=[0.1, 0.1, 0.35, 0.15, 0.15, 0.15])]
                amount = 1800 if kind == "salary" else -float(chance.gamma(2, 25))
                day = chance.integers(1, 29)
                rows.append((f"K{who:04d}", f"{day:02d}.{month:02d}.2024", f"{amount:.2f}".replace(".", ","), kind))
    wrong = [
        ("K0001", "31.02.2024", "-10,00", "cash"),
        ("", "05.03.2024", "-12,50", "fuel"),
        ("K0002", "06.03.2024", "n/a", "rent"),
    ]
    place.mkdir(parents=True, exist_ok=True)
    payments = pd.DataFrame(rows + wrong, columns=["customer", "booked", "amount", "kind"])
    payments.to_csv(place / "payments.csv", sep=";", index=False)
    people = {
        "customer": [f"K{who:04d}" for who in range(customers)],
        "city": chance.choice(["Graz", "Linz", "Wien"], customers),
    }
    pd.DataFrame(people | {"closed": closes.astype(int)}).to_csv(place / "customers.csv", sep=";", index=False)


if not folder:
    folder = str(out / "files")
    write_bank(Path(folder))
for file in sorted(Path(folder).iterdir())[:5]:
    print(
        f"--- {file.name}", *file.read_text(errors="replace").splitlines()[:3], sep="\n"
    ) if file.suffix == ".csv" else print(file.name)

# COMMAND ----------
# MAGIC %md
# MAGIC `init` looks: *sure* is what the files decide, *unsure* a guess that is marked in the spec, *choose* what you must
# MAGIC say before anything runs (is 03/04/2024 in March or in April?). Then it reads rows and tells what would be set aside.
# MAGIC A spec that is there already is yours and stays.

# COMMAND ----------
spark = session()
spec, pipeline = out / "spec.yaml", out / "pipeline.yaml"
if spec.exists():
    print(f"{spec} is there and is taken as it is; remove it, and pipeline.yaml, to have it drafted again")
else:
    init(
        [folder],
        to=str(out),
        name="mine",
        force=False,
        rows=5000,
        embed=False,
        hints=Hints(labels=tuple(labels.split())),
    )

# COMMAND ----------
# MAGIC %md
# MAGIC The draft, to be read and mended: nothing in it is hidden in code.

# COMMAND ----------
print(spec.read_text())

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline that `init` wrote: ingest, texts, features, and where a label was found a head and its figures. Run
# MAGIC again it skips what is finished and unchanged.

# COMMAND ----------
code = run_pipeline(str(pipeline), [f"out={out}/results"])

# COMMAND ----------
# MAGIC %md
# MAGIC What was set aside and why: no row vanishes, each has its reason, its file and itself.

# COMMAND ----------
lake = Lake(f"{out.absolute()}/results/lake", spark)
aside = (
    lake.read("quarantine").select("reason", "source_file", "payload").toPandas()
    if lake.exists("quarantine")
    else pd.DataFrame()
)
aside.groupby("reason").head(2) if len(aside) else print("nothing is set aside")

# COMMAND ----------
# MAGIC %md
# MAGIC One history as a text, such as a language model reads it.

# COMMAND ----------
print(lake.read("documents").orderBy("client_id").first()["text"][:400])

# COMMAND ----------
# MAGIC %md
# MAGIC Events by month: gaps and breaks in the data show here before a model learns them.

# COMMAND ----------
months = (
    lake.read("events")
    .groupBy(F.date_trunc("month", "event_time").alias("month"))
    .agg(F.count("*").alias("events"), F.countDistinct("client_id").alias("clients"))
    .orderBy("month")
    .toPandas()
)
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.bar(months["month"].dt.strftime("%Y-%m"), months["events"], color="tab:blue", label="events")
axes.plot(
    months["month"].dt.strftime("%Y-%m"), months["clients"], color="tab:orange", marker="o", label="clients with events"
)
axes.set_title("events by month", loc="left")
axes.tick_params(axis="x", rotation=60)
figure.legend(loc="outside upper right", ncols=2, frameon=False)
plt.show()

# COMMAND ----------
# MAGIC %md
# MAGIC First figures, where there is a label: of clients that a fold had not seen, with the 95 % interval.

# COMMAND ----------
found = pd.DataFrame(json.loads((out / "results" / "report.json").read_text())["leaderboard"])
found[["task", "method", "metric", "mean", "low", "high"]].round(3) if len(found) else print("no label, so no figures")

# COMMAND ----------
# MAGIC %md
# MAGIC Next: mend the spec, take `embed` into the pipeline (`ledgerlm init --embed`), and look at `report.html` in the
# MAGIC results.
