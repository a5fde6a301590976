// SPDX-License-Identifier: MIT
// The style sheet of report pages: colours for light and dark, type, and the look of the plots.
#pragma once

#include <string_view>

namespace examples {

inline constexpr std::string_view kReportStyle = R"css(
:root {
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1b19; --soft: #5d5c57; --faint: #8b8a84; --rule: #e4e3de;
  --a: #2a6fd6; --b: #a3a19a; --c: #d9822b; --good: #157347; --bad: #b3361f; --wash: #eef3fb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151514; --card: #1e1e1c; --ink: #f1f0ec; --soft: #b9b7b0; --faint: #86847d; --rule: #33322f;
    --a: #5b9bf3; --b: #7d7b75; --c: #eda25a; --good: #58c48c; --bad: #f0826c; --wash: #1f2733;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; -webkit-text-size-adjust: 100%;
}
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 40px; }
.over { margin: 0 0 10px; color: var(--faint); font-size: 14px; }
h1 { margin: 0; font-size: clamp(36px, 6vw, 56px); line-height: 1.08; letter-spacing: -.025em; font-weight: 700; }
.lead { margin: 14px 0 0; max-width: 44em; font-size: 19px; color: var(--soft); text-wrap: pretty; }
h2 { margin: 60px 0 6px; font-size: 25px; letter-spacing: -.015em; line-height: 1.2; }
h3 { margin: 0; font-size: 16px; }
.intro { margin: 0 0 18px; max-width: 46em; color: var(--soft); text-wrap: pretty; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px; margin: 34px 0 18px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 14px; overflow: hidden; }
.tile { background: var(--card); padding: 18px 20px 16px; }
.tile b { display: block; font-size: 27px; line-height: 1.2; letter-spacing: -.02em; font-weight: 650;
  white-space: nowrap; }
.tile span { display: block; margin-top: 2px; font-size: 15px; }
.tile small { display: block; font-size: 13px; color: var(--faint); }
.goals { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 24px; font-size: 14px;
  color: var(--soft); }
.goals i { font-style: normal; font-weight: 700; }
.goals em { font-style: normal; color: var(--bad); }
.yes i { color: var(--good); } .no i { color: var(--bad); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: 26px 22px;
  align-items: end; }
figure { margin: 0; }
figcaption { margin-bottom: 8px; font-size: 14px; line-height: 1.35; text-wrap: balance; }
figure div { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
figure p { margin: 0; }
figure img { display: block; width: 100%; height: auto; aspect-ratio: 1; image-rendering: pixelated;
  border-radius: 6px; }
figure span { display: block; margin-top: 4px; font-size: 13px; color: var(--faint); }
figure b { font-weight: 600; font-variant-numeric: tabular-nums; color: var(--soft); }
figure .up { color: var(--good); } figure .down { color: var(--bad); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 14px; }
.pictures.small img { image-rendering: pixelated; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 6px; image-rendering: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 18px;
  margin-top: 14px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 18px 20px 12px;
  display: flex; flex-direction: column; }
.card p { margin: 2px 0 12px; font-size: 14px; line-height: 1.45; color: var(--soft); text-wrap: pretty; }
.card svg { margin-top: auto; }
.plot { display: block; width: 100%; max-width: 640px; height: auto; overflow: visible; }
.plot text { font-size: 11px; fill: var(--faint); font-variant-numeric: tabular-nums; }
.plot .label { fill: var(--soft); }
.plot .note { fill: var(--soft); }
.plot .halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.plot .mid { text-anchor: middle; } .plot .end { text-anchor: end; }
.plot path { fill: none; }
.plot .grid { stroke: var(--rule); stroke-width: 1; }
.plot .axis { stroke: var(--faint); stroke-width: 1; }
.plot .guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
.plot .line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.plot .raw { stroke-width: 1; stroke-opacity: .28; stroke-linejoin: round; }
.plot .dot { stroke: var(--card); stroke-width: 1.5; }
.s-a { stroke: var(--a); } .s-b { stroke: var(--b); } .s-c { stroke: var(--c); }
.plot .f-a, .f-a { fill: var(--a); } .plot .f-b, .f-b { fill: var(--b); } .plot .f-c, .f-c { fill: var(--c); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; }
thead th { color: var(--faint); font-size: 13px; }
td, thead th:not(:first-child) { text-align: right; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
.measures .wide { width: 34%; padding-left: 22px; padding-right: 0; }
.part th { padding-left: 20px; font-weight: 400; color: var(--soft); }
.part td { color: var(--soft); }
.key { display: inline-block; width: 9px; height: 9px; margin-right: 6px; border-radius: 50%; }
.key.f-a { background: var(--a); } .key.f-b { background: var(--b); }
.mark { display: block; width: 100%; min-width: 160px; height: auto; }
.mark .track { stroke: var(--rule); stroke-width: 2; } .mark .move { stroke: var(--a); stroke-width: 2; opacity: .55; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 48px;
  align-items: start; }
.split .wide { width: 50%; }
.bar { height: 10px; min-width: 2px; border-radius: 0 4px 4px 0; background: var(--a); }
.funnel { margin: auto 0 12px; }
.funnel td { width: 1%; } .funnel th { width: 1%; } .funnel .wide { width: auto; padding-right: 0; }
.total th, .total td { font-weight: 600; border-bottom: 0; }
.facts th { font-weight: 400; color: var(--soft); }
.facts th, .facts td { padding-top: 4px; padding-bottom: 4px; }
footer { margin-top: 56px; font-size: 13px; color: var(--faint); overflow-wrap: anywhere; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; color: var(--soft); }
@media (max-width: 720px) {
  main { padding: 32px 16px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile { padding: 14px; }
  .tile b { font-size: 22px; }
}
@media print { body { background: #fff; } .card, figure { break-inside: avoid; } }
)css";

}  // namespace examples
