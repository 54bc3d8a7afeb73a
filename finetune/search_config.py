"""Settings of the search of a curriculum for classifiers."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from finetune.config import FinetuneConfig
from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.search.config import SearchOptions


@dataclass(frozen=True)
class SupervisedSearchConfig(SearchOptions):
    """Search a curriculum by training classifiers, scored by validation accuracy."""

    command: ClassVar = "finetune search"
    part: ClassVar = "finetune"

    run: Path = exempt(Path("runs/supervised_search"))
    """Folder of the search, with its training runs in `runs/`. Running the same command again resumes the search."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Training settings, given inline or as a recipe; run, seed, epochs and the curriculum's sizes and pace are the
    search's. Validation images decide, so use none that you test on; without any, every fifth image is held out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetune.seeds > 1:
            raise ConfigError("finetune.seeds: a search has seeds of its own for all its runs, --seeds; leave it 1")
