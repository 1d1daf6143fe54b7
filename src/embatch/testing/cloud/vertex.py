"""Vertex AI: batch prediction jobs over Cloud Storage."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Final

from embatch.testing.cloud.answers import Answer, ApiError, Request, field_of, json_answer
from embatch.testing.cloud.clock import timestamp
from embatch.testing.cloud.core import VERSION, Core, route
from embatch.testing.cloud.embeds import card_for
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.jobs import NewJob, facts_of
from embatch.testing.cloud.models import ModelCard
from embatch.testing.cloud.objects import (
    find_object,
    keep_object,
    object_path,
    objects_under,
    split_uri,
)
from embatch.testing.cloud.pages import cut_page
from embatch.testing.cloud.rows import lines_of, read_line, tokens_read
from embatch.testing.cloud.store import Doc

_MOST_ROWS: Final = 1_000_000
_MOST_ROWS_LEGACY: Final = 30_000
_MOST_BYTES: Final = 1 << 30
_PAGE_DEFAULT: Final = 100
_PAGE_MOST: Final = 1000
_K = FaultKind


def project_number(project: str) -> str:
    """The number of a project: names of jobs bear it in place of the id."""
    if project.isdigit():
        return project
    return str(10**11 + int(hashlib.sha256(project.encode()).hexdigest()[:10], 16) % 10**11)


def _parent(request: Request) -> str:
    names = request.names
    return f"projects/{project_number(names['project'])}/locations/{names['location']}"


def _create(core: Core, request: Request) -> Answer:
    body = request.json()
    display_name = str(field_of(body, "displayName", ""))
    core.door.facts["display_name"] = display_name
    model = str(field_of(body, "model", ""))
    card = card_for(core, model.rsplit("/", 1)[-1], "batchPredictionJobs", api="vertex")
    core.strike_before()
    location = request.names["location"]
    if card.regions is not None and location not in card.regions:
        raise ApiError(404, f"Publisher Model {card.name} is not found in location {location}.")
    if not display_name:
        raise ApiError(400, "display_name is required.")
    uris, prefix = _places(body)
    source = core.store.new_path("jobs")
    try:
        bad_input = _gather(core, uris, source)
        rows, tokens = _measure(source, card, core.settings.bytes_per_token)
        bad_input = bad_input or _too_much(rows, source, card)
        stamp = timestamp(core.clock.now())[:23].replace(":", "-").replace(".", "-")
        extra = {
            "parent": _parent(request),
            "model": model,
            "uris": uris,
            "prefix": prefix,
            "directory": f"{prefix.rstrip('/')}/prediction-{card.name}-{stamp}Z",
            "bad_input": bad_input,
        }
        job = core.jobs.create(
            NewJob(
                api="vertex",
                model=card.name,
                display_name=display_name,
                priority=0,
                source=source,
                rows=rows,
                tokens=tokens,
                extra=extra,
            )
        )
    finally:
        source.unlink(missing_ok=True)
    core.door.facts["name"] = job["name"]
    return json_answer(_job_json(core, job))


def _places(body: Any) -> tuple[list[str], str]:
    asked = field_of(body, "inputConfig", {})
    wanted = field_of(body, "outputConfig", {})
    uris = field_of(field_of(asked, "gcsSource", {}), "uris")
    prefix = field_of(field_of(wanted, "gcsDestination", {}), "outputUriPrefix")
    formats = field_of(asked, "instancesFormat"), field_of(wanted, "predictionsFormat")
    if not isinstance(uris, list) or not uris or not prefix or formats != ("jsonl", "jsonl"):
        raise ApiError(400, "Embedding jobs read and write JSONL in Cloud Storage.")
    for uri in [*uris, prefix]:
        split_uri(str(uri))
    return [str(uri) for uri in uris], str(prefix)


def _gather(core: Core, uris: list[str], source: Path) -> str | None:
    """Joins the input objects; the reason when one cannot be read."""
    paths = []
    for uri in uris:
        bucket, key = split_uri(uri)
        if key.endswith("*"):
            docs = objects_under(core, bucket, key[:-1])
        else:
            doc = find_object(core, bucket, key)
            docs = [doc] if doc else []
        if not docs:
            source.touch()
            return "The input object was not found in Cloud Storage."
        paths += [object_path(core, doc) for doc in docs]
    if len(paths) == 1:
        os.link(paths[0], source)
        return None
    with source.open("wb") as target:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, target, 1 << 20)
    return None


def _measure(source: Path, card: ModelCard, bytes_per_token: int) -> tuple[int, int]:
    """Rows and tokens; a row that cannot be read counts, and fails alone later."""
    rows = tokens = 0
    for _, line in lines_of(source):
        rows += 1
        try:
            tokens += tokens_read(read_line(line, card)[1].text, card, bytes_per_token)
        except ApiError:
            continue
    return rows, tokens


def _too_much(rows: int, source: Path, card: ModelCard) -> str | None:
    most = _MOST_ROWS_LEGACY if card.legacy else _MOST_ROWS
    if rows == 0:
        return "The input holds no instances."
    if rows > most:
        return f"The input holds more than {most} instances."
    if source.stat().st_size > _MOST_BYTES:
        return "The input is larger than 1 GB."
    return None


def publish(core: Core, job: Doc) -> None:
    """Brings a job's answer into Cloud Storage."""
    bucket, key = split_uri(job["extra"]["directory"])
    paths = core.jobs.output_paths(job)
    for number, path in enumerate(paths):
        name = "predictions.jsonl" if len(paths) == 1 else f"predictions_{number:05d}.jsonl"
        link = core.store.new_path("uploads")
        os.link(path, link)
        keep_object(core, bucket, f"{key}/{name}", link, "application/octet-stream")


def _job_json(core: Core, job: Doc) -> dict[str, Any]:
    extra = job["extra"]
    facts = {**core.door.facts, **facts_of(job)}
    word = core.jobs.state_word(job)
    shown: dict[str, Any] = {
        "name": job["name"],
        "displayName": job["display_name"],
        "model": extra["model"],
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": extra["uris"]}},
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": extra["prefix"]},
        },
        "modelVersionId": "1",
        "state": _state(core, job, facts, word),
        "createTime": timestamp(job["created_s"]),
        "updateTime": timestamp(job["updated_s"]),
    }
    if word not in ("PENDING", "QUEUED"):
        shown["startTime"] = timestamp(job["created_s"])
    if job["state"] is None:
        return shown
    shown["endTime"] = timestamp(job["ended_s"])
    if job["error"] is not None:
        shown["error"] = job["error"]
    if job["output"]:
        shown["outputInfo"] = {"gcsOutputDirectory": extra["directory"]}
    if not core.board.strike(_K.STATS_MISSING, facts):
        counts = {
            "successfulCount": job["succeeded"],
            "failedCount": job["failed"],
            "incompleteCount": job["rows"] - job["succeeded"] - job["failed"],
        }
        shown["completionStats"] = {name: str(n) for name, n in counts.items() if n}
    return shown


def _state(core: Core, job: Doc, facts: Doc, word: str) -> str:
    strange = core.board.strike(_K.STATE_WORD, facts)
    if strange and (job["state"] is not None) == (strange.arg("when") == "end"):
        return str(strange.arg("word"))
    prefix = core.board.strike(_K.STATE_PREFIX, facts)
    return (str(prefix.arg("prefix")) if prefix else "JOB_STATE_") + word


def _find(core: Core, request: Request) -> Doc:
    name = f"{_parent(request)}/batchPredictionJobs/{request.names['job']}"
    job = core.jobs.get(name)
    if job is None or job.get("deleted"):
        raise ApiError(404, f"The BatchPredictionJob {request.names['job']} does not exist.")
    core.door.facts.update(facts_of(job))
    return job


def _get(core: Core, request: Request) -> Answer:
    return json_answer(_job_json(core, _find(core, request)))


def _list(core: Core, request: Request) -> Answer:
    now, parent = core.clock.now(), _parent(request) + "/"
    docs = [
        job
        for job in core.jobs.shown("vertex")
        if now >= job["listed_s"] and job["name"].startswith(parent)
    ]
    for condition in filter(None, request.query.get("filter", "").split(" AND ")):
        docs = _filtered(docs, condition)
    page, token = cut_page(core, request, docs, default=_PAGE_DEFAULT, most=_PAGE_MOST)
    shown: dict[str, Any] = {}
    if page:
        shown["batchPredictionJobs"] = [_job_json(core, job) for job in page]
    if token:
        shown["nextPageToken"] = token
    return json_answer(shown)


def _filtered(docs: list[Doc], condition: str) -> list[Doc]:
    field, _, value = condition.partition("=")
    field, value = field.strip(), value.strip().strip("\"'")
    if field not in ("display_name", "displayName"):
        raise ApiError(400, f"filter: {field} is not supported by the fake cloud.")
    return [job for job in docs if job["display_name"] == value]


def _cancel(core: Core, request: Request) -> Answer:
    core.jobs.cancel(_find(core, request)["name"])
    return json_answer({})


def _delete(core: Core, request: Request) -> Answer:
    job = _find(core, request)
    if job["state"] is None:
        raise ApiError(
            400,
            "The BatchPredictionJob can only be deleted once it has ended.",
            status="FAILED_PRECONDITION",
        )
    core.jobs.delete(job["name"])
    return json_answer(_operation(f"{_parent(request)}/operations/{job['id']}"))


def _operation(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "metadata": {
            "@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeleteOperationMetadata"
        },
        "done": True,
        "response": {"@type": "type.googleapis.com/google.protobuf.Empty"},
    }


def _get_operation(core: Core, request: Request) -> Answer:
    del core
    return json_answer(_operation(f"{_parent(request)}/operations/{request.names['operation']}"))


_PROJECT: Final = VERSION + "/projects/{project}/locations/{location}"
_JOBS: Final = _PROJECT + "/batchPredictionJobs"
_JOB: Final = _JOBS + "/{job}"
ROUTES: Final = (
    route("POST", _JOBS, "vertex.jobs.create", _create, "vertex", reads_first=True),
    route("GET", _JOBS, "vertex.jobs.list", _list, "vertex"),
    route("GET", _JOB, "vertex.jobs.get", _get, "vertex"),
    route("POST", _JOB + ":cancel", "vertex.jobs.cancel", _cancel, "vertex"),
    route("DELETE", _JOB, "vertex.jobs.delete", _delete, "vertex"),
    route(
        "GET", _PROJECT + "/operations/{operation}", "vertex.operations", _get_operation, "vertex"
    ),
)
