"""People's decisions about faces, and what is asked next."""

__version__ = "0.1.0"
