"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path, content):
    """Write bytes to a file so that at every moment it holds either all of them or what it held before.

    Args:
        path: of the file, in a folder that exists.
        content: bytes, or a view of them.

    Raises:
        OSError: the file could not be written (a full disk, a missing folder); what was there before still is.
    """
    path = Path(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")  # in the same folder: moving it is then one step
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        kept = "what it held before is still there" if path.exists() else "nothing was written"
        raise OSError(error.errno, f"{path} could not be written, {kept}: {error.strerror}") from error
    except BaseException:  # interrupted
        new.unlink(missing_ok=True)
        raise
