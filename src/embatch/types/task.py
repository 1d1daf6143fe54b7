"""Task types: what the vectors are made for."""

from enum import StrEnum

from embatch.errors import InvalidRequestError


class TaskType(StrEnum):
    """What the vectors are made for. Source: Gemini API embeddings guide, read 2026-11."""

    RETRIEVAL_DOCUMENT = "retrieval_document"
    RETRIEVAL_QUERY = "retrieval_query"
    SEMANTIC_SIMILARITY = "semantic_similarity"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"
    QUESTION_ANSWERING = "question_answering"
    FACT_VERIFICATION = "fact_verification"
    CODE_RETRIEVAL_QUERY = "code_retrieval_query"


def parse_task_type(task_type: str | None) -> TaskType | None:
    """The task type that a word names, in either case; InvalidRequestError lists the words."""
    if task_type is None:
        return None
    try:
        return TaskType(str(task_type).lower())
    except ValueError:
        words = ", ".join(TaskType)
        raise InvalidRequestError(f"unknown task_type: use one of {words}") from None
