"""Commands that use a cluster from a laptop: submit, status, stop, logs, and `resume` and `results` there."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from search.commands import Exit, JsonFlag, Overrides, print_json, say
from search.views.terminal import console

Address = Annotated[
    str | None, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265 (a tunnel).")
]
Cluster = Annotated[Path | None, typer.Option(help="A cluster file that `ray up` took; a tunnel is opened.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the logs; end with the study's exit code.")]


def submit(
    config: Annotated[Path, typer.Argument(help="A config file.")],
    overrides: Overrides = None,
    results_dir: Annotated[
        str | None, typer.Option("--results", help="Folder of all studies, on the cluster's shared storage.")
    ] = None,
    address: Address = None,
    cluster: Cluster = None,
    new: Annotated[bool, typer.Option("--new", help="Begin another study with this config.")] = False,
    wait: Wait = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a study on a cluster: start it, or join or resume the earlier study of this config."""
    from search.cluster.submit import from_config

    results = [f"results={results_dir}"] if results_dir else []
    submission = from_config(str(config), [*(overrides or []), *results], anew=new)
    start(submission, address, cluster, wait=wait, as_json=as_json)


def resume_there(
    folder: str, address: str | None, cluster: Path | None, *, wait: bool, as_json: bool
) -> None:
    """Resume an interrupted study on a cluster, named by its folder there."""
    from search.cluster.submit import from_folder

    start(from_folder(folder), address, cluster, wait=wait, as_json=as_json)


def results_there(folder: str, flags: list[str], address: str | None, cluster: Path | None) -> None:
    """Print the ranked trials of a study on a cluster, named by its folder there."""
    from search.cluster import connect as clusters
    from search.cluster import jobs
    from search.cluster.upload import upload

    with clusters.client(address, cluster, say) as client, upload(None) as sent:
        print(jobs.ask(client, ["results", folder, *flags], sent), end="")


def start(submission: Any, address: str | None, cluster: Path | None, *, wait: bool, as_json: bool) -> None:
    """Start a study's job, or join it if it runs already; with `wait`, exit with its exit code."""
    from search.cluster import connect as clusters
    from search.cluster.submit import submit as submit_job
    from search.cluster.upload import megabytes, upload

    with clusters.client(address, cluster, say) as client, upload(submission.config) as sent:
        job, joined = submit_job(client, submission, sent)
        if joined:
            say(f"joined: {job.id} runs already; nothing was sent")
        else:
            say(f"sent: {sent.files} files of code, {megabytes(sent.size)}; no images, results or caches")
            say(f"submitted: {job.id}, record below {submission.folder}")
        if as_json:
            print_json({"job": job.id, "joined": joined, "folder": job.folder, "bytes": sent.size})
        if wait:
            follow_to_the_end(client, job.id, to=sys.stderr if as_json else sys.stdout)
    words = shlex.join(["logs", job.id, "-f", *_where(address, cluster)])
    say(f"next: python -m search {words}    (you may close the laptop)")


def status(
    results_dir: Annotated[
        Path | None, typer.Option("--results", help="Folder of all studies; with a cluster, a folder there.")
    ] = None,
    address: Address = None,
    cluster: Cluster = None,
    as_json: JsonFlag = False,
) -> None:
    """List studies with state, trials, best and time left: below a folder, or on a cluster."""
    from search.cluster import connect as clusters
    from search.cluster import status as statuses

    if clusters.is_given(address, cluster):
        rows = _status_there(str(results_dir) if results_dir else None, address, cluster)
        where = "the cluster"
    else:
        rows = statuses.in_folder(results_dir or Path("results"))
        where = str(results_dir or "results")
    if as_json:
        print_json(statuses.to_json(rows))
    elif rows:
        statuses.show(rows, console())
    else:
        say(f"no study on {where}" if where == "the cluster" else f"no study below {where}")


def _status_there(results: str | None, address: str | None, cluster: Path | None) -> list[Any]:
    from search.cluster import connect as clusters
    from search.cluster import jobs, status
    from search.cluster.upload import upload

    with clusters.client(address, cluster, say) as client:
        known = jobs.jobs(client)
        roots = dict.fromkeys(str(Path(job.folder).parent) for job in known)
        if results:
            roots[results] = None
        rows = []
        if roots:
            with upload(None) as sent:
                for root in roots:
                    rows += jobs.ask_json(client, ["status", "--results", root], sent)
    return status.merged(rows, known)


def stop(
    study: Annotated[str, typer.Argument(help="A study or a job of the cluster.")],
    address: Address = None,
    cluster: Cluster = None,
) -> None:
    """Stop a study on a cluster: save its record, free its nodes; `resume` continues it."""
    from search.cluster import connect as clusters
    from search.cluster import jobs

    with clusters.client(address, cluster, say) as client:
        job = jobs.find(client, study)
        if job.ended:
            say(f"{job.id}: ended before ({job.status})")
            return
        say(f"stopping {job.id}: what is trained so far is saved")
        ended = jobs.stop(client, job)
    say(f"{ended.id}: {ended.status.lower()}")
    words = shlex.join(["resume", ended.folder, *(_where(address, cluster) or ["--cluster", "FILE"])])
    say(f"next: python -m search {words}, or submit it again")


def logs(
    study: Annotated[str, typer.Argument(help="A study or a job of the cluster.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the study ends.")] = False,
    address: Address = None,
    cluster: Cluster = None,
) -> None:
    """Print the output of a study on a cluster; with -f follow it to its end and exit with its exit code."""
    from search.cluster import connect as clusters
    from search.cluster import jobs

    with clusters.client(address, cluster, say) as client:
        job = jobs.find(client, study)
        if follow:
            follow_to_the_end(client, job.id, to=sys.stdout)
        sys.stdout.write(client.get_job_logs(job.id))


def follow_to_the_end(client: Any, job_id: str, to: Any) -> None:
    """Copy a job's output to `to` until the job ends, then exit with its exit code.

    Ctrl-C ends the following, not the study.

    Raises:
        typer.Exit: always.
    """
    from search.cluster import jobs

    def write(text: str) -> None:
        to.write(text)
        to.flush()

    try:
        code = jobs.exit_code(jobs.follow(client, job_id, write))
    except KeyboardInterrupt:
        say(f"{job_id} goes on without you; `python -m search logs {job_id} -f` follows it again")
        say(f"to end it: python -m search stop {job_id}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    raise typer.Exit(code)


def _where(address: str | None, cluster: Path | None) -> list[str]:
    """Return the options by which another command finds the same cluster."""
    return ["--address", address] if address else ["--cluster", str(cluster)] if cluster else []


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (submit, status, stop, logs):
        app.command()(command)
