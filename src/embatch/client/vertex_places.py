"""Where things are on Vertex AI: hosts, paths, names, folders."""

from dataclasses import dataclass
from typing import Final

from embatch.errors import ConfigError, InvalidRequestError
from embatch.types.label import label_hash

_NO_FILES: Final = (
    "Vertex AI has no Files API: files are Cloud Storage objects, named gs://bucket/path"
)


def vertex_base_url(location: str) -> str:
    """Where a location answers. Source: Vertex AI docs, read 2026-11."""
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where one project's things are, or an express key's."""

    version: str
    """Version of the API in every path: "v1beta1"."""
    project: str | None
    location: str | None
    staging: str | None
    """`gs://bucket/prefix` where inputs and results are kept."""

    @property
    def parent(self) -> str:
        """Path of the project and location; ConfigError when they are not known."""
        self.require_project()
        return f"/{self.version}/projects/{self.project}/locations/{self.location}"

    def require_project(self) -> None:
        """Raises ConfigError when there is no project and location."""
        if self.project is None or self.location is None:
            raise ConfigError(
                "batches on Vertex AI need a project and a location: set GOOGLE_CLOUD_PROJECT and "
                "GOOGLE_CLOUD_LOCATION (an express key serves interactive calls only)"
            )

    def publisher(self, model: str) -> str:
        """Path of one of Google's models; without a project in express mode."""
        known = self.project is not None and self.location is not None
        return f"{self.parent if known else f'/{self.version}'}/publishers/google/models/{model}"

    @property
    def root(self) -> str:
        """The staging folder; ConfigError when there is none, or none in Cloud Storage."""
        if self.staging is None:
            raise ConfigError(
                "batches on Vertex AI go through Cloud Storage: give staging='gs://bucket/prefix' "
                "(--staging on the command line), or set EMBATCH_STAGING"
            )
        if not self.staging.startswith("gs://"):
            raise ConfigError(
                f"{self.staging} is no place in Cloud Storage, where alone Vertex AI reads: "
                "write gs://bucket/path"
            )
        return self.staging.rstrip("/")

    def folder(self, label: str) -> str:
        """Where a batch's input and results are kept."""
        return f"{self.root}/{label_hash(label)}"

    def job_name(self, name: str) -> str:
        """The job's full name; its bare number is taken too."""
        if name.isascii() and name.isdigit():
            return f"{self.parent.split('/', 2)[2]}/batchPredictionJobs/{name}"
        if "/batchPredictionJobs/" in name and name.startswith("projects/"):
            return name
        raise InvalidRequestError(
            f"{name!r} is not the name of a Vertex AI batch: it reads "
            "projects/…/locations/…/batchPredictionJobs/…"
        )


def object_name(name: str) -> str:
    """The object's name; InvalidRequestError for what is none."""
    if not name.startswith("gs://"):
        raise InvalidRequestError(f"{name}: {_NO_FILES}")
    return name
