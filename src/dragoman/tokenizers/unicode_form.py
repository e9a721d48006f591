"""The Unicode form that text has inside a model, and the way back out."""

import unicodedata

from dragoman.settings import UnicodeForm


def to_unicode_form(text: str, form: UnicodeForm) -> str:
    """Return `text` in `form`; none leaves it as it is."""
    match form:
        case "nfc":
            return unicodedata.normalize("NFC", text)
        case "nfd":
            return unicodedata.normalize("NFD", text)
        case "none":
            return text


def from_unicode_form(text: str, form: UnicodeForm) -> str:
    """Return the outward text of `text`, which is in `form`: NFC, or as it is for none.

    `from_unicode_form(to_unicode_form(x, form), form)` is NFC(x) for nfc and nfd, so that NFC text
    comes back as it was; jamo come back as Hangul syllables.
    """
    return text if form == "none" else unicodedata.normalize("NFC", text)
