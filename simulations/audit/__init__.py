"""Attacks on a study's privacy, by the code that sites run: values in, findings out."""
