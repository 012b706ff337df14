"""reidcore: instance re-identification in which every part is a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.api import load_model, load_recipe, run

__version__ = "0.1.0"

__all__ = ["Component", "hookimpl", "load_model", "load_recipe", "option", "run"]


def __getattr__(name: str) -> Any:
    # These three import torch, which plugins' hook modules and the listing commands must not.
    if name in ("load_model", "load_recipe", "run"):
        from reidcore import api

        return getattr(api, name)
    raise AttributeError(f"module 'reidcore' has no attribute '{name}'")
