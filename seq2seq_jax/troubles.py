"""Errors for which the machine is at fault (full disk, permissions, memory), told in one message."""

import errno
import os
import resource
from collections.abc import Iterator

from seq2seq_jax.errors import UserError, shortened

KEPT = "What was saved before is kept; mend this and give the same command again."
LESS_MEMORY = (
    "What was saved before is kept: stop what else uses the device and give the same command again. Or use less:"
    " train, in another --workdir, with a smaller data.batch_size (or data.batch_tokens) or a larger"
    " train.accumulate_steps; translate with a smaller decode.batch_size."
)
WAYS_OUT = {
    errno.ENOSPC: "",
    errno.EDQUOT: "",
    errno.EROFS: "",
    errno.EACCES: "",
    errno.EPERM: "",
    errno.EIO: "The disk or its connection failed. ",
    errno.ESTALE: "The disk was taken away meanwhile. ",
    errno.EMFILE: "Allow more (ulimit -n). ",
    errno.ENFILE: "The whole machine has as many as it can. ",
    errno.EFBIG: "Allow larger ones (ulimit -f). ",
    errno.ELOOP: "",
    errno.ENAMETOOLONG: "",
    errno.EBADF: "",
    errno.EBUSY: "",
}
"""What the system says where the machine is at fault, and what to do where its words do not say that."""
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)  # a file for a folder, or the reverse
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", os.strerror(errno.ENOMEM))


def check_address_space(needed: int) -> None:
    """Refuses a process that may not reserve `needed` bytes: threads that cannot start abort it, or wait for ever.

    Raises:
      UserError: `ulimit -v` allows less.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise UserError(
            f"This process may reserve {allowed / 1e9:.1f} GB of addresses (ulimit -v {allowed // 1024}), and JAX with"
            f" its threads needs {needed / 1e9:.1f}; allow more, as by ulimit -v unlimited. It uses far less memory."
        )


def machine_trouble(error: BaseException) -> str | None:
    """Returns a message where the machine is at fault, or None: then it is a bug.

    Libraries wrap what the system said in errors of their own, so the causes are
    searched too; TensorStore and XLA keep nothing of it but the words.
    """
    if isinstance(error, OSError) and error.errno in IN_THE_WAY and error.filename:
        return f"{error.strerror}: {shortened(str(error.filename))}. {KEPT}"
    return next((message for cause in _causes(error) if (message := _message(cause))), None)


def _message(error: BaseException) -> str | None:
    words = _words(error)
    first = shortened(words.partition("\n")[0].rstrip("."))  # XLA goes on to list every array that it holds
    for code, way_out in WAYS_OUT.items():  # before memory: RESOURCE_EXHAUSTED can be files
        if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in words:
            where = error.filename if isinstance(error, OSError) else first
            place = f": {shortened(str(where))}" if where else ""
            return f"{os.strerror(code)}{place}. {way_out}{KEPT}"
    if isinstance(error, MemoryError) or any(part in first for part in OUT_OF_MEMORY):
        return f"Out of memory{first and f' ({first})'}. {LESS_MEMORY}"
    return None


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a `__str__` of a user's own
        return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it came from, each once: a cause can be the error itself."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
