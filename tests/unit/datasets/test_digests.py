"""Pass 1 finds what a dictionary in memory finds."""

import hashlib
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.datasets.digests import Digest, read_digest, text_digests
from embatch.datasets.sorted_runs import digest_records
from embatch.datasets.source import open_source
from embatch.errors import DuplicateKeyError, InputError, NotFoundError

TINY = 256 * 4
"""Bytes of memory: a run holds four records, so that a few rows make many runs."""
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "dd", "é", "", None]), min_size=1, max_size=60)


def old_blocks(texts):
    """An earlier output's rows, two blocks of them."""
    rows = [(row, text) for row, text in enumerate(texts) if text]
    for part in (rows[::2], rows[1::2]):
        digests = text_digests(pa.array([text for _, text in part], pa.string()))
        yield digest_records(digests, np.array([row for row, _ in part], np.int64))


def write_in_threes(folder, rows, write_rows):
    """Files of three rows: a source gives no block of more, so that runs are short too."""
    for start in range(0, len(rows), 3):
        write_rows(folder / f"{start:04}.jsonl", rows[start : start + 3])
    return str(folder / "*.jsonl")


def naive(texts, old):
    """Copies and reused rows by a dictionary."""
    known = {text: row for row, text in reversed(list(enumerate(old))) if text}
    owners, copies, reused = {}, [], []
    for row, text in enumerate(texts):
        if not text:
            continue
        if text in known:
            reused.append((row, text))
        elif text in owners:
            copies.append((row, owners[text]))
        else:
            owners[text] = row
    return copies, reused


@settings(deadline=None)
@given(texts=TEXTS, old=st.none() | TEXTS)
def test_digests_find_what_a_dictionary_finds(write_rows, texts, old):
    """Every later row of a text names its first row, unless an earlier output has the text."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"text": text} for text in texts]
        digest = read_digest(
            open_source([write_in_threes(Path(folder), rows, write_rows)]),
            Path(folder) / "digest",
            reuse=None if old is None else old_blocks(old),
            memory_bytes=TINY,
        )
        copies, reused = naive(texts, old or [])
        assert digest.copies.tolist() == copies
        assert [row for row, _ in digest.reused.tolist()] == [row for row, _ in reused]
        for (_, old_row), (_, text) in zip(digest.reused.tolist(), reused, strict=True):
            assert old[old_row] == text
        sizes = [len((text or "").encode()) for text in texts]
        saved = [row for row, _ in copies + reused]
        assert digest.rows == len(texts)
        assert digest.empty == sum(not text for text in texts)
        assert digest.text_bytes == sum(sizes)
        assert digest.longest_bytes == max(sizes)
        assert digest.embed_bytes == sum(sizes) - sum(sizes[row] for row in saved)
        assert digest.embed_rows == len(texts) - digest.empty - len(saved)
        loaded = Digest.load(Path(folder) / "digest")
        assert loaded == digest
        assert loaded.copies.tolist() == copies
        left = {path.name for path in (Path(folder) / "digest").iterdir()}
        assert left == {"digest.json", "copies.bin", "reused.bin"}


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_a_key_that_stands_twice_is_refused(write_rows, keys):
    """Duplicate keys are refused, naming a key and two rows that bear it; others pass."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": key, "text": "t"} for key in keys]
        source = open_source([write_in_threes(Path(folder), rows, write_rows)], key="id")
        doubled = {str(key) for key, count in Counter(keys).items() if count > 1}
        if not doubled:
            assert read_digest(source, Path(folder) / "d", memory_bytes=TINY).rows == len(keys)
            return
        with pytest.raises(DuplicateKeyError) as caught:
            read_digest(source, Path(folder) / "d", memory_bytes=TINY)
        words = str(caught.value).split()
        key, first, second = words[1].strip("'"), *(int(w) for w in words if w.isdigit())
        assert key in doubled
        assert first < second
        assert str(keys[first]) == str(keys[second]) == key


def test_a_duplicate_key_is_shown_short(tmp_path, write_rows):
    """A long key is cut; both rows are named, across inputs."""
    long = {"id": "é" * 500, "text": "t"}
    write_rows(tmp_path / "a.csv", [{"id": "x", "text": "t"}, long])
    write_rows(tmp_path / "b.csv", [long])
    shown = "key 'é{79}… in column 'id' stands in row 1 and in row 2"
    with pytest.raises(DuplicateKeyError, match=shown):
        read_digest(open_source([str(tmp_path / "*.csv")], key="id"), tmp_path / "d")


def test_row_numbers_are_never_checked_as_keys(tmp_path, write_rows):
    """Without a key column there is nothing to digest but texts."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "t"}] * 3)
    assert read_digest(open_source([str(path)]), tmp_path / "d").copy_rows == 2


def test_text_digests_are_sha256_of_utf8():
    """Of slices and chunks too; null counts as empty."""
    column = pa.chunked_array([["x", "é"], [None, "", "zz"]]).slice(1)
    expected = [hashlib.sha256(t.encode()).digest() for t in ("é", "", "", "zz")]
    assert text_digests(column).to_pylist() == expected
    assert text_digests(pa.array(["q", "é", "", None, "zz"]).slice(1)).to_pylist() == expected
    assert text_digests(pa.array([], pa.string())).to_pylist() == []


def test_no_digest_is_loaded_from_an_interrupted_pass(tmp_path, write_rows):
    """A pass that broke off left no digest; the next one starts anew."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "t"}, {"text": 5}])
    with pytest.raises(InputError):
        read_digest(open_source([str(path)], text="text"), tmp_path / "d")
    with pytest.raises(NotFoundError):
        Digest.load(tmp_path / "d")
    write_rows(path, [{"text": "t"}])
    assert read_digest(open_source([str(path)]), tmp_path / "d").rows == 1


def test_progress_is_told(tmp_path, write_rows):
    """The number of rows read, block by block."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "t"}] * 10_000)
    seen = []
    read_digest(open_source([str(path)]), tmp_path / "d", on_progress=seen.append)
    assert seen == [8192, 10_000]
