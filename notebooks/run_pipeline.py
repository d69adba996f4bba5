# Databricks notebook source
# MAGIC %md
# MAGIC # Run a ledgerlm pipeline
# MAGIC Parameters, one call, the report. The cluster needs the `ledgerlm` wheel; Spark and Delta are the platform's own
# MAGIC (engine profile `databricks`).

# COMMAND ----------
# MAGIC %md
# MAGIC The pipeline file, where its results go, the engine profile, and values that win over the file.

# COMMAND ----------
import shlex

from IPython.display import HTML, display
from upath import UPath

from ledgerlm.jobs.run import run_pipeline
from ledgerlm.notebook import parameter

pipeline = parameter("pipeline", "demo.yaml", "Pipeline file")
out = parameter("out", "build/demo", "Folder of lake, artefacts and report")
engine = parameter("engine", "databricks", "Engine profile")
settings = parameter("set", "", "Further values, key=value, separated by blanks; quote one that has blanks")

# COMMAND ----------
# MAGIC %md
# MAGIC The run, which skips what is finished and unchanged.

# COMMAND ----------
code = run_pipeline(pipeline, [f"out={out}", f"engine={engine}", *shlex.split(settings)])

# COMMAND ----------
# MAGIC %md
# MAGIC Its report; `report.json` beside it is the same for programs.

# COMMAND ----------
display(HTML((UPath(out) / "report.html").read_text(encoding="utf-8")))
