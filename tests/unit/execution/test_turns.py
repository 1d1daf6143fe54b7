"""Jobs of workers: one that comes twice does no harm, and nothing is left without a job."""

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from embatch import api
from embatch.config import Settings
from embatch.environment import Environment
from embatch.errors import (
    AuthenticationError,
    BudgetExceededError,
    ConfigError,
    InputError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
)
from embatch.execution import contexts, steps, turns
from embatch.execution.contexts import Contexts, is_of_host
from embatch.execution.jobs import Job, job_of
from embatch.execution.keeper import LeaseKeeper
from embatch.execution.presence import Presence
from embatch.execution.procrastinate import connection_settings, open_app, put_once
from embatch.execution.turns import Turn, Turns
from embatch.hooks import Hooks
from embatch.runs.config import Execution
from embatch.runs.status import read_status
from embatch.testing.cloud import CloudProcess
from embatch.types.state import BatchState, RunState
from postgres import PostgresServer

ROWS = 40
BATCH_ITEMS = 10
LEASE_OF_STEPS_S = 60.0
LEASE_THAT_ENDS_S = 2.0
SETTLE_S = 4.0
"""Within it a machine that was taken for dead may still create its job."""


class Machine:
    """One worker's turns, taken by hand, on a machine whose clock may be wrong."""

    def __init__(self, url: str, home: Path, *, ahead_s: float = 0.0, **hooks: Any) -> None:
        self.environment = Environment.open(
            Settings(home=home, journal=url),
            hooks=Hooks(clock=lambda: time.time() + ahead_s, **hooks),
        )
        self.journal = self.environment.journal
        self.keeper = LeaseKeeper(self.journal.leases, lease_s=LEASE_OF_STEPS_S)
        self.contexts = Contexts(self.environment.context, self.environment.release, self.now)
        self.presence = Presence(
            self.journal.workers,
            execution="workers",
            concurrency=1,
            queues=("io",),
            troubles=self.contexts.troubles,
        )
        self.turns = Turns(
            self.journal,
            self.contexts,
            keeper=self.keeper,
            presence=self.presence,
            stopping=threading.Event(),
            clock=self.now,
        )

    def now(self) -> float:
        """The time that the machines share."""
        return self.environment.now()

    def take(self, job: Job) -> list[Job]:
        """A job, whole; the jobs that follow from it."""
        turn = self.turns.take(job.task, job.run_id, job.batch_id)
        return [*turn.jobs, *(turn.work() if turn.work else ())]

    def close(self) -> None:
        """Lets go of everything."""
        self.environment.close()


class Cluster:
    """Machines over one journal and one cloud, and the jobs that wait, in memory."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.machines: list[Machine] = []
        self.waiting: dict[str, Job] = {}

    def machine(self, **hooks: Any) -> Machine:
        """Another machine."""
        home = self.folder / f"home-{len(self.machines)}"
        self.machines.append(Machine(self.url, home, **hooks))
        return self.machines[-1]

    def enter(self, machine: Machine, execution: Execution = "workers") -> str:
        """A run for workers, or the same for one process."""
        return api.enter(
            [f"text {row}" for row in range(ROWS)],
            self.folder / "out",
            provider="gemini",
            dims=128,
            max_batch_items=BATCH_ITEMS,
            poll_interval_s=0.05,
            probe=False,
            audit="off",
            settle_s=SETTLE_S,
            execution=execution,
            environment=machine.environment,
        ).id

    def put(self, jobs: list[Job]) -> None:
        """Of each kind one waits, that which is due first."""
        for job in jobs:
            held = self.waiting.get(job.lock)
            if held is None or (held.at or 0.0) > (job.at or 0.0):
                self.waiting[job.lock] = job

    def work(self, run_id: str, *, times: int = 1) -> None:
        """Takes jobs in turn on every machine until the run ends, each `times` over."""
        journal, until = self.machines[0].journal, time.monotonic() + 60
        self.put([job_of(journal.get_run(run_id), task) for task in ("plan", "dispatch")])
        turn = 0
        while journal.get_run(run_id).state in (RunState.PLANNING, RunState.RUNNING):
            assert time.monotonic() < until, self.waiting
            due = [j for j in self.waiting.values() if (j.at or 0.0) <= self.machines[0].now()]
            if not due:
                time.sleep(0.02)
                continue
            job = max(due, key=lambda one: one.priority)
            del self.waiting[job.lock]
            for _ in range(times):
                turn += 1
                self.put(self.machines[turn % len(self.machines)].take(job))

    def keys(self) -> list[str]:
        """The keys of the output, in order."""
        parts = sorted((self.folder / "out").glob("part-*.parquet"))
        return sorted(key for part in parts for key in pq.read_table(part)["key"].to_pylist())


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudProcess]:
    """A fake cloud that the environment leads to."""
    with CloudProcess(job_duration_s=0.05) as service:
        monkeypatch.setenv("GOOGLE_API_KEY", service.api_key)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.gemini_url)
        yield service


@pytest.fixture
def cluster(postgres_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """Machines over a fresh journal."""
    made = Cluster(postgres_url, tmp_path)
    yield made
    for machine in made.machines:
        machine.close()


def check(cluster: Cluster, cloud: CloudProcess) -> None:
    assert cluster.keys() == sorted(str(row) for row in range(ROWS))
    bill = cloud.bill()
    assert (bill.texts, bill.rows_billed_twice, bill.duplicate_jobs) == (ROWS, 0, {})


def test_every_job_delivered_twice_does_no_harm(cluster: Cluster, cloud: CloudProcess) -> None:
    """Each job is taken by one machine, then by another, from planning to the finish."""
    first = cluster.machine()
    cluster.machine()
    run_id = cluster.enter(first)
    cluster.work(run_id, times=2)
    assert first.journal.get_run(run_id).state is RunState.COMPLETED
    check(cluster, cloud)


class Held:
    """Stops a step at a checkpoint until it is let go."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reached, self.released = threading.Event(), threading.Event()

    def __call__(self, name: str) -> None:
        if name == self._name and not self.reached.is_set():
            self.reached.set()
            assert self.released.wait(60)


@pytest.mark.parametrize(
    ("checkpoint", "ahead_s"),
    [("submit.intended", -600.0), ("submit.done", 600.0), ("results.joined", 600.0)],
)
def test_the_late_writer_is_refused(
    cluster: Cluster,
    cloud: CloudProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    checkpoint: str,
    ahead_s: float,
) -> None:
    """The clock of a machine is ten minutes off, and it hangs in a step until its lease ends:
    another machine takes the batch over, and what the first one then writes changes nothing."""
    caplog.set_level("INFO", "embatch.execution")
    monkeypatch.setattr(turns, "LEASE_S", LEASE_THAT_ENDS_S)
    held = Held(checkpoint)
    slow = cluster.machine(checkpoint=held, ahead_s=ahead_s)
    quick = cluster.machine(ahead_s=-ahead_s)
    run_id = cluster.enter(slow)
    journal = slow.journal
    cluster.machines = [slow]
    stepping = threading.Thread(target=work_until, args=(cluster, run_id, held))
    stepping.start()
    assert held.reached.wait(60)
    late = next(one for one in journal.batches.walk(run_id) if has_lease(one))
    monkeypatch.setattr(turns, "LEASE_S", LEASE_OF_STEPS_S)
    time.sleep(LEASE_THAT_ENDS_S)
    others = Cluster(cluster.url, cluster.folder)
    others.machines = [quick]
    others.put(list(quick.turns.rescue("io")))
    claimed = threading.Thread(target=others.work, args=(run_id,))
    claimed.start()
    until = time.monotonic() + 60
    while journal.batches.get(late.id).lease_token == late.lease_token:
        assert time.monotonic() < until
        time.sleep(0.02)
    if checkpoint == "submit.intended":  # its create is still to come, and is found by its label
        held.released.set()
    claimed.join(60)
    assert journal.batches.get(late.id).state is BatchState.PUBLISHED
    held.released.set()
    stepping.join(60)
    cluster.machines = [slow, quick]
    assert journal.batches.get(late.id).state is BatchState.PUBLISHED
    assert journal.get_run(run_id).state is RunState.COMPLETED
    history = [one.kind for one in journal.events(run_id, limit=1000) if one.batch_id == late.id]
    assert history.count("published") == 1
    assert history.count("submit_confirmed") == 1
    assert any(words in caplog.text for words in ("took over a step", "the step is given up"))
    check(cluster, cloud)


def work_until(cluster: Cluster, run_id: str, held: Held) -> None:
    """Takes jobs on the first machine until the step that was held has ended."""
    machine = cluster.machines[0]
    run = machine.journal.get_run(run_id)
    cluster.put([job_of(run, "plan"), job_of(run, "dispatch")])
    until = time.monotonic() + 60
    while not held.reached.is_set():
        assert time.monotonic() < until
        due = [j for j in cluster.waiting.values() if (j.at or 0.0) <= machine.now()]
        if not due:
            time.sleep(0.02)
            continue
        job = max(due, key=lambda one: one.priority)
        del cluster.waiting[job.lock]
        cluster.put(machine.take(job))


def has_lease(batch: Any) -> bool:
    """Some process has the batch in hand."""
    return batch.lease_token is not None


def test_machines_need_not_agree_about_the_time(cluster: Cluster, cloud: CloudProcess) -> None:
    """One is ten minutes ahead, one behind: nothing waits for that, and nothing is done early."""
    began = time.time()
    ahead, behind = cluster.machine(ahead_s=600.0), cluster.machine(ahead_s=-600.0)
    run_id = cluster.enter(ahead)
    cluster.work(run_id)
    assert behind.journal.get_run(run_id).state is RunState.COMPLETED
    check(cluster, cloud)
    written = [one.at for one in ahead.journal.events(run_id, limit=1000)]
    written += [one.next_at for one in ahead.journal.batches.walk(run_id)]
    assert began - 1 < min(written)
    assert max(written) < time.time() + 1


def test_a_rescue_finds_all_that_lost_its_job(cluster: Cluster, cloud: CloudProcess) -> None:
    """Every job that follows is dropped; rescues alone bring the run to its end."""
    machine = cluster.machine()
    run_id = cluster.enter(machine)
    until = time.monotonic() + 60
    while machine.journal.get_run(run_id).state in (RunState.PLANNING, RunState.RUNNING):
        assert time.monotonic() < until
        for job in machine.turns.rescue("io"):
            if (job.at or 0.0) <= machine.now():
                machine.take(job)
        finish = job_of(machine.journal.get_run(run_id), "finish")
        machine.take(finish)
    check(cluster, cloud)


def test_a_run_of_threads_is_no_job_of_workers(
    cluster: Cluster, cloud: CloudProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is begun again without workers is said to be theirs no more, and its jobs do
    nothing."""
    _ = cloud
    machine = cluster.machine()
    run_id = cluster.enter(machine)
    assert cluster.enter(machine) == run_id
    assert "was for workers" not in caplog.text
    assert cluster.enter(machine, "threads") == run_id
    assert f"run {run_id} was for workers" in caplog.text
    assert machine.turns.take("plan", run_id) == Turn()
    assert machine.turns.take("dispatch", "r-forgotten") == Turn()


def test_of_one_kind_one_job_waits_the_earlier(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """A job put in twice waits once, from the earlier of the two moments on."""
    now = time.time()
    job = Job(task="step", run_id="r1", queue="io", batch_id=3, at=now + 1000.0)
    soon = Job(task="step", run_id="r1", queue="io", batch_id=3, at=now + 500.0)
    put_once(postgres_url, [job, soon, job], now=now)
    with postgres_server.connect(postgres_url.rpartition("/")[2]) as connection:
        rows = connection.execute(
            "SELECT queue_name, task_name, args, scheduled_at < now() + interval '510 s'"
            " FROM procrastinate_jobs"
        ).fetchall()
    assert rows == [("embatch_io", "embatch.step", {"run_id": "r1", "batch_id": 3}, True)]


def test_the_tables_of_jobs_are_made_once(empty_postgres_url: str) -> None:
    """Six processes that begin at once make them one time, and none is refused."""
    from embatch.execution.procrastinate import prepare

    errors: list[BaseException] = []

    def make(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - asserted below
            errors.append(error)

    threads = [
        threading.Thread(target=make, args=(lambda: prepare(empty_postgres_url),)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def take_until(machine: Machine, run_id: str, met: Callable[[], bool]) -> list[Job]:
    """Takes what a rescue finds on one machine until `met`. The jobs of the last turn."""
    until, jobs = time.monotonic() + 60, list[Job]()
    while not met():
        assert time.monotonic() < until
        for job in machine.turns.rescue("io"):
            if (job.at or 0.0) <= machine.now() and not met():
                jobs = machine.take(job)
        time.sleep(0.01)
    return jobs


@pytest.mark.parametrize(
    ("error", "here"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (StorageError("the staged items /mnt/out/.work/1.arrow are gone"), True),
        (AuthenticationError("the key is not valid"), True),
        (PermissionDeniedError("the key may not do this"), True),
        (ConfigError("GOOGLE_API_KEY is not set"), True),
        (InputError("row 3 is no text"), False),
        (NotFoundError("no model of this name"), False),
        (BudgetExceededError("the cap is reached"), False),
        (ValueError("a defect"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_one_machine_may_lack_is_told_from_what_no_machine_can_do(
    error: Exception, *, here: bool
) -> None:
    """Keys, rights, packages, disk and mounts are a machine's own."""
    assert is_of_host(error) is here


def test_a_fault_of_one_machine_leaves_the_run_to_others(
    cluster: Cluster,
    cloud: CloudProcess,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is handed back; the machine says once what is wrong; another ends the run."""
    caplog.set_level("WARNING", "embatch.execution")
    monkeypatch.setattr(steps, "HANDED_BACK_S", 1.0)
    fault = AuthenticationError("the key is not valid")

    def broken(name: str) -> None:
        if name == "upload.intended":
            raise fault

    ill, sound = cluster.machine(checkpoint=broken), cluster.machine()
    ill.presence.beat()
    run_id = cluster.enter(ill)
    run = ill.journal.get_run(run_id)
    jobs = take_until(ill, run_id, lambda: bool(ill.contexts.troubles()))
    assert ill.journal.get_run(run_id).state in (RunState.PLANNING, RunState.RUNNING)
    assert not [one for one in ill.journal.batches.walk(run_id) if has_lease(one)]
    assert all(job.at is None or job.at > ill.now() for job in jobs if job.task == "step")
    (handed_back,) = ill.take(job_of(run, "dispatch"))
    assert handed_back.at is not None
    assert handed_back.at > ill.now()
    assert caplog.text.count(f"cannot work it: {fault}") == 1
    ill.presence.beat()
    assert not ill.journal.workers.serves("io", run_id)
    assert ill.journal.workers.serves("io", "r-other")
    status = read_status(ill.journal, run_id, now=ill.now())
    assert not status.worked
    assert f"no worker can work it: {socket.gethostname()}: {fault}" in str(status.waiting)
    sound.presence.beat()
    assert sound.journal.workers.serves("io", run_id)
    cluster.machines = [sound]
    cluster.put([job for job in jobs if job.task == "step"])
    cluster.work(run_id)
    assert sound.journal.get_run(run_id).state is RunState.COMPLETED
    check(cluster, cloud)
    cluster.machines = [sound, ill]


def test_a_share_that_is_not_mounted_is_not_made_anew(
    cluster: Cluster, cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither between two steps nor within one: nothing is written where the output was."""
    monkeypatch.setattr(steps, "HANDED_BACK_S", 1.0)
    monkeypatch.setattr(contexts, "UNWORKABLE_S", 0.2)
    out, away = cluster.folder / "out", cluster.folder / "away"
    asked = threading.Event()

    def unmounts(name: str) -> None:
        if name == "results.joined" and not asked.is_set():
            asked.set()
            out.rename(away)

    machine = cluster.machine(checkpoint=unmounts)
    run_id = cluster.enter(machine)
    jobs = take_until(machine, run_id, lambda: bool(machine.contexts.troubles()))
    assert asked.is_set()
    assert machine.journal.get_run(run_id).state in (RunState.PLANNING, RunState.RUNNING)
    fresh = cluster.machine()
    fresh.take(job_of(machine.journal.get_run(run_id), "dispatch"))
    assert "no output" in fresh.contexts.troubles()[0].what
    assert not out.exists()
    away.rename(out)
    time.sleep(0.3)
    cluster.put([job for job in jobs if job.task == "step"])
    cluster.work(run_id)
    assert machine.contexts.troubles() == []
    check(cluster, cloud)


def test_a_refusal_of_the_run_itself_fails_it(cluster: Cluster, cloud: CloudProcess) -> None:
    """What any machine would meet is no reason to wait for another one."""
    _ = cloud

    def broken(name: str) -> None:
        if name == "upload.intended":
            raise NotFoundError("no model of this name")

    machine = cluster.machine(checkpoint=broken)
    run_id = cluster.enter(machine)
    journal = machine.journal
    take_until(machine, run_id, lambda: journal.get_run(run_id).state is RunState.FAILED)
    assert journal.get_run(run_id).error == "no model of this name"
    assert machine.contexts.troubles() == []


def test_a_broken_run_does_not_stop_the_rescue_of_others(
    cluster: Cluster, cloud: CloudProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose record cannot be read is named, and the others get their jobs."""
    _ = cloud
    machine = cluster.machine()
    run_id = cluster.enter(machine)
    for number, space in enumerate(({}, {"provider": "gemini"})):
        machine.journal.create_run(
            run_id=f"r-broken-{number}",
            out="out",
            config={"execution": "workers"},
            space=space,
            now=machine.now() + 1 - 2 * number,
        )
    assert {job.run_id for job in machine.turns.rescue("io")} == {run_id, "r-broken-1"}
    assert "run r-broken-0: it cannot be rescued: KeyError" in caplog.text


def test_the_connections_of_jobs_are_told_what_the_journals_are(postgres_url: str) -> None:
    """A machine that vanishes holds up nobody for long; what the URL gives stands."""
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}keepalives_idle=7"

    async def asked() -> dict[str, Any]:
        app = open_app(url, connections=1)
        async with app.open_async():
            return await app.connector.execute_query_one_async(
                "SELECT current_setting('lock_timeout') AS locks, "
                "current_setting('idle_in_transaction_session_timeout') AS idle, "
                "current_setting('application_name') AS name"
            )

    assert asyncio.run(asked()) == {"locks": "30s", "idle": "1min", "name": "embatch worker"}
    settings = connection_settings(url)
    assert settings["tcp_user_timeout"] == 60_000
    assert "keepalives_idle" not in settings
