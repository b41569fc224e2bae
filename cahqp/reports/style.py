"""How the report looks: one column, a phone's width or a desk's, light or dark as the reader's system is."""

CLASS_COLOURS = ("#ffb000", "#38b6ff", "#ff5f87", "#4ddc8b", "#c58bff", "#ff8a3d", "#f4f06a", "#7de3e1")
"""Told apart on asphalt by day and by night, and by most colour-blind readers; classes past the eighth repeat."""

CSS = """
:root { --paper: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #5c6670; --line: #e2e4e6; --accent: #0b62c4;
  --bar: #cfe0f5; --good: #10713f; --good-paper: #e3f4ea; --wait: #8a5300; --wait-paper: #fcf0dc; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1c2024; --ink: #e7eaed; --soft: #9aa5b0; --line: #31373d; --accent: #6fb1ff;
    --bar: #24405f; --good: #7fdba6; --good-paper: #16301f; --wait: #f3c06b; --wait-paper: #33270f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; }
h2 { font-size: 1.2rem; letter-spacing: -.005em; margin: 3rem 0 .75rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.verdict { margin: 1.5rem 0 0; padding: .9rem 1.1rem; border-radius: .6rem; max-width: none; font-weight: 600; }
.good { background: var(--good-paper); color: var(--good); }
.wait { background: var(--wait-paper); color: var(--wait); }
.up { color: var(--good); } .down { color: var(--wait); }
.missing { border: 1px dashed var(--line); border-radius: .5rem; padding: 1rem; color: var(--soft); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: baseline; }
th:first-child { text-align: left; white-space: normal; min-width: 8rem; }
thead th { color: var(--soft); font-weight: 500; font-size: .8125rem; vertical-align: bottom; white-space: normal; }
thead th { overflow-wrap: break-word; }
tbody th { font-weight: 500; }
.facts td { width: 75%; white-space: normal; } .facts td, .facts thead th { text-align: left; }
.measure { display: inline-flex; align-items: center; gap: .6rem; }
.measure svg { width: 6rem; height: .6rem; }
@media (max-width: 40rem) { .measure svg { display: none; } }
.bar-back { fill: var(--line); } .bar { fill: var(--accent); }
code, pre { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  overflow-x: auto; margin: .6rem 0; }
pre.command { white-space: pre-wrap; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); padding: .25rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; margin: 1.25rem 0; }
.pair > p, .pair > figcaption { grid-column: 1 / -1; margin: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .9rem; }
@media (max-width: 40rem) { .pair, .panels { grid-template-columns: 1fr; } main { padding-top: 1.5rem; } }
figure { margin: 0; } figcaption { margin-top: .3rem; }
.picture { display: block; width: 100%; height: auto; border-radius: .45rem; background: #000; }
.picture rect { fill: none; pointer-events: all; }
.picture text { font-weight: 600; paint-order: stroke; stroke: #000; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .875rem; margin: .75rem 0; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; }
.legend svg { width: .8rem; height: .8rem; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .75rem .9rem .5rem; }
.panel svg { display: block; width: 100%; height: auto; }
.panel .name { display: flex; justify-content: space-between; gap: 1rem; font-size: .875rem; font-weight: 500; }
.panel .name span + span { color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
.panel text { fill: var(--soft); font-size: 8.5px; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--accent); stroke-width: 1.6; }
.point { fill: var(--accent); }
"""
