"""The bill of materials of a kit (CycloneDX): what lies in it, each with the digest of its very file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.server.install_kit.lock import normalised
from fedgraft.server.install_kit.wheels import Wheel


def bill_of_kit(whole: Mapping[str, Any], wheels: Sequence[Wheel]) -> dict[str, Any]:
    """The bill of these wheels. `whole` is the project's, which knows licences; what it does not know has none.

    Dependencies are kept among what is in the kit. fedgraft's own wheel is the component that the bill is of.
    """
    known = {normalised(one["name"]): one for one in whole["components"]}
    own = whole["metadata"]["component"]
    components, refs = [], {}
    for wheel in wheels:
        if wheel.name == normalised(own["name"]):
            own = {**own, "version": wheel.version, "hashes": _hashes(wheel)}
            continue
        one = known.get(wheel.name, {"type": "library", "name": wheel.name})
        ref = f"{one['name']}=={wheel.version}"
        refs[one.get("bom-ref", ref)] = ref
        purl = f"pkg:pypi/{wheel.name}@{wheel.version}"
        components.append({**one, "bom-ref": ref, "version": wheel.version, "purl": purl, "hashes": _hashes(wheel)})
    refs[own["bom-ref"]] = own["bom-ref"]
    dependencies = [
        {"ref": refs[one["ref"]], "dependsOn": [refs[ref] for ref in one.get("dependsOn", ()) if ref in refs]}
        for one in whole["dependencies"]
        if one["ref"] in refs
    ]
    metadata = {**whole["metadata"], "component": own}
    return {**whole, "components": components, "dependencies": dependencies, "metadata": metadata}


def _hashes(wheel: Wheel) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": wheel.sha256}]
