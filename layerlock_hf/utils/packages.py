"""Packages that only some things need."""

from collections.abc import Iterator
from contextlib import contextmanager


MODULES = {"scikit-learn": "sklearn"}  # of packages whose module has another name


class PackageUnusable(ImportError, ValueError):
    """A package is missing or broken; the message is for the user. To programs it is a wrong argument like others."""


@contextmanager
def importing(package: str, purpose: str, extra: str) -> Iterator[None]:
    """Importing an optional package, or parts of it.

    Args:
        package: its name, as pip knows it.
        purpose: what needs it.
        extra: of this package, which installs it.

    Raises:
        PackageUnusable: if the import fails, whatever by, saying what to install.
    """
    try:
        yield
    except Exception as error:  # whatever a package raises that does not fit its neighbours
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and missing.partition(".")[0] == MODULES.get(package, package):
            found, advice = "none", f'"layerlock_hf[{extra}]"'
        else:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            found, advice = f"one that cannot be imported ({told})", f"--force-reinstall {package}"
        raise PackageUnusable(
            f"{package} must be installed for {purpose}, got {found}: pip install {advice}", name=package
        ) from error
