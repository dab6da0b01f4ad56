"""The base of a conformance suite that cannot be eroded."""

from __future__ import annotations

from typing import ClassVar

import pytest


class Suite:
    """Base of a conformance suite: inherited tests cannot be overridden in silence.

    A driver that is excused from a test names it in `deviations`; the test then runs all the same, and fails when the
    excuse is no longer needed.
    """

    #: Test name to why this driver is excused, with a link.
    deviations: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        inherited = {name for base in cls.__mro__[1:] for name in vars(base) if name.startswith("test_")}
        if shadowed := inherited & set(vars(cls)):
            raise TypeError(f"{cls.__name__} overrides {sorted(shadowed)}; list it in `deviations` instead")
        if unknown := set(cls.deviations) - inherited:
            raise TypeError(f"{cls.__name__}.deviations names no such test: {sorted(unknown)}")

    @pytest.fixture(autouse=True)
    def _apply_deviations(self, request: pytest.FixtureRequest) -> None:
        if why := self.deviations.get(request.function.__name__):
            request.applymarker(pytest.mark.xfail(reason=why, strict=True))
