"""What keeps a site's work from coming to an end."""


class TooFewCases(Exception):
    """There are not enough cases for a step."""


class Diverged(Exception):
    """The loss, or a trained entry, is no longer a finite number."""
