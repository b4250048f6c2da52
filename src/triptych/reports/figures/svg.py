"""A drawn figure as SVG, PNG and PDF bytes: the same for the same numbers, the SVG readable on light and dark pages.

matplotlib's SVG is made fit for a page: ink becomes `currentColor`, text stays text with a stack of common fonts, ids
carry the figure's name so that several can stand in one page, the date and the style sheet that would leak into the
page go, and the alt text comes in. Not here: drawing.
"""

import re
from io import BytesIO
from xml.etree import ElementTree

from matplotlib.figure import Figure

from triptych.reports.figures import style
from triptych.reports.safe_text import neutralise

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
FONT_STACK = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
PNG_DPI = 200

# A file of its own follows the reader's colour scheme; within the page the page's colour is inherited instead.
OWN_COLOURS = "svg { color: #1b1f24 } @media (prefers-color-scheme: dark) { svg { color: #e8eaed } }"


def to_png(figure: Figure) -> bytes:
    """200 dots per inch on white: a PNG cannot follow the page's colours."""
    stream = BytesIO()
    with style.applied():
        figure.savefig(stream, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """One page on white, text as text."""
    stream = BytesIO()
    with style.applied():
        figure.savefig(stream, format="pdf", facecolor="white", metadata={"CreationDate": None, "Producer": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str, title: str, alt: str) -> str:
    """A file of its own, with title and alt text inside; `inline` makes the form for a page."""
    stream = BytesIO()
    with style.applied():
        figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())  # noqa: S314 - our own output, of a moment ago
    _remove(root, f"{{{SVG}}}metadata", f"{{{SVG}}}style")
    for element in root.iter():
        _adapt(element, name)
    _describe(root, name, title, alt)
    return _serialise(root)


def inline(svg: str, alt: str) -> str:
    """The SVG as an element of an HTML page: as wide as its place, named by its alt text, no style of its own."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - made by `to_svg`
    _remove(root, f"{{{SVG}}}style", f"{{{SVG}}}title", f"{{{SVG}}}desc")
    for attribute in ("width", "height", "aria-labelledby"):
        del root.attrib[attribute]
    root.set("aria-label", neutralise(alt))
    return _serialise(root)


def _serialise(root: ElementTree.Element) -> str:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _remove(root: ElementTree.Element, *tags: str) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Rewrite the attributes of one element: colours, fonts and ids."""
    for attribute, text in element.attrib.items():
        if attribute == "id":
            element.set(attribute, f"{name}-{text}")
        elif attribute == f"{{{XLINK}}}href" and text.startswith("#"):
            element.set(attribute, f"#{name}-{text[1:]}")
        elif attribute in ("d", "x", "y"):
            element.set(attribute, re.sub(r"(\.\d\d)\d+", r"\1", text))  # a hundredth of a point is enough
        else:
            text = re.sub(r"url\(#", f"url(#{name}-", text)
            text = text.replace(style.INK, "currentColor").replace(f"'{style.FONT}'", FONT_STACK)
            element.set(attribute, text)


def _describe(root: ElementTree.Element, name: str, title: str, alt: str) -> None:
    # What the removed style sheet said for every element, now inherited from the root alone.
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    described = (("title", f"{name}-title", title), ("desc", f"{name}-desc", alt), ("style", None, OWN_COLOURS))
    for place, (tag, identifier, text) in enumerate(described):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {} if identifier is None else {"id": identifier})
        element.text = neutralise(text)
        root.insert(place, element)
