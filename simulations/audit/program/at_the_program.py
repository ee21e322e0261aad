"""All that is tried of the program's own promises, whoever runs it."""

from __future__ import annotations

from fedgraft.simulations.audit.checks import Row
from fedgraft.simulations.audit.program.files import files_of_others
from fedgraft.simulations.audit.program.words import words_of_a_command

CHECKS: tuple[Row, ...] = (
    ("files of others", "what the program writes is its owner's alone", files_of_others),
    ("words of a command", "a command that fails shows a line, and no value of a variable", words_of_a_command),
)
"""What the program promises, but for what was installed, which `supply` looks at."""
