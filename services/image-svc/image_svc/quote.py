"""What other programs and servers say, as errors and records quote it."""


def one_line(text: str) -> str:
    """Return text with a space for each line end and every other character that could steer a terminal or a log."""
    return "".join(each if each.isprintable() else " " for each in text)
