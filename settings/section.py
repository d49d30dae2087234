"""A section of settings: typed, checked, frozen."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 2**32  # no setting needs a number beyond; products of some stay finite


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, given: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(given, bool) and field.annotation is not bool:
            raise ValueError("true and false (yes and no) are no values of this setting")
        if isinstance(given, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in given):
            raise ValueError("holds a character that no path or text may have")
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _is_of_this_world(cls, value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise ValueError(f"at most {LARGEST:g} in size")
        return value
