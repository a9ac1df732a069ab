"""The one error a video can cause; a missing path is a FileNotFoundError."""


class VideoError(ValueError):
    """A video, a setting or a prompt that cannot be turned into model inputs; the message says which rule failed."""
