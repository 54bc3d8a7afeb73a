"""Images in tables: parquet files, data sets that the `datasets` library saved, and data sets of the Hugging Face Hub.

The library keeps a table in a file that is mapped into memory, so that rows are read in any order at little cost; of
parquet files, it writes such a copy to its own cache (`HF_HOME`) once.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mae_curriculum.config import ConfigError
from mae_curriculum.data.stored import Records

HUB = "hf:"
"""What the names of data sets of the Hub start with: `hf:OWNER/NAME`, or `hf:OWNER/NAME:CONFIGURATION`."""

LABELS = ("label", "labels", "class", "cls", "target")
"""Names of columns of classes, where no column has the type of one."""


@dataclass(frozen=True)
class TableRows:
    """Encoded images in a column of a table."""

    title: str
    """Where the table comes from, for the names of its rows."""
    images: Any
    """A `datasets.Dataset` of one column; each value has the `bytes` of a file, or its `path`."""
    column: str

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the title of the table and the number of the row."""
        return f"{self.title}/{index:08}"

    def content(self, index: int) -> bytes:
        """Return an encoded image; raises OSError."""
        value = self.images[index][self.column]
        if isinstance(value, Mapping) and value["bytes"] is None:
            return Path(value["path"]).read_bytes()
        content: bytes = value["bytes"] if isinstance(value, Mapping) else value
        return content

    def open(self, index: int) -> BinaryIO:
        """Return an encoded image as a stream; raises OSError."""
        return io.BytesIO(self.content(index))

    def fingerprint(self) -> str:
        """Return the library's hash of the table."""
        return str(self.images._fingerprint)


def is_saved(folder: Path) -> bool:
    """Return whether the `datasets` library saved a data set in a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


def read_saved(folder: Path) -> dict[str, Records]:
    """Read a data set that the library saved: its tables by the names of their parts, "train" for the only one."""
    return _open_tables(str(folder), lambda datasets: datasets.load_from_disk(str(folder)))


def read_parquet(files: Mapping[str, Sequence[Path]]) -> dict[str, Records]:
    """Read parquet files, given by the names of their parts, as tables."""
    paths = {part: [str(path) for path in given] for part, given in files.items()}
    first = next(iter(files.values()))[0]
    return _open_tables(str(first.parent), lambda datasets: datasets.load_dataset("parquet", data_files=paths))


def read_hub(source: str) -> dict[str, Records]:
    """Read a data set of the Hub, which is downloaded once, as tables by the names of its parts."""
    name, _, configuration = source.removeprefix(HUB).partition(":")
    return _open_tables(source, lambda datasets: datasets.load_dataset(name, configuration or None))


def _open_tables(title: str, load: Any) -> dict[str, Records]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"data.source: {title} needs the datasets library: pip install 'mae-curriculum[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    try:
        loaded = load(datasets)
    except Exception as error:  # the library raises almost anything
        raise ConfigError(f"data.source: {title}: {' '.join(str(error).split())[:300]}") from error
    tables = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {str(part): _open_table(f"{title}/{part}", table, datasets) for part, table in tables.items()}


def _open_table(title: str, table: Any, datasets: Any) -> Records:
    features = table.features
    column = next((name for name, feature in features.items() if _holds_images(feature, datasets)), None)
    if column is None:
        raise ConfigError(f"data.source: {title} has no column of images, only {', '.join(features)}")
    images = table.select_columns([column])
    if isinstance(features[column], datasets.Image):
        images = images.cast_column(column, datasets.Image(decode=False))
    rows = TableRows(title, images, column)
    typed = next((name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    if typed is not None:
        names = [*features[typed].names, "no class"]  # -1 stands for none
        return Records(rows, [names[number] for number in _values(title, table, typed)], tuple(names[:-1]))
    named = next((name for name in LABELS if name in features), None)
    return Records(rows, None if named is None else [str(value) for value in _values(title, table, named)], None)


def _values(title: str, table: Any, column: str) -> list[Any]:
    """Return a column's values; raises ConfigError if one is missing."""
    values: list[Any] = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if None in values:
        raise ConfigError(f"data.source: row {values.index(None)} of {title} has no {column}; remove such rows")
    return values


def _holds_images(feature: Any, datasets: Any) -> bool:
    """Return whether a column has images, or what tools other than the library write for them."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")
