"""Text that a model, a data file or a person may bring, and that must be shown as text.

Wherever one of these is executed it sets `window.__pwned`; wherever it becomes markup it leaves an
element that `MARKUP` finds.
"""

from __future__ import annotations

PWN = "window.__pwned=1"

STRINGS = (
    f"<img src=x onerror={PWN}>",
    f"<script>{PWN}</script>",
    f"<svg/onload={PWN}>",
    f'" autofocus onfocus="{PWN}" x="',
    f"' onmouseover='{PWN}' x='",
    f"`onmouseover={PWN}`",
    f"</textarea></title></style></script><script>{PWN}</script>",
    f"<iframe srcdoc='<script>parent.{PWN}</script>'></iframe>",
    f"[click](javascript:{PWN})",
    f"![x](x){{onerror={PWN}}}",
    f"<a href='javascript:{PWN}'>click</a>",
    f"<details open ontoggle={PWN}>",
    f"<math><mtext></table><mglyph><style><img src=x onerror={PWN}>",
    f"&lt;img src=x onerror={PWN}&gt;",
    f"\\u003cimg src=x onerror={PWN}\\u003e",
    f"${{{PWN}}} {{{{{PWN}}}}} <%= {PWN} %>",
    f"<!--<img src='--><img src=x onerror={PWN}>'>",
    f"%3Cimg%20src=x%20onerror={PWN}%3E",
    f"<b>bold</b><i onclick={PWN}>",
    "‮drawkcab⁦ \u200b\ufeff\u2028end",
    "\x00\x1b[31mred\x07 \r\n\t",
    "a" * 3000,
    "🙂👩‍👩‍👧‍👦é̂",
    "'; DROP TABLE metrics; --",
    "../../../../etc/passwd",
    "=HYPERLINK(1)",
)

MARKUP = (
    "img[src=x], [onerror], [onload], [onfocus], [onmouseover], [onclick*=pwned], [ontoggle], "
    'iframe, a[href^="javascript:"], mglyph, script[src=x]'
)
"""A selector of elements that only these strings could have made."""
