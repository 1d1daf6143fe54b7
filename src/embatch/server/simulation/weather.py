"""A bad day, put together."""

from embatch.server.simulation.batches import BatchWeather
from embatch.server.simulation.files import FileWeather


class BadWeather(FileWeather, BatchWeather):
    """Lets a profile's faults strike calls, files and batches."""
