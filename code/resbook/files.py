"""Files that are written whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(path, content):
    """Write bytes to a file so that at every moment it holds either all of them or what it held before.

    They are first written beside it, to a file whose name ends in ``.new``: a process that is killed while it writes
    leaves that behind. A link stays one.

    Args:
        path: of the file, in a folder that exists.
        content: bytes, or a view of them.

    Raises:
        OSError: the file could not be written (a full disk, a missing folder); what was there before still is.
    """
    path = Path(path).resolve()
    # In the same folder, so that moving it is one step; of a name that no other writer has.
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(new, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        kept = "what it held before is still there" if os.path.exists(path) else "nothing was written"
        raise OSError(error.errno, f"{path} could not be written, {kept}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # there is none after the move
            new.unlink()
