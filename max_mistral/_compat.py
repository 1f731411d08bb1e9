"""The MAX release this package plugs into, checked before anything is imported.

MAX's plugin API changes with every monthly release, so a wrong one would fail
later with an ImportError that names neither the cause nor the cure. So would MAX
itself on a machine without a C compiler.
"""

from importlib import import_module, metadata

SUPPORTED_MAX = "26.7"


def installed_max() -> str | None:
    """Returns the version of the installed ``max`` distribution, if any."""
    try:
        return metadata.version("max")
    except metadata.PackageNotFoundError:
        return None


def check_max_version(found: str | None) -> None:
    """Raises unless ``found`` is a release of the supported MAX line.

    Args:
        found: A version such as ``"26.7.0"``, or ``None`` if MAX is missing.

    Raises:
        ImportError: If MAX is missing or of another line. The message names
            what was found, what is needed and the command that installs it.
    """
    if found is not None and found.split(".")[:2] == SUPPORTED_MAX.split("."):
        return
    what = "MAX is not installed" if found is None else f"found MAX {found}"
    major, minor = SUPPORTED_MAX.split(".")
    raise ImportError(
        f"max_mistral needs MAX {SUPPORTED_MAX}.x, but {what}. Install it with: "
        f"pip install 'max[serve]>={SUPPORTED_MAX},<{major}.{int(minor) + 1}'"
    )


def check_max_compiles() -> None:
    """Raises unless MAX has compiled a module of its own, as its first import does.

    Raises:
        ImportError: If it could not. It links with the C compiler ``cc``.
    """
    try:
        import_module("max._kv_cache_ops")
    except ImportError as error:
        raise ImportError(
            "MAX could not compile a module of its own, as it does at its first "
            "import; see above. It needs a C compiler, by the name cc, and the C "
            "library's headers: apt-get install gcc libc6-dev"
        ) from error
