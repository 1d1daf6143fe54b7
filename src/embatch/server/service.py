"""All that a server is without HTTP: models, batches, files, and the threads that work on them."""

import fcntl
import logging
import threading
from collections.abc import Callable
from typing import IO, Final, Self

from embatch.errors import ConfigError
from embatch.server.batches import Batches
from embatch.server.finisher import Finisher
from embatch.server.models import Catalogue
from embatch.server.room import Room
from embatch.server.settings import ServerSettings
from embatch.server.shelf import Shelf
from embatch.server.weather import Weather
from embatch.service.scheduler import Scheduler
from embatch.service.store import BatchStore

SWEEP_S: Final = 60.0
"""How often expired files, old batches and folders of deleted ones are looked for."""
STOP_S: Final = 60.0
"""How long the end waits for the slice in hand."""

_log = logging.getLogger("embatch.server")


class Service:
    """The server's inside. Start it, then let an application answer from it; stop it once."""

    def __init__(
        self,
        settings: ServerSettings,
        catalogue: Catalogue,
        *,
        weather: Weather | None = None,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes the data folder; ConfigError when another server works on it."""
        self.settings = settings
        self.catalogue = catalogue
        self.weather = weather or Weather()
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock_folder(settings)
        self.store = BatchStore(settings.folder, checkpoint=checkpoint)
        # Each has a connection of its own: polls never wait for a commit.
        reads, working, finishing = (
            BatchStore(settings.folder, checkpoint=checkpoint) for _ in range(3)
        )
        self._stores = (self.store, reads, working, finishing)
        self.shelf = Shelf(settings)
        self.scheduler = Scheduler(working, catalogue.engine_for, models=catalogue.keys())
        self.finisher = Finisher(finishing, self.weather, checkpoint=checkpoint)
        self.room = Room(settings.folder)
        self.batches = Batches(
            settings,
            store=self.store,
            reads=reads,
            scheduler=self.scheduler,
            finisher=self.finisher,
            weather=self.weather,
            room=self.room,
        )
        self.weather.attach(self)
        self._stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="embatch-sweeper", daemon=True)

    def start(self) -> Self:
        """Begins to work on what is unfinished."""
        waiting = {batch.model for batch in self.finisher.open_batches() if not batch.done}
        foreign = waiting - set(self.catalogue.keys())
        for key in sorted(foreign):
            _log.warning(
                "unfinished batches wait for model %s in precision %s: "
                "start the server with it to go on with them",
                *key.split(":")[:2],
            )
        self.scheduler.start()
        self.finisher.start()
        self._sweeper.start()
        return self

    def trouble(self) -> str | None:
        """What keeps the server from working now; None when it is well."""
        health = self.scheduler.health()
        if not health.alive:
            return "the worker has stopped: start the server again"
        if not self.finisher.alive:
            return "the writer of results has stopped: start the server again"
        return health.paused_reason or self.finisher.paused_reason

    def stop(self) -> bool:
        """Ends the slice in hand, then closes all. False when the slice took too long to end."""
        self._stopping.set()
        ended = self.scheduler.stop(STOP_S)
        self.finisher.stop()
        if ended:
            for store in self._stores:
                store.close()
            self.shelf.close()
            self.catalogue.close()
            self._lock.close()
        return ended

    def _sweep(self) -> None:
        while not self._stopping.is_set():
            sweeps = (self.shelf.sweep, self.batches.sweep, self.store.sweep, self.room.keep)
            for sweep in sweeps:
                try:
                    sweep()
                except Exception:  # noqa: BLE001 - the thread's outer edge: the next round tries again
                    _log.exception("old files could not be removed")
            self._stopping.wait(SWEEP_S)


def _lock_folder(settings: ServerSettings) -> IO[str]:
    lock = (settings.folder / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"another embatch serve works on {settings.folder}: stop it, or give another --data"
        ) from None
    return lock
