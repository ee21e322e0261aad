"""The bill of materials of what a hospital installs: every entry of the lock file, with version, licence and hashes.

    python deploy/sbom.py ENVIRONMENT LOCK OUT

ENVIRONMENT is what cyclonedx-py says of an environment in which the locked versions are installed, among others; what
is not locked is left out, and so are addresses of other people's pages. `make sbom` calls this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedgraft.server.install_kit.lock import Locked, normalised, read_lock


def bill(environment: dict[str, Any], locked: Locked) -> dict[str, Any]:
    """The bill of materials. ValueError if the environment lacks what is locked, or has another version of it."""
    found = {normalised(one["name"]): one for one in environment["components"]}
    wrong = [name for name, (version, _) in locked.items() if found.get(name, {}).get("version") != version]
    if wrong:
        raise ValueError(f"not installed as they are locked: {', '.join(sorted(wrong))}")
    components = []
    for name, (_, hashes) in sorted(locked.items()):
        kept = {key: value for key, value in found[name].items() if key != "externalReferences"}
        components.append(kept | {"hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes]})
    root = environment["metadata"]["component"]
    refs = {one["bom-ref"] for one in (*components, root)}
    dependencies = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in refs]}
        for one in environment["dependencies"]
        if one["ref"] in refs
    ]
    tools = [{key: tool[key] for key in ("type", "name", "version")} for tool in _tools(environment)]
    plain = {key: value for key, value in root.items() if key != "externalReferences"}
    metadata = environment["metadata"] | {"component": plain, "tools": {"components": tools}}
    return environment | {"components": components, "dependencies": dependencies, "metadata": metadata}


def _tools(environment: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = environment["metadata"]["tools"]["components"]
    return found


def main() -> None:
    """Read, put together, write."""
    environment, lock, out = map(Path, sys.argv[1:])
    try:
        made = bill(json.loads(environment.read_text(encoding="utf-8")), read_lock(lock.read_text(encoding="utf-8")))
    except ValueError as error:
        sys.exit(f"{lock}: {error}. Install the locked versions first: pip install --require-hashes -r {lock}")
    out.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
