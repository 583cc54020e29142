"""The release of TRL that this bridge is written against.

What it overrides TRL calls private, and moves between releases: another one is refused when the bridge is imported.
"""

from importlib.metadata import PackageNotFoundError, version

from unbraid.errors import MissingExtraError

RELEASE = "1.16"


def check_release() -> str:
    """The version of TRL.

    Raises:
        MissingExtraError: there is none, or it is another one than `RELEASE`.
    """
    try:
        found = version("trl")
    except PackageNotFoundError as error:
        raise MissingExtraError("unbraid.trl needs TRL: pip install 'unbraid[trl]'") from error
    if not found.startswith(f"{RELEASE}."):
        raise MissingExtraError(
            f"unbraid.trl overrides private methods of TRL {RELEASE} and this is TRL {found}: "
            f"pip install 'trl=={RELEASE}.*'"
        )
    return found
