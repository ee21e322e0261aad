"""Coded words: what a study calls its tasks and classes, as DICOM asks for it, and the model as an algorithm.

A study's own words have no code in any public scheme, so that theirs is a private one: the word itself, or where it is
too long for a code (16 characters) the first digits of its SHA-256; the meaning beside it is the word.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification, CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from fedgraft.common.base.environment import fedgraft_version
from fedgraft.common.models.weights import WeightsManifest

SCHEME = "99FEDGRAFT"
MANUFACTURER = "fedgraft"
IMAGING = Code("363679005", "SCT", "Imaging procedure")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
PROBABILITY = "probability"
ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
_UCUM = frozenset({"1", "%", "mm", "cm", "m", "mm2", "cm2", "ml", "mL", "l", "L", "g", "mg", "kg", "a", "mo", "d", "s"})
_LONGEST_CODE, _LONGEST_WORD = 16, 64


@dataclass(frozen=True)
class Algorithm:
    """A model as DICOM names an algorithm: its id, and as version the SHA-256 of its weights, 64 hex digits."""

    name: str
    version: str
    software: str

    @staticmethod
    def of(manifest: WeightsManifest) -> Algorithm:
        """The algorithm that a model's manifest describes."""
        return Algorithm(word(manifest.id), manifest.sha256, f"fedgraft {fedgraft_version()}")

    def for_segments(self) -> AlgorithmIdentificationSequence:
        """As a segmentation names it."""
        family = codes.DCM.ArtificialIntelligence
        return AlgorithmIdentificationSequence(self.name, family, self.version, source=MANUFACTURER)

    def for_reports(self) -> AlgorithmIdentification:
        """As a structured report names it."""
        return AlgorithmIdentification(self.name, self.version, manufacturer=MANUFACTURER)


def concept(text: str) -> CodedConcept:
    """A study's own word as a coded concept."""
    meaning = word(text)
    plain = len(text) <= _LONGEST_CODE and text.isascii() and text.isprintable() and meaning == text
    value = text if plain else hashlib.sha256(text.encode()).hexdigest()[:_LONGEST_CODE]
    return CodedConcept(value, SCHEME, meaning)


def unit(text: str) -> CodedConcept:
    """The unit of a value: UCUM's where it is one of the usual ones, the study's own word otherwise."""
    if text == "":
        return CodedConcept("1", "UCUM", "no units")
    return CodedConcept(text, "UCUM", text) if text in _UCUM else concept(text)


def word(text: str) -> str:
    """A text as an element of DICOM can hold it: 64 characters, and no backslash, which would divide it."""
    return text.replace("\\", "/").strip()[:_LONGEST_WORD] or "-"
