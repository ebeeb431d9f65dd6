"""Tars and WebDataset shards: members are read in place, never unpacked."""

from __future__ import annotations

import fnmatch
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from vdvae_repr.data.kinds import reading_failure
from vdvae_repr.data.names import (
    FOLDER_LINK,
    PathNames,
    called_like_fields,
    class_names,
    extension,
    is_hidden,
    is_missing,
    left_out,
    links,
    look_alikes,
    names_from_paths,
    namesakes,
    natural_key,
    number_labels,
    readable,
    sample_fields,
    sample_keys,
    split_of,
    splits_of_shards,
    unlabelled,
)
from vdvae_repr.data.source import FILE_BYTES, Source, image_extensions, open_image
from vdvae_repr.errors import DataError, counted, first_line

WILD = re.compile(r"[*?\[]")  # in a pattern of names
LABEL_KEYS = ("label", "cls", "class")  # of a .json beside an image
LABEL_BYTES = 2**20  # of a .cls or .json
HEADER_BYTES = 2**24  # of what a tar says of a member before it
BLOCK = 512  # bytes that a tar is divided into
MOST_LINKS = 40  # that lead to one another; Linux follows as many
PLAIN = (".jpg", ".jpeg", ".png")  # of several images of a sample the one to read, in this order

OF_TOTAL = re.compile(  # names of shards that say how many there are, as `s-00000-of-00004.tar`
    r"(?P<before>.*?)(?P<number>\d+)(?P<of>[-_. ]?of[-_. ]?(?P<total>\d+))(?P<behind>.*)",
    re.IGNORECASE | re.DOTALL,
)
_Named: TypeAlias = "dict[Path, re.Match[str]]"  # shards, and the parts of their names


class _Member(NamedTuple):
    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Members:
    """Opens members by index, each from a file of its own, so that threads do not disturb one another."""

    members: Sequence[_Member]

    def content(self, index: int) -> bytes:
        """Return the bytes that an image is decoded from."""
        return _content(self.members[index], FILE_BYTES)

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.content(index))


def is_pattern(path: Path) -> bool:
    """Whether a path is that of no tar but a pattern of several."""
    if path.is_file():
        return False
    wild = WILD.search(path.name) or (WILD.search(str(path)) and not path.parent.is_dir())
    return bool(wild or "{" in path.name or re.search(r"\{.*(,|\.\.).*\}", str(path)))


def shards(pattern: str) -> list[Path]:
    """Return the tars that a pattern names: `a-*.tar` in natural order, `{a,b}-{000..012}.tar` as given.

    As in a shell, `*` matches no hidden file or folder; `**` follows no links to folders.

    Raises:
        DataError: one is missing, or none match.
    """
    patterns = _expanded(pattern)
    # Others are looked for in their folder.
    named = {one for one in patterns if not WILD.search(one)} - {pattern}
    if missing := [one for one in patterns if one in named and not Path(one).is_file()]:
        raise DataError(f"{pattern}: expected {len(named)} shards, found no {missing[0]}")
    found = ([Path(one)] if one in named else _matching(one) for one in patterns)
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _expanded(pattern: str) -> list[str]:
    """Return what a shell makes of braces, `{a,b}` or `{00..12}`, which may stand in each other.

    >>> _expanded("{a-{0..1},b}.tar"), _expanded("{a}.tar")
    (['a-0.tar', 'a-1.tar', 'b.tar'], ['{a}.tar'])
    """
    depth, cuts = 0, [pattern.find("{")]
    for at, sign in enumerate(pattern[cuts[0] :] if cuts[0] >= 0 else "", start=cuts[0]):
        depth += (sign == "{") - (sign == "}")
        if depth == 0 or (depth == 1 and sign == ","):
            cuts.append(at)
        if depth == 0:
            break
    if len(cuts) == 1 or depth:
        return [pattern]
    words = [pattern[first + 1 : last] for first, last in itertools.pairwise(cuts)]
    before, behind = pattern[: cuts[0]], pattern[cuts[-1] + 1 :]
    if len(words) == 1:
        if not (match := re.fullmatch(r"(\d+)\.\.(\d+)", words[0])):
            return [f"{before}{{{words[0]}}}{rest}" for rest in _expanded(behind)]
        first, last = match.groups()
        if int(first) > int(last):
            raise DataError(f"{pattern}: expected a range that ascends, found {{{match[0]}}}")
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [before + rest for word in words for rest in _expanded(word + behind)]


def _matching(pattern: str) -> list[Path]:
    top, asked = Path(), list(Path(pattern).parts)
    while len(asked) > 1 and (top / asked[0]).is_dir():  # whose name may hold signs of a pattern
        top /= asked.pop(0)
    named = [part for part in asked if part.startswith(".") or not WILD.search(part)]

    def is_meant(part: str) -> bool:
        return not is_hidden(part) or any(fnmatch.fnmatchcase(part, name) for name in named)

    found = top.glob(str(Path(*asked)))
    paths = [path for path in found if all(map(is_meant, path.relative_to(top).parts))]
    paths.sort(key=lambda path: natural_key(str(path)))
    if not paths:
        raise DataError(f"{pattern}: expected tar shards, found none that match")
    return paths


def missing_shards(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return lines about shards that are not there, as far as the names of others tell; maybe none.

    Names as `s-00000-of-00004.tar` say how many there are, which may count from 0 or from 1. Of other names,
    which differ in one number, all between the first and the last are expected.
    """
    groups: dict[tuple[str, int], dict[int, _Named]] = {}  # by beginning and total, and number
    for path in paths:
        if parts := OF_TOTAL.fullmatch(path.name):
            group = (str(path.with_name(parts["before"] + "#")), int(parts["total"]))
            groups.setdefault(group, {}).setdefault(int(parts["number"]), {})[path] = parts
    groups = {group: found for group, found in groups.items() if max(found) <= group[1]}
    lines = tuple(_fewer(found, total) for (_, total), found in groups.items())
    counting = {path for found in groups.values() for same in found.values() for path in same}
    alike: dict[tuple[str, ...], list[Path]] = {}  # by all of a name but its numbers
    for path in paths:
        if path not in counting:
            alike.setdefault(tuple(re.split(r"\d+", str(path))), []).append(path)
    gaps = (_gaps(same) for same in alike.values())
    return tuple(filter(None, (*lines, *_several_totals(groups), *gaps)))


def _several_totals(groups: Mapping[tuple[str, int], Mapping[int, _Named]]) -> Iterator[str]:
    """Yield lines about sets of shards of one beginning, which may be the same images divided twice."""
    totals: dict[str, list[int]] = {}
    for before, total in groups:
        totals.setdefault(before, []).append(total)
    for before, (total, *others) in totals.items():
        if others:
            name = next(path.name for same in groups[before, total].values() for path in same)
            listed = " and ".join(f"of {n}" for n in sorted([total, *others]))
            yield readable(f"sets of shards {listed} are both there, as {name}: all are read")


def _fewer(found: Mapping[int, _Named], total: int) -> str:
    """Return a line about shards that lack of a number that their names give; empty where none do."""
    first, last = int(0 not in found and total in found), total - (total not in found)
    lacking = last - first + 1 - len(found)
    if not lacking:
        return ""
    missing = [next(n for n in itertools.count(first) if n not in found)]
    if first == 0 and missing == [0]:  # do they count from 1?
        missing = [next((n for n in range(1, total) if n not in found), 0)]
        missing += [total] if missing == [0] else []
    names = [parts for same in found.values() for parts in same.values()]
    before, digits, of, behind = names[0].group("before", "number", "of", "behind")
    if any(parts["behind"] != behind for parts in names):  # as a hash of each
        behind = ""
    called = [f"{before}{str(number).zfill(len(digits))}{of}{behind}" for number in missing]
    verb = "is" if lacking == 1 else "are"
    return readable(f"{lacking} of {total} shards {verb} not there, as {' or '.join(called)}")


def _gaps(paths: Sequence[Path]) -> str:
    """Return a line about numbers that lack between shards whose names differ in one number; maybe empty."""
    names = [re.split(r"(\d+)", path.name) for path in paths]
    differ = [place for place, parts in enumerate(zip(*names, strict=True)) if len({*parts}) > 1]
    if len(differ) != 1:
        return ""
    place = differ[0]
    found = {int(name[place]) for name in names}
    lacking = max(found) - min(found) + 1 - len(found)
    if not 0 < lacking <= len(found):  # more are no gap but another way to count
        return ""
    missing = next(number for number in itertools.count(min(found)) if number not in found)
    width = len(names[0][place])
    first = "".join((*names[0][:place], str(missing).zfill(width), *names[0][place + 1 :]))
    return (
        f"{counted(lacking, 'shard', 'lacks', 'lack')} between {paths[0].name} and {paths[-1].name}, "
        f"as {first}"
    )


def open_tar(paths: Sequence[Path], name: str) -> Source:
    """Make a source of the images in tars, shard by shard.

    A member `x.cls`, or else `x.json`, beside `x.png` holds its label, as WebDataset writes them; where there
    are none, labels and splits are read off the members' paths. Of several images of a sample the plain one
    is read (`0.jpg`, not `0.seg.png`); where nothing lies beside any image, each is one of its own. Shards
    whose names or folders tell splits (`train-000.tar`, `val/000.tar`) give them to their members. Where
    members of two shards are called the same, every id begins with the shard's name.
    """
    extensions = image_extensions()
    images: list[_Member] = []
    keys: list[tuple[Path, str]] = []  # of the samples that the images belong to
    beside: dict[tuple[Path, str], dict[str, _Member]] = {}  # by the sample's key
    others: Counter[str] = Counter()
    in_shards: list[
        tuple[list[_Member], list[_Member]]
    ] = []  # images, and what may lie beside them
    for path in paths:
        own: list[_Member] = []
        sidecars: list[_Member] = []
        try:
            members = _members(path, others)
        except DataError:
            raise
        except Exception as error:  # a damaged tar may make tarfile raise anything
            raise reading_failure(path, error) from error
        for member in members:
            kind = extension(member.name)
            if kind in extensions:
                own.append(member)
            else:
                others[kind] += 1
                if kind in (".cls", ".json", ".txt"):
                    sidecars.append(member)
        in_shards.append((own, sidecars))
    empty = [path for path, (own, _) in zip(paths, in_shards, strict=True) if not own]
    has_samples = any(_are_samples(own, sidecars) for own, sidecars in in_shards)
    for path, (own, sidecars) in zip(paths, in_shards, strict=True):
        if has_samples:
            own, key_of = _plain_images(own, [member.name for member in sidecars], others)
        else:
            sidecars, key_of = [], {member.name: member.name for member in own}
        for member in sidecars:
            key, kind = key_of[member.name], extension(member.name)
            of_sample = beside.setdefault((path, key), {})
            if member.name[len(key) :].lower() == kind or kind not in of_sample:
                of_sample[kind] = member
        own.sort(key=lambda member: natural_key(member.name))
        images += own
        keys += [(path, key_of[member.name]) for member in own]
    if not images:
        raise DataError(
            f"{name}: expected a tar with images, found none in it"
            + "".join(f" ({line})" for line in left_out(others))
        )
    names = [readable(member.name) for member in images]
    labels, splits, notices, about_paths = _split_by_shard(images, names_from_paths(names))
    ids, about_ids = _told_apart(images, names)
    read, said = _labels_beside([beside.get(key, {}) for key in keys], others)
    said += about_ids + _linked(ids, images)
    if not has_samples:
        said += called_like_fields(names)
    if read is None:
        said += about_paths + unlabelled(ids, labels) + look_alikes(labels) + namesakes(labels)
    else:
        try:
            labels, about_labels = class_names(read)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        said += about_labels + _shared(ids, keys, labels)
    numbers, label_names = number_labels(labels)
    return Source(
        name=readable(name),
        ids=tuple(ids),
        reader=_Members(images),
        labels=numbers,
        label_names=label_names,
        splits=splits,
        sizes=[member.size for member in images],
        notices=notices + missing_shards(paths) + _without_images(empty) + said + left_out(+others),
    )


def _without_images(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a line about shards that hold no image, beside others that do; maybe none."""
    if not paths:
        return ()
    return (
        f"{counted(len(paths), 'shard', 'holds', 'hold')} no image, as {readable(paths[0].name)}",
    )


def _are_samples(images: Sequence[_Member], beside: Sequence[_Member]) -> bool:
    """Whether any of the members beside images belongs to an image."""
    if not beside:
        return False
    keys = sample_keys([member.name for member in images], [member.name for member in beside])
    return not {keys[m.name] for m in images}.isdisjoint(keys[m.name] for m in beside)


def _told_apart(
    images: Sequence[_Member], names: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return ids, and what to say: members' names, behind their shards' where two shards have the same."""
    shard: dict[str, Path] = {}
    shared = [
        name
        for name, member in zip(names, images, strict=True)
        if shard.setdefault(name, member.tar) != member.tar
    ]
    if not shared:
        return list(names), ()
    places = _places(list({member.tar for member in images}))
    begins = {tar: readable(str(place.with_suffix(""))) for tar, place in places.items()}
    ids = [f"{begins[m.tar]}/{name}" for name, m in zip(names, images, strict=True)]
    and_folder = " and folder" if any("/" in begin for begin in begins.values()) else ""
    return ids, (
        f"several shards have members of one name, as {shared[0]}: ids begin with the shard's name"
        f"{and_folder}, as {ids[0]}",
    )


def _linked(ids: Sequence[str], images: Sequence[_Member]) -> tuple[str, ...]:
    """Return a line about images that are one member, by links; maybe none."""
    files = {tar: tar.stat() for tar in {member.tar for member in images}}
    places = {tar: (status.st_dev, status.st_ino) for tar, status in files.items()}
    firsts: dict[tuple[tuple[int, int], int], str] = {}
    pairs = [
        (firsts.setdefault((places[member.tar], member.offset), image_id), image_id)
        for image_id, member in zip(ids, images, strict=True)
    ]
    return links([pair for pair in pairs if pair[0] != pair[1]], "image")


def _plain_images(
    members: Sequence[_Member], beside: Sequence[str], others: Counter[str]
) -> tuple[list[_Member], dict[str, str]]:
    """Leave out the images that are fields of a sample, and count them; return the others, and keys by name.

    Of a sample that something else lies beside, a single image of each name is read.
    """
    fields = set(sample_fields([member.name for member in members], beside))
    kept = [member for member in members if member.name not in fields]
    keys = sample_keys([member.name for member in kept], beside)
    samples = {keys[name] for name in beside}
    plain: dict[str, list[_Member]] = {}
    for member in kept:
        key = keys[member.name]
        if key in samples and member.name.rpartition(".")[0] == key:
            plain.setdefault(key, []).append(member)
    for found in plain.values():
        found.sort(key=lambda m: [extension(m.name) != kind for kind in PLAIN])
        fields |= {member.name for member in found} - {found[0].name}
    if fields:
        first = readable(min(fields, key=natural_key))
        others[f"further image of a sample, as {first}"] += len(fields)
    return [member for member in kept if member.name not in fields], keys


def _shared(
    ids: Sequence[str], keys: Sequence[tuple[Path, str]], labels: Sequence[str | None]
) -> tuple[str, ...]:
    """Return a line about images that take one label of a sample that is theirs together; maybe none."""
    of_sample: dict[tuple[Path, str], list[str]] = {}
    for image_id, key, label in zip(ids, keys, labels, strict=True):
        if label is not None:
            of_sample.setdefault(key, []).append(image_id)
    shared = [found for found in of_sample.values() if len(found) > 1]
    if not shared:
        return ()
    count, (one, other) = sum(map(len, shared)), shared[0][:2]
    return (f"{count} images share the label of a sample with others, as {one} and {other}",)


def _members(path: Path, others: Counter[str]) -> list[_Member]:
    """Return the files in a tar by name; links to a file are those of the member that they lead to."""
    found: dict[str, _Member] = {}
    folders: set[str] = set()
    left: set[str] = set()
    leads: list[tuple[str, str]] = []
    twice: list[_Member] = []
    with _Headers(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.isdir():
                folders.add(name)
                continue
            if any(is_hidden(part) for part in PurePosixPath(name).parts if part != ".."):
                others["hidden"] += 1
                left.add(name)
            elif member.islnk() or member.issym():
                target = member.linkname
                if member.issym():
                    target = posixpath.join(posixpath.dirname(name), target)
                leads.append((name, posixpath.normpath(target)))
            elif not member.isfile() or member.sparse is not None:
                others["no regular file"] += 1
                left.add(name)
            else:
                entry = _Member(
                    path, member.name.removeprefix("./"), member.offset_data, member.size
                )
                (twice.append(entry) if name in found else found.update({name: entry}))
        if why := _goes_on(path, archive.offset):
            raise DataError(f"{path}: {why}")
    if leads:
        folders |= {str(p) for name in (*found, *left) for p in PurePosixPath(name).parents}
    after = dict(leads)
    for name, target in leads:
        for _ in range(MOST_LINKS):
            if target in found or target not in after:
                break
            target = after[target]
        above = map(str, PurePosixPath(target).parents)
        if name in found:
            others["link called as another member"] += 1
        elif target in found:
            found[name] = found[target]._replace(name=name)
        elif target in after:
            others[f"link that leads to itself, or over {MOST_LINKS} others"] += 1
        elif target in folders or not after.keys().isdisjoint(above):
            others[FOLDER_LINK] += 1
        elif target in left:
            others["link to what is left out"] += 1
        else:
            others["link to what is not in the tar"] += 1
    return [*found.values(), *twice]


def _goes_on(path: Path, end: int) -> str:
    """Say why the members up to byte `end` may not be all of a tar; empty where its end stands there.

    At a header that is damaged, or at zeros, Python's tarfile stops as if the tar ended there.
    """
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            return (
                "the zeros that end a tar are missing, so it was cut, or its writer was not closed; "
                "get it again, or, if all is in it, add 1024 bytes of zeros"
            )
        if any(block):
            return f"the header of a member is damaged, at byte {end}; get it again"
        while block and not block.strip(b"\0"):
            block = file.read(2**20)
        at = file.tell() - len(block.lstrip(b"\0"))
    if block:
        return (
            f"it goes on at byte {at}, behind the zeros that end a tar; of tars that were joined, "
            "give each by itself (as 'part-*.tar'), else get it again"
        )
    return ""


class _Headers(io.BufferedReader):
    """A file of which no more is read at once than a header needs, whatever a header says."""

    def read(self, size: int | None = -1) -> bytes:
        """Return some bytes."""
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _split_by_shard(images: Sequence[_Member], names: PathNames) -> PathNames:
    """Give members the split that their shard's name or folder tells, where they tell none themselves."""
    if any(names.splits):
        return names
    tars = list(dict.fromkeys(member.tar for member in images))
    places = _places(tars)
    folders = itertools.zip_longest(*(place.parts[:-1] for place in places.values()), fillvalue="")
    readings = [splits_of_shards([*map(readable, level)], "folders") for level in folders]
    readings.append(splits_of_shards([readable(tar.stem) for tar in tars]))
    tell = {splits: lines for splits, lines in readings if any(splits)}
    splits, notices = next(iter(tell.items()), (("",) * len(tars), ()))
    if len(tell) > 1:
        line = "no splits are read, as names of shards and of their folders tell different ones"
        splits, notices = ("",) * len(tars), (line,)
    elif not tell:  # of several reasons the first
        notices = next((lines for _, lines in readings if lines), ())
    of_tar = dict(zip(tars, splits, strict=True))
    return names._replace(
        splits=tuple(of_tar[member.tar] for member in images), notices=names.notices + notices
    )


def _places(tars: Sequence[Path]) -> dict[Path, PurePosixPath]:
    """Return where each shard lies below the folder that holds all of them."""
    places = {tar: PurePosixPath(os.path.abspath(tar)) for tar in tars}  # noqa: PTH100 (without ..)
    top = os.path.commonpath([place.parent for place in places.values()])
    return {tar: place.relative_to(top) for tar, place in places.items()}


def _labels_beside(
    sidecars: Sequence[Mapping[str, _Member]], others: Counter[str]
) -> tuple[list[str | None] | None, tuple[str, ...]]:
    """Return the labels that .cls or .json members hold, None where there are none, and what to say of it."""
    about: tuple[str, ...] = ()
    for kind in (".cls", ".json"):
        members = [beside.get(kind) for beside in sidecars]
        # A JSON of more than a label, as one of masks.
        large = {m for m in members if m and kind == ".json" and m.size > LABEL_BYTES}
        read = [_label(m) if m and m not in large else (None, (), "") for m in members]
        if large:
            about += (
                f"{len(large)} {kind} of more than {LABEL_BYTES} bytes are not read, "
                f"as {readable(min(large).name)}",
            )
        found = [label for label, _, _ in read]
        if like := Counter(key for _, keys, _ in read for key in keys):
            listed = ", ".join(f"{key!r} ({count})" for key, count in like.items())
            about += (f"no splits are read from the {kind} beside the images; found {listed}",)
        if any(label is not None for label in found):
            others[kind] -= len(set(members) - {None})
            line = f"labels are read from the {kind} beside each image"
            if without := found.count(None):
                line += f"; {counted(without, 'image', 'has', 'have')} none"
            of = Counter(key for label, _, key in read if key and label is not None)
            if len(of) > 1:
                listed = ", ".join(f"{key!r} ({count})" for key, count in of.items())
                about += (f"labels are read from several keys of the {kind}: {listed}",)
            return found, (line, *about)
    if kinds := sorted({kind for beside in sidecars for kind in beside}):
        line = f"no labels are read from the {' and '.join(kinds)} beside the images"
        return None, (line, *about)
    return None, ()


def _label(member: _Member) -> tuple[str | None, tuple[str, ...], str]:
    """Return a .cls or .json member's label, or None, the keys that look like splits, and the label's key."""
    try:
        text = _content(member, LABEL_BYTES).decode("utf-8-sig")
        if control := next((c for c in text if c < " " and c not in "\t\r\n"), ""):
            raise ValueError(f"found a byte {ord(control):#04x}, which is no character")
        text = text.strip()
        if member.name.lower().endswith(".cls") and {*"\n\r"} & {*text}:
            raise ValueError(f"found several lines, {text[:40]!r}")
        # Numbers stay as they are written, as those of a .cls do.
        value: Any = (
            json.loads(text, parse_float=str) if member.name.lower().endswith(".json") else text
        )
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{member.tar}: {readable(member.name)}: expected a label as text or JSON ({first_line(error)}); "
            "give each image one value, or leave the file out of the tar"
        ) from error
    like: tuple[str, ...] = ()
    label_key = ""
    if isinstance(value, dict):
        like = tuple(
            key
            for key, held in value.items()
            if key not in LABEL_KEYS
            and (
                key.casefold() in ("split", "splits") or (isinstance(held, str) and split_of(held))
            )
        )
        label_key = next((key for key in LABEL_KEYS if key in value), "")
        value = value.get(label_key) if label_key else None
    label = str(value).strip() if isinstance(value, str | int | float) else ""
    return None if is_missing(label) else label, like, label_key


def _content(member: _Member, most: int) -> bytes:
    """Return what a member holds, of `most` bytes at most."""
    if member.size > most:
        raise ValueError(f"{member.size} bytes, where {most} are the most that is read")
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
