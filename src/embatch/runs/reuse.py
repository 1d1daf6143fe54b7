"""An earlier output of the same space, whose vectors serve equal texts."""

from collections.abc import Iterator

from embatch.datasets.output import OutputPaths
from embatch.datasets.parts import group_bounds, reading_part
from embatch.datasets.sorted_runs import Records, digest_records
from embatch.datasets.source import BLOCK_ROWS
from embatch.errors import InvalidRequestError, SpaceMismatchError
from embatch.runs.outputs import load_manifest, output_files
from embatch.storage.places import Place
from embatch.types.embedding import Space


def require_reusable(old_out: str, space: Space) -> None:
    """Raises SpaceMismatchError unless the earlier output holds vectors of `space`."""
    paths = OutputPaths.for_out(old_out)
    difference = load_manifest(paths).space.difference(space)
    if difference is not None:
        raise SpaceMismatchError(
            f"{old_out} cannot be reused: {difference} (there is what this run asks for)"
        )
    if not _files(old_out):
        raise InvalidRequestError(f"{old_out} holds no vectors to reuse")


def _files(old_out: str) -> list[Place]:
    """The Parquet files that hold the earlier output's rows; of a matrix, the keys beside it."""
    paths = OutputPaths.for_out(old_out)
    matrix, keys = paths.single_file, paths.keys_file
    if matrix is not None and keys is not None and matrix.exists():
        return [keys]
    return output_files(paths)


def old_records(old_out: str) -> Iterator[Records]:
    """The text digests of the earlier output, with its row numbers, in constant memory."""
    for path in _files(old_out):
        with reading_part(path) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=["text_sha256", "row"]):
                yield digest_records(batch["text_sha256"], batch["row"].to_numpy())


def _ranges(old_out: str) -> tuple[tuple[Place, int, int], ...]:
    ranges = []
    for path in _files(old_out):
        with reading_part(path) as file:
            groups = range(file.num_row_groups)
            bounds = [group_bounds(file.metadata.row_group(group)) for group in groups]
        ranges.append((path, min(low for low, _ in bounds), max(high for _, high in bounds)))
    return tuple(ranges)


def reused_files(old_out: str, row_min: int, row_max: int) -> list[Place]:
    """The files of the earlier output that may hold its rows `row_min..row_max`."""
    return [path for path, low, high in _ranges(old_out) if low <= row_max and high >= row_min]
