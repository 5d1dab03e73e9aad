"""The two base classes of all values: values that we define (`Frozen`) and values in files (`Record`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. An unknown field is an error of the caller and is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


class Record(BaseModel):
    """An immutable value in files. A field of a later version is kept when the value is read and written again."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, ser_json_inf_nan="constants")
