"""The installed version, looked up once: the metadata of a package are read anew at every question."""

from importlib.metadata import version

__version__ = version("skylevel")
