"""Small pictures on the page, each as a data URI."""

from search.report.html import Markup, tag


def picture(code: str, words: str) -> Markup:
    """Return an image of 96 x 96 pixels.

    Args:
        code: a WebP file in base64; what is no base64 is left out.
        words: what stands for it where it cannot be seen.
    """
    safe = code if all(c.isalnum() or c in "+/=" for c in code) else ""
    source = f"data:image/webp;base64,{safe}"
    made = tag("img", src=source, alt=words, width=96, height=96, loading="lazy")
    return Markup(made.removesuffix("</img>"))
