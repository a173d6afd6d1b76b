"""The three roles as a controller sees them, wherever they live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from raysid.roles.messages import Slice


class TeacherService(Protocol):
    """The teacher pool, as the controller sees it. Arguments and results may be object references."""

    def score(self, noised: Any, guidance_scale: float, /) -> Any: ...
    def pullback(self, noised: Any, cotangent: Any, guidance_scale: float, /) -> Any: ...


class FakeScoreRole(Protocol):
    """The fake-score learner, as the controller sees it. All that is said of a microbatch begins with its address."""

    def score(self, at: Slice, noised: Any, /) -> Any: ...
    def pullback(self, at: Slice, noised: Any, cotangent: Any, /) -> Any: ...
    def accumulate(self, at: Slice, images: Any, /) -> Any: ...
    def step(self, step: int, /, *tokens: Any) -> Any: ...


class GeneratorRole(Protocol):
    """The generator learner, as the controller sees it."""

    def images(self, at: Slice, /) -> Any: ...
    def generate(self, at: Slice, /) -> tuple[Any, Any]: ...
    def cotangents(self, at: Slice, teacher: Any, fake: Any, /) -> tuple[Any, Any]: ...
    def accumulate(self, at: Slice, teacher: Any, fake: Any, /) -> Any: ...
    def discard(self, at: Slice, /) -> Any: ...
    def step(self, step: int, /, *tokens: Any) -> Any: ...


@dataclass(frozen=True)
class Roles:
    """The three roles of one run."""

    teacher: TeacherService
    fake_score: FakeScoreRole
    generator: GeneratorRole
