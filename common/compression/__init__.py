"""Changes of entries in fewer bytes: how each kind writes and reads an array, and what of an update is written so."""
