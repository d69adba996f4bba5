"""A DAG of Airflow 3: a bank is rescored every night, and upkeep follows. Put it into the folder of the DAGs.

The tasks call the command line where the workers run; where Spark is reached by `spark-submit`, put
`spark-submit … jobs/rescore.py` in place of `ledgerlm rescore`. A gate that refuses ends with exit code 3, so the task
fails and readers stay with the night before.
"""

from __future__ import annotations

import datetime as dt
import os

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

LEDGERLM = os.environ.get("LEDGERLM", "/opt/ledgerlm/.venv/bin/ledgerlm")
BANK = os.environ.get("LEDGERLM_BANK", "/srv/bank")  # folder of nightly.yaml

with DAG(
    dag_id="ledgerlm_nightly",
    description="New events taken in, everybody scored as of tonight, published or refused",
    schedule="15 1 * * *",
    start_date=dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,
    # Not before the lease of a run that died has run out (lease_minutes: 10).
    default_args={"retries": 1, "retry_delay": dt.timedelta(minutes=11)},
) as dag:
    rescore = BashOperator(
        task_id="rescore",
        cwd=BANK,
        bash_command=f"{LEDGERLM} rescore {BANK}/nightly.yaml --as-of {{{{ dag_run.run_after | ds }}}}",
    )
    maintain = BashOperator(
        task_id="maintain",
        cwd=BANK,
        bash_command=f"{LEDGERLM} maintain {BANK}/nightly.yaml --keep 30 --days 30",
        trigger_rule="all_done",  # a night that was refused leaves files behind as well
    )
    rescore >> maintain
