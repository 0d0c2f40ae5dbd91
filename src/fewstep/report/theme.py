"""The style sheet of the report."""

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f6f3;--ink:#22252b;--soft:#656b75;--rule:#e4e4df;--accent:#0068a8}
@media (prefers-color-scheme:dark){:root{--paper:#17191d;--panel:#1f2227;--ink:#e8e8e4;--soft:#9ba1ab;--rule:#33373e;--accent:#6cb6ec}}
*{box-sizing:border-box}
html{background:var(--paper);-webkit-text-size-adjust:100%}
body{max-width:1104px;margin:0 auto;padding:56px 24px 72px;color:var(--ink);
 font:16px/1.6 Inter,system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:34px;line-height:1.15;letter-spacing:-.022em;font-weight:650;margin:0 0 10px;overflow-wrap:anywhere}
h2{font-size:21px;line-height:1.3;letter-spacing:-.012em;font-weight:620;margin:64px 0 18px;padding-top:20px;border-top:1px solid var(--rule)}
h3{font-size:16px;font-weight:620;margin:36px 0 2px;overflow-wrap:anywhere}
h2+h3,h2+section>h3:first-child{margin-top:0}
p{margin:0 0 12px;max-width:72ch}
.meta,.note,figcaption,.facts{color:var(--soft);font-size:14px;line-height:1.5}
.meta{margin:0;max-width:none}
.facts{display:flex;flex-wrap:wrap;gap:2px 20px;margin:0 0 18px;padding:0;list-style:none}
.facts b,.meta b,figcaption b{color:var(--ink);font-weight:560}
.note{margin-top:12px}
.scroll{overflow-x:auto;margin:0 -24px;padding:0 24px}
table{border-collapse:collapse;width:100%;font-size:14px;line-height:1.4}
th,td{padding:10px 0 10px 22px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:baseline}
th{color:var(--soft);font-weight:500;font-size:13px;vertical-align:bottom}
thead th{border-bottom-color:var(--soft)}
th.text,td.text{text-align:left}
th:first-child,td:first-child{padding-left:0}
td:first-child{font-weight:560}
td.metric{font-weight:620}
td.seeds{color:var(--soft)}
details{margin:14px 0 0;font-size:14px}
summary{cursor:pointer;color:var(--accent);width:fit-content}
details table{width:auto;margin:8px 0 4px;font-size:13px}
details th,details td{text-align:left;padding:5px 20px 5px 0;white-space:normal;overflow-wrap:anywhere;font-weight:400;border-bottom:1px solid var(--rule)}
details td:first-child{font-weight:400}
details th{color:var(--soft);white-space:nowrap}
pre{margin:0;padding:16px 18px;background:var(--panel);border-radius:8px;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;
 font:13px/1.65 ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details pre{margin-top:8px}
figure{margin:0;min-width:0}
figcaption{margin-top:8px;overflow-wrap:anywhere}
.grids{display:grid;gap:28px 24px;grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr))}
.grids img{display:block;max-width:100%;width:100%;border-radius:6px;image-rendering:pixelated}
.grids img.fine{image-rendering:auto}
.series{grid-template-columns:repeat(4,1fr);gap:14px;margin:0 0 24px}
.charts{display:grid;gap:34px 40px;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
.charts.small{gap:28px 36px;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
svg{display:block;width:100%;height:auto}
footer{margin-top:72px;padding-top:16px;border-top:1px solid var(--rule);color:var(--soft);font-size:13px}
@media (max-width:560px){body{padding:32px 18px 48px}h1{font-size:27px}h2{margin-top:48px}.scroll{margin:0 -18px;padding:0 18px}
 .series{grid-template-columns:repeat(2,1fr)}.grids:not(.series){grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:20px 14px}}
@media print{body{max-width:none;padding:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""
