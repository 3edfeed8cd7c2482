"""Where a store is: a folder, or a prefix in an S3-compatible service that the ``AWS_*`` variables describe."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE_FORMAT: Literal["2.1"] = "2.1"  # of Lance; named, so that a newer Lance writes what this one's readers can read
_REMOTE = re.compile(r"s3:[/\\]+(.+)")


@dataclass(frozen=True)
class Place:
    """A folder or an ``s3://bucket/prefix``; Lance is given its ``uri`` and its ``options``."""

    uri: str

    @classmethod
    def of(cls, path: Path | str) -> "Place":
        """The place that a user named; a ``Path`` that swallowed one of the two slashes after ``s3:`` is understood."""
        remote = _REMOTE.fullmatch(str(path))
        return cls("s3://" + remote[1].replace("\\", "/") if remote else str(path))

    @property
    def remote(self) -> bool:
        """Whether it is in a service and not on a disk."""
        return self.uri.startswith("s3://")

    @property
    def options(self) -> dict[str, str] | None:
        """What Lance must be told of the service; it reads the keys and the region from the environment itself."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not (self.remote and endpoint):
            return None
        plain = str(endpoint.startswith("http://")).lower()
        return {"aws_endpoint": endpoint, "allow_http": plain}

    def dataset(self) -> Any:
        """The Lance dataset that is there now, or None where nothing was committed yet.

        Raises:
            ValueError, OSError: it cannot be read; the words are Lance's.
        """
        import lance

        if not self.remote and not any(Path(self.uri).glob("_versions/*.manifest")):
            return None
        try:
            return lance.dataset(self.uri, storage_options=self.options)
        except ValueError as error:
            if self.remote and "was not found" in str(error):  # Lance has no type for it
                return None
            raise

    def create(self, table: Any) -> Any:
        """The first commit: a dataset of this Arrow table.

        Raises:
            OSError: another process was faster, or it could not be written.
        """
        import lance
        from lance.fragment import write_fragments

        if not self.remote:
            Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
        written: Any = {"storage_options": self.options, "enable_stable_row_ids": True}
        parts = write_fragments(table, self.uri, mode="create", data_storage_version=FILE_FORMAT, **written)
        # ``write_dataset(mode="create")`` looks first and commits later, over whatever another process made meanwhile;
        # without retries the commit fails instead.
        first = lance.LanceOperation.Overwrite(table.schema, parts)
        return lance.LanceDataset.commit(self.uri, first, max_retries=0, **written)

    def append(self, table: Any, seen: Any) -> Any:
        """The dataset with this Arrow table in it; ``seen``, as it was last looked at, is left as it is."""
        import lance

        return lance.write_dataset(table, seen, mode="append", storage_options=self.options)


def first_line(error: BaseException) -> str:
    """What an error says, without the lines and places of Lance's own source."""
    return str(error).splitlines()[0].split(", /")[0] if str(error) else type(error).__name__
