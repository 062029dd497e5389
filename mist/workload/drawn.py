"""What traffic that nobody recorded has in common."""


class Drawn:
    """Traffic of drawn lengths: it has no rate of its own, and no file behind it."""

    def own_rate(self) -> float:
        """1 request/s, where nobody gives a rate or nothing depends on it."""
        return 1.0

    def content(self) -> str:
        """Of files: none."""
        return ""
