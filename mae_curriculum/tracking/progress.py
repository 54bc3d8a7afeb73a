"""The progress bar of a run."""

import sys
import time

from tqdm import tqdm

from mae_curriculum.terminal import say


class Progress:
    """The progress of a run on the terminal: a bar, or where the output is no terminal, a line a minute."""

    def __init__(self, *, total_images: int, done_images: int, shown: bool) -> None:
        self._shown, self._total, self._images = shown, total_images, done_images
        self._last_line = time.monotonic()
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
        """Show that `images` have been seen in all, with a few facts."""
        step, self._images = images - self._images, images
        if self._bar is not None:
            self._bar.set_description_str(facts, refresh=False)
            self._bar.update(step)
        elif self._shown and (time.monotonic() - self._last_line > 60 or (images == self._total and not step)):
            self._last_line = time.monotonic()
            say(f"{images / self._total:4.0%} {facts}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._shown:
            say(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
