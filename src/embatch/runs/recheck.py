"""An audit of an old output: some of its texts are embedded again, and the vectors compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.columnar import open_parquet
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.parts import part_vectors_at
from embatch.datasets.sorted_runs import text_digests
from embatch.datasets.source import BLOCK_ROWS, open_source
from embatch.errors import BudgetExceededError, InputError, InvalidRequestError
from embatch.journal.purchases import dollars
from embatch.providers.base import Provider
from embatch.runs.audit import cosines, embedded_apart
from embatch.runs.audit_notes import LEAST_COSINE
from embatch.runs.cost import CALL_TEXTS, Price, price_of, prompt_bytes
from embatch.runs.outputs import load_manifest, parts_of
from embatch.runs.plan import item_bounds
from embatch.runs.tokens import estimate_tokens
from embatch.storage.places import Place, parse_place
from embatch.storage.urls import parse_url
from embatch.types.results import Matrix

SAMPLE_ROWS: Final = 200
"""Rows that are compared when nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of an output with their vectors and texts, in ascending row order."""

    out: str
    output_rows: int
    """Rows of the whole output."""
    rows: NDArray[np.int64]
    keys: Sequence[str]
    vectors: Matrix
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCost:
    """What embedding a sample again costs, at the interactive price."""

    rows: int
    tokens: int
    """Estimated."""
    tokens_bound: int
    usd: float | None
    """Estimated; None where nobody knows the price."""
    usd_bound: float | None
    """The most that it can cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A row whose vector is not that of its text."""

    key: str
    row: int
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """What embedding a sample again showed."""

    out: str
    output_rows: int
    compared: int
    least: float | None
    """Least cosine; None when nothing could be compared."""
    mean: float | None
    mismatches: tuple[Mismatch, ...]
    refused: tuple[str, ...]
    """Keys of rows whose text the service does not take through the interactive API."""
    tokens: int
    tokens_estimated: bool
    """The service did not count all of them."""
    cost_usd: float | None

    @property
    def sound(self) -> bool:
        """Every row compared has the vector of its text."""
        return not self.mismatches and self.compared > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**asdict(self), "sound": self.sound}


def draw_sample(paths: OutputPaths, rows: int, *, source: Sequence[str], seed: int) -> Sample:
    """Draws rows of an output and finds their texts.

    `source` names the inputs; empty for those in the manifest. Raises NotFoundError when there is
    no output, InvalidRequestError when the source is gone, and InputError when it holds other
    texts than those that were embedded.
    """
    manifest = load_manifest(paths)
    found = _rows_of(paths, rows, np.random.default_rng(seed))
    texts = _texts_at(paths, manifest, source, found.rows)
    digests = text_digests(pa.array(texts, pa.string())).to_pylist()
    for row, key, here, there in zip(
        found.rows.tolist(), found.keys, digests, found.digests, strict=True
    ):
        if here != there:
            raise InputError(
                f"row {row} (key {key!r}) of the source holds another text than the one that was "
                f"embedded into {paths.out}: name the source as it was then with --source"
            )
    return Sample(
        out=str(paths.out),
        output_rows=found.output_rows,
        rows=found.rows,
        keys=found.keys,
        vectors=found.vectors,
        texts=texts,
    )


def sample_cost(sample: Sample, provider: Provider) -> SampleCost:
    """What embedding the sample again costs."""
    tokens, bounds = _tokens(sample, provider)
    price = _price(provider)
    return SampleCost(
        rows=len(sample.rows),
        tokens=int(tokens.sum()),
        tokens_bound=int(bounds.sum()),
        usd=None if price is None else price.of_calls(int(tokens.sum())),
        usd_bound=None if price is None else price.of_calls(int(bounds.sum())),
    )


def require_affordable(cost: SampleCost, max_cost_usd: float | None) -> None:
    """Raises BudgetExceededError when the sample may cost more than the cap.

    InvalidRequestError when nobody knows the price: no cap can be kept then.
    """
    if max_cost_usd is None:
        return
    if cost.usd_bound is None:
        raise InvalidRequestError(
            "the price of this model is not known, so that --max-cost cannot be kept: leave it out"
        )
    if cost.usd_bound > max_cost_usd:
        raise BudgetExceededError(
            f"embedding {cost.rows} rows again may cost {dollars(cost.usd_bound)}, and --max-cost "
            f"is {dollars(max_cost_usd)}: raise it, or lower --sample"
        )


def recheck(sample: Sample, provider: Provider) -> Recheck:
    """Embeds the sample's texts again, and compares."""
    near = np.empty(len(sample.rows), dtype=np.float64)
    taken = np.ones(len(sample.rows), dtype=bool)
    counts = np.full(len(sample.rows), -1, dtype=np.int64)
    for start in range(0, len(sample.rows), CALL_TEXTS):
        here = slice(start, start + CALL_TEXTS)
        again = embedded_apart(provider.embed, list(sample.texts[here]), provider.space.dims)
        near[here] = cosines(sample.vectors[here], again.vectors)
        taken[here], counts[here] = again.taken, again.tokens
    estimates, _ = _tokens(sample, provider)
    tokens = int(np.where(counts >= 0, counts, estimates)[taken].sum())
    price = _price(provider)
    wrong = np.flatnonzero(taken & ~(near >= LEAST_COSINE)).tolist()
    return Recheck(
        out=sample.out,
        output_rows=sample.output_rows,
        compared=int(taken.sum()),
        least=float(near[taken].min()) if taken.any() else None,
        mean=float(near[taken].mean()) if taken.any() else None,
        mismatches=tuple(
            Mismatch(key=sample.keys[at], row=int(sample.rows[at]), cosine=float(near[at]))
            for at in wrong
        ),
        refused=tuple(sample.keys[at] for at in np.flatnonzero(~taken).tolist()),
        tokens=tokens,
        tokens_estimated=bool((counts[taken] < 0).any()),
        cost_usd=None if price is None else price.of_calls(tokens),
    )


def _price(provider: Provider) -> Price | None:
    return price_of(provider.space)


def _tokens(sample: Sample, provider: Provider) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each text as estimated, and the most that they can be."""
    sizes = np.array([len(text.encode()) for text in sample.texts], dtype=np.int64)
    around, most = prompt_bytes(provider.space), provider.limits.max_item_tokens
    return estimate_tokens(sizes + around, most), item_bounds(sizes, around, most)


@dataclass(frozen=True, slots=True)
class _Drawn:
    output_rows: int
    rows: NDArray[np.int64]
    keys: list[str]
    digests: list[bytes]
    vectors: Matrix


def _rows_of(paths: OutputPaths, rows: int, chance: np.random.Generator) -> _Drawn:
    single = paths.single_file
    files: list[Place]
    if single is not None and single.exists():
        files = [paths.keys_file or single]
    else:
        files = parts_of(paths)
    counts = [_count(file) for file in files]
    total = sum(counts)
    if not total:
        raise InvalidRequestError(f"{paths.out} holds no vectors to audit")
    wanted = np.sort(chance.choice(total, size=min(rows, total), replace=False))
    pieces: list[tuple[pa.Table, Matrix]] = []
    start = 0
    for file, count in zip(files, counts, strict=True):
        here = wanted[(wanted >= start) & (wanted < start + count)] - start
        start += count
        if len(here):
            table = _rows_at(file, here)
            pieces.append((table, _vectors_at(file, table)))
    table = pa.concat_tables([one for one, _ in pieces])
    vectors = np.concatenate([one for _, one in pieces])
    order = np.argsort(table["row"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    return _Drawn(
        total,
        table["row"].to_numpy(),
        table["key"].to_pylist(),
        table["text_sha256"].to_pylist(),
        np.ascontiguousarray(vectors[order]),
    )


def _count(file: Place) -> int:
    with open_parquet(file) as opened:
        return int(opened.metadata.num_rows)


def _rows_at(file: Place, places: NDArray[np.int64]) -> pa.Table:
    """The rows of a file at these places, ascending, without their vectors."""
    columns, found, start = ["key", "row", "text_sha256"], [], 0
    with open_parquet(file) as opened:
        for batch in opened.iter_batches(BLOCK_ROWS, columns=columns):
            here = places[(places >= start) & (places < start + batch.num_rows)] - start
            start += batch.num_rows
            if len(here):
                found.append(batch.take(pa.array(here)))
    return pa.Table.from_batches(found)


def _vectors_at(file: Place, table: pa.Table) -> Matrix:
    rows = table["row"].to_numpy()
    there, vectors = part_vectors_at(file, rows, table["text_sha256"].to_pylist())
    if not there.all():
        raise InputError(
            f"{file} is damaged: row {rows[~there][0]} is not where its index says; "
            "embatch verify tells more"
        )
    return vectors


def _texts_at(
    paths: OutputPaths, manifest: Manifest, given: Sequence[str], rows: NDArray[np.int64]
) -> list[str]:
    """The texts of these ascending rows of the source."""
    inputs = list(given) or [_planned_input(paths, one.path) for one in manifest.inputs]
    source = open_source(inputs, text=manifest.text_column, key=manifest.key_column)
    texts: list[str] = []
    for block in source.read():
        here = rows[(rows >= block.first_row) & (rows < block.end.row)] - block.first_row
        texts += [text or "" for text in block.batch.column("text").take(here).to_pylist()]
        if len(texts) == len(rows):
            return texts
    raise InputError(
        f"the source has no row {rows[len(texts)]}, which {paths.out} has a vector of: "
        "name the source as it was with --source"
    )


def _planned_input(paths: OutputPaths, name: str) -> str:
    own = parse_url(name) is None and not Path(name).is_absolute()
    path = paths.work / "spool" / name if own else parse_place(name)
    if not path.exists():
        raise InvalidRequestError(
            f"{path}, the source of {paths.out}, is not there any more: name it with --source"
        )
    return str(path)
