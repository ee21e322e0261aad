"""Federated transfer learning for medical imaging across hospitals."""

from pathlib import Path as _Path

if not (_Path(__file__).parent / "common" / "__init__.py").is_file():
    raise ImportError(
        f"{_Path(__file__).parent / 'common'} is no link to common/: this copy was made without symbolic links. "
        "Run `python hatch_build.py` in the project's folder to make them."
    )

__all__: list[str] = []
