"""Pages of a long list: what can be asked for, and what is answered.

Not here: which rows (`rows`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PAGE = 10**9
MAX_SIZE = 200
MAX_QUERY = 200
MAX_ROWS = 2**53
"""Numbers beyond it are not the same in JavaScript."""

RowId = Annotated[int, Field(ge=0, le=MAX_ROWS)]
Order = Literal["asc", "desc"]


class Query(BaseModel):
    """Query parameters; an empty one is as good as none, and an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value != ""} if isinstance(values, dict) else values


class PageQuery(Query):
    """Which page, in which direction."""

    page: int = Field(default=0, ge=0, le=MAX_PAGE)
    size: int = Field(default=50, ge=1, le=MAX_SIZE)
    order: Order = "asc"


class Page(BaseModel):
    """Base of a page: where it stands among all rows that were asked for."""

    total: int
    page: int
    size: int
    pages: int


class Facet(BaseModel):
    """One value that a list can be filtered by."""

    value: str
    label: str
    n: int


def n_pages(total: int, size: int) -> int:
    """Pages that hold `total` rows."""
    return -(-total // size)
