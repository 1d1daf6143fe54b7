"""The fake cloud: Gemini API, Vertex AI and Cloud Storage on 127.0.0.1, with faults and a bill."""

from embatch.testing.cloud.bill import Bill, JobBill
from embatch.testing.cloud.cloud import CloudCrashedError, FakeCloud
from embatch.testing.cloud.control import Controls
from embatch.testing.cloud.core import CloudSettings
from embatch.testing.cloud.faults import FAULTS, Fault, FaultKind, FaultSheet
from embatch.testing.cloud.models import MODELS, UNLISTED_MODEL, count_tokens
from embatch.testing.cloud.process import CloudProcess, ControlRefusedError
from embatch.testing.cloud.vectors import expected_vector, expected_vectors

__all__ = [
    "FAULTS",
    "MODELS",
    "UNLISTED_MODEL",
    "Bill",
    "CloudCrashedError",
    "CloudProcess",
    "CloudSettings",
    "ControlRefusedError",
    "Controls",
    "FakeCloud",
    "Fault",
    "FaultKind",
    "FaultSheet",
    "JobBill",
    "count_tokens",
    "expected_vector",
    "expected_vectors",
]
