"""The style sheet of the report: light or dark as the reader has it, for wide windows, phones and paper."""

STYLE = """
:root{color-scheme:light dark;
 --paper:#fff;--panel:#f6f6f3;--ink:#22252b;--soft:#656b75;--rule:#e4e4df;--accent:#0068a8}
@media (prefers-color-scheme:dark){:root{
 --paper:#17191d;--panel:#1f2227;--ink:#e8e8e4;--soft:#9ba1ab;--rule:#33373e;--accent:#6cb6ec}}
*{box-sizing:border-box}
html{background:var(--paper);-webkit-text-size-adjust:100%}
body{max-width:1104px;margin:0 auto;padding:56px 24px 64px;color:var(--ink);font-variant-numeric:tabular-nums;
 font:16px/1.6 Inter,system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{margin:0 0 18px;font-size:34px;line-height:1.15;letter-spacing:-.022em;font-weight:650;overflow-wrap:anywhere}
h2{margin:52px 0 16px;padding-top:20px;border-top:1px solid var(--rule);
 font-size:21px;line-height:1.3;letter-spacing:-.012em;font-weight:620}
h3{margin:44px 0 2px;font-size:17px;line-height:1.4;font-weight:620;overflow-wrap:anywhere}
h2+h3{margin-top:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0;font-size:14px;line-height:1.5}
dt,figcaption,.facts,.note,footer{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.facts{display:flex;flex-wrap:wrap;gap:2px 22px;margin:0 0 18px;padding:0;list-style:none;font-size:14px}
.facts b,figcaption b{color:var(--ink);font-weight:560}
.note{margin:14px 0 0;font-size:14px}
.scroll{overflow-x:auto;margin:0 -24px;padding:0 24px}
table{width:100%;border-collapse:collapse;font-size:14px;line-height:1.4}
th,td{padding:9px 0 9px 22px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th{color:var(--soft);font-size:13px;font-weight:500}
thead th{border-bottom-color:var(--soft)}
.text{text-align:left;white-space:normal}
th:first-child,td:first-child{padding-left:0}
.scroll td:first-child{font-weight:560}
td.metric{font-weight:620}
details{margin-top:12px;font-size:14px}
summary{width:fit-content;max-width:100%;color:var(--accent);cursor:pointer;overflow-wrap:anywhere}
details table{width:auto;margin:6px 0 4px;font-size:13px}
details th,details td{padding:5px 20px 5px 0;text-align:left;vertical-align:baseline;font-weight:400}
details td{white-space:normal;overflow-wrap:anywhere}
pre{margin:0;padding:16px 18px;border-radius:8px;background:var(--panel);white-space:pre-wrap;overflow-wrap:anywhere;
 font:13px/1.65 ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details pre{margin-top:8px}
figure{margin:0;min-width:0}
figcaption{margin-top:8px;font-size:14px;line-height:1.5;overflow-wrap:anywhere}
.grids{display:grid;gap:30px 24px;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
.grids.row{gap:14px;margin-bottom:26px;grid-template-columns:repeat(4,1fr)}
img{display:block;width:100%;height:auto;border-radius:4px}
img.coarse{image-rendering:pixelated}
.charts{display:grid;gap:34px 40px;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
.charts.small{gap:28px 36px;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
svg{display:block;width:100%;height:auto}
footer{margin-top:64px;padding-top:16px;border-top:1px solid var(--rule);font-size:13px}
@media (max-width:560px){
 body{padding:32px 18px 48px}
 h1{font-size:28px}
 h2{margin-top:40px}
 .scroll{margin:0 -18px;padding:0 18px}
 .grids.row{grid-template-columns:repeat(2,1fr)}
}
@media print{body{max-width:none;padding:0}h2,h3{break-after:avoid}figure,tr{break-inside:avoid}}
"""
