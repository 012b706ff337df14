"""Published checkpoints of FastReID by name: `zoo:market_sbs_R50`, or with its hash, `zoo:market_sbs_R50@3b1f0c2a`.

Nobody has published hashes of these files. The first use of one writes its SHA-256 beside it in torch's cache, as
NAME.pth.sha256, and every later use holds the file to that; who wants to be sure that another machine has the same one
writes the beginning of the hash behind the name.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from attrs import frozen
from torch import Tensor

from reidcore.errors import ReidError, offer
from reidcore.fastreid import backbone, renamed
from reidcore.weights import cached, fetch, hash_of, read_checkpoint

PREFIX = "zoo:"
_RELEASE = "https://github.com/JDAI-CV/fast-reid/releases/download/v0.1.1"

NAMES = (
    *(
        f"{data}_{method}_{network}"
        for data in ("market", "duke", "msmt")
        for method, networks in (("bot", 4), ("agw", 4), ("sbs", 4), ("mgn", 1))
        for network in ("R50-ibn", "R50", "S50", "R101-ibn")[:networks]
    ),
    "veri_sbs_R50-ibn",
    "vehicleid_bot_R50-ibn",
    "veriwild_bot_R50-ibn",
)
"""The files of FastReID's release 0.1.1, without `.pth`."""


@frozen
class Published:
    """A published file. sha256: the beginning of its hash, where somebody wrote it down; key: of the recipe."""

    name: str
    sha256: str = ""
    key: str = "backbone.weights"

    def fetch(self) -> Path:
        """Return the file, from torch's cache or fetched. Raises ReidError as `reidcore.weights.fetch` does."""
        url = f"{_RELEASE}/{self.name}.pth"
        record = cached(f"{url}.sha256")
        first = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
        of = "the file that was asked for" if self.sha256 else f"the file that {record.name} was written for"
        file = fetch(url, self.sha256 or first, key=self.key, of=of)
        if not first:
            with suppress(OSError):  # a cache that several share may be read-only
                record.write_text(f"{hash_of(file)}\n", encoding="utf-8")
        return file


def find(text: str, key: str = "backbone.weights") -> Published:
    """Return the file that "zoo:NAME" or "zoo:NAME@HASH" means. Raises ReidError when there is none, without a network.

    key: of the recipe, which messages begin with, "" when no recipe asks.
    """
    name, at, sha256 = text.removeprefix(PREFIX).partition("@")
    where = f"{key}: " if key else ""
    if name not in NAMES:
        raise ReidError(f"{where}no published model is called '{name}'; {offer(name, NAMES)}")
    if at and not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ReidError(
            f"{where}found '@{sha256}' behind {name}; expected 8 or more digits of its SHA-256, 0-9 and a-f"
        )
    return Published(name, sha256, key)


def read_backbone(file: Path) -> tuple[dict[str, Tensor], str]:
    """Return the backbone's part of a checkpoint, and what a message says of its form.

    Raises ReidError when the file is something else.
    """
    state, old = renamed(read_checkpoint(file, "model"))
    table = {key: value for key, value in backbone(state, old).items() if key not in ("weights", "last_stride")}
    form = ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return own, f"; it is of the backbone {form}"
