"""`site check`: can this site take part? Each part gives lines for a report that names nobody and may be shared."""
