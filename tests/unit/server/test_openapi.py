"""The description says what the server does, beyond the names of its routes."""

from typing import Any

from embatch.server.openapi import build_openapi


def test_it_tells_of_strangers_and_of_chunks_by_post() -> None:
    """403 of the open pages, other methods, and all that an upload's POST may bear."""
    described: dict[str, Any] = build_openapi(["m"], 16, keyed=False)
    for path in ("/healthz", "/openapi.json"):
        assert "403" in described["paths"][path]["get"]["responses"]
    assert "405" in described["info"]["description"]
    post, put = (described["paths"]["/upload/{version}/files"][way] for way in ("post", "put"))
    named = [{one["name"]: one for one in way["parameters"]} for way in (post, put)]
    assert named[1].keys() <= named[0].keys()
    assert not named[0]["upload_id"]["required"]
    commands = [one["X-Goog-Upload-Command"]["schema"]["enum"] for one in named]
    assert commands[0] == ["start", *commands[1]]
