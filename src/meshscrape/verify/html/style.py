"""The page's own style sheet: light and dark, readable without colour and on paper."""

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --panel: #f6f8fa;  --ok: #1a7f37; --bad: #cf222e; --warn: #8a5a00; --accent: #0550ae; --bar: #b6c2cf;
  --left: #dafbe1; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --soft: #9198a1; --line: #3d444d;
   --panel: #161b22; --ok: #3fb950; --bad: #ff7b72; --warn: #d29922; --accent: #79c0ff; --bar: #4c5663;
  --left: #12391f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 28px 64px; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 0; }
p { margin: 6px 0; }
code, .mono { font-family: ui-monospace, "SFMono-Regular", "DejaVu Sans Mono", monospace; font-size: 13px; }
.soft { color: var(--soft); }
.verdict { border: 2px solid var(--ok); border-left-width: 10px; border-radius: 6px; padding: 12px 16px;
  margin: 16px 0; background: var(--panel); font-size: 18px; font-weight: 600; }
.verdict.bad { border-color: var(--bad); border-style: double; border-width: 4px 4px 4px 10px; }
.verdict.warn { border-color: var(--warn); border-style: dashed; border-left-style: solid; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0; }
.facts div { display: flex; gap: 8px; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; }
.card { border: 1px solid var(--line); border-left: 6px solid var(--bad); border-radius: 6px;
  padding: 12px 16px; margin: 12px 0; break-inside: avoid; }
.card.broken { border-left-style: double; }
.card.skipped { border-left-style: dashed; border-left-color: var(--warn); }
.card.note { border-left: 6px dotted var(--warn); }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 8px 0 0; }
.card dt { color: var(--soft); }
.card dd { margin: 0; }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 4px; padding: 0 7px;
  margin-right: 8px; font-size: 12px; font-weight: 700; letter-spacing: .03em; }
.ok { color: var(--ok); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.verdict.ok, .verdict.bad, .verdict.warn { color: var(--fg); }
.scroll { overflow-x: auto; }
.scroll svg { display: block; min-width: 900px; width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 0 14px; }
details[open] { padding-bottom: 10px; }
summary { cursor: pointer; padding: 8px 0; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:nth-child(1), td:nth-child(3) { white-space: nowrap; }
.life { display: grid; grid-template-columns: minmax(0, 1fr) 330px 190px; gap: 4px 20px; align-items: center;
  padding: 8px 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
.life svg { width: 330px; height: 26px; display: block; }
svg text { fill: var(--fg); font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
svg .small { font-size: 11.5px; } svg .strong { font-weight: 650; } svg .soft { fill: var(--soft); }
svg .ok { fill: var(--ok); } svg .bad { fill: var(--bad); } svg .warn, svg .small.unsure { fill:
  var(--warn); }
svg .box { fill: var(--panel); stroke: var(--line); stroke-width: 1.2; }
svg .box.bad { stroke: var(--bad); stroke-width: 2.4; }
svg .box.unsure { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 8 5; }
svg .actor { fill: var(--bg); stroke: var(--accent); stroke-width: 1.6; }
svg .way { stroke: var(--ok); stroke-width: 1.8; fill: none; }
svg .way.bad { stroke: var(--bad); stroke-width: 2.6; } svg .way.warn, svg .way.unsure { stroke:
  var(--warn); }
svg .way.dashed { stroke-dasharray: 6 5; }
svg .head { fill: var(--ok); stroke: none; } svg .head.bad { fill: var(--bad); }
svg .head.warn { fill: var(--warn); }
svg .trunk { stroke: var(--soft); stroke-width: 1.6; fill: none; }
svg .elapsed { fill: var(--bar); } svg .left { fill: var(--left); stroke: var(--line); }
svg .now { stroke: var(--fg); stroke-width: 2; } svg .nowhead { fill: var(--fg); }
svg .over { fill: none; stroke: var(--bad); stroke-width: 2.4; stroke-dasharray: 4 3; }
@media (max-width: 760px) { .life { grid-template-columns: 1fr; } body { padding: 16px; } }
@media print { details { border: 0; } body { max-width: none; } }
"""
