# Databricks notebook source
# MAGIC %md
# MAGIC # Run a ledgerlm pipeline
# MAGIC Parameters, one call, the report. The cluster needs the `ledgerlm` wheel; Spark and Delta are the platform's own
# MAGIC (engine profile `databricks`).

# COMMAND ----------
# DBTITLE 1,Parameters
dbutils.widgets.text("pipeline", "demo.yaml", "Pipeline file")
dbutils.widgets.text("out", "build/demo", "Folder of lake, artefacts and report")
dbutils.widgets.text("engine", "databricks", "Engine profile")
dbutils.widgets.text("set", "", "Further values, key=value, separated by blanks")

# COMMAND ----------
# DBTITLE 1,Run
from pathlib import Path

from ledgerlm.jobs.run import run_pipeline

out = dbutils.widgets.get("out")
overrides = [f"out={out}", f"engine={dbutils.widgets.get('engine')}", *dbutils.widgets.get("set").split()]
code = run_pipeline(dbutils.widgets.get("pipeline"), overrides)

# COMMAND ----------
# DBTITLE 1,Report
displayHTML(Path(out, "report.html").read_text(encoding="utf-8"))

# COMMAND ----------
dbutils.notebook.exit(str(Path(out, "report.json")))
