"""The progress of a run on the terminal."""

import logging
import math
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """The progress of a run: a bar on a terminal, otherwise a message at the first step and every minute."""

    def __init__(self, *, total_images: int, done_images: int, shown: bool) -> None:
        self._shown = shown
        self._total = total_images
        self._images = done_images
        self._last_line = -math.inf
        terminal = shown and sys.stderr.isatty()
        self._bar = (
            tqdm(
                total=total_images,
                initial=done_images,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )
            if terminal
            else None
        )

    def update(self, images: int, facts: str) -> None:
        """Show the total number of images seen, with a few facts such as the loss."""
        new_images = images - self._images
        self._images = images
        if self._bar is not None:
            self._bar.set_description_str(facts, refresh=False)
            self._bar.update(new_images)
        elif self._shown and (time.monotonic() - self._last_line > 60 or (images == self._total and not new_images)):
            self._last_line = time.monotonic()
            logger.info(f"{images / self._total:4.0%} {facts}")

    def close(self) -> None:
        """Stop drawing the bar."""
        if self._bar is not None:
            self._bar.close()
