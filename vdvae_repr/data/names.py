"""What names tell: the natural order, labels, splits, and which files are left out."""

from __future__ import annotations

import functools
import math
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import DataError, counted, printable

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
LIKE_SPLITS = {  # which other people call theirs
    "fit", "trn", "tr", "eval", "evaluation", "vld", "tst", "te", "development", "holdout", "heldout",
    "unseen", "gallery", "probe",
}  # fmt: skip
COLLECTION = re.compile(r"(?i)(set|data|images?|imgs?|split)$")  # as in `trainset`
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of a word, as `train` and `Images` of `trainImages2`
FOLDER_LINK = "link to a folder"  # why a member of a tar is left out
QUOTED = re.compile("^['\"\u2018\u201c](.+)['\"\u2019\u201d]$")
# Of Latin and Greek letters: without it \u0439 is another letter.
ACCENT = re.compile("(?<=[a-z\u03b1-\u03c9])[\u0300-\u036f]+")
COPY = "copy|kopie|copie|copia|kopia|\u30b3\u30d4\u30fc"
COPIED = re.compile(  # as systems call copies of a folder; (1948) is a year
    rf"(?i)^({COPY}) (of|von|de) |(( - ({COPY})| copy)( \d+)?| ?\(copy\))*( ?\(\d{{1,2}}\))?$"
)
HYPHENS = "\u2010-\u2015-"
SIGNS = f"[ _.,'\u2019{HYPHENS}]+"
APART = re.compile(  # words, as `hot dog`, `St. Louis` and `cat_1`; `yaw-30` is no `yaw30`
    f"(?<=[^\\W_]){SIGNS}(?=[^\\W\\d_])|(?<=[^\\W\\d_])[ _.,'\u2019]+(?=\\d)"
)
JOINED = re.compile(  # words and numbers, but for signs of numbers, as in `yaw -30`
    f"(?<=[^\\W_])(?:[ _{HYPHENS}]+(?=[^\\W\\d_])|(?:[ _]+|[{HYPHENS}])(?=\\d))"
)
WORD = re.compile(r"[^\W_]+")
AROUND = re.compile(r" ?([/()&;:]) ?")  # signs that blanks may stand beside
THOUSANDS_APART = re.compile(r"[1-9]\d{0,2}(,\d{3})+", re.ASCII)
NO_WORD = re.compile(f"[?._*'\"{HYPHENS}]+")  # may stand for none where no other label is of signs
CHECKED_DISK = re.compile(r"found\.\d{3}")  # as FOUND.000, where Windows puts what it finds
NAME_BYTES = 200  # of a factor's name: a file's may have 255, and head and feature stand before it
MISSING = (
    "",
    "nan",
    "na",
    "n/a",
    "<na>",
    "null",
    "none",
    "#n/a",
    "#n/a n/a",
    "#na",
    "-nan",
    "1.#ind",
    "-1.#ind",
    "1.#qnan",
    "-1.#qnan",
    "#n/b",
    "#n/d",
    "#nv",
    "#i/t",
    "#\u043d/\u0434",
    "n.a.",
    "(null)",
    "\\n",
)  # what tables write where there is no value, spreadsheets in other languages too
# As #REF!, #WERT! and #NAME?, Err:502, and what is too wide for its column.
SPREADSHEET_ERROR = re.compile(r"#\S+[!?]|err:\d{3}|#{3,}", re.IGNORECASE)
OF_ANOTHER = re.compile(  # names of what is drawn or measured of an image, as `x_mask` of `x`
    r"(?is)(.+)[-_. ](masks?|segs?|segmentations?|depths?|labels?|annotations?|annot|gt)"
)
OF_ANOTHER_WORDS = {  # of a folder's name, as `masks` beside `images`, or `SegmentationClass`
    "mask", "masks", "seg", "segs", "segmentation", "segmentations", "depth", "depths", "label", "labels",
    "annotation", "annotations", "annot", "gt", "groundtruth",
}  # fmt: skip
MAYBE_CLASSES = {"mask", "seg", "depth", "label", "annotation", "gt"}  # of those words
SYSTEM_FOLDERS = {  # of file servers, archives and systems, in any case
    "@eadir",
    "__macosx",
    "$recycle.bin",
    "#recycle",
    "@recycle",
    "@__thumb",
    "_vti_cnf",
    "@tmp",
    "lost+found",
    "lost.dir",
    "#snapshot",
    "~snapshot",
    "@recently-snapshot",
    "@sharesnap",
    "network trash folder",
    "temporary items",
    "recycler",
    "system volume information",
    "__pycache__",
    "thumbs.db",
}


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which `2.pgm` comes before `10.pgm`; `01` and `1` are kept apart."""
    parts = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]
    return parts, text


def number_of_classes(labels: NDArray[np.int64]) -> int:
    """Return how many classes images (N,) are of; of one whose label is -1 nothing is known.

    >>> number_of_classes(np.array([2, -1, 2, 0]))
    2
    """
    return len(np.unique(labels[labels >= 0]))


def number_labels(names: Sequence[str | None]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number label names from 0 in natural order; -1 where there is none."""
    distinct = sorted({name for name in names if name is not None}, key=natural_key)
    numbers = {name: index for index, name in enumerate(distinct)}
    labels = [-1 if name is None else numbers[name] for name in names]
    return np.array(labels, dtype=np.int64), tuple(distinct)


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
WHOLE_FLOAT = re.compile(r"\+?(-?\d+)\.0*", re.ASCII)  # as 3.0, or 3.
CODE = re.compile(r"0\d+")  # as 007
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)  # which decimal commas go with
NUMBER_LIKE = re.compile(  # as `20,5`, `1,000`, `12 kg`, `$1.50` or `(1.5)`, or Fortran's `5.07D+01`
    r"\(?[+\u2212-]?[$\u00a3\u00a5\u20ac]?\s?[+\u2212-]?\d[\d.,'\u2019 \u00a0\u2009\u202f]*\s*[^\d\s]{0,3}"
    r"|[+-]?\d*[.,]\d*(?:[eE][+-]?\d{1,3}|[dD][+-]\d{2,3})|[+-]?,\d+"
)
SIGNED = re.compile(r"\+\d+|-0", re.ASCII)  # of which the sign counts for nothing
WHOLE = re.compile(r"-?\d{1,20}", re.ASCII)
# What -1 becomes without a sign, and the class that masks call ignored.
UNSIGNED_NONE = [2**bits - 1 for bits in (8, 16, 32, 64)]
MINUS = "\u2212"
NOT_KNOWN = {  # in whatever signs, as `<unknown>` or `not_labelled`
    "unknown", "unk", "unlabeled", "unlabelled", "no label", "not labeled", "not labelled", "undefined",
    "unassigned", "missing", "not available", "ignore", "ignored", "void", "tbd",
}  # fmt: skip
MOST_NONE = 3  # in a line
LONG_EXPONENT = 1000  # of numbers that are told from each other by their values
LARGE_FLOAT = re.compile(r"[+-]?\d+\.\d*e[+-]?\d+", re.ASCII | re.IGNORECASE)  # as 3.00e+00
ROUNDED = re.compile(  # the digits behind its point, and how many would have to stand there
    r"[+-]?\d*\.?(\d*)e\+?(\d+)", re.ASCII | re.IGNORECASE
)
LONG_NUMBER = 11  # the power of ten from which on spreadsheets write 1.23457E+11


class ClassNames(NamedTuple):
    """The class of each image by name, None where it has none; `notices` are lines for people."""

    labels: list[str | None]
    notices: tuple[str, ...]


def class_names(values: Sequence[str | None]) -> ClassNames:
    """Return the classes that labels mean, which a table, a JSON or an array holds as text.

    A whole number is one class however it is written: `1` is `1.0`, which tables write where a label is
    missing. `01` is another, as are names that differ in case, and `1E3`, which lacks digits, is no 1000,
    which is said. Blanks around a name count for nothing, and a value that stands for none (`is_missing`)
    is none.

    Raises:
        DataError: all labels are numbers, and some have fractions: what is measured is no class.

    Examples:
        >>> class_names(["1", "1.0", " 2", "nan"]).labels
        ['1', '1', '2', None]
    """
    counts = Counter("" if value is None else value.strip() for value in values)
    none = {text: count for text, count in counts.items() if text and is_missing(text)}
    present = [text for text in counts if not is_missing(text)]
    numbers = [text for text in present if NUMBER.fullmatch(text)]
    fractions = [text for text in numbers if _has_fraction(text)]
    if fractions and len(numbers) == len(present):
        raise DataError(
            f"expected labels that are classes, found numbers with fractions, as {fractions[0]!r}; give "
            "classes as words or whole numbers, and what is measured as a factor of another name"
        )
    names: dict[str, str | None] = {text: text for text in present}
    if not fractions:  # words beside fractions are words, as versions are
        alone = len(numbers) == len(present)
        names |= {text: _whole_number(text, alone) for text in numbers}
    labels = [None if value is None else names.get(value.strip()) for value in values]
    notices = []
    if none:
        listed = ", ".join(f"{text!r} ({count})" for text, count in none.items())
        notices.append(f"labels that stand for none: {listed}")
    notices += may_stand_for_none(names.values())
    if rewritten := [text for text in present if names[text] != text]:
        if len(numbers) < len(present):
            notices.append(
                f"labels are numbers and words: {rewritten[0]!r} is read as {names[rewritten[0]]!r}"
            )
        elif twice := [text for text in rewritten if names[text] in names]:
            notices.append(f"labels {names[twice[0]]!r} and {twice[0]!r} are one class")
    elif fractions:
        word = next(text for text in present if text not in numbers)
        notices.append(
            f"labels are words and numbers with fractions, as {word!r} and {fractions[0]!r}: each is a class"
        )
    likely = [text for text in numbers if len(numbers) == len(present) or {*".+"} & {*text}]
    return ClassNames(labels, (*notices, *look_alikes(labels), *_about_rounded(likely, "labels")))


def may_stand_for_none(
    labels: Iterable[str | None], one: str = "label", group: str = "class"
) -> tuple[str, ...]:
    """Return a line about labels that may be none's: `unknown`, `?`, numbers below 0; maybe none.

    So may the number that -1 becomes without its sign. Of two classes -1 and 1 none is none's.

    Args:
        labels: what is looked at, once or more.
        one: what one is called, which is a value of a factor.
        group: what each is, as values are categories.
    """
    distinct = sorted({label for label in labels if label is not None})
    words = (" ".join(WORD.findall(label.casefold())) for label in distinct)
    odd = [label for label, said in zip(distinct, words, strict=True) if said in NOT_KNOWN]
    signs = [label for label in distinct if not any(map(str.isalnum, label))]
    if len(signs) == 1 and NO_WORD.fullmatch(signs[0]):  # + and - are two classes
        odd += signs
    plain = {text: text.replace(MINUS, "-") for text in distinct}
    numbers = {int(plain[text]): text for text in distinct if WHOLE.fullmatch(plain[text])}
    ordered = sorted(numbers)
    if len(distinct) != 2 or ordered != [-1, 1]:
        odd += [numbers[number] for number in ordered if number < 0]
    if len(ordered) > 1 and ordered[-1] in UNSIGNED_NONE and 2 * ordered[-2] < ordered[-1]:
        odd.append(numbers[ordered[-1]])
    odd = odd[:MOST_NONE]
    if not odd:
        return ()
    called = f"{one} {odd[0]!r} is a {group} of its own"
    if len(odd) > 1:
        called = f"{one}s {', '.join(map(repr, odd[:-1]))} and {odd[-1]!r} are each a {group} of their own"
    return (f"{called}; leave a {one} out where there is none",)


def _has_fraction(number: str) -> bool:
    value = float(number)
    return math.isfinite(value) and not value.is_integer()


def _lacks_digits(number: str) -> float:
    """Return the power of ten that a number is written with, where digits before it are missing; else 0."""
    match = ROUNDED.fullmatch(number)
    power = float(match[2]) if match else 0.0  # an int of so many digits may be refused
    return power if match and power > len(match[1]) else 0.0


def _about_rounded(numbers: Sequence[str], kind: str, power: int = 1) -> tuple[str, ...]:
    """Return a line about numbers with powers of ten, of which digits are missing; maybe none."""
    rounded = [text for text in numbers if _lacks_digits(text) >= power]
    if not rounded:
        return ()
    return (
        f"{kind} with powers of ten, as {rounded[0]!r}, are numbers that a spreadsheet rounded, so that ids "
        "that differ may be one; format the column as text",
    )


def _whole_number(text: str, alone: bool) -> str:
    """Return a whole number without what makes it a float, or a sign; powers of ten only of numbers alone.

    Of these, one that lacks digits, as `1.0e3`, stays as it is.
    """
    if SIGNED.fullmatch(text):
        return text[1:]
    if match := WHOLE_FLOAT.fullmatch(text):
        return "0" if match[1] == "-0" else match[1]
    if alone and LARGE_FLOAT.fullmatch(text) and not _lacks_digits(text):
        return _written_out(text)
    return text


def _written_out(number: str) -> str:
    """Return a whole number without a power of ten, where floating point has all its digits."""
    is_exact = "e" in number.casefold() and abs(float(number)) < 2**53
    return str(int(float(number))) if is_exact else number


def factor_values(values: Sequence[str], decimal_commas: bool = False) -> tuple[list[str], str]:
    """Return a column of a table that is no label: of numbers, each whole one in one way, and none as `nan`.

    A column that holds words stays as it is. What is returned beside it says how it is read, where that may
    surprise. Numbers with decimal commas are numbers where a table says so, as its columns are separated
    otherwise.

    Examples:
        >>> factor_values(["1", "1.0", ""]), factor_values(["1.0", "2.5"])
        ((['1', '1', 'nan'], ''), (['1.0', '2.5'], ''))
        >>> factor_values(["1.5", "soft", "2"])
        (['1.5', 'soft', '2'], "1 of 3 values is no number, as 'soft', so it is read as categories")
    """
    present = {text for text in values if not is_missing(text)}
    said = ""
    if decimal_commas and any(DECIMAL_COMMA.fullmatch(text) for text in present):
        points = {
            text: text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text
            for text in present
        }
        if all(NUMBER.fullmatch(text) or _is_endless(text) for text in points.values()):
            example = next(text for text in values if DECIMAL_COMMA.fullmatch(text))
            said = f"numbers with decimal commas: {example!r} is read as {points[example]}"
            values = [points.get(text, text) for text in values]
            present = set(points.values())
    pointed = [text for text in values if text in present and "." in text]
    if decimal_commas and not said and pointed and all(map(THOUSANDS.fullmatch, pointed)):
        said = (
            f"{pointed[0]!r} is read as a number with a fraction; if its point stands before thousands, "
            f"write {pointed[0].replace('.', '')}"
        )
    others = [text for text in values if not is_missing(text) and not NUMBER.fullmatch(text)]
    endless = [text for text in others if _is_endless(text)]
    if endless and len({*endless}) < len(present) and endless == others:
        about = (
            f"{counted(len(endless), 'value', 'is', 'are')} infinite, as {endless[0]!r}, and task factors "
            "takes finite numbers alone"
        )
        said = "; ".join(filter(None, (said, about)))
        return ["nan" if is_missing(text) else text for text in values], said
    if not present or others:
        likely = [text for text in values if NUMBER.fullmatch(text) and {*".+"} & {*text}]
        words = [text for text in present if not NUMBER_LIKE.fullmatch(text)]
        lines = (
            _about_categories(values, others),
            *may_stand_for_none(words, "value", "category"),
            *look_alikes(present, "categories"),
            *_about_rounded(likely, "values", LONG_NUMBER),
        )
        return list(values), "; ".join(filter(None, lines))
    whole = not any(_has_fraction(text) for text in present)
    written = {text: _written_out(_whole_number(text, True)) if whole else text for text in present}
    if whole:  # others are measured
        rounded = _about_rounded([t for t in values if t in present], "values", LONG_NUMBER)
        said = "; ".join(filter(None, (said, *rounded)))
    kinds = {*written.values()}
    below = [text for text in kinds if text.startswith("-")]
    if whole and below == ["-1"] and len(kinds) > 2 and "0" not in kinds:
        about = "-1 counts as a number; leave a value out where there is none"
        said = "; ".join(filter(None, (said, about)))
    if any(CODE.fullmatch(text) for text in present):  # which are no amounts, but categories
        said = "; ".join(filter(None, (said, *look_alikes(written.values(), "categories"))))
    return [written.get(text, "nan") for text in values], said


def _is_endless(text: str) -> bool:
    return text.casefold().lstrip("+-") in ("inf", "infinity")


def _about_categories(values: Sequence[str], others: Sequence[str]) -> str:
    """Say why a column is read as categories that holds numbers too, or nothing in places."""
    none = [text for text in values if is_missing(text)]
    lines = []
    if others and len(others) + len(none) < len(values):
        lines.append(
            f"{len(others)} of {len(values)} values {'is' if len(others) == 1 else 'are'} no "
            f"{'number' if len(others) == 1 else 'numbers'}, as {others[0]!r}, so it is read as categories"
        )
    elif others and all(map(NUMBER_LIKE.fullmatch, others)):
        lines.append(f"{others[0]!r} is no number as it is written, so it is read as categories")
    if others and none:
        lacking = [text for text in none if text in ("", "nan")]
        words = [text for text in none if text not in ("", "nan")]
        if lacking:
            listed = " and ".join(map(repr, dict.fromkeys(lacking)))
            lines.append(
                f"{listed} ({len(lacking)}) {'stands' if len({*lacking}) == 1 else 'stand'} for none"
            )
        if words:
            listed = " and ".join(map(repr, dict.fromkeys(words)))
            is_one = "is a category" if len({*words}) == 1 else "are categories"
            lines.append(f"{listed} ({len(words)}) {is_one}")
    return "; ".join(lines)


def merged_ids(labels: NDArray[Any]) -> tuple[str, ...]:
    """Return a line about whole numbers in floating point that are too large to be told apart; maybe none.

    >>> print(*merged_ids(np.array([16777216, 16777218], np.float32)))
    labels are float32, as 16777216, which cannot tell ids from 16777216 on apart: some may have become one; \
save them as whole numbers
    """
    if labels.dtype.kind != "f":
        return ()
    limit = 2 ** (np.finfo(labels.dtype).nmant + 1)  # above which neighbours are 2 apart
    large = labels[np.abs(labels) >= float(limit)]
    if not len(large):
        return ()
    return (
        f"labels are {labels.dtype}, as {int(large[0])}, which cannot tell ids from {limit} on apart: some "
        "may have become one; save them as whole numbers",
    )


def look_alikes(labels: Iterable[str | None], kind: str = "classes") -> tuple[str, ...]:
    """Return a line about classes whose names differ in how they are written alone; maybe none.

    Case, quotation marks around a name, leading zeros and what joins or parts words count for nothing. Names
    that are one number, as `1e3` and `1000`, are such classes too. So are a factor's categories.
    """
    ordered = sorted({name for name in labels if name is not None}, key=natural_key)
    forms = {name: _forms(name) for name in ordered}
    first: dict[str | Decimal, str] = {}
    for name, own in forms.items():
        for form in own:
            first.setdefault(form, name)
    alike = []
    for name, own in forms.items():
        original = COPIED.sub("", name)
        both = own if original == name else (*own, *_forms(original))
        others = [first[form] for form in both if form in first]
        if twin := next((other for other in others if other != name), None):
            alike.append((twin, name))
    if not alike:
        return ()
    one, other = alike[0]
    more = f", and {len(alike) - 1} more such pairs" if len(alike) > 1 else ""
    return (f"{one!r} and {other!r} are two {kind}{more}; rename one if they are the same",)


def _forms(name: str) -> tuple[str | Decimal, ...]:
    """Return what names that may be one have in common: a number, or texts without what tells them apart."""
    if not name.isprintable():  # without U+200B and the like
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    text = AROUND.sub(r"\1", QUOTED.sub(r"\1", text)).rstrip("._") or text
    if THOUSANDS_APART.fullmatch(text):
        text = text.replace(",", "")
    if (number := _exact_number(text)) is not None:
        return (number,)
    bare = unicodedata.normalize("NFC", ACCENT.sub("", unicodedata.normalize("NFKD", text)))
    joined, apart = JOINED.sub(" ", text), APART.sub("", bare)
    return tuple(re.sub(r"(?<!\d)0+(?=\d)", "", form) for form in (joined, apart))


def about_class_names(names: Sequence[str], of: str) -> tuple[str, ...]:
    """Return lines about names that an array gives to classes: such as may stand for none, look-alikes."""
    said = look_alikes(names) + may_stand_for_none(names)
    if (none := next(filter(is_missing, names), None)) is not None:
        said = (f"{of} call a class {none!r}; label its images -1 if it stands for none", *said)
    return said


def _exact_number(text: str) -> Decimal | None:
    """Return the number that a text is, with all its digits; None where it is none, or too large."""
    try:
        number = Decimal(text) if NUMBER.fullmatch(text) else None
    except InvalidOperation:  # of an exponent of many digits
        return None
    return number if number is None or abs(number.adjusted()) < LONG_EXPONENT else None


def namesakes(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Return a line about classes that are folders in folders, where they may be meant as fewer; maybe none.

    >>> namesakes(["fold1/cat", "fold2/cat", "dog"])
    ("'fold1/cat' and 'fold2/cat' are two classes; give labels in a table (file,label) if they are one",)
    >>> print(*namesakes(["cats/siamese", "cats/persian", "dogs/pug"]))
    3 classes are folders in folders, as 'cats/persian', where torchvision's ImageFolder reads 2, as 'cats'; \
give labels in a table (file,label) if these are meant
    """
    distinct = sorted({label for label in labels if label is not None}, key=natural_key)
    folders: dict[str, list[str]] = {}
    for label in distinct:
        folders.setdefault(label.rpartition("/")[2], []).append(label)
    several = [found for found in folders.values() if len(found) > 1]
    if not several:
        return _inner_folders(distinct)
    one, other = several[0][:2]
    count = sum(map(len, several))
    more = "" if count == 2 else f", of {count} classes whose last folder is that of another"
    return (
        f"{one!r} and {other!r} are two classes{more}; give labels in a table (file,label) if they are one",
    )


def _inner_folders(labels: Sequence[str]) -> tuple[str, ...]:
    """Return a line about classes that lie in several outer folders, some together; maybe none."""
    tops = {label: label.partition("/")[0] for label in labels}
    inner = {label: top for label, top in tops.items() if "/" in label and top not in tops}
    counts = Counter(inner.values())
    shared = [label for label, top in inner.items() if counts[top] > 1]
    if not shared or len({*tops.values()}) == 1:
        return ()
    return (
        f"{len(inner)} classes are folders in folders, as {shared[0]!r}, where torchvision's ImageFolder "
        f"reads {len(counts)}, as {inner[shared[0]]!r}; give labels in a table (file,label) "
        "if these are meant",
    )


def unlabelled(ids: Sequence[str], labels: Sequence[str | None]) -> tuple[str, ...]:
    """Return a line that counts the images without a label, where others have one; maybe none."""
    none = [image_id for image_id, label in zip(ids, labels, strict=True) if label is None]
    if not none or len(none) == len(ids):
        return ()
    return (f"{counted(len(none), 'image', 'has', 'have')} no label, as {none[0]}",)


def is_missing(value: str) -> bool:
    """Whether a table's value stands for none: empty, nan, NA, None and the like, in any case."""
    if value == "NaT":  # pandas' for a time; Nat is a name
        return True
    return value.casefold() in MISSING or SPREADSHEET_ERROR.fullmatch(value) is not None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own, as `@eaDir` and `__MACOSX`."""
    name = name.casefold()
    return name.startswith(".") or name in SYSTEM_FOLDERS or bool(CHECKED_DISK.fullmatch(name))


def unfit_for_a_file(name: str) -> str:
    """Say why a name cannot stand in the name of a file; empty where it can.

    Names of factors and features do, as in `rate_accuracy-ridge-hue-mean.png`.
    """
    if name in ("", ".", "..") or "/" in name:
        return "it is empty or a dot, or has a slash"
    if printable(name) != name:
        return "it has a line break or another character that is not printed"
    if (size := len(name.encode(errors="replace"))) > NAME_BYTES:
        return f"it has {size} bytes of UTF-8, where {NAME_BYTES} are the most"
    return ""


def readable(name: str) -> str:
    """Return a file's name as UTF-8 text; bytes that are not UTF-8 are percent-encoded, as `caf%E9.png`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return (
            "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)
            .encode("utf-8", "replace")
            .decode()
        )
    return name


def split_of(word: str) -> str | None:
    """Return the split that a word means, as `val` for `Validation`; None where it means none."""
    return SPLIT_WORDS.get(word.strip().casefold())


def like_split(word: str) -> str | None:
    """Return the split that one part of a word means, as `train` for `train2017` or `TrainSet`, or None.

    >>> [like_split(word) for word in ("train2017", "test_images", "trainset", "trains", "dog")]
    ['train', 'test', 'train', None, None]
    """
    means = {split for _, split in _split_patterns(word)}
    return means.pop() if len(means) == 1 else None


def _split_patterns(word: str) -> Iterator[tuple[str, str]]:
    """Yield what stands around each part of a folder's name that means a split, and that split.

    >>> [list(_split_patterns(word)) for word in ("test_images", "Trainset", "trains")]
    [[('*_images', 'test')], [('*set', 'train')], []]
    """
    for match in PARTS.finditer(word):
        part = match[0] if split_of(match[0]) else COLLECTION.sub("", match[0])
        if split := split_of(part):
            yield f"{word[: match.start()]}*{word[match.start() + len(part) :]}".casefold(), split


def _called_alike(names: Iterable[str]) -> bool:
    """Whether names of splits say no more than the split, or the same: not `training_shoe`, `test_tube`."""
    return len({_besides(text) for name in names for text, _ in _split_patterns(name)}) == 1


def _besides(pattern: str) -> str:
    """Return what stands around a split in a name but numbers, signs and words as `images`."""
    return re.sub(r"\d|set|data|images?|imgs?|split|[\W_]", "", pattern)


def splits_of_shards(
    names: Sequence[str], what: Literal["names", "folders"] = "names"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the split that each shard's name, or its folder's, means, and what to say of it.

    Args:
        names: of each shard, without `.tar`, or of a folder that it lies in, empty where there is none.
        what: the names are: those of shards, or of folders.

    Numbers count for nothing, nor do words that all names share. What is left of each must be a split's name,
    else none is in a split; where nothing is left of any, the one split among shared words is that of all.
    A single file's name is not read, as that of a folder that is opened is not.

    >>> splits_of_shards(["in-train-0", "in-val-0"])
    (('train', 'val'), ('splits are read off the names of shards, as train of in-train-0.tar',))
    >>> splits_of_shards(["dev-train-0", "dev-test-0"])[0], splits_of_shards(["train_val-0", "test-0"])[0]
    (('train', 'test'), ('', ''))
    """
    nowhere = ("",) * len(names)
    meant = f"; name each by one of {', '.join(SPLITS)} if they are meant"
    if len(names) < 2:
        return nowhere, ()
    suffix = ".tar" if what == "names" else ""
    none_read = f"no splits are read off the {what} of shards"
    words = [[word for word in re.split(r"[\W\d_]+", name) if word] for name in names]
    counts = [Counter(map(str.casefold, found)) for found in words]
    shared = functools.reduce(operator.and_, counts)
    left = [
        [word for word in found if word.casefold() in count - shared]
        for found, count in zip(words, counts, strict=True)
    ]
    if not any(list(_split_patterns(name)) for name in names):
        like = [word for own in left for word in own if word.casefold() in LIKE_SPLITS]
        said = f"{none_read}, as {min(like, default='')!r} is the name of none"
        return nowhere, (f"{said}{meant}",) if like else ()
    splits = []
    for name, found, own in zip(names, words, left, strict=True):
        patterns = list(_split_patterns(" ".join(own if any(left) else found)))
        means = {split for _, split in patterns}
        if len(means) != 1 or (any(left) and (len(patterns) > 1 or _besides(patterns[0][0]))):
            return nowhere, (
                f"{none_read}, as {name or 'the top one'}{suffix} tells no single split{meant}",
            )
        splits.append(means.pop())
    about = f"splits are read off the {what} of shards, as {splits[0]} of {names[0]}{suffix}"
    called = [word for found in left for word in found]
    return tuple(splits), (about, *words_of_one_split(called))


def splits_of(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the splits that words mean, and lines about words that mean none, or the same as another.

    A word that means none stays as it is, and tasks that go by splits leave its images out.
    """
    counts = Counter(words)
    named = {word: "" if is_missing(word) else split_of(word) or word for word in counts}
    unknown = {word: n for word, n in counts.items() if named[word] not in ("", *SPLITS)}
    notices = (*words_of_one_split(counts), *unknown_splits(unknown))
    none = sum(count for word, count in counts.items() if not named[word])
    if 0 < none < len(words):
        notices += (f"{none} {'image belongs' if none == 1 else 'images belong'} to no split",)
    return tuple(named[word] for word in words), notices


def words_of_one_split(words: Iterable[str]) -> tuple[str, ...]:
    """Return a line a split that several words mean, as `dev` and `val`; none where each means its own."""
    meaning: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for word in words:
        if split := split_of(word):
            meaning[split].setdefault(word.strip().casefold(), word)
    return tuple(
        f"{' and '.join(repr(word) for word in sorted(found.values()))} are one split, {split}"
        for split, found in meaning.items()
        if len(found) > 1
    )


def unknown_splits(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a line about words that are no split, with numbers of images; none where there are none."""
    if not counts:
        return ()
    listed = ", ".join(
        f"{word!r} ({counted(counts[word], 'image')})" for word in sorted(counts, key=natural_key)
    )
    return (
        f"no split is called {listed}: what goes by splits leaves them out; "
        f"rename them to {', '.join(SPLITS)}",
    )


class PathNames(NamedTuple):
    """What the paths of images tell of them; `notices` are lines for people."""

    labels: list[str | None]
    splits: tuple[str, ...]
    notices: tuple[str, ...]
    about_labels: tuple[str, ...] = ()
    """Lines that hold where labels are read off the paths alone."""


def names_from_paths(ids: Sequence[str]) -> PathNames:
    """Read labels and splits off paths.

    A label is the class folder (`train/cat/1.png`: cat); where no image lies in one, the name before its
    last underscore (`Ann_Lee_1.png`: Ann_Lee). One level of folders may be splits: the top one, the one below
    wrapper folders (`my/train/cat/1.png`), or the one below the classes (`cat/train/1.png`).
    """
    paths = [PurePosixPath(image_id) for image_id in ids]
    folders = [path.parts[bool(path.root) : -1] for path in paths]
    levels, notices = _split_levels(folders)
    classes: list[str] = []
    splits: list[str] = []
    words: Counter[str] = Counter()
    placed = [(parts, at) for parts, at in zip(folders, levels, strict=True) if at is not None]
    wrapped = len({parts[:at] for parts, at in placed}) == 1 and (
        any(len(parts) > at + 1 for parts, at in placed)
        or not any(parts for parts, at in zip(folders, levels, strict=True) if at is None)
    )
    twice = all(  # as `train/train/cat`
        len(parts) > at + 1 and parts[at] == parts[at + 1] and split_of(parts[at])
        for parts, at in placed
    )
    alike: set[str] = set()
    for parts, at in zip(folders, levels, strict=True):
        split, own = "", parts
        if at is not None:
            word = parts[at]
            split = split_of(word) or word
            words[word] += 1
            own = parts[at + 1 + twice :]
            own = own if wrapped else parts[:at] + own
        classes.append("/".join(own))
        splits.append(split)
        alike.update(own)
    about_labels: tuple[str, ...] = ()
    if any(classes):
        labels = [name or None for name in classes]
    else:
        labels = [path.stem.rpartition("_")[0] or None for path in paths]
        about_labels = _off_file_names(ids, labels)
    about_labels += _folders_of_classes(labels) + _called_as_none(labels)
    about_labels += may_stand_for_none(labels)
    unknown = {word: count for word, count in words.items() if not split_of(word)}
    notices += words_of_one_split(words)
    called = sorted(filter(like_split, alike), key=natural_key)
    if called and not notices:
        listed = ", ".join(map(repr, called[:5])) + (", ..." if len(called) > 5 else "")
        notices += (f"folders called like splits are read as classes: {listed}",)
    if backslashed := [image_id for image_id in ids if "\\" in image_id]:
        notices += (
            f"{counted(len(backslashed), 'name', 'has', 'have')} backslashes, as {backslashed[0]}, in which "
            "neither labels nor splits are read; if they are folders, unpack the archive again, or rename "
            "the files",
        )
    if placed and (outside := splits.count("")):
        notices += (
            f"{counted(outside, 'image')} outside the folders of the splits: they belong to no split",
        )
    return PathNames(labels, tuple(splits), notices + unknown_splits(unknown), about_labels)


def _off_file_names(ids: Sequence[str], labels: Sequence[str | None]) -> tuple[str, ...]:
    """Return a line about labels that are read off the names of files, as a camera's; maybe none."""
    for image_id, label in zip(ids, labels, strict=True):
        if label is not None:
            file = image_id.rpartition("/")[2]
            return (f"labels are read off the names of files, as {label!r} of {file}",)
    return ()


def _called_as_none(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Return a line about classes that are called as tables call a value that is missing; maybe none.

    >>> _called_as_none(["cat", "nan", None])
    ("'nan' is a class; take its images out of it if it stands for none",)
    """
    distinct = sorted({label for label in labels if label is not None}, key=natural_key)
    called = [label for label in distinct if is_missing(label.rpartition("/")[2])]
    if not called:
        return ()
    listed = " and ".join(map(repr, called))
    if len(called) == 1:
        return (f"{listed} is a class; take its images out of it if it stands for none",)
    return (f"{listed} are classes; take their images out of them if they stand for none",)


def _folders_of_classes(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Return lines about a class that all images are of, and about classes in folders of others; maybe none.

    >>> _folders_of_classes(["images", "images"])
    ("all labels are of one class, 'images'",)
    >>> _folders_of_classes(["cat", "cat/small", "dog"])
    ("folder 'cat/small' lies in the folder of class 'cat', and is a class of its own",)
    """
    counts = Counter(label for label in labels if label is not None)
    if len(counts) == 1 and counts.total() > 1:
        return (f"all labels are of one class, {next(iter(counts))!r}",)
    inside = [
        (label, above)
        for label in sorted(counts, key=natural_key)
        if "/" in label and (above := label.rpartition("/")[0]) in counts
    ]
    if not inside:
        return ()
    (label, above), more = inside[0], len(inside) - 1
    others = f", as are {more} more such folders" if more else ""
    return (
        f"folder {label!r} lies in the folder of class {above!r}, and is a class of its own{others}",
    )


def _split_levels(
    folders: Sequence[tuple[str, ...]],
) -> tuple[list[int | None], tuple[str, ...]]:
    """Return the level at which each image's folder is a split, None where none is, and what is in doubt.

    Where it is no one level, folders are splits beside others of their parent that mean another split, as
    `train` beside `test`, or `train_images` beside `test_images`.
    """
    level, notices = _split_level(folders)
    if level is not None:
        return [level if len(parts) > level else None for parts in folders], notices
    meanings: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for parts in set(folders):
        for at, word in enumerate(parts):
            for around, split in _split_patterns(word):
                meanings.setdefault((parts[:at], around), set()).add(split)
    divided = {parent for (parent, _), splits in meanings.items() if len(splits) > 1}
    if not divided:
        return [None] * len(folders), notices
    depths = sorted({len(parent) for parent in divided})
    return [
        next(
            (
                at
                for at in depths
                if len(parts) > at and (parts[:at] in divided or split_of(parts[at]))
            ),
            None,
        )
        for parts in folders
    ], ()


def _split_level(folders: Sequence[tuple[str, ...]]) -> tuple[int | None, tuple[str, ...]]:
    """Return the level of folders that are splits, None if none are, and a line where that is in doubt.

    At a level that is the same for all images, other folders may stand beside at least two splits, and all
    may be called like splits (`train2017`, `val2017`); below classes, every folder must be a split.
    """
    for level in range(max(map(len, folders), default=0)):
        below = [parts for parts in folders if len(parts) > level]
        names = {parts[level] for parts in below}
        known = {name for name in names if split_of(name)}
        one_parent = len({parts[:level] for parts in below}) == 1
        if known == names and (one_parent or len(below) == len(folders)):
            return level, ()
        alike = {like_split(name) for name in names}
        if one_parent and (
            len({split_of(name) for name in known}) > 1
            or (None not in alike and len(alike) > 1 and _called_alike(names))
        ):
            return level, ()
        if one_parent and known:
            other = min(names - known, key=natural_key)
            return None, (
                f"folder {min(known)} is read as a class, because {other} stands beside it; "
                "splits are folders train, val and test",
            )
    return None, ()


def sample_keys(images: Sequence[str], beside: Sequence[str]) -> dict[str, str]:
    """Return the key of the sample that each image, and each file beside images, belongs to.

    WebDataset's key is the name up to the first dot of its last part. Where an image has files of its own
    name, as `a.0.png` has `a.0.cls`, that name up to its extension is the key.

    >>> sample_keys(["a.0.png", "1.left.png"], ["a.0.cls", "1.cls"])
    {'a.0.cls': 'a.0', '1.cls': '1', 'a.0.png': 'a.0', '1.left.png': '1'}
    """
    stems, keys = {_stem(name) for name in images}, {}
    for name in beside:
        stem, key = _stem(name), _first_key(name)
        while len(stem) > len(key) and stem not in stems:
            stem = _stem(stem)
        keys[name] = stem if stem in stems else key
    own = set(keys.values())
    return keys | {
        name: stem if (stem := _stem(name)) in own else _first_key(name) for name in images
    }


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _first_key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def sample_fields(images: Sequence[str], beside: Sequence[str] = ()) -> list[str]:
    """Return the images that are fields of a sample, beside its plain image, as WebDataset names them.

    A number between two dots is no field but belongs to a name; and where each image of a key has files of
    its own name beside it, none is a field.

    >>> sample_fields(["0.jpg", "0.seg.png", "1.left.png", "1.right.png", "x.png", "x.2.png"])
    ['0.seg.png']
    >>> sample_fields(["x.png", "x.y.png"], ["x.cls", "x.y.cls"])
    []
    """
    keyed = [(name, key := _first_key(name), name[len(key) + 1 :]) for name in images]
    plain = {key for _, key, field in keyed if "." not in field}
    with_own = {_stem(name) for name in beside}
    partly = {key for name, key, _ in keyed if _stem(name) not in with_own}
    return [
        name
        for name, key, field in keyed
        if "." in field and key in plain and key in partly and not field[:1].isdecimal()
    ]


def called_like_fields(images: Sequence[str]) -> tuple[str, ...]:
    """Return a line about images that are read as such, though called like fields of another; maybe none.

    They are so by their own names, or by those of their folders.

    >>> called_like_fields(["a/x.jpg", "a/x_mask.png", "a/y_mask.png"])
    ('1 image is called like a part of another, as a/x_mask.png: it is read as an image of its own',)
    >>> called_like_fields(["images/1.jpg", "masks/1.png"])
    ('1 image is called like a part of another, as masks/1.png: it is read as an image of its own',)
    """
    stems = {_stem(name) for name in images}
    fields = set(sample_fields(images))
    fields.update(
        name
        for name in images
        if (match := OF_ANOTHER.fullmatch(_stem(name))) is not None and match[1] in stems
    )
    fields |= _in_folders_of_fields(images)
    if not fields:
        return ()
    if len(fields) == 1:
        what = "image is called like a part of another", "it is read as an image of its own"
    else:
        what = "images are called like parts of another", "they are read as images of their own"
    return (f"{len(fields)} {what[0]}, as {min(fields, key=natural_key)}: {what[1]}",)


def _in_folders_of_fields(images: Sequence[str]) -> set[str]:
    """Return the images in a folder called like `masks` that others beside it have images to.

    Beside several others a folder `mask` or `Ford GT` is a class as they are.
    """
    distinct = {folder for name in images for folder in name.split("/")[:-1]}
    words = {folder: {*map(str.casefold, PARTS.findall(folder))} for folder in distinct}
    marked = {folder for folder, own in words.items() if own & OF_ANOTHER_WORDS}
    sure = {folder for folder in marked if words[folder] & OF_ANOTHER_WORDS - MAYBE_CLASSES}
    sure |= {folder for folder in marked if folder.casefold() in ("gt", "seg")}
    if not marked:
        return set()
    split = [(name, PurePosixPath(name).parts[:-1], PurePosixPath(name).stem) for name in images]
    places: dict[tuple[object, ...], list[tuple[str, str]]] = {}  # by all but one folder
    others: dict[tuple[object, ...], set[str]] = {}
    for name, folders, stem in split:
        for at, folder in enumerate(folders):
            around = folders[:at], folders[at + 1 :]
            if folder not in marked:
                others.setdefault((*around, stem), set()).add(folder)
                continue
            match = OF_ANOTHER.fullmatch(stem)
            for called in {stem, match[1] if match else stem}:
                places.setdefault((*around, called), []).append((name, folder))
    return {
        name
        for place, found in places.items()
        for name, folder in found
        if len(others.get(place, ())) == 1 or (place in others and folder in sure)
    }


def links(linked: Sequence[tuple[str, str]], what: str) -> tuple[str, ...]:
    """Return a line about pairs of rows or images that are one file, by links; maybe none.

    >>> links([("a/1.png", "b/1.png")], "image")
    ('1 image is the file of another image, by links, as a/1.png and b/1.png: each counts as an image',)
    """
    if not linked:
        return ()
    (one, other), some = linked[0], f"{what} is" if len(linked) == 1 else f"{what}s are"
    return (
        f"{len(linked)} {some} the file of another {what}, by links, as {one} and {other}: "
        "each counts as an image",
    )


def in_several_formats(images: Sequence[str]) -> tuple[str, ...]:
    """Return a line about images whose names differ in the extension alone; maybe none.

    >>> in_several_formats(["a/x.jpg", "a/x.png", "a/y.png"])
    ('1 image is called as another but for the extension, as a/x.jpg and a/x.png: each is an image',)
    """
    first: dict[str, str] = {}
    again = [name for name in images if first.setdefault(_stem(name), name) != name]
    if not again:
        return ()
    called = counted(len(again), "image", "is called as another", "are called as others")
    return (
        f"{called} but for the extension, as {first[_stem(again[0])]} and {again[0]}: "
        "each is an image",
    )


def left_out(files: Mapping[str, int], folders: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a line that counts files that are left out, by reason, and names folders; maybe none.

    >>> left_out({".heic": 1, "no extension": 1})
    ('2 files left out: .heic (1), no extension (1); convert HEIC to JPEG',)
    """
    parts = []
    if files:
        total = sum(files.values())
        listed = ", ".join(f"{why} ({files[why]})" for why in sorted(files))
        parts.append(f"{counted(total, 'file')} left out: {listed}")
        if {".heic", ".heif"} & files.keys():  # photographs of iPhones
            parts.append("convert HEIC to JPEG")
        if FOLDER_LINK in files:
            parts.append("such links are not followed in a tar: pack with tar -h")
    if folders:
        names = sorted(set(folders))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        parts.append(
            f"{len(folders)} {'folder' if len(folders) == 1 else 'folders'} left out: "
            f"{', '.join(names[:5])}{more}"
        )
    return ("; ".join(parts),) if parts else ()


def extension(name: str) -> str:
    """Return a file's extension in lower case, or `no extension`."""
    return PurePosixPath(name).suffix.lower() or "no extension"
