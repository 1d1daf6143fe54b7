"""Faults of files: not ready, gone, late, read in strange stretches."""

import re
from typing import Any, Final

from embatch.server.shelf import absent_file
from embatch.server.simulation.calls import CallWeather
from embatch.server.wire import ApiError
from embatch.server.wire_shapes import RESULT_PREFIX, ShownBatch, ShownFile
from embatch.testing.cloud.faults import Facts, FaultKind

_K = FaultKind
_OPEN_RANGE: Final = re.compile(r"\s*bytes=(\d{1,18})-\s*", re.ASCII)


class FileWeather(CallWeather):
    """What befalls files."""

    def uploaded(self, file: ShownFile) -> None:
        """A file may have to be waited for."""
        facts = {**self.door.facts, "file": file.id, "display_name": file.display_name}
        slow = self._board.strike(_K.FILE_PROCESSING, facts)
        if slow:
            until_s = self._clock.now() + float(slow.arg("seconds"))
            self._counts.put("processing", file.id, {"until_s": until_s})

    def file(self, file: ShownFile, shown: dict[str, Any]) -> dict[str, Any]:
        """A file that is not ready says so."""
        return {**shown, "state": "PROCESSING"} if self.is_processing(file.id) else shown

    def result_file(self, batch: ShownBatch) -> None:
        """Results may be gone, or not there yet."""
        facts = self._facts_of(batch)
        file_id = str(facts["file"])
        if self._board.strike(_K.FILE_VANISHED, facts):
            raise absent_file(file_id)
        for late in self._board.peek(_K.RESULT_LATE, facts):
            wait_s = late.arg("seconds")
            ended_s = batch.ended_at.timestamp() if batch.ended_at else self._clock.now()
            if wait_s is None or self._clock.now() < ended_s + wait_s:
                self._board.strike(_K.RESULT_LATE, facts)
                raise ApiError(404, f"File {file_id} was not found.")

    def wanted_range(self, batch: ShownBatch, wanted: str | None) -> str | None:
        """A Range may be ignored, or answered in part."""
        facts = self._facts_of(batch)
        if wanted is None or self._board.strike(_K.RANGE_IGNORED, facts):
            return None
        short = self._board.strike(_K.RANGE_SHORT, facts)
        caught = _OPEN_RANGE.fullmatch(wanted)
        if short is None or caught is None:
            return wanted
        start = int(caught[1])
        return f"bytes={start}-{start + max(1, int(short.arg('bytes'))) - 1}"

    def _facts_of(self, batch: ShownBatch) -> Facts:
        return {
            **self.door.facts,
            "file": RESULT_PREFIX + batch.id,
            "display_name": batch.display_name,
            "model": batch.model,
        }
