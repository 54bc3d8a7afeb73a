"""Lists of the images in large folders, kept in `data.cache`: listing millions of files takes long on network disks.

    .indexes/HASH/
        letters.bin, ends.bin    `Names` of the images
        about.json               the folder, when each folder in it changed, the tars, what is left out

A list is used as long as no folder of the tree has changed. It may be removed at any time.
"""

import logging
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from mae_curriculum.data.folders import Listing, is_unchanged, list_images
from mae_curriculum.data.index_files import folder_in, read_about, write_index
from mae_curriculum.data.stored import EXTENSIONS, SYSTEM, UNREADABLE, Names

logger = logging.getLogger(__name__)

RULES = ["list 1", *sorted(EXTENSIONS | UNREADABLE | SYSTEM)]
"""Format of a list, and what decides which files are in it; a list of other rules is made anew."""

KEPT_IMAGES = 10_000
"""Smallest number of images whose list is kept: fewer are listed in no time."""

SETTLED_SECONDS = 60
"""Time since the last change of a tree after which its list is kept: clocks are coarse, and differ between machines."""


def open_listing(folder: Path, cache: Path) -> Listing:
    """List the images of a tree, as `list_images`, or read the list that is kept."""
    index = folder_in(cache, folder)
    with suppress(OSError, ValueError):  # without permission, replaced at this moment, or damaged
        kept = read_listing(index, folder)
        if kept is not None and is_unchanged(kept):
            return kept
    start = time.time()
    listing = list_images(folder)
    if len(listing.names) >= KEPT_IMAGES and listing.last_change < 1e9 * (start - SETTLED_SECONDS):
        try:
            write_listing(index, listing)
        except OSError as error:
            logger.warning(f"the list of the images in {folder} cannot be kept in {index}: {error}")
    return listing


def write_listing(index: Path, listing: Listing) -> None:
    """Keep a list; raises OSError."""
    about = {
        "rules": RULES,
        "folder": str(listing.folder),
        "images": len(listing.names),
        "changed": listing.changed,
        "tars": [str(tar.relative_to(listing.folder)) for tar in listing.tars],
        "left_out": listing.left_out,
    }
    write_index(index, {"letters": listing.names.letters, "ends": listing.names.ends}, about)


def read_listing(index: Path, folder: Path) -> Listing | None:
    """Read the list of a folder that is kept; None if there is none.

    Raises  OSError if it cannot be read, ValueError if it is damaged.
    """
    about = read_about(index)
    if about is None or about.get("rules") != RULES:
        return None
    names = Names(np.fromfile(index / "letters.bin", np.uint8), np.fromfile(index / "ends.bin", np.int64))
    if len(names) != about["images"] or names.ends[-1] != len(names.letters):
        raise ValueError(f"{index} is incomplete")
    tars = [folder / name for name in about["tars"]]
    return Listing(folder, names, tars, Counter(about["left_out"]), about["changed"])
