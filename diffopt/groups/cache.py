"""`cache=`: what of one denoising step is used again in the next. The fields are the chosen method's own."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import ConfigDict, SkipValidation, field_validator

from diffopt import models
from diffopt.artifact import CacheSearch, MagRatios
from diffopt.caches import METHODS, Settings
from diffopt.caches.knob_search import KnobSearch
from diffopt.caches.mag_cache import MagCache, with_ratios
from diffopt.errors import suggestion
from diffopt.files.ratios import MagRatiosFile
from diffopt.files.search import CacheSearchFile
from diffopt.groups.choices import Choices
from diffopt.groups.view import View
from diffopt.schema import Group


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
        raise ValueError(f"is not a cache method that is installed; {suggestion(str(name), METHODS)}")


class CacheView(View, of=Cache):
    """The method with all its fields, those that were left out filled in, but for what is searched or measured."""

    method: str
    settings: SkipValidation[Settings]
    """Validated as the user gave them: filled in, a knob that is searched has a value."""

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"method"})

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        cache = choices.cache
        return _read(cache) if isinstance(cache, Settings) else cls.fields_read()

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Settings)
        assert choices.model is not None
        return [cls(method=group.method, settings=group.filled(models.of(choices.model)))]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude_none=True, include={*_read(self.settings)})

    def applied(self, ratios: MagRatios | None, search: CacheSearch | None) -> Self:
        """With what was measured and found; `self` where nothing was."""
        settings = self.settings
        if search:
            settings = settings.turned(CacheSearchFile.read(search.path).chosen.value)
        if ratios:
            assert isinstance(settings, MagCache)
            settings = with_ratios(settings, MagRatiosFile.read(ratios.path).ratios)
        return self.model_copy(update={"settings": settings})


def _read(settings: Settings) -> frozenset[str]:
    """Fields that whoever runs the cache reads."""
    return frozenset(type(settings).model_fields) - {"search", *settings.unread()}


class SearchView(CacheView, of=Cache):
    """The same, with what is to be searched and where."""

    search: KnobSearch

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        return super().used(choices) | {"search"}

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Settings)
        assert group.search is not None
        assert choices.model is not None
        assert choices.eval is not None
        low, high = group.ends(choices.eval.steps)
        found = group.search.model_copy(update={"knob": group.knob.name, "low": low, "high": high})
        return [cls(method=group.method, settings=group.filled(models.of(choices.model)), search=found)]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return {**super().identity(used), "search": self.search.model_dump(mode="json")}


def measures(choices: Choices) -> bool:
    """Whether ratios are to be measured before the cache can run."""
    return isinstance(choices.cache, MagCache) and choices.cache.ratios is None


def searches(choices: Choices) -> bool:
    """Whether a value is to be found before the cache can run."""
    return isinstance(choices.cache, Settings) and choices.cache.search is not None
