"""Archives unpacked: whole and as expected, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.lab.download import lock
from labkit.lab.transfer import DownloadError, LocalError

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError)


def unpack_tar(
    archive: Path,
    folder: Path,
    *,
    top: str,
    keep: Callable[[str], bool] = lambda name: True,
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Unpack those members of an archive that `keep` names; its folder `top` becomes `folder`.

    `check` looks at the unpacked folder before it takes the place of what was there, and raises
    DownloadError to refuse it. DownloadError also for an archive that is damaged, or that reaches
    out of its folder; then nothing has changed.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    with lock(folder), _cleared_on_error(archive, temporary):
        temporary.mkdir()
        with tarfile.open(archive) as tar:
            members = (_plain(member) for member in tar if keep(member.name))
            tar.extractall(temporary, members, filter="data")
            while tar.fileobj.read(2**20):  # to the end, where a checksum is
                pass
        if not (temporary / top).is_dir():
            raise DownloadError(f"{archive} holds no folder {top}; it is another archive")
        check(temporary / top)
        _remove(old)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary / top, folder)
        _remove(temporary)
        _remove(old)


def unpack_zip_member(archive: Path, member: str, path: Path) -> None:
    """Unpack one file of an archive to `path`; DownloadError if it is damaged or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with lock(path), _cleared_on_error(archive, temporary):
        with (
            zipfile.ZipFile(archive) as packed,
            packed.open(member) as source,
            open(temporary, "wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**20)  # compares the checksum at the end
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member, if it is a file or a folder: a link can lead out of the folder."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return member


@contextlib.contextmanager
def _cleared_on_error(source: Path, temporary: Path) -> Iterator[None]:
    """Leave no temporary file or folder when the body fails, and say why it did."""
    try:
        _remove(temporary)  # of a process that was killed
        yield
    except DownloadError:
        raise
    except tarfile.FilterError as error:
        raise DownloadError(
            f"{source} was not unpacked: {error}; that could overwrite other files: remove it and "
            "get the archive from its publisher"
        ) from error
    except OSError as error:
        if error.errno is None:  # gzip's complaint
            raise _damaged(source, error) from error
        hint = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise LocalError(
            f"cannot unpack {source} into {temporary.parent}: {error.strerror}{hint} and try again"
        ) from error
    except _DAMAGED as error:
        raise _damaged(source, error) from error
    finally:
        _remove(temporary)


def _damaged(source: Path, error: Exception) -> DownloadError:
    reason = str(error).partition("\n")[0].rstrip(":")
    return DownloadError(f"{source} is damaged ({reason}); remove it and get it again")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
