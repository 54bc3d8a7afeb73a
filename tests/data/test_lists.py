"""Lists of image files."""

from pathlib import Path

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import Images, open_images
from tests.runs import picture_folder

NAMES = [f"pictures/class{number % 2}/{number:04}.png" for number in range(4)]


def opened(folder: Path, name: str, text: str) -> tuple[Images, Images | None]:
    picture_folder(folder / "pictures", classes=2, count=4)
    (folder / name).write_text(text)
    return open_images(DataConfig(source=str(folder / name), cache=folder))


def names(images: Images, folder: Path) -> list[str]:
    return [str(Path(images.name(index)).relative_to(folder)) for index in range(len(images))]


LISTS = {
    "comma.csv": "".join(f"{name},{label}\n" for name, label in zip(NAMES, "baab", strict=True)),
    "header.csv": "id;label;file\n" + "".join(f"{n};{'baab'[n]};{name}\n" for n, name in enumerate(NAMES)),
    "byte-order-mark.csv": "\ufeffPath,Class\n" + "".join(f"{name}, {'baab'[n]}\r\n" for n, name in enumerate(NAMES)),
    "tab.tsv": "image\ttarget\n" + "".join(f"{name}\t{'baab'[n]}\n" for n, name in enumerate(NAMES)),
}


@pytest.mark.parametrize("name", LISTS)
def test_tables_of_paths_and_labels(name: str, tmp_path: Path) -> None:
    images, val = opened(tmp_path, name, LISTS[name])
    assert val is None
    assert names(images, tmp_path) == NAMES
    assert (images.labels, images.classes) == ([1, 0, 0, 1], ("a", "b"))
    assert images.read(3, 3).shape == (3, 30, 30)


def test_text_has_a_path_a_line_and_perhaps_a_number(tmp_path: Path) -> None:
    images, _ = opened(tmp_path, "plain.txt", "\n".join(NAMES) + "\n\n")
    assert (names(images, tmp_path), images.labels, images.classes) == (NAMES, None, ())
    images, _ = opened(tmp_path, "labels.txt", "".join(f"{name} {10 - n}\n" for n, name in enumerate(NAMES)))
    assert (images.labels, images.classes) == ([3, 2, 1, 0], ("7", "8", "9", "10"))


def test_a_column_of_parts_tells_training_from_validation(tmp_path: Path) -> None:
    rows = zip(NAMES, "abba", ("Train", "train", "valid", "test"), strict=True)
    train, val = opened(tmp_path, "split.csv", "path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    assert val is not None
    assert (names(train, tmp_path), train.labels) == (NAMES[:2], [0, 1])
    assert (names(val, tmp_path), val.labels, val.classes) == (NAMES[2:3], [1], ("a", "b"))


BAD = {
    "a.csv is empty": ("a.csv", "\n"),
    "starts with 'id', neither an image file nor a header": ("a.csv", "id,label\n1,2\n"),
    "has a header and nothing else": ("a.csv", "path,label\n"),
    "row 2 of the images has no label": ("a.csv", f"{NAMES[0]},a\n{NAMES[1]},\n"),
    "has 1 cells, fewer than the others": ("a.csv", f"{NAMES[0]},a\n{NAMES[1]}\n"),
    "1 of 2 files that were looked for do not exist, such as .*gone.png; paths": ("a.txt", f"{NAMES[0]}\ngone.png\n"),
    "has the parts test, val, but no `train`": ("a.csv", f"path,split\n{NAMES[0]},val\n{NAMES[1]},test\n"),
    "has b, not among the 1 classes": ("a.csv", f"path,label,set\n{NAMES[0]},a,train\n{NAMES[1]},b,val\n"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_list_with_mistakes_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, *BAD[message])
    assert "\n" not in str(caught.value)
