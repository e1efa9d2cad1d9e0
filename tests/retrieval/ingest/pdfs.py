"""Small PDF files, written here."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pypdf
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

__all__ = ["make_pdf"]


def make_pdf(
    pages: Sequence[Sequence[str]], *, password: str | None = None, outline: Sequence[tuple[str, int]] = ()
) -> bytes:
    """A PDF of pages of lines; outline: titles and pages from 0."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        stream = DecodedStreamObject()
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        stream.set_data(f"BT /F1 12 Tf 72 720 Td {shown}ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    for title, number in outline:
        writer.add_outline_item(title=title, page_number=number)
    if password is not None:
        writer.encrypt(password, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()
