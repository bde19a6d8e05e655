"""Fetches one source package through pip's own session, so that its index, proxy and certificates
apply and no address is written here.

`pip download` would do, but for a source package it first builds the metadata, which for a package
made of a large C++ project starts compilers; pip has no switch against that.
"""
import hashlib
import pathlib
import tempfile


class FetchError(Exception):
    """What could not be fetched and what to do."""


def fetch_source(name, version, sha256, folder):
    """Path of the source archive NAME-VERSION in `folder`, verified against `sha256`."""
    try:
        from pip._internal.commands import create_command
        from pip._internal.network.download import Downloader
    except ImportError as error:
        raise FetchError(f"this Python has no usable pip ({error}): run ./test once, which sets up "
                         ".venv, or install python3-pip") from error
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = create_command("download")
    options, _ = command.parse_args(["--no-deps", "--no-binary", name, f"{name}=={version}"])
    with command.main_context(), tempfile.TemporaryDirectory(dir=folder) as part:
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [candidate.link for candidate in finder.find_all_candidates(name)
                 if str(candidate.version) == version and not candidate.link.is_wheel]
        if not links:
            raise FetchError(f"the package index offers no source of {name} {version}: check the "
                             "network or PIP_INDEX_URL")
        path = pathlib.Path(Downloader(session, "off")(links[0], part)[0])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != sha256:
            raise FetchError(f"{path.name} has SHA-256 {digest}, expected {sha256}")
        return path.replace(folder / path.name)
