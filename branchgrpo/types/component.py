"""What a config section is: options, and the component that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict


class Component(BaseModel):
    """Base of everything that a config section names; `name` is its key in its table.

    It is both the options and the component itself: a config section, once validated, can be
    called.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    if TYPE_CHECKING:
        name: str

    # keys that name a file or a folder which every machine must have; empty texts name none
    file_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def called(self) -> str:
        """Its name; of a component from a file or a module (PLACE:NAME) what it is called there."""
        return str(getattr(self, "name", type(self).__name__)).rpartition(":")[2]

    def needed_files(self) -> list[str]:
        """Files and folders that every machine must have, as the config names them."""
        return [path for key in self.file_keys if (path := str(getattr(self, key)))]
