"""How a page looks: on a phone, on a wide screen, in the dark, on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f4f6f8; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de;
  --accent: #0b57d0; --good: #1a7f37; --bad: #c0262d;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --raised: #1f2428; --text: #e6e8ea; --quiet: #a8b0b8; --line: #3b434b;
    --accent: #8ab4f8; --good: #5bd18b; --bad: #ff8a80;
  }
  img { filter: brightness(0.9); }
}
*, *::before, *::after { box-sizing: border-box; }
html { font: 100%/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: var(--ground); color: var(--text);
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2rem 0 0.75rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 1.5rem 0 0.5rem; }
h4, h5, h6 { font-size: 1rem; margin: 1.25rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 45rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
[hidden] { display: none; }

nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0; padding: 0; list-style: none; }
nav li { min-width: 0; overflow-wrap: anywhere; }
nav a { display: inline-block; padding: 0.35rem 0; }
.chooser { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 1.25rem 0; padding: 0; border: 0; min-width: 0; }
.chooser[hidden] { display: none; }
.chooser legend { padding: 0; margin-bottom: 0.35rem; font-weight: 600; }
.chooser label { display: inline-flex; align-items: center; gap: 0.4rem; min-height: 2.5rem; padding: 0.35rem 0.8rem;
  border: 1px solid var(--line); border-radius: 0.5rem; background: var(--raised); cursor: pointer; min-width: 0;
  overflow-wrap: anywhere; }
.chooser label:has(:checked) { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.chooser input { flex: none; accent-color: var(--accent); margin: 0; }

.scroll { container-type: inline-size; max-width: 100%; overflow-x: auto; margin: 1rem 0 0.25rem; }
table { border-collapse: collapse; font-size: 0.925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 0.4rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: 100cqi; overflow-wrap: anywhere; }
th, td { padding: 0.35rem 0.75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  max-width: 24rem; min-width: 3rem; }
.long { min-width: min(14rem, 40cqi); overflow-wrap: anywhere; }
thead .long { min-width: 9rem; }
thead th, thead td { background: var(--raised); vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 500; position: sticky; left: 0; max-width: min(24rem, 45cqi); background: var(--ground); }
.number { text-align: right; }
td.number, tbody th.number, .whole { white-space: nowrap; }
tbody tr:hover > * { background: var(--raised); }
th button { position: relative; font: inherit; color: inherit; text-align: inherit; background: none; border: 0;
  margin: 0; padding: 0 1.1em 0 0; cursor: pointer; min-height: 1.5rem; }
.number button { padding: 0 0 0 1.1em; }
th button:hover { text-decoration: underline; }
th button::after { content: "\\2195"; position: absolute; right: 0; bottom: 0; width: 1em; text-align: center;
  color: var(--quiet); font-weight: 400; }
.number button::after { right: auto; left: 0; }
[aria-sort="ascending"] button::after { content: "\\2191"; color: var(--accent); }
[aria-sort="descending"] button::after { content: "\\2193"; color: var(--accent); }
p.note, figcaption { color: var(--quiet); font-size: 0.9rem; max-width: 45rem; }
p.note { margin: 0.25rem 0 1rem; }

figure { margin: 1rem 0; }
figure .scroll { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 0.25rem; }
figcaption { margin-top: 0.35rem; }

.items { list-style: none; margin: 0.75rem 0; padding: 0; max-width: 50rem; }
.items li { display: flex; gap: 0.6rem; padding: 0.3rem 0; }
.items li > span { min-width: 0; overflow-wrap: anywhere; }
.items li > .mark { flex: none; width: 1.2em; text-align: center; font-weight: 700; color: var(--quiet); }
.items .good > .mark { color: var(--good); }
.items .bad > .mark { color: var(--bad); }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

@media screen and (max-width: 40rem) {
  img.wide { max-width: none; width: 40rem; }
  th, td { padding: 0.35rem 0.5rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .chooser, nav { display: none; }
  .choice[hidden] { display: block; }
  .scroll { overflow: visible; container-type: normal; }
  caption span { position: static; max-width: none; }
  tbody th { position: static; max-width: none; }
  .long { min-width: 6rem; }
  table { font-size: 8pt; }
  th, td { padding: 2pt 4pt; }
  th button, .number button { padding: 0; }
  th button::after { content: none; }
  thead { display: table-header-group; }
  tr, figure, .items li { break-inside: avoid; }
  h2, h3, h4, h5, h6, caption { break-after: avoid; }
}
"""
