"""The move of an output to another model: which texts are embedded again, and as what."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embatch.datasets.digests import read_digest
from embatch.datasets.inputs import InputIdentity, classify, same
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.source import open_source
from embatch.errors import InputError, InvalidRequestError
from embatch.runs.outputs import load_manifest, output_files
from embatch.runs.reuse import old_records
from embatch.storage.places import parse_place
from embatch.types.embedding import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What an earlier output says of the run that embeds its texts anew."""

    inputs: tuple[str, ...]
    text: str
    key: str | None
    keep: tuple[str, ...]
    space: Space
    """Of the vectors there."""
    left_out: int = 0
    """Rows of the earlier run that failed and whose texts are not among the inputs."""
    elsewhere: bool = False
    """The inputs are other files than those of the earlier run."""


def plan_move(old_out: str, source: Sequence[str] = ()) -> Move:
    """How the texts of `old_out` are embedded again: from its inputs, unchanged, or `source`.

    `source` names files in place of the inputs; or `old_out` itself, whose rows are taken when it
    keeps the text column. Raises NotFoundError when `old_out` is no output, InvalidRequestError
    and InputError, saying what to do, when its texts cannot be had.
    """
    paths = OutputPaths.for_out(old_out)
    manifest = load_manifest(paths)
    if [parse_place(name) for name in source] == [paths.out]:
        return _from_kept_texts(old_out, paths, manifest)
    if "-" in source:
        raise InvalidRequestError("--source - can be read once only: save the data as a file")
    if not source:
        _require_unchanged(old_out, manifest)
    return Move(
        inputs=tuple(source) or tuple(one.path for one in manifest.inputs),
        text=manifest.text_column,
        key=manifest.key_column,
        keep=manifest.keep_columns,
        space=manifest.space,
        elsewhere=bool(source),
    )


def count_shared(move: Move, old_out: str) -> tuple[int, int]:
    """Rows of the move's inputs that have a text, and those of them whose text `old_out` embedded.

    Reads the inputs once, in constant memory. Raises DuplicateKeyError as a run does, and
    InvalidRequestError when no text is the same: the inputs are others than meant.
    """
    source = open_source(move.inputs, text=move.text, key=move.key, keep=move.keep)
    with tempfile.TemporaryDirectory(prefix="embatch-migrate-") as scratch:
        digest = read_digest(source, Path(scratch) / "digest", reuse=old_records(old_out))
    texts, shared = digest.rows - digest.empty, digest.reused_rows
    if texts and not shared:
        raise InvalidRequestError(
            f"{old_out} embedded none of the {texts:,} texts of {move.inputs[0]}: check --source"
        )
    return texts, shared


def require_another(old: Space, new: Space, old_out: str) -> None:
    """Raises InvalidRequestError when the move would end in the space where it began."""
    if old.difference(new) is None:
        raise InvalidRequestError(
            f"{old_out} holds vectors of this very space already: name another --model, or --dims"
        )


def _from_kept_texts(old_out: str, paths: OutputPaths, manifest: Manifest) -> Move:
    if manifest.text_column not in manifest.keep_columns:
        raise InvalidRequestError(
            f"{old_out} keeps no texts (--keep {manifest.text_column} on its run would have): "
            "give the data as --source FILE"
        )
    if manifest.finished_at is None:
        raise InvalidRequestError(
            f"{old_out} is not finished: embatch resume {manifest.run_id} first"
        )
    matrix = paths.keys_file if paths.single_file is not None else None
    files = [matrix] if matrix is not None else output_files(paths)
    return Move(
        inputs=tuple(str(file) for file in files),
        text=manifest.text_column,
        key="key",
        keep=manifest.keep_columns,
        space=manifest.space,
        left_out=manifest.counts.get("failed", 0),
    )


def _require_unchanged(old_out: str, manifest: Manifest) -> None:
    kept = manifest.text_column in manifest.keep_columns
    ways = "give the data as --source FILE" + (
        f", or --source {old_out} for the texts that it keeps" if kept else ""
    )
    for one in manifest.inputs:
        if one.sha256 is not None:
            raise InvalidRequestError(
                f"{old_out} was made of data without a file, which are no longer there: {ways}"
            )
        if (trouble := _trouble(one)) is not None:
            raise InputError(f"{old_out} was made of {one.path}, which {trouble}: {ways}")


def _trouble(one: InputIdentity) -> str | None:
    """What became of an input; None when it is as it was."""
    try:
        return None if same(classify(parse_place(one.path)), one) else "changed since"
    except InputError as error:
        return "is gone" if isinstance(error.__cause__, FileNotFoundError) else "cannot be read"
