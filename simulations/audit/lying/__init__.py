"""A coordinator that lies, played against real sites: what it tries, and who judges whether anything came of it."""
