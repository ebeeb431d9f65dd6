"""Folders of images: class subfolders, flat, or below folders of splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vdvae_repr.data.names import (
    called_like_fields,
    extension,
    in_several_formats,
    is_hidden,
    left_out,
    links,
    look_alikes,
    names_from_paths,
    namesakes,
    natural_key,
    readable,
    unlabelled,
)
from vdvae_repr.data.source import Source, file_source, image_extensions
from vdvae_repr.errors import DataError


class ImageFiles(NamedTuple):
    """Image files below a folder by id, the path relative to it, and a line about what is left out."""

    files: dict[str, Path]
    notices: tuple[str, ...]


def open_folder(root: Path) -> Source:
    """Make a source of a folder's images; labels and splits are read off the paths."""
    files, notices = find_images(root)
    ids = list(files)
    names = names_from_paths(ids)
    notices += names.about_labels + unlabelled(ids, names.labels)
    notices += look_alikes(names.labels) + namesakes(names.labels)
    notices += called_like_fields(ids) + in_several_formats(ids)
    return file_source(
        root.name or str(root),
        files,
        labels=names.labels,
        splits=names.splits,
        notices=names.notices + notices,
    )


def find_images(root: Path) -> ImageFiles:
    """Find the image files below a folder, in natural order.

    Links are followed, but not to a folder that they lie in. Hidden files and folders, and those of file
    servers and archives (`@eaDir`, `__MACOSX`), are left out.

    Raises:
        DataError: there are none.
    """
    extensions = image_extensions()
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    hidden: list[str] = []
    inodes: dict[str, tuple[int, int]] = {}  # what file an image is, by links one of several
    visited: list[str] = []
    # Folders to look into: path, id of what lies in it, and the folders above by device and number.
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 (Path would decode nothing and cost time)
            place = status.st_dev, status.st_ino
            if place in above:
                others["link to a folder above it"] += 1
                continue
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            if folder == str(root):
                raise DataError(f"{root}: cannot be read ({error.strerror})") from error
            others[f"folder that cannot be read: {error.strerror}"] += 1
            continue
        visited.append(prefix)
        for entry in entries:
            image_id = prefix + readable(entry.name)
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # as of a link to itself
                others[f"link that cannot be followed: {error.strerror}"] += 1
                continue
            if is_folder:
                if is_hidden(entry.name):
                    hidden.append(readable(entry.name))
                else:
                    waiting.append((entry.path, f"{image_id}/", above | {place}))
            elif is_hidden(entry.name):
                others["hidden"] += 1
            elif not entry.is_file():
                others["broken link" if entry.is_symlink() else "no regular file"] += 1
            elif (kind := extension(image_id)) in extensions:
                if image_id in files:
                    raise DataError(f"{root}: two files are called {image_id!r}; rename one")
                files[image_id] = Path(entry.path)
                inodes[image_id] = place[0], entry.inode()
                if entry.is_symlink():
                    status = entry.stat()
                    inodes[image_id] = status.st_dev, status.st_ino
            else:
                others[kind] += 1
    notices = left_out(others, hidden) + _without_images(visited, files)
    if not files:
        raise DataError(
            f"{root}: expected a folder with images, found none in it"
            + "".join(f" ({line})" for line in notices)
            + (f"; tar shards are named by a pattern, as '{root}/*.tar'" if others[".tar"] else "")
        )
    ids = sorted(files, key=natural_key)
    firsts: dict[tuple[int, int], str] = {}
    linked = [(firsts.setdefault(inodes[image_id], image_id), image_id) for image_id in ids]
    notices += links([pair for pair in linked if pair[0] != pair[1]], "image")
    return ImageFiles({image_id: files[image_id] for image_id in ids}, notices)


def _without_images(folders: Sequence[str], files: Iterable[str]) -> tuple[str, ...]:
    """Return a line about folders that hold no image, and lie in none that holds none; maybe none."""
    holding = {""}
    for image_id in files:
        folder = image_id.rpartition("/")[0]
        while folder and f"{folder}/" not in holding:
            holding.add(f"{folder}/")
            folder = folder.rpartition("/")[0]
    empty = [
        folder[:-1]
        for folder in folders
        if folder not in holding and folder[: folder[:-1].rfind("/") + 1] in holding
    ]
    if not empty:
        return ()
    first = min(empty, key=natural_key)
    if len(empty) == 1:
        return (f"folder {first} holds no image, and is neither a class nor a split",)
    return (f"{len(empty)} folders hold no image, as {first}: they are neither classes nor splits",)
