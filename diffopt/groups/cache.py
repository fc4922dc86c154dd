"""`cache=`: what of one denoising step is used again in the next. The fields are the chosen method's own."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import ConfigDict, field_validator

from diffopt import models
from diffopt.caches import METHODS, Settings
from diffopt.view import Choices, Group, View


class Cache(Group):
    method: str
    """Name of a file in diffopt/caches, or of another package's method. What else there is it decides."""

    @classmethod
    def shape(cls, value: Mapping[str, Any]) -> type[Group]:
        name = value.get("method")
        if isinstance(name, str) and name in METHODS:
            return METHODS[name].settings
        return Unknown if name is not None else cls

    @classmethod
    def fields(cls) -> Iterable[str]:
        return dict.fromkeys(name for method in METHODS.values() for name in method.settings.model_fields)

    @classmethod
    def reader(cls, name: str) -> str | None:
        found = [f"cache.method={m.name}" for m in METHODS.values() if name in m.settings.model_fields]
        return " or ".join(found) or None


class Unknown(Group):
    """Of a method that is not there the name is the one thing to say."""

    model_config = ConfigDict(extra="allow")

    method: Any

    @field_validator("method")
    @classmethod
    def _is_installed(cls, name: Any) -> Any:
        raise ValueError(f"is not a cache method that is installed; there are {', '.join(METHODS)}")


class CacheView(View, of=Cache):
    """The method with all its fields, those that were left out filled in."""

    method: str
    settings: Settings

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"method"})

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        return frozenset(type(choices.cache).model_fields) if choices.cache else cls.drawn_from()

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Settings)
        assert choices.model is not None
        return [cls(method=group.method, settings=group.filled(models.family(choices.model.family)))]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude_none=True)
