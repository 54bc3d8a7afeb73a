"""Lists of the images in large folders, kept in `data.cache`: on network disks, to list millions of files takes long.

    indexes/HASH/
        letters.bin, ends.bin    `Names` of the images
        about.json               when each folder changed, the tars, what is left out

A list is used as long as no folder of the tree has changed.
"""

import logging
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mae_curriculum.data.folders import Listing, is_unchanged, list_images
from mae_curriculum.data.index_files import folder_in, read_about, write_index
from mae_curriculum.data.stored import Names
from mae_curriculum.files import is_user_error

logger = logging.getLogger(__name__)

FORMAT = "list 1"
"""Format of the index; one of another format is made anew."""

KEPT_IMAGES = 10_000
"""Images from which on a list is kept: fewer are listed in no time."""

SETTLED_SECONDS = 60
"""Time since the last change of a tree after which its list is kept: clocks are coarse, and differ between machines."""


def open_listing(folder: Path, cache: Path) -> Listing:
    """List the images of a tree, as `list_images`, or read the list that is kept."""
    index = folder_in(cache, folder)
    kept = read_listing(index, folder)
    if kept is not None and is_unchanged(kept):
        return kept
    start = time.time_ns()
    listing = list_images(folder)
    if len(listing.names) >= KEPT_IMAGES and max(listing.changed.values()) < start - 1e9 * SETTLED_SECONDS:
        try:
            write_listing(index, listing)
        except OSError as error:
            if not is_user_error(error):
                raise
            logger.warning(f"the list of the images in {folder} cannot be kept in {index}: {error.strerror}")
    return listing


def write_listing(index: Path, listing: Listing) -> None:
    """Keep a list."""
    about = {
        "format": FORMAT,
        "folder": str(listing.folder),
        "changed": listing.changed,
        "tars": [str(tar.relative_to(listing.folder)) for tar in listing.tars],
        "left_out": listing.left_out,
    }
    write_index(index, {"letters": listing.names.letters, "ends": listing.names.ends}, about)


def read_listing(index: Path, folder: Path) -> Listing | None:
    """Read the list of a folder that is kept; None if there is none."""
    about = read_about(index)
    if about is None or about["format"] != FORMAT:
        return None
    names = Names(np.fromfile(index / "letters.bin", np.uint8), np.fromfile(index / "ends.bin", np.int64))
    tars = [folder / name for name in about["tars"]]
    return Listing(folder, names, tars, Counter(about["left_out"]), about["changed"])
