"""How a word is read by rule: one sound for each letter, `-` for a silent one.

Not English phonology, but of its kind: ordered rewriting rules with contexts to both sides, a
mute final e that lengthens the vowel before it, and a stress counted from the end of the word.
"""

from __future__ import annotations

import re

# letters, what must stand before, what must stand after, a sound for each letter
RULES = tuple(
    (letters, re.compile(f"(?:{before})$"), re.compile(after), tuple(result.split()))
    for letters, before, after, result in (
        ("tion", "[a-z]", "", "S - @ n"),
        ("sion", "[a-z]", "", "Z - @ n"),
        ("ture", "[a-z]", "$", "C - R -"),
        ("cious", "", "", "S - - @ s"),
        ("ous", "[a-z]", "$", "@ - s"),
        ("igh", "", "", "Y - -"),
        ("kn", "^", "", "- n"),
        ("wr", "^", "", "- r"),
        ("ps", "^", "", "- s"),
        ("qu", "", "", "k w"),
        ("tch", "", "", "- C -"),
        ("ch", "", "[rl]", "k -"),
        ("ch", "", "", "C -"),
        ("sh", "", "", "S -"),
        ("th", "[aeiou]", "[aeiou]", "D -"),
        ("th", "", "", "T -"),
        ("ph", "", "", "f -"),
        ("wh", "", "", "w -"),
        ("gh", "", "", "- -"),
        ("ck", "", "", "k -"),
        ("ng", "", "$|[^aeiouy]", "N -"),
        ("n", "", "[kgx]", "N"),
        ("mb", "", "$", "m -"),
        ("sc", "", "[eiy]", "s -"),
        ("c", "c", "", "-"),
        ("c", "", "[eiy]", "s"),
        ("c", "", "", "k"),
        ("g", "g", "", "-"),
        ("g", "", "[eiy]", "J"),
        ("s", "[aeiou]", "[aeiou]", "z"),
        ("s", "[bdgmnrlv]", "$", "z"),
        ("x", "^", "", "z"),
        ("x", "", "", "X"),
        ("d", "", "g[eiy]", "-"),
        ("ee", "", "", "E -"),
        ("ea", "", "d", "e -"),
        ("ea", "", "", "E -"),
        ("oo", "", "k", "u -"),
        ("oo", "", "", "U -"),
        ("ou", "", "", "W -"),
        ("ow", "", "[a-z]", "W -"),
        ("ow", "", "$", "O -"),
        ("ai", "", "", "A -"),
        ("ay", "", "", "A -"),
        ("oi", "", "", "V -"),
        ("oy", "", "", "V -"),
        ("au", "", "", "o -"),
        ("aw", "", "", "o -"),
        ("ie", "", "", "E -"),
        ("ei", "c", "", "E -"),
        ("ei", "", "", "A -"),
        ("a", "w", "r", "o"),
        ("ar", "", "$|[^aeiou]", "Q -"),
        ("er", "", "$|[^aeiou]", "R -"),
        ("ir", "", "$|[^aeiou]", "R -"),
        ("ur", "", "$|[^aeiou]", "R -"),
        ("or", "", "$|[^aeiou]", "P -"),
        ("y", "^", "", "y"),
        ("y", "", "$", "i"),
        ("y", "", "", "i"),
        ("e", "[aeiouy][a-z]*[a-z]", "$", "-"),
    )
)
LONG = {"a": "A", "e": "E", "i": "Y", "o": "O", "u": "U"}
LENGTHENED = re.compile("[bcdfgklmnprstvz]e$|[bcdfgklmnprstvz][iu][a-z]")
VOWELS = "aeiouAEYOUWVQRP@"
SILENT = "-"


def sounds(word: str) -> list[str]:
    """A sound for each of the word's letters; the stressed vowel's ends in an apostrophe."""
    found: list[str] = []
    while len(found) < len(word):
        found.extend(_next(word, len(found)))
    vowels = [i for i, sound in enumerate(found) if sound in VOWELS]
    if vowels:
        stressed = vowels[_from_the_end(len(vowels), word[-1])]
        for i in vowels:
            if i == stressed:
                found[i] += "'"
            elif found[i] in "aeou" and i > stressed:
                found[i] = "@"  # short vowels after the stress are reduced
    return found


def _from_the_end(vowels: int, last_letter: str) -> int:
    """The stressed one: the last but one, or the last but two of long words in y or n."""
    return -3 if vowels > 3 and last_letter in "yn" else -min(2, vowels)


def _next(word: str, start: int) -> tuple[str, ...]:
    for letters, before, after, result in RULES:
        end = start + len(letters)
        here = word.startswith(letters, start)
        if here and before.search(word[:start]) and after.match(word[end:]):
            return result
    letter = word[start]
    if start and letter == word[start - 1] and letter not in "aeiou":
        return (SILENT,)
    if letter in LONG and LENGTHENED.match(word[start + 1 :]):
        return (LONG[letter],)
    return (letter,)


_LETTERS = set("abdefghijklmnopqrstuvwyz")  # c and x always have a rule
_PLAIN = sorted({sound for rule in RULES for sound in rule[3]} | _LETTERS | set(LONG.values()))
SOUNDS = (*_PLAIN, *(f"{sound}'" for sound in _PLAIN if sound in VOWELS))
