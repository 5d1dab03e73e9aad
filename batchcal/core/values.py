"""The two bases of every value: what we define (`Frozen`) and what is kept in files (`Record`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. An unknown field is a mistake of the caller and is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


class Record(BaseModel):
    """An immutable value that lives in files. A field of a later version survives being read and written again."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, ser_json_inf_nan="constants")
