"""Two-level factorial designs: which factors each run combines, and which effects the runs cannot separate.

k factors with two levels, low and high, have 2^k combinations. A fraction of them is enough if most interactions of
several factors are negligible: some factors are crossed, and the level of every other factor is the product of the
levels of some crossed factors (-1: low, +1: high). Box and Hunter, "The 2^(k-p) fractional factorial designs",
Technometrics 3 (1961), 311-351.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import prod

from engine.text import UnknownNameError

Effect = frozenset[str]  # names of factors: one for a main effect, several for an interaction
LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # without I, the identity in the literature
NONE = "none"  # name of the point with all factors low


@dataclass(frozen=True)
class Design:
    """A two-level design. factors: name -> the crossed factors whose levels are multiplied; empty: it is crossed.

    Raises ValueError if a product is invalid, or if two main effects are aliased."""

    factors: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if not 2 <= len(self.factors) <= len(LETTERS):
            raise ValueError(f"factors: got {len(self.factors)}, expected 2 to {len(LETTERS)}")
        for name, others in self.factors.items():
            repeated = sorted({other for other in others if others.count(other) > 1})
            if repeated:
                raise ValueError(f"factor {name}: product_of lists {repeated[0]} more than once")
            for other in others:
                if other not in self.crossed:
                    raise UnknownNameError(f"factor {name}: product_of: crossed factor", other, self.crossed)
        if self.resolution == 2:
            pair = " and ".join(name for name in self.factors if name in self.relation[0])
            raise ValueError(f"factors: {pair} have the same level in every run; change product_of of one of them")

    @property
    def crossed(self) -> list[str]:
        """The factors whose levels are combined freely."""
        return [name for name, others in self.factors.items() if not others]

    @cached_property
    def points(self) -> dict[str, Effect]:
        """The runs of the design: name, such as "ABE" -> factors at the high level. The first factor varies fastest."""
        found = {}
        for levels in product((-1, 1), repeat=len(self.crossed)):
            level = dict(zip(self.crossed, reversed(levels), strict=True))
            level |= {name: prod(level[other] for other in others) for name, others in self.factors.items() if others}
            high = frozenset(name for name in self.factors if level[name] == 1)
            found[self.letters(high) or NONE] = high
        return found

    @cached_property
    def relation(self) -> list[Effect]:
        """The defining relation: the sets of factors whose levels have the product +1 in all points, shortest first."""
        words = {frozenset()}
        for name, others in self.factors.items():
            if others:
                words |= {word ^ {name, *others} for word in words}
        return self.by_size(words - {frozenset()})

    @property
    def resolution(self) -> int | None:
        """Number of factors in the shortest word of the defining relation; None for a full factorial."""
        return min(map(len, self.relation), default=None)

    def aliases(self, effect: Effect) -> list[Effect]:
        """Return the effects that the runs cannot separate from `effect`, those of the fewest factors first."""
        return self.by_size(effect ^ word for word in self.relation)

    def alias_groups(self, size: int) -> list[list[Effect]]:
        """Return groups of two or more aliased effects of `size` factors each."""
        groups = []
        for effect in map(frozenset, combinations(self.factors, size)):
            group = [effect, *(other for other in self.aliases(effect) if len(other) == size)]
            if len(group) > 1 and not any(effect in known for known in groups):
                groups.append(group)
        return groups

    def letters(self, effect: Collection[str]) -> str:
        """Return the letters of the factors in an effect, such as "ABE"."""
        return "".join(letter for letter, name in zip(LETTERS, self.factors, strict=False) if name in effect)

    def label(self, factor: str) -> str:
        """Return a factor's name with its letter, such as "focal loss (A)"."""
        return f"{factor} ({self.letters([factor])})"

    def by_size(self, effects: Iterable[Effect]) -> list[Effect]:
        """Return effects sorted by their number of factors, then by their letters."""
        return sorted(effects, key=lambda effect: (len(effect), self.letters(effect)))
