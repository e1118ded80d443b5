"""Small files, in and out: the one door for JSON and text.

What is damaged, misshapen or cannot be written is an InputError, one sentence that names the file.
What is written is written whole: a reader sees the old file or the new one, even after a kill.
"""

import json
import os
import re
import stat
from pathlib import Path

from data.problems import InputError


def size_of(path: Path) -> int:
    """Bytes of a plain file. Raises InputError where there is none, a directory or a device."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: name the directory of a checkpoint that has all its files"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a file")
    return found.st_size


def reason(error: Exception) -> str:
    """What the operating system or a library complains about, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def read_json(path: str | Path) -> dict:
    """The object that a JSON file holds.

    Raises InputError for anything else: no file, no UTF-8, no JSON, a list, a number that is not
    finite, half a surrogate pair (which no output could show).
    """
    path = Path(path)
    size_of(path)

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({reason(error)})") from None

    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__} in place of an object")
    return value


def read_rows(path: str | Path) -> list[dict]:
    """The objects of a file of JSON lines; none where there is no file.

    A last line without its end is left out: its writer was killed. Raises InputError for others.
    """
    path = Path(path)
    if not path.exists():
        return []

    size_of(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1]]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({reason(error)})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is damaged (a line is not an object)")
    return rows


def read_text_if_any(path: Path) -> str | None:
    """A file's text, None where there is no file. Raises InputError for what is not UTF-8 text."""
    if not os.path.lexists(path):
        return None
    size_of(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None


KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
}


def checked(
    values: dict,
    file: str | Path,
    name: str,
    kind: type,
    least: float | None = None,
    most: float | None = None,
    default=None,
):
    """values[name], as read from `file`: of this kind, and a number within these bounds.

    kind: a key of KINDS. default: what stands for a missing or null value; None means that it may
    not be missing. Raises InputError.
    """
    value = values.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(f"{file} lacks {name}")

    accepted = (int, float) if kind is float else kind
    is_right = isinstance(value, accepted)
    if isinstance(value, bool) and kind is not bool:
        is_right = False  # Python counts True as a whole number
    if not is_right:
        raise InputError(f"{file} has {name} = {shortened(value)}: it must be {KINDS[kind]}")

    too_low = least is not None and value < least
    too_high = most is not None and value > most
    if too_low or too_high:
        bounds = []
        if least is not None:
            bounds.append(f"at least {least:,}")
        if most is not None:
            bounds.append(f"at most {most:,}")
        raise InputError(
            f"{file} has {name} = {shortened(value)}: it must be {' and '.join(bounds)}"
        )
    return value


def shortened(value) -> str:
    """A value as a sentence can show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Atomic: a reader sees the old file or the new one, whole, even if this process is killed.

    Raises InputError where it cannot be written: a full disk, a place that takes no files.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process has its own

    try:
        if path.exists() and not path.is_file():
            # a device would be replaced by the file
            raise InputError(f"{path} cannot be written: it is not a file")
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        discard(temporary)
        raise InputError(
            f"{path} cannot be written ({reason(error)}): "
            "make room, or choose a place that can be written"
        ) from None


def write_json(path: str | Path, value) -> None:
    """`write_text` of the value; raises ValueError for numbers that are not finite."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def is_partial(name: str, of: str) -> bool:
    """Whether a file of this name is what a killed process had written of the file `of`."""
    return re.fullmatch(rf"{re.escape(of)}\.\d+\.tmp", name) is not None


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink()
    except OSError:
        pass


def sync(file: Path) -> None:
    """Wait until a file's content is on the disk."""
    with open(file, "rb") as f:
        os.fsync(f.fileno())
