"""What a site signs, in parts: whose it is, in which order, and that it is what its kind of document holds."""

from __future__ import annotations

from typing import Any

import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.evidence.passport import PARTS, passport_faults
from fedgraft.common.evidence.signed_parts import SignedHead, parse_document, signed_document
from fedgraft.common.identity.keys import new_node_key, public_pem

KEY = new_node_key()


def head(*parts: str, **more: Any) -> SignedHead:
    facts = {"kind": "passport", "site": "east", "study": "ab" * 32, "made": "2026-01-01T00:00:00+00:00"}
    return SignedHead.model_validate(
        facts | {"key": public_pem(KEY).decode(), "identity": "consortium", "parts": parts} | more
    )


def test_a_document_is_whole_as_it_was_signed_and_not_with_parts_of_another() -> None:
    one, two = (signed_document(head("a", "b"), {"a": {"x": x}, "b": {}}, KEY) for x in (1, 2))
    assert not parse_document(one.plain(), "it").faults()
    mixed = one.plain()
    mixed["parts"][1] = two.plain()["parts"][1]
    # The strange part is signed by the same site, and follows the same head: it is the next one that does not follow.
    assert parse_document(mixed, "it").faults() == (
        "part b does not follow the part before it, or is of another document",
    )


def test_what_a_site_signs_under_the_names_of_a_passport_is_not_always_one() -> None:
    parts: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    parts |= {"study": {"digest": "ab" * 32, "approved": None}, "releases": {"decided": []}}
    assert passport_faults(signed_document(head(*PARTS), parts, KEY)) == ("the part audit holds no audit sheet",)
    parts["audit"] = {"not_tested": "no"}
    assert passport_faults(signed_document(head(*PARTS), parts, KEY)) == (
        "its parts do not say what those of a passport say",
    )
    sheet = signed_document(head("audit", kind="audit", site="west"), {"audit": {}}, KEY)
    parts["audit"] = {"sheet": sheet.plain()}
    assert passport_faults(signed_document(head(*PARTS), parts, KEY)) == (
        "the sheet in part audit is of another site or study",
    )


@pytest.mark.parametrize(
    "content", [None, [], {}, {"fedgraft_evidence": 1}, {"fedgraft_evidence": 1, "parts": [{"name": "head"}]}]
)
def test_what_is_no_document_is_said_so(content: Any) -> None:
    with pytest.raises(InputError, match="is no audit sheet and no passport"):
        parse_document(content, "it")


def test_a_head_that_names_no_key_is_not_believed() -> None:
    plain = signed_document(head("a"), {"a": {}}, KEY).plain()
    for key in ("", "x", "\udc80"):
        plain["parts"][0]["content"]["key"] = key
        assert parse_document(plain, "it").faults() == ("part head was changed: it names no site, key and parts",)
