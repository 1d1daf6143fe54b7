"""Interactive embedding: texts cut into groups, a vector for each, or an error."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embatch.client.flow import Flow
from embatch.client.requests import EmbedOptions, require_utf8
from embatch.client.wire import integer
from embatch.errors import AlignmentError, ProviderUnavailableError
from embatch.types.embedding import ContentEmbedding

Group = Callable[[Sequence[str]], Flow[list[ContentEmbedding]]]


class Answered(list[ContentEmbedding]):
    """Vectors in order, with what the service says that they were billed together."""

    tokens: int | None = None
    """Tokens of all of them; None where it does not say."""


def embed_in_groups(
    texts: Sequence[str],
    options: EmbedOptions,
    group: Group,
    *,
    most: int,
    most_bytes: int | None = None,
) -> Flow[list[ContentEmbedding]]:
    """All vectors in order, from groups of at most `most` texts and `most_bytes` of UTF-8."""
    require_utf8(texts)
    before, after = options.affixes
    found, sums = Answered(), []
    for some in cut_groups([f"{before}{text}{after}" for text in texts], most, most_bytes):
        try:
            vectors = yield from group(some)
        except ProviderUnavailableError as error:
            error.sent = error.sent or bool(found)
            raise
        found.extend(vectors)
        sums.append(vectors.tokens if isinstance(vectors, Answered) else None)
    known = [tokens for tokens in sums if tokens is not None]
    found.tokens = sum(known) if len(known) == len(sums) else None
    return found


def cut_groups(texts: Sequence[str], most: int, most_bytes: int | None) -> list[Sequence[str]]:
    """The texts in order, cut into groups; a text over `most_bytes` is a group of its own."""
    if most_bytes is None:
        return [texts[start : start + most] for start in range(0, len(texts), most)]
    groups: list[Sequence[str]] = []
    held: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if held and (len(held) == most or size + length > most_bytes):
            groups.append(held)
            held, size = [], 0
        held.append(text)
        size += length
    return [*groups, held] if held else groups


def vectors_of(
    embeddings: Any, texts: Sequence[str], options: EmbedOptions, what: str, answer: Any = None
) -> list[ContentEmbedding]:
    """The vectors of one answer; AlignmentError when there is not a sound one for each text.

    `answer` is the document around them: it tells the tokens of all texts together.
    """
    listed = embeddings if isinstance(embeddings, list) else []
    if len(listed) != len(texts):
        raise AlignmentError(
            f"{what}: the service gave {len(listed)} vectors for {len(texts)} texts. Call again."
        )
    found = Answered()
    for index, entry in enumerate(listed):
        values = entry.get("values") if isinstance(entry, dict) else None
        tokens = _tokens(entry, answer if len(texts) == 1 else None)
        found.append(_vector(values, tokens, options, f"{what}: vector {index}"))
    each = [one.tokens for one in found if one.tokens is not None]
    found.tokens = sum(each) if len(each) == len(found) else _tokens(None, answer)
    return found


def _tokens(entry: Any, answer: Any) -> int | None:
    statistics = entry.get("statistics") if isinstance(entry, dict) else None
    usage = answer.get("usageMetadata") if isinstance(answer, dict) else None
    for holder, name in ((statistics, "token_count"), (usage, "promptTokenCount")):
        if isinstance(holder, dict) and name in holder:
            return integer(holder[name])
    return None


def _vector(values: Any, tokens: int | None, options: EmbedOptions, what: str) -> ContentEmbedding:
    try:
        vector = np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        vector = np.empty(0, dtype=np.float32)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise AlignmentError(f"{what} is missing or not made of finite numbers. Call again.")
    cut_from = None
    if options.dims is not None and len(vector) > options.dims:
        cut_from = len(vector)  # the service ignored the dimensions asked for
        vector = vector[: options.dims]
    if options.expected_dims not in (None, len(vector)):
        raise AlignmentError(
            f"{what} has {len(vector)} values, not {options.expected_dims}. Call again."
        )
    return ContentEmbedding(vector, tokens=tokens, cut_from=cut_from)
