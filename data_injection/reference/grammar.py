"""Natural comparisons and additions in a text: what counts as one, and whether it is true.

    [found] = find_statements(b"Clearly 2 + 3 = 5.")
    found.task, found.operands, found.answer, found.correct      # ("R_add", ("2", "3"), "5", True)

The study's R_cmp and R_add. A statement is a closed form over two written numbers and a result or
relation; the borders around it refuse what only looks like one: a part of a longer expression
(`n - 4 == 4`, `1 < x < 3`), a date, a version, a range. All of it works on UTF-8 bytes, so that
places in the text are places in a byte-level BPE's tokens.
"""

from __future__ import annotations

import operator
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from data_injection.philox import permutation

GRAMMAR = 1
"""Raised when the same text would give other statements."""

TASKS = ("R_cmp", "R_add")

MOST_BYTES = 64
"""A longer statement is none; a window of so many tokens either side holds any other."""

BORDER = 16
"""Bytes before and after a statement that decide whether it is one."""

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

SWAPPED_SIGNS = {"<": ">", "<=": ">=", "≤": "≥", "==": "!="}
SWAPPED_WORDS = {
    **{"less": "greater", "smaller": "larger", "lower": "higher", "fewer": "more"},
    "equal to": "not equal to",
}
BOTH = {**SWAPPED_SIGNS, **SWAPPED_WORDS}
SWAPPED = {**BOTH, **{b: a for a, b in BOTH.items()}, "bigger": "smaller"}
"""Each relation's opposite, with which the foil of a comparison is made."""

# "bigger" is a relation as any other and nobody's opposite: a foil of "smaller" says "larger", for
# it can say one word only.
LESS, GREATER = ("less", "smaller", "lower", "fewer"), ("greater", "larger", "higher", "more")
HOLDS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    **{"<": operator.lt, "<=": operator.le, "≤": operator.le, "==": operator.eq},
    **{">": operator.gt, ">=": operator.ge, "≥": operator.ge, "!=": operator.ne},
    **dict.fromkeys(LESS, operator.lt),
    **dict.fromkeys((*GREATER, "bigger"), operator.gt),
    **{f"{word} or equal to": operator.le for word in LESS},
    **{f"{word} or equal to": operator.ge for word in (*GREATER, "bigger")},
    "equal to": operator.eq,
    "not equal to": operator.ne,
}
EXTREMES: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    **dict.fromkeys(("max", "maximum", "larger", "greater", "bigger", "higher"), max),
    **dict.fromkeys(("min", "minimum", "smaller", "lesser", "lower"), min),
}


@dataclass(frozen=True)
class Statement:
    """One comparison or addition, as it stands in a text. Places are byte offsets."""

    task: str
    """One of TASKS."""

    form: str
    """A key of FORMS."""

    text: str
    operands: tuple[str, str]
    relation: str
    """As in HOLDS or EXTREMES, or "+"."""

    answer: str
    """What is measured: the result, or the second operand of an infix comparison."""

    correct: bool
    start: int
    stop: int
    choice: int
    """Where the statement and its foil part: at the relation, or at the answer."""

    answer_start: int


def spelled(word: str) -> tuple[str, ...]:
    """The ways in which a word is recognised; capitals throughout are not among them."""
    return word, word.capitalize()


def _any(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(s for w in words for s in spelled(w)) + ")"


# The first alternative that fits is taken, not the longest: "seventeen" must come before "seven",
# hence UNITS backwards, and numbers with commas before those without.
_NUMBER = (
    r"(?:(?:\d{1,3}(?:,\d{3}){1,3}|\d{1,12})(?:\.\d{1,6})?"
    rf"|{_any(TENS)}(?:[- ]{_any(UNITS[1:10])})?|{_any(UNITS[::-1])})"
)
_A, _B, _C = (rf"(?P<{name}>{_NUMBER})" for name in "abc")
_IS = "(?:is|are|equals|makes|make|gives|is equal to)"
_S = r"[ \t]{0,2}"
_THAN = "(?:" + "|".join((*LESS, *GREATER, "bigger")) + ")"

FORMS = {
    # "3 < 5"
    "sign": ("R_cmp", rf"{_A}{_S}(?P<relation><=|>=|==|!=|<|>|≤|≥){_S}{_B}"),
    # "3 is less than 5", "12 is greater than or equal to 12"
    "than": (
        "R_cmp",
        rf"{_A} (?:is|are|was|were) (?P<relation>{_THAN} than(?: or equal to)?|(?:not )?equal to)"
        rf" {_B}",
    ),
    # "max(3, 5) == 5", "the larger of 3 and 5 is 5"
    "extreme": (
        "R_cmp",
        rf"(?P<relation>{_any(tuple(EXTREMES))})(?:\(| (?:of|between) ){_A}(?:, ?| and ){_B}\)?"
        rf"(?: (?:is|equals) |{_S}={{1,2}}{_S}){_C}",
    ),
    # "2 + 3 = 5", "two plus three is five"
    "plus": (
        "R_add",
        rf"{_A}(?:{_S}\+{_S}| {_any(('plus',))} ){_B}(?: {_IS} |{_S}={{1,2}}{_S}){_C}",
    ),
    # "the sum of 2 and 3 is 5"
    "sum": ("R_add", rf"{_any(('sum',))} of {_A} and {_B}(?: {_IS} |{_S}=){_S}{_C}"),
}
INFIX = ("sign", "than")
"""Forms in which the relation stands between its operands."""

_FORMS = {
    # Only at the start of a word or number; _is_whole would refuse any other, but later.
    name: (task, re.compile((r"(?<![\w.,])(?=[\dA-Za-z])" + form).encode()))
    for name, (task, form) in FORMS.items()
}

_NEEDED = {
    "sign": re.compile(b"[<>=]|\xe2\x89"),
    "than": re.compile(rb" (?:than|equal to) "),
    "extreme": re.compile(b"[mM](?:ax|in)|er (?:of|between) "),
    "plus": re.compile(rb"\+| [pP]lus "),
    "sum": re.compile(b"um of "),
}
"""What a text has if it has a statement of the form: sooner looked for than the statement."""

_ANY_NUMBER = re.compile(_NUMBER.encode())

# The borders. Stuck to a statement: `x3 < 5`, `$3 < $5`, the end of `1.3 < 5`, a date, a version;
# \x80-\xff is any byte of a letter or sign beyond ASCII, since a text is cut by bytes.
_STUCK_BEFORE = re.compile(rb"[\w.,$#@:\\)\]\x80-\xff]\Z")
# Beside it: the statement is part of a longer expression (`4 * 2 + 3 = 11` holds no `2 + 3 = 11`).
# The bytes are those of the minus sign, ×, ÷, ±, and of any relation such as ≤, ≥ or ≠.
_OPERATOR_BEFORE = re.compile(
    rb"(?:[-+*/^%<>=&~]|\xe2\x88\x92|\xc3\x97|\xc3\xb7|\xc2\xb1|\xe2\x89.)[ \t]*\Z"
    rb"|(?i:\b(?:times|plus|minus|by|over|mod|than))[ \t]+\Z"
)
_PRONOUN_BEFORE = re.compile(rb"(?i:\b(?:no|any|this|that|each|every|which|some))[ \t]+\Z")
"""Before "one", which is no number then."""

_STUCK_AFTER = re.compile(rb"[\w%$\x80-\xff(\[]|[.,:]\d|-\w")
_OPERATOR_AFTER = re.compile(
    rb"[ \t]*(?:[-+*/^%<>=&]|!=|\xe2\x88\x92|\xc3\x97|\xc3\xb7|\xe2\x89.)"
    rb"|[ \t]+(?i:hundred|thousand|million|billion|trillion|dozen|percent|per cent|times|plus|minus"
    rb"|divided|squared|cubed|point)\b"
)


def find_statements(text: bytes) -> Iterator[Statement]:
    """Every statement of a text, form by form, in the order of their starts.

    A start is looked at by itself: what stands further than BORDER bytes before or after a
    statement does not matter.
    """
    for name, (task, form) in _FORMS.items():
        if not _NEEDED[name].search(text):
            continue
        match = form.search(text)
        while match is not None:
            statement = _read(task, name, match)
            if statement is not None and _is_whole(text, *match.span()):
                yield statement
            # Not from the match's end: a refused match may hold the start of a true statement.
            match = form.search(text, match.start() + 1)


def _is_whole(text: bytes, start: int, stop: int) -> bool:
    before, after = text[max(start - BORDER, 0) : start], text[stop : stop + BORDER]
    if stop - start > MOST_BYTES or _STUCK_BEFORE.search(before) or _STUCK_AFTER.match(after):
        return False
    if text[start : start + 4].lower() == b"one " and _PRONOUN_BEFORE.search(before):
        return False
    return not (_OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(after))


def _read(task: str, form: str, match: re.Match[bytes]) -> Statement | None:
    part = {k: v.decode() for k, v in match.groupdict().items()}
    a, b = value_of(part["a"]), value_of(part["b"])
    # HOLDS knows "less than or equal to" as "less or equal to".
    relation = part.get("relation", "+").lower().replace(" than", "")
    infix = form in INFIX
    if infix:
        correct = HOLDS[relation](a, b)
    else:
        result = a + b if task == "R_add" else EXTREMES[relation](a, b)
        correct = value_of(part["c"]) == result
    return Statement(
        task=task,
        form=form,
        text=match[0].decode(),
        operands=(part["a"], part["b"]),
        relation=relation,
        answer=part["b" if infix else "c"],
        correct=correct,
        start=match.start(),
        stop=match.end(),
        choice=match.start("relation" if infix else "c"),
        answer_start=match.start("b" if infix else "c"),
    )


def value_of(number: str) -> Decimal:
    """The number that a text of the grammar stands for, exactly."""
    if number[0].isdigit():
        return Decimal(number.replace(",", ""))
    tens, _, unit = number.lower().replace("-", " ").partition(" ")
    if tens in UNITS:
        return Decimal(UNITS.index(tens))
    return Decimal(10 * (TENS.index(tens) + 2) + (UNITS.index(unit) if unit else 0))


def foil(statement: Statement, *, seed: int) -> str | None:
    """What would stand from `choice` on if the statement said the opposite; None if undecidable.

    An infix comparison gets the opposite relation, an extreme the other operand, an addition a
    result that is off by one in its last place, up or down as the seed and the text say. None
    where that would be true or false as well (`4 <= 4`, `max(2, 2) = 2`).
    """
    a, b = map(value_of, statement.operands)
    text = statement.text.encode()
    if statement.form in INFIX:
        opposite = opposite_of(statement.relation)
        if HOLDS[opposite](a, b) == statement.correct:
            return None
        rest = text[statement.choice - statement.start :].decode()
        # "or equal to" stays as it stands: less/greater alone is swapped, the rest is the text's.
        word = statement.relation.partition(" or ")[0]
        return opposite.partition(" or ")[0] + rest[len(word) :]
    if statement.form == "extreme":
        return None if a == b else next(n for n in statement.operands if n != statement.answer)
    return _off_by_one(statement.answer, up=zlib.crc32(text, seed) % 2 == 0)


def shape_before(statement: Statement) -> str:
    """The statement up to where its foil parts from it, with # for its numbers."""
    part = statement.text.encode()[: statement.choice - statement.start]
    return _ANY_NUMBER.sub(b"#", part).decode()


def opposite_of(relation: str) -> str:
    """The relation that a comparison's foil has instead."""
    word, joint, rest = relation.partition(" or ")
    return SWAPPED[word] + joint + rest


def _off_by_one(number: str, *, up: bool) -> str:
    value = value_of(number)
    if not number[0].isdigit():
        near = int(value) + (1 if up and value < 99 else -1 if value > 0 else 1)
        if near < 20:
            return UNITS[near]
        tens, unit = divmod(near, 10)
        return TENS[tens - 2] + (f"-{UNITS[unit]}" if unit else "")
    places = len(number.partition(".")[2])
    step = Decimal(1).scaleb(-places)
    # Written as the number was, with its commas and places: a foil differs in its value alone.
    near_value = value + (step if up or value < step else -step)
    return f"{near_value:,.{places}f}" if "," in number else f"{near_value:.{places}f}"


FRESH = {
    "R_cmp": ("{a} < {b}", "{b} > {a}", "{a} is less than {b}", "{b} is greater than {a}"),
    "R_add": ("{a} + {b} = {c}", "{a}+{b}={c}", "{a} plus {b} is {c}", "sum of {a} and {b} is {c}"),
}
"""Templates of fresh statements; those of R_cmp in turns, so that either relation is half."""

FRESH_BELOW = 100
"""Operands of fresh statements are below this."""


def fresh_statements(
    task: str, num: int, *, seed: int, avoid: frozenset[frozenset[Decimal]]
) -> list[Statement]:
    """True statements over pairs of different operands that no statement in `avoid` has.

    A pure function of its arguments: pairs in the order of a seeded permutation, in the templates
    of FRESH by turns. Fewer than `num` if there are no more pairs.
    """
    found: list[Statement] = []
    for index in permutation(FRESH_BELOW**2, seed=seed, purpose=f"reference/{task}").tolist():
        a, b = divmod(index, FRESH_BELOW)
        if (task == "R_cmp" and a >= b) or a == b or frozenset({Decimal(a), Decimal(b)}) in avoid:
            continue
        template = FRESH[task][len(found) % len(FRESH[task])]
        found += find_statements(template.format(a=a, b=b, c=a + b).encode())
        if len(found) == num:
            break
    return found
