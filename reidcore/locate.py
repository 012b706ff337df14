"""Find the line of every key in a TOML text that is known to be valid.

The parser reports lines for syntax errors only, but a mistake in a recipe must be shown where it stands.
"""

from __future__ import annotations

import re

import tomli

Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[^\s.=\[\]\"'#]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'([^']*)'")
_LONG = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}', re.DOTALL)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def locate(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every table, key and array item of a valid TOML text."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.arrays: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            if self._take("[["):
                table = self._header(array=True)
            elif self._take("["):
                table = self._header(array=False)
            else:
                self._pair(table)
        return self.lines

    def _header(self, array: bool) -> Path:
        self._skip(_SPACE)
        path: Path = ()
        start = self.at
        keys = self._keys()
        for position, key in enumerate(keys):
            path = (*path, key)
            self._record(path, start)
            if array and position == len(keys) - 1:
                self.arrays[path] = self.arrays.get(path, -1) + 1
            if path in self.arrays:
                path = (*path, self.arrays[path])
        self._record(path, start)
        self.at += 2 if array else 1
        return path

    def _pair(self, table: Path) -> None:
        start, path = self.at, table
        for key in self._keys():
            path = (*path, key)
            self._record(path, start)
        self._take("=")
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            if match := _LITERAL.match(self.text, self.at):
                keys.append(match[1])
            elif match := _BASIC.match(self.text, self.at):
                keys.append(tomli.loads(f"key = {match[0]}")["key"])  # which knows the escapes
            else:
                match = _BARE_KEY.match(self.text, self.at)
                assert match
                keys.append(match[0])
            self.at = match.end()
            self._skip(_SPACE)
            if not self._take("."):
                return keys

    def _value(self, path: Path) -> None:
        if self._take("["):
            index = 0
            while self._skip(_BLANK) is not None and not self._take("]"):
                self._record((*path, index), self.at)
                self._value((*path, index))
                self._skip(_BLANK)
                self._take(",")
                index += 1
        elif self._take("{"):
            while self._skip(_BLANK) is not None and not self._take("}"):
                self._pair(path)
                self._skip(_BLANK)
                self._take(",")
        else:
            for pattern in (_LONG, _BASIC, _LITERAL, _SCALAR):
                if match := pattern.match(self.text, self.at):
                    self.at = match.end()
                    return

    def _record(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, at) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return self.at

    def _take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False
