"""The Gemini API: asynchronous batches of embeddings."""

import os
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.testing.cloud.answers import (
    Answer,
    ApiError,
    FileSpan,
    Request,
    field_of,
    json_answer,
)
from embatch.testing.cloud.clock import timestamp
from embatch.testing.cloud.core import VERSION, Core, route
from embatch.testing.cloud.embeds import card_for
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.files import find_file, path_of
from embatch.testing.cloud.jobs import NewJob, facts_of
from embatch.testing.cloud.pages import cut_page
from embatch.testing.cloud.rows import measure
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.words import JOB_ID_CHARS, made_id

_INLINE_BYTES: Final = 20_000_000
_PAGE_DEFAULT: Final = 50
_PAGE_MOST: Final = 1000
# Whatever version was called, the wire says v1main.
_TYPE: Final = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
_ITEMS: Final = "\x00items\x00"
_SPLIT: Final = orjson.dumps(_ITEMS)
_K = FaultKind


def _create(core: Core, request: Request) -> Answer:
    card = card_for(core, request.names["model"], "asyncBatchEmbedContent", api="gemini")
    too_large = int(request.headers.get("Content-Length") or 0) > _INLINE_BYTES
    if too_large:
        core.strike_before()
        raise ApiError(400, "Request payload size exceeds the limit: 20971520 bytes.")
    batch = field_of(request.json(), "batch", {})
    display_name = str(field_of(batch, "displayName", ""))
    core.door.facts["display_name"] = display_name
    core.strike_before()
    asked = field_of(batch, "inputConfig", {})
    file_name = field_of(asked, "fileName")
    listed = field_of(field_of(asked, "requests", {}), "requests")
    if (file_name is None) == (listed is None):
        raise ApiError(400, "batch.input_config: one of file_name and requests is required.")
    source = core.store.new_path("jobs")
    try:
        if file_name is not None:
            _link_input(core, str(file_name), source)
        else:
            _write_inline(listed, source)
        rows, tokens = measure(source, card, core.settings.bytes_per_token)
        job = core.jobs.create(
            NewJob(
                api="gemini",
                model=card.name,
                display_name=display_name,
                priority=_priority(batch),
                source=source,
                rows=rows,
                tokens=tokens,
                extra={"inline": True} if listed is not None else {"file_name": str(file_name)},
            )
        )
    finally:
        source.unlink(missing_ok=True)
    core.door.facts["name"] = job["name"]
    return _operation(core, job, listed=False)


def _link_input(core: Core, file_name: str, source: Path) -> None:
    doc = find_file(core, file_name.removeprefix("files/"))
    if core.clock.now() < doc["active_s"]:
        raise ApiError(400, "The File is not in an ACTIVE state and usage is not allowed.")
    os.link(path_of(core, doc), source)


def _write_inline(listed: Any, source: Path) -> None:
    if not isinstance(listed, list):
        raise ApiError(400, "requests.requests: a list is required.")
    with source.open("wb") as file:
        for row in listed:
            file.write(orjson.dumps(row) + b"\n")


def _priority(batch: Any) -> int:
    try:
        return int(field_of(batch, "priority", 0))
    except (TypeError, ValueError):
        raise ApiError(400, "batch.priority: not an integer.") from None


def _metadata(core: Core, job: Doc, *, listed: bool) -> dict[str, Any]:
    facts = {**core.door.facts, **facts_of(job)}
    shown: dict[str, Any] = {
        "@type": _TYPE,
        "model": f"models/{job['model']}",
        "displayName": job["display_name"],
    }
    if "file_name" in job["extra"]:
        shown["inputConfig"] = {"fileName": job["extra"]["file_name"]}
    shown["createTime"] = timestamp(job["created_s"])
    if job["ended_s"] is not None:
        shown["endTime"] = timestamp(job["ended_s"])
    shown["updateTime"] = timestamp(job["updated_s"])
    stats = _stats(core, job, facts, listed=listed)
    if stats:
        shown["batchStats"] = stats
    shown["state"] = _state(core, job, facts)
    if job["priority"]:
        shown["priority"] = str(job["priority"])
    shown["name"] = job["name"]
    return {name: value for name, value in shown.items() if value != ""}


def _stats(core: Core, job: Doc, facts: Doc, *, listed: bool) -> dict[str, str]:
    if core.board.strike(_K.STATS_MISSING, facts):
        return {}
    succeeded, failed = core.jobs.progress(job)
    if listed and core.board.strike(_K.STALE_STATS, facts):
        succeeded = failed = 0
    counts = {
        "requestCount": job["rows"],
        "successfulRequestCount": succeeded,
        "failedRequestCount": failed,
        "pendingRequestCount": job["rows"] - succeeded - failed,
    }
    return {name: str(count) for name, count in counts.items() if count}


def _state(core: Core, job: Doc, facts: Doc) -> str:
    word = core.jobs.state_word(job)
    strange = core.board.strike(_K.STATE_WORD, facts)
    if strange:
        ended = job["state"] is not None
        if ended == (strange.arg("when") == "end"):
            return str(strange.arg("word"))
    prefix = core.board.strike(_K.STATE_PREFIX, facts)
    return (str(prefix.arg("prefix")) if prefix else "BATCH_STATE_") + word


def _operation(core: Core, job: Doc, *, listed: bool) -> Answer:
    """The Operation; a finished one holds its results twice, streamed from the disk."""
    shown, output = _operation_json(core, job, listed=listed)
    head, *rest = orjson.dumps(shown).split(_SPLIT)
    parts: list[bytes | FileSpan] = [head]
    for piece in rest:
        if output:
            parts.append(FileSpan(output, 0, output.stat().st_size))
        parts.append(piece)
    return Answer(200, {"Content-Type": "application/json; charset=UTF-8"}, parts)


def _operation_json(core: Core, job: Doc, *, listed: bool) -> tuple[dict[str, Any], Path | None]:
    metadata = _metadata(core, job, listed=listed)
    shown: dict[str, Any] = {"name": job["name"], "metadata": metadata}
    if job["state"] is None:
        return shown, None
    shown["done"] = True
    if job["error"] is not None:
        shown["error"] = job["error"]
    paths = core.jobs.output_paths(job)
    if listed or not paths:
        return shown, None
    if job["extra"].get("inline"):
        # The mark is replaced by the items, which stand in a file, joined by commas.
        output: Any = {"inlinedResponses": {"inlinedResponses": [_ITEMS]}}
    else:
        output = {"responsesFile": f"files/batch-{job['id']}"}
    only = core.board.strike(_K.OUTPUT_IN, {**core.door.facts, **facts_of(job)})
    place = only.arg("place") if only else None
    if place != "response":
        metadata["output"] = output
    if place != "metadata":
        shown["response"] = {"@type": _TYPE + "Output", **output}
    return shown, paths[0]


def find_job(core: Core, name: str) -> Doc:
    """A job by name; else the 404 that Google gives."""
    job = core.jobs.get(name)
    if job is None or job.get("deleted"):
        raise ApiError(404, "Requested entity was not found.")
    core.door.facts.update(facts_of(job))
    return job


def _name(request: Request) -> str:
    return "batches/" + request.names["batch"]


def _get(core: Core, request: Request) -> Answer:
    return _operation(core, find_job(core, _name(request)), listed=False)


def _list(core: Core, request: Request) -> Answer:
    now = core.clock.now()
    docs = [job for job in core.jobs.shown("gemini") if now >= job["listed_s"]]
    foreign = core.board.strike(_K.FOREIGN_JOBS, core.door.facts)
    if foreign:
        docs += _generate_jobs(core, int(foreign.arg("count")))
    page, token = cut_page(core, request, docs, default=_PAGE_DEFAULT, most=_PAGE_MOST)
    shown: dict[str, Any] = {}
    if page:
        shown["operations"] = [
            job["shown"] if "shown" in job else _operation_json(core, job, listed=True)[0]
            for job in page
        ]
    if token:
        shown["nextPageToken"] = token
    return json_answer(shown)


def _generate_jobs(core: Core, count: int) -> list[Doc]:
    made = []
    for number in range(1, count + 1):
        name = "batches/" + made_id(core.settings.seed, "generate", number, JOB_ID_CHARS)
        metadata = {
            "@type": _TYPE.replace("EmbedContent", "GenerateContent"),
            "model": "models/gemini-2.5-flash",
            "displayName": f"others-{number}",
            "createTime": timestamp(core.clock.now() - 3600),
            "state": "BATCH_STATE_RUNNING",
            "name": name,
        }
        made.append({"seq": -number, "shown": {"name": name, "metadata": metadata}})
    return made


def _cancel(core: Core, request: Request) -> Answer:
    core.jobs.cancel(find_job(core, _name(request))["name"])
    return json_answer({})


def _delete(core: Core, request: Request) -> Answer:
    core.jobs.delete(find_job(core, _name(request))["name"])
    return json_answer({})


def _update(core: Core, request: Request) -> Answer:
    job = find_job(core, _name(request))
    body = request.json()
    mask = request.query.get("updateMask") or request.query.get("update_mask") or "priority"
    changes: dict[str, Any] = {}
    for path in mask.split(","):
        if path == "priority":
            changes["priority"] = _priority(body)
        elif path in ("displayName", "display_name"):
            changes["display_name"] = str(field_of(body, "displayName", ""))
        else:
            raise ApiError(400, f"update_mask: {path} cannot be changed.")
    job = core.jobs.update(job["name"], **changes)
    return json_answer(_metadata(core, job, listed=False))


_BATCH: Final = VERSION + "/batches/{batch}"
ROUTES: Final = (
    route(
        "POST",
        VERSION + "/models/{model}:asyncBatchEmbedContent",
        "batches.create",
        _create,
        "gemini",
        reads_first=True,
    ),
    route("GET", VERSION + "/batches", "batches.list", _list, "gemini"),
    route("GET", _BATCH, "batches.get", _get, "gemini"),
    route("POST", _BATCH + ":cancel", "batches.cancel", _cancel, "gemini"),
    route("DELETE", _BATCH, "batches.delete", _delete, "gemini"),
    route("PATCH", _BATCH + ":updateEmbedContentBatch", "batches.update", _update, "gemini"),
)
