"""What teachers behind a vendor's SDK share: a name, a price, and a client that is opened when it is first needed."""

from typing import Any, ClassVar, Generic, Protocol, TypeVar

from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.sdk import Service
from streamstill.types import ClipRequest


class VendorConfig(Protocol):
    """What every vendor's config says."""

    @property
    def model(self) -> str:
        """The vendor's name for it."""
        ...

    @property
    def asking(self) -> Asking:
        """How a request is said."""
        ...

    @property
    def price(self) -> float | None:
        """Money for a second of video."""
        ...


class Connection(Protocol):
    """What the client speaks through."""

    async def aclose(self) -> None:
        """Close it."""
        ...


ConfigT = TypeVar("ConfigT", bound=VendorConfig)


class VendorTeacher(Generic[ConfigT]):
    """One model of one vendor. Nothing is connected, and no key is read, before the first call."""

    vendor: ClassVar[str]

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self._open: tuple[Any, Service, Connection] | None = None

    @property
    def name(self) -> str:
        """Service, model and a fingerprint of how it is asked."""
        return f"{self.vendor}/{self.config.model}@{self.config.asking.fingerprint()}"

    @property
    def price(self) -> float | None:
        """Money for one second of video, as configured."""
        return self.config.price

    def seconds(self, request: ClipRequest) -> float:
        """Seconds of video that are ordered for a request."""
        return self.config.asking.ordered_seconds(request)

    async def close(self) -> None:
        """Close connections; the next call opens new ones."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened[2].aclose()

    def _opened(self) -> tuple[Any, Service]:
        """The SDK's client, and the vendor as sentences name it."""
        self._open = self._open or self._connected()
        return self._open[:2]

    def _connected(self) -> tuple[Any, Service, Connection]:
        """A new client on a transport of ours."""
        raise NotImplementedError
