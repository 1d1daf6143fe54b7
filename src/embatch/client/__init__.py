"""The clouds' asynchronous batch embedding APIs, typed: `Client`, and `AsyncClient` for loops.

Every operation is written once, as a flow (gemini.py, vertex.py, cloud.py), and performed by
`drive` or `adrive` (flow.py): the two classes hold one line for each.
"""

from embatch.client.looped import AsyncClient
from embatch.client.open import Auth
from embatch.client.retry import RetryPolicy
from embatch.client.threaded import Client

__all__ = ["AsyncClient", "Auth", "Client", "RetryPolicy"]
