"""What a check is given: a component, and the parts that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from reidcore.catalog import Catalog
from reidcore.component import Component
from reidcore.errors import ContractError, RecipeError

SIZES = ((64, 32), (96, 64))
"""Heights and widths that networks are checked with."""


@frozen
class Kit:
    """A component with options that make it work, and what to check it with."""

    catalog: Catalog
    kind: str
    component: Component
    options: Mapping[str, Any]
    extras: Mapping[str, tuple[int, ...]] = {}
    _fitting: list[Component] = field(factory=list, init=False)  # the backbone, once it has been looked for

    def config(self) -> Any:
        """Return the config, structured from the options as a recipe's table would be."""
        return self._config(self.component, self.options)

    def build(self, *args: Any, seed: int = 0) -> Any:
        """Return the part that the config builds, with torch's generator seeded."""
        import torch

        torch.manual_seed(seed)
        return self.config().build(*args)

    def backbone(self, size: tuple[int, int] = SIZES[0]) -> Any:
        """Return a backbone of the catalog: the first that the component, an aggregator, accepts."""
        import torch

        if not self._fitting:
            self._fitting.append(self._fitting_backbone(size))
        torch.manual_seed(0)
        return self._config(self._fitting[0], {}).build(*size)

    def _fitting_backbone(self, size: tuple[int, int]) -> Component:
        import torch

        reasons = []
        for component in self.catalog.components("backbone"):
            try:
                with torch.device("meta"):
                    self.config().build(self._config(component, {}).build(*size))
                return component
            except (ContractError, RecipeError, KeyError, ValueError) as error:
                reasons.append(f"{component.name}: {error}")
        raise AssertionError(f"no backbone of the catalog goes with {self.component.name}: {'; '.join(reasons)}")

    def _config(self, component: Component, options: Mapping[str, Any]) -> Any:
        from reidcore.structure import structure

        names = {field.name for field in attrs.fields(component.config)}
        given = {"weights": "none"} if "weights" in names and "weights" not in options else {}
        return structure({**options, **given}, component.config, self.catalog, where=component.name)
