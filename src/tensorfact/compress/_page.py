"""The shell of a self-contained HTML page: style, headline tiles, tables. No script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["TIMES", "facts", "page", "section", "table", "tile", "tiles"]

TIMES = "\u00d7"

_STYLE = (
    """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1a1d23;--muted:#646b78;--line:#e5e6e9;--before:#c5cad3;
--after:#2b6ad8;--soft:#e9f0fc;--slow:#c2410c;--d0:#3db39e;--d1:#2fa3ae;--d2:#2a8fc0;--d3:#2f79cf;--d4:#4763cf;--d5:#5e50c6;
--d6:#7640b4;--d7:#8c2f9b}
@media (prefers-color-scheme:dark){:root{--bg:#101216;--card:#171a20;--ink:#e9ebef;--muted:#98a0ae;--line:#292d35;
--before:#4b5261;--after:#6fa3ff;--soft:#1b2536;--slow:#ff9a5c;--d0:#5fe0c6;--d1:#55cfe0;--d2:#5bb8f2;--d3:#74a6ff;--d4:#8f99ff;
--d5:#ab8dff;--d6:#c883f5;--d7:#e27ddd}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1200px;margin:0 auto;padding:40px 28px 64px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 6px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:19px;letter-spacing:-.01em;margin:48px 0 4px;font-weight:650}
h3{font-size:14px;margin:0;font-weight:600;overflow-wrap:anywhere}
p{margin:0 0 12px;max-width:76ch}
.lead{color:var(--muted);font-size:16px;margin-bottom:24px}.lead b{color:var(--ink);font-weight:600}
.note{color:var(--muted);font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(172px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:14px 16px 13px}.tile .k{color:var(--muted);font-size:12.5px}
.tile .v{font-size:24px;line-height:1.25;font-weight:620;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
margin:2px 0}
.tile .v small{font-size:15px;font-weight:500;color:var(--muted);letter-spacing:0}
.tile .s{color:var(--muted);font-size:12.5px;line-height:1.4;overflow-wrap:anywhere}
.meter{height:5px;border-radius:3px;background:var(--before);margin:7px 0 6px;overflow:hidden}
.meter i{display:block;height:100%;background:var(--after);border-radius:3px}
.card{padding:16px 18px;margin-top:12px}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;color:var(--muted);font-size:12.5px;margin:10px 0 2px}
.legend span{display:inline-flex;align-items:center;gap:7px}
.sw{width:12px;height:12px;border-radius:3px;display:inline-block}.sw.b{background:var(--before)}
.sw.a{background:var(--after)}
.sw.o{border-radius:50%;border:1.5px solid var(--muted);width:9px;height:9px}
.sw.r{border-radius:50%;background:var(--after);width:9px;height:9px}
.sw.s{border-radius:50%;background:var(--slow);width:9px;height:9px}
.sw.dash{width:0;height:14px;border-radius:0;border-left:1.5px dashed var(--muted)}
.ramp{width:84px;height:8px;border-radius:4px;display:inline-block;
background:linear-gradient(90deg,var(--d0),var(--d2),var(--d4),var(--d7))}
.kind{padding:14px 16px 10px}
.kind header{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline;margin-bottom:6px}
.kind header span{color:var(--muted);font-size:12.5px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:6px 18px}
.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:12px}
figure{margin:0;min-width:0}figcaption{color:var(--muted);font-size:12px;margin-bottom:2px}
svg{display:block;width:100%;height:auto;max-width:560px;overflow:visible}
.t{font-size:10px;fill:var(--muted);font-variant-numeric:tabular-nums}.t.e{text-anchor:end}.t.m{text-anchor:middle}
.t.k{fill:var(--ink);font-weight:600}
.grid{stroke:var(--line);stroke-width:1;fill:none}
.even{stroke:var(--muted);stroke-dasharray:3 3;fill:none;opacity:.75}
.ln{fill:none;stroke-width:1.4;opacity:.8;stroke-linejoin:round}.ln:hover{stroke-width:3;opacity:1}
.st{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}.st.dim{stroke-dasharray:5 4}
.pt{stroke:var(--card);stroke-width:1}.opt{fill:none;stroke:var(--muted);stroke-width:1.2}
.bb{fill:var(--before)}.pt.bb{fill:var(--muted)}.ba{fill:var(--after)}.pt.slow{fill:var(--slow)}.pair{stroke:var(--before);stroke-width:1.5}
.bd{fill:none;stroke:var(--before);stroke-width:1.5}
.sw.d{border:1.5px solid var(--before)}.bb:hover,.ba:hover,.pt:hover{opacity:.75}
"""
    + "".join(
        f".ln.d{i},.st.d{i}{{stroke:var(--d{i})}}.pt.d{i}{{fill:var(--d{i})}}.sw.d{i}{{background:var(--d{i})}}"
        for i in range(8)
    )
    + """
.st.ink{stroke:var(--ink)}.pt.ink{fill:var(--ink)}.sw.ink{background:var(--ink)}.sw.line{height:3px;width:18px}
.sizes{display:grid;grid-template-columns:minmax(90px,max-content) 1fr minmax(max-content,auto);gap:7px 14px;
align-items:center;
font-size:13px}.sizes .n{overflow-wrap:anywhere;max-width:300px}
.sizes .q{color:var(--muted);font-variant-numeric:tabular-nums;text-align:right;white-space:nowrap}
.two i{display:block;height:8px;border-radius:2px;min-width:1px}.two i.b{background:var(--before);margin-bottom:2px}
.two i.a{background:var(--after)}
.two i.d{background:repeating-linear-gradient(135deg,var(--before) 0 4px,transparent 4px 7px);height:18px;
outline:1px solid var(--before);outline-offset:-1px}
details{margin-top:12px}summary{cursor:pointer;font-weight:600;font-size:14px;padding:4px 0}
.scroll{overflow-x:auto;margin-top:8px}
table{border-collapse:collapse;font-size:12.5px;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--muted);text-align:right;padding:6px 10px;border-bottom:1px solid var(--line);
white-space:nowrap}
td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,th.l,td.l{text-align:left}td:first-child{font-weight:500}
td.w{white-space:normal;text-align:left;min-width:220px}
tbody tr:last-child td{border-bottom:0}tbody tr:hover{background:var(--soft)}
tr.best td{font-weight:600}
dl{display:grid;grid-template-columns:minmax(110px,max-content) 1fr;gap:4px 20px;font-size:13px;margin:8px 0 0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);border-radius:8px;padding:12px 14px;overflow-x:auto;font-size:13px;margin:8px 0}
@media (max-width:560px){main{padding:24px 14px 48px}h1{font-size:24px}.tiles{grid-template-columns:1fr 1fr;gap:8px}
.tile{padding:11px 12px}.tile .v{font-size:19px}.tile .v small{font-size:13px}
.sizes{grid-template-columns:1fr auto;gap:2px 10px}
.sizes{grid-auto-flow:row dense}.sizes .two{grid-column:1/-1;margin-bottom:8px}.sizes .n{grid-column:1}
.card{padding:12px}
.sizes .q{grid-column:2}.charts{grid-template-columns:1fr}.wide{grid-template-columns:1fr}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{body{background:#fff}.kind,.tile,.card{break-inside:avoid}}
"""
)


def page(title: str, body: str) -> str:
    """Return a whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def tile(key: str, value: str, small: str = "", *, unit: str = "", share: float | None = None) -> str:
    """One headline number with what it is above and a remark below; `share` in [0, 1] draws a meter."""
    extra = f" <small>{escape(unit)}</small>" if unit else ""
    meter = (
        "" if share is None else f'<div class="meter"><i style="width:{100 * min(1, max(0, share)):.1f}%"></i></div>'
    )
    remark = f'<div class="s">{escape(small)}</div>' if small else ""
    number = f'<div class="k">{escape(key)}</div><div class="v">{escape(value)}{extra}</div>'
    return f'<div class="tile">{number}{meter}{remark}</div>'


def tiles(items: Iterable[str]) -> str:
    """Headline tiles in a row that wraps."""
    return f'<div class="tiles">{"".join(items)}</div>'


def section(heading: str, text: str, body: str) -> str:
    """Heading, one paragraph of explanation (HTML), content (HTML)."""
    paragraph = f'<p class="note">{text}</p>' if text else ""
    return f"<section><h2>{escape(heading)}</h2>{paragraph}{body}</section>"


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (), wrap: Sequence[int] = ()
) -> str:
    """Table of plain-text cells; columns in `left` are aligned left, those in `wrap` may break lines."""

    def css(i: int) -> str:
        return ' class="w"' if i in wrap else ' class="l"' if i in left else ""

    starts = {*left, *wrap}
    head = "".join(f'<th class="{"l" if i in starts else ""}">{escape(name)}</th>' for i, name in enumerate(headers))
    lines = "".join(
        "<tr>" + "".join(f"<td{css(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>\n" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Definition list of plain-text pairs; pairs without a value are left out."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items if v) + "</dl>"
