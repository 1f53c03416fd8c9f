"""Step-by-step demonstrations for reasoning-gym's `knights_knaves`, from an instance's statements.

The solver supposes one person after the other to be truthful, follows what must then hold, and
takes a supposition back where it contradicts a statement:

    Suppose Amelia is a hero.
    What Amelia says is then true: Elizabeth is a hero. So Elizabeth is a hero.
    Everything said fits.
    <answer>Amelia is a hero, and Elizabeth is a hero.</answer>

It reads nothing but the statements, never the instance's solution. [ours; the task is that of Xie
et al., arXiv 2410.23123]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Statement = Sequence[Any]
"""('telling-truth', i), ('lying', i), ('not', s), ('and' | 'or', s, …), ('->' | '<=>', s, t)."""
Roles = Mapping[int, bool]
"""Who is known to be truthful (True) or to lie (False)."""


@dataclass(frozen=True)
class Puzzle:
    """An instance, as reasoning-gym's metadata has it."""

    names: Sequence[str]
    statements: Sequence[Statement]
    terms: Mapping[str, str]
    """'a_knight' and 'a_knave', each with its article."""

    def role(self, truthful: bool) -> str:
        """'a hero' or 'a villain', whatever they are called here."""
        return self.terms["a_knight" if truthful else "a_knave"]

    def write(self, statement: Statement) -> str:
        """A statement in words, as the question has it."""
        kind = statement[0]
        if kind in ("telling-truth", "lying"):
            return f"{self.names[statement[1]]} is {self.role(kind == 'telling-truth')}"
        if kind == "not" and statement[1][0] in ("telling-truth", "lying"):
            opposite = "lying" if statement[1][0] == "telling-truth" else "telling-truth"
            return self.write((opposite, statement[1][1]))
        parts = [
            self.write(part) if part[0] in ("telling-truth", "lying") else f"({self.write(part)})"
            for part in statement[1:]
        ]
        if kind == "not":
            return f"it is not the case that {parts[0]}"
        if kind == "->":
            return f"if {parts[0]} then {parts[1]}"
        return {"<=>": " if and only if "}.get(kind, f" {kind} ").join(parts)


def value(statement: Statement, roles: Roles) -> bool | None:
    """Whether a statement holds; None where the roles known so far leave it open (Kleene)."""
    kind = statement[0]
    if kind in ("telling-truth", "lying"):
        known = roles.get(statement[1])
        return None if known is None else known == (kind == "telling-truth")
    parts = [value(part, roles) for part in statement[1:]]
    if kind == "not":
        return None if parts[0] is None else not parts[0]
    if kind == "->":
        kind, parts = "or", [None if parts[0] is None else not parts[0], parts[1]]
    if kind == "<=>":
        return None if None in parts else parts[0] == parts[1]
    decisive = kind == "or"  # one true part settles an 'or', one false part an 'and'
    if decisive in parts:
        return decisive
    return None if None in parts else not decisive


def solve(puzzle: Puzzle) -> tuple[list[str], dict[int, bool]]:
    """(lines of the reasoning, everybody's role). Raises ValueError where nothing fits."""
    lines: list[str] = []
    found = _search(puzzle, {}, lines)
    if found is None:
        raise ValueError("knights_knaves: no roles fit all statements")
    lines.append("Everything said fits.")
    return lines, found


def work_out(metadata: Mapping[str, Any]) -> str:
    """The worked solution of an instance, from its metadata; the answer in <answer> tags."""
    puzzle = Puzzle(metadata["names"], metadata["statements"], metadata["knight_knave_terms"])
    lines, roles = solve(puzzle)
    said = [f"{name} is {puzzle.role(roles[i])}" for i, name in enumerate(puzzle.names)]
    answer = ", and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]
    return "\n".join([*lines, f"<answer>{answer}.</answer>"])


def _search(puzzle: Puzzle, roles: dict[int, bool], lines: list[str]) -> dict[int, bool] | None:
    """The first roles that fit, those known kept; None where none do."""
    here = dict(roles)
    if not _follow(puzzle, here, lines):
        return None
    undecided = [i for i in range(len(puzzle.names)) if i not in here]
    if not undecided:
        return here
    person = undecided[0]
    name = puzzle.names[person]
    lines.append(f"Suppose {name} is {puzzle.role(True)}.")
    found = _search(puzzle, here | {person: True}, lines)
    if found is None:
        known = [f"{puzzle.names[i]} is {puzzle.role(r)}" for i, r in sorted(roles.items())]
        given = f"With {' and '.join(known)}, " if known else ""
        lines.append(f"{given}{name} cannot be {puzzle.role(True)}, so is {puzzle.role(False)}.")
        found = _search(puzzle, here | {person: False}, lines)
    return found


def _follow(puzzle: Puzzle, roles: dict[int, bool], lines: list[str]) -> bool:
    """Add every role that one statement forces; False where a statement is contradicted."""
    moved = True
    while moved:
        moved = False
        for speaker, statement in enumerate(puzzle.statements):
            name, said = puzzle.names[speaker], puzzle.write(statement)
            holds, role = value(statement, roles), roles.get(speaker)
            if holds is not None and role is None:
                roles[speaker] = holds
                lines.append(
                    f"What {name} says ({said}) is {_word(holds)}, so {name} is "
                    f"{puzzle.role(holds)}."
                )
                moved = True
            elif holds is not None and holds != role:
                lines.append(
                    f"But what {name} says ({said}) is {_word(holds)}, and {name} is "
                    f"{puzzle.role(bool(role))}: a contradiction."
                )
                return False
            elif holds is None and role is not None:
                for person, forced in _forced(statement, roles, role).items():
                    roles[person] = forced
                    lines.append(
                        f"What {name} says ({said}) must be {_word(role)}, so "
                        f"{puzzle.names[person]} is {puzzle.role(forced)}."
                    )
                    moved = True
    return True


def _forced(statement: Statement, roles: Roles, wanted: bool) -> dict[int, bool]:
    """The role of one more person, where only one of the two lets the statement be as wanted."""
    for person in sorted(_people(statement) - roles.keys()):
        possible = [r for r in (True, False) if _can_be(statement, {**roles, person: r}, wanted)]
        if len(possible) == 1:
            return {person: possible[0]}
    return {}


def _can_be(statement: Statement, roles: Roles, wanted: bool) -> bool:
    open_people = sorted(_people(statement) - roles.keys())
    if not open_people:
        return value(statement, roles) == wanted
    person = open_people[0]
    return any(_can_be(statement, {**roles, person: r}, wanted) for r in (True, False))


def _people(statement: Statement) -> set[int]:
    if statement[0] in ("telling-truth", "lying"):
        return {statement[1]}
    return set().union(*(_people(part) for part in statement[1:]))


def _word(holds: bool) -> str:
    return "true" if holds else "false"
