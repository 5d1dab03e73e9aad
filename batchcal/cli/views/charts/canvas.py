"""A canvas of characters: lines of braille dots, two by four per cell, with marks over them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from rich.text import Text

_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot of a braille cell, by column and row."""
_BRAILLE: Final = 0x2800
DASH: Final = 2
"""Length of a dash and of a gap, characters."""


class Canvas:
    """A canvas. Coordinates run from 0 to 1, from the left and from the bottom."""

    def __init__(self, width: int, height: int, *, ascii_only: bool = False) -> None:
        self.width, self.height = width, height
        self._ascii_only = ascii_only
        self._bits = [[0] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]
        self._marks: dict[tuple[int, int], tuple[str, str]] = {}

    def dot(self, x: float, y: float, style: str) -> None:
        """Draw one dot. Dots outside of the canvas are ignored."""
        column, row = round(x * (self.width * 2 - 1)), round((1 - y) * (self.height * 4 - 1))
        if 0 <= column < self.width * 2 and 0 <= row < self.height * 4:
            self._bits[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
            self._styles[row // 4][column // 2] = style

    def line(self, points: list[tuple[float, float]], style: str, *, dashed: bool = False) -> None:
        """Draw a line through all points. A dashed line leaves every other `DASH` columns free."""
        for (left, low), (right, high) in pairwise(points):
            steps = 1 + math.ceil(max(abs(right - left) * self.width * 2, abs(high - low) * self.height * 4))
            for step in range(steps + 1):
                share = step / steps
                x = left + (right - left) * share
                if not (dashed and int(x * (self.width - 1)) // DASH % 2):
                    self.dot(x, low + (high - low) * share, style)

    def rule(self, y: float, style: str, character: str, name: str) -> None:
        """Draw a horizontal line of characters below everything else, with its name at the left."""
        row = self._row(y)
        for column, letter in enumerate(f" {name} "[: self.width - 2], start=2):
            self._marks.setdefault((row, column), (letter, style))
        for column in range(self.width):
            self._marks.setdefault((row, column), (character, style))

    def mark(self, x: float, y: float, character: str, style: str) -> None:
        """Draw a character on top of everything else."""
        column = min(max(round(x * (self.width - 1)), 0), self.width - 1)
        self._marks[(self._row(y), column)] = (character, style)

    def rows(self) -> list[Text]:
        """Return the rows from the top. Dots replace rules, but not marks."""
        lines = []
        for row in range(self.height):
            text = Text(no_wrap=True)
            for column in range(self.width):
                bits = self._bits[row][column]
                mark = self._marks.get((row, column))
                if mark is not None and not (bits and mark[0] in "-╌"):
                    text.append(*mark)
                elif bits:
                    text.append("." if self._ascii_only else chr(_BRAILLE + bits), self._styles[row][column])
                else:
                    text.append(" ")
            lines.append(text)
        return lines

    def _row(self, y: float) -> int:
        return min(max(round((1 - y) * (self.height - 1)), 0), self.height - 1)
