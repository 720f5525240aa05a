"""What the user names -> tables: a parquet, jsonl or json file, a folder of them, a hub dataset; or `path@split`."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet

from diva_engine.data.tables import ArrowTable, JsonArrayTable, JsonLinesTable, Table
from diva_engine.data.wording import reason_of
from diva_engine.records import UserError

if TYPE_CHECKING:
    import datasets

SPLIT_NAMES = {  # how files of a folder name their split
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_tables(source: str) -> list[Table]:
    """The tables behind one `data.train_files` entry, one a file.

    Raises:
        UserError: nothing is there, it cannot be read, or it holds no rows.
    """
    location, split = _split_off(source)
    path = Path(location).expanduser()
    if path.is_dir():
        tables = _open_folder(path, split)
    elif path.is_file():
        if split not in ("", "train"):
            raise UserError(f"{source}: a file has no splits; give {location}, or a folder with a file for each split")
        tables = [_open_file(path, str(path))]
    else:
        tables = [_open_hub(location, split, source)]
    for table in tables:
        if not len(table):
            raise UserError(f"{table.name} has no rows")
    return tables


def _split_off(source: str) -> tuple[str, str]:
    """Location and split; an "@" that belongs to the path of something that exists is left alone."""
    if Path(source).expanduser().exists() or "@" not in source:
        return source, ""
    location, split = source.rsplit("@", 1)
    return location, split


def _open_file(path: Path, name: str) -> Table:
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        raise UserError(f"{name}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(_OPENERS)}")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{name} is empty (0 bytes)")
        return opener(path, name)
    except PermissionError as error:
        raise UserError(f"{name}: no permission to read it") from error


def _open_parquet(path: Path, name: str) -> Table:
    import datasets

    _hide_bars_off_terminal()
    try:
        num_rows = pyarrow.parquet.read_metadata(path).num_rows
    except PermissionError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a spoilt footer is an OSError of Arrow's
        raise _unreadable(name, error) from error
    if num_rows == 0:
        raise UserError(f"{name} has no rows")
    try:
        dataset = datasets.load_dataset("parquet", data_files=_as_pattern(path), split="train")
    except PermissionError as error:
        raise UserError(
            f"{name}: no permission to read it, or to write {_cache_folder()} ({reason_of(error)})"
        ) from error
    except OSError as error:
        raise UserError(
            f"{name}: its Arrow copy cannot be written to {_cache_folder()} ({reason_of(error)}); set HF_DATASETS_CACHE"
        ) from error
    except Exception as error:  # damage, types and metadata that `datasets` does not know: a dozen kinds
        raise _unreadable(name, error.__cause__ or error) from error
    return ArrowTable(dataset, name, path.parent)


def _unreadable(name: str, error: BaseException) -> UserError:
    return UserError(f"{name} is not readable as parquet ({reason_of(error)}); write or download it again")


def _hide_bars_off_terminal() -> None:
    """In a log file the bars of `datasets` would stand in front of what else is written there."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _cache_folder() -> str:
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


def _as_pattern(path: Path) -> str:
    """The file's absolute path with glob characters escaped: `datasets` reads data_files as patterns."""
    return re.sub(r"([\[\]*?])", r"[\1]", str(path.absolute()))


def _open_json(path: Path, name: str) -> Table:
    with path.open("rb") as file:
        beginning = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if beginning.startswith(b"["):
        return JsonArrayTable(path, name)
    return JsonLinesTable(path, name)  # under either suffix: many tools write json lines into .json


_OPENERS: dict[str, Callable[[Path, str], Table]] = {
    ".parquet": _open_parquet,
    ".jsonl": _open_json,
    ".json": _open_json,
}


def _open_folder(folder: Path, split: str) -> list[Table]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [_open_saved(folder, split)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _OPENERS and path.is_file())
    files = [path for path in files if not (_is_about_data(path) or _is_hidden(path, folder))]
    models = {parent for parent in {path.parent for path in files} if _is_model_folder(parent)}
    files = [path for path in files if path.suffix.lower() != ".json" or path.parent not in models]
    if not files:
        without = f" beside the model in {sorted(models)[0]}" if models else ""
        raise UserError(f"{folder} holds no {', '.join(_OPENERS)} file{without}")
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of(path.relative_to(folder)), []).append(path)
    wanted = split or ("train" if "train" in by_split else next(iter(by_split)))
    if wanted not in by_split:
        raise UserError(f"{folder} has no split {wanted!r}; it has {', '.join(by_split)}")
    return [_open_file(path, str(path)) for path in by_split[wanted]]


def _is_about_data(path: Path) -> bool:
    return path.name in ("dataset_infos.json", "dataset_info.json")


def _is_model_folder(folder: Path) -> bool:
    """Whether the folder's json files describe a model: a configuration beside a tokenizer, a processor or weights."""
    beside = ("tokenizer*.json", "*processor_config.json", "generation_config.json", "*.safetensors*")
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in beside)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def split_of(path: Path) -> str:
    """The split a file belongs to by the words of its name or its folders; "train" where none names one."""
    words = [word for part in reversed(path.parts) for word in re.split(r"[^a-z0-9]+", part.lower())]
    for word in words:
        for split, names in SPLIT_NAMES.items():
            if word in names:
                return split
    return "train"


def _open_saved(folder: Path, split: str) -> Table:
    """A folder written by `save_to_disk`."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{folder} is not a readable saved dataset ({reason_of(error)})") from error
    if isinstance(dataset, datasets.DatasetDict):
        dataset = _pick_split(dataset, split or "train", str(folder))
    return ArrowTable(dataset, str(folder), folder)


def _pick_split(splits: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _open_hub(location: str, split: str, source: str) -> Table:
    looks_local = Path(location).suffix in _OPENERS or location.startswith(("/", ".", "~"))
    if looks_local or not _HUB_NAME.fullmatch(location):
        raise UserError(f"{source}: no such file or folder; give an existing path or a hub name like owner/dataset")
    import datasets

    _hide_bars_off_terminal()
    split = split or "train"
    try:
        dataset = datasets.load_dataset(location, split=split)
    except Exception as error:  # the hub client raises a dozen kinds; each is the user's to mend
        raise UserError(
            f"{source}: no such file or folder, and not loadable from the hub ({reason_of(error)})"
        ) from error
    return ArrowTable(dataset, f"{location}@{split}", Path.cwd())
