"""The messages of the server's description."""

from typing import Any, Final

from embatch.server.wire_shapes import METHODS
from embatch.types.task import TaskType

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to a message."""
    return {"$ref": f"#/components/schemas/{name}"}


def message(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these fields, and others that are ignored."""
    shown: Schema = {"type": "object", "properties": properties}
    return {**shown, "required": list(required)} if required else shown


def listed(of: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": of, **more}


TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "string", "pattern": "^[0-9]+$"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
NUMBER: Final[Schema] = {"type": "integer"}
ANY_TEXT: Final[Schema] = {"type": ["string", "null"]}
DISPLAY_NAME: Final[Schema] = {"type": ["string", "null"], "maxLength": 512}
PRIORITY: Final[Schema] = {
    "anyOf": [
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
        {"type": "string", "pattern": "^-?[0-9]{1,18}$"},
        {"type": "null"},
    ]
}
TASKS: Final = [None, "", "TASK_TYPE_UNSPECIFIED", *(task.value.upper() for task in TaskType)]

_BATCH: Final[Schema] = {
    "@type": TEXT,
    "name": {"type": "string", "pattern": "^batches/[a-z0-9]{36}$"},
    "model": TEXT,
    "displayName": TEXT,
    "inputConfig": message(fileName=TEXT),
    "createTime": TIME,
    "endTime": TIME,
    "updateTime": TIME,
    "batchStats": message(
        requestCount=COUNT,
        successfulRequestCount=COUNT,
        failedRequestCount=COUNT,
        pendingRequestCount=COUNT,
    ),
    "state": {
        "type": "string",
        "enum": [
            f"BATCH_STATE_{word}"
            for word in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")
        ],
    },
    "priority": {"type": "string", "pattern": "^-?[0-9]+$"},
    "output": ref("EmbedContentBatchOutput"),
}
_BATCH_REQUIRED: Final = (
    "name", "model", "createTime", "updateTime", "batchStats", "state",
)  # fmt: skip

_CONTENT: Final[Schema] = {
    "anyOf": [
        message(
            ("parts",),
            role=ANY_TEXT,
            parts={
                "anyOf": [
                    listed(ref("Part"), minItems=1),
                    ref("Part"),
                ]
            },
        ),
        {"type": "string", "minLength": 1},
    ]
}

SCHEMAS: Final[Schema] = {
    "Empty": {"type": "object", "maxProperties": 0},
    "Error": message(
        ("error",),
        error=message(
            ("code", "message", "status"),
            code=NUMBER,
            message=TEXT,
            status=TEXT,
            details=listed(message(("@type",), **{"@type": TEXT})),
        ),
    ),
    "Status": message(("code",), code=NUMBER, message=TEXT),
    "Health": message(("status",), status={"const": "ok"}),
    "Trouble": message(("status", "reason"), status={"const": "failing"}, reason=TEXT),
    "Model": message(
        ("name", "inputTokenLimit", "supportedGenerationMethods"),
        name=TEXT,
        version=TEXT,
        displayName=TEXT,
        description=TEXT,
        inputTokenLimit=NUMBER,
        outputTokenLimit=NUMBER,
        supportedGenerationMethods=listed({"type": "string", "enum": list(METHODS)}),
    ),
    "ListModelsResponse": message(models=listed(ref("Model")), nextPageToken=TEXT),
    "Part": message(("text",), text={"type": "string", "minLength": 1}),
    "Content": _CONTENT,
    "Usage": message(
        ("promptTokenCount",),
        promptTokenCount=NUMBER,
        promptTokensDetails=listed(message(modality=TEXT, tokenCount=NUMBER)),
    ),
    "Embedding": message(("values",), values=listed({"type": "number"}, minItems=1)),
    "EmbedContentResponse": message(
        ("embedding",), embedding=ref("Embedding"), usageMetadata=ref("Usage")
    ),
    "BatchEmbedContentsRequest": message(
        ("requests",), requests=listed(ref("EmbedContentRequest"), minItems=1, maxItems=100)
    ),
    "BatchEmbedContentsResponse": message(
        ("embeddings",), embeddings=listed(ref("Embedding")), usageMetadata=ref("Usage")
    ),
    "CountTokensRequest": message(
        ("contents",),
        contents=listed(
            message(("parts",), parts=listed(ref("Part"), minItems=1), role=ANY_TEXT), minItems=1
        ),
    ),
    "CountTokensResponse": message(
        ("totalTokens",),
        totalTokens=NUMBER,
        promptTokensDetails=listed(message(modality=TEXT, tokenCount=NUMBER)),
    ),
    "InlinedEmbedContentRequest": message(
        ("request",), request=ref("EmbedContentRequest"), metadata={}
    ),
    "AsyncBatchEmbedContentRequest": message(
        ("batch",),
        batch=message(
            ("inputConfig",),
            displayName=DISPLAY_NAME,
            priority=PRIORITY,
            inputConfig={
                "anyOf": [
                    message(
                        ("fileName",),
                        fileName={"type": "string", "pattern": "^files/[a-z0-9]{1,40}$"},
                        requests={"type": "null"},
                    ),
                    message(
                        ("requests",),
                        fileName={"type": ["string", "null"], "maxLength": 0},
                        requests=message(
                            ("requests",),
                            requests=listed(ref("InlinedEmbedContentRequest"), minItems=1),
                        ),
                    ),
                ]
            },
        ),
    ),
    "UpdateEmbedContentBatchRequest": message(displayName=DISPLAY_NAME, priority=PRIORITY),
    "InlinedEmbedContentResponse": message(
        metadata={}, response=ref("EmbedContentResponse"), error=ref("Status")
    ),
    "EmbedContentBatchOutput": message(
        (),
        **{"@type": TEXT},
        responsesFile=TEXT,
        inlinedResponses=message(inlinedResponses=listed(ref("InlinedEmbedContentResponse"))),
    ),
    "EmbedContentBatch": message(_BATCH_REQUIRED, **_BATCH),
    "Operation": message(
        ("name", "metadata"),
        name=TEXT,
        metadata=ref("EmbedContentBatch"),
        done={"const": True},
        error=ref("Status"),
        response=ref("EmbedContentBatchOutput"),
    ),
    "ListOperationsResponse": message(operations=listed(ref("Operation")), nextPageToken=TEXT),
    "StartUploadRequest": message(
        file={
            "anyOf": [
                message(
                    name={"type": ["string", "null"], "pattern": "^(files/)?[a-z0-9]{1,40}$"},
                    displayName=DISPLAY_NAME,
                    mimeType=ANY_TEXT,
                ),
                {"type": "null"},
            ]
        }
    ),
    "UploadResponse": message(file=ref("File")),
    "File": message(
        ("name", "sizeBytes", "createTime", "state", "source"),
        name=TEXT,
        displayName=TEXT,
        mimeType=TEXT,
        sizeBytes=COUNT,
        createTime=TIME,
        updateTime=TIME,
        expirationTime=TIME,
        sha256Hash=TEXT,
        uri=TEXT,
        downloadUri=TEXT,
        state={"const": "ACTIVE"},
        source={"type": "string", "enum": ["UPLOADED", "GENERATED"]},
    ),
    "ListFilesResponse": message(files=listed(ref("File")), nextPageToken=TEXT),
}


def embed_request(dims: int) -> Schema:
    """The one message that depends on the model: `dims` is the length of its full vectors."""
    sizes: Schema = {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": dims}, {"type": "null"}]
    }
    return {
        "EmbedContentRequest": {
            "type": "object",
            "required": ["content"],
            "properties": {
                "content": ref("Content"),
                "taskType": {"enum": TASKS},
                "title": {
                    "type": ["string", "null"],
                    "maxLength": 0,
                    "description": "With task type RETRIEVAL_DOCUMENT any text is allowed here.",
                },
                "outputDimensionality": sizes,
                "embedContentConfig": {
                    "anyOf": [
                        message(taskType={"enum": TASKS}, outputDimensionality=sizes),
                        {"type": "null"},
                    ]
                },
            },
        }
    }
