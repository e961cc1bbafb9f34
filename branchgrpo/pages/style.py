"""What the pages about runs have beside the frame of all pages."""

STYLE = """
:root { --c0: #1f5fbf; --c1: #c25a00; --c2: #1a7f4b; --c3: #7b3fd0; --c4: #c2372e; --c5: #6c7480;
  --c6: #00798c; --c7: #a4006e; }
@media (prefers-color-scheme: dark) { :root { --c0: #7fb0ff; --c1: #ffab5e; --c2: #4cc38a;
  --c3: #c2a1ff; --c4: #ff7b72; --c5: #98a1ae; --c6: #4fd0e0; --c7: #ff8fd0; } }
.top { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
.chip { border: 1px solid var(--line); border-radius: 999px; padding: 0 10px;
  background: var(--panel); white-space: nowrap; }
.score { font-size: 1.5rem; margin: 10px 0; line-height: 1.25; } .score small { font-size: .95rem; }
.alarm { border-left: 4px solid var(--bad); background: var(--panel); padding: 8px 12px;
  margin: 8px 0; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 320px), 1fr)); } .charts figure { max-width: 560px; }
.shots { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 250px), 1fr)); }
.grown { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 480px), 1fr)); } .grown img { width: 100%; display: block; }
.leaves { grid-template-columns: repeat(auto-fill, minmax(min(100%, 160px), 1fr));
  margin-bottom: 16px; }
.strips { grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  margin-bottom: 16px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pair.tall { grid-template-columns: 1fr; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .87rem; margin-top: 4px; }
.shots img { width: 100%; display: block; border-radius: 4px; background: var(--panel); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .grid, svg .axis { stroke: var(--line); stroke-width: 1; fill: none; }
svg .grid { opacity: .6; } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .thin { fill: none; stroke-width: 1; opacity: .35; } svg .band { opacity: .18; }
svg .at { stroke: var(--text); stroke-dasharray: 3 3; }
h3 { font-size: .95rem; margin: 0 0 4px; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0; font-size: .87rem; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 5px; }
.told { min-height: 1.5em; margin: 2px 0; font-size: .87rem; color: var(--quiet); }
.slider { display: flex; gap: 12px; align-items: center; margin: 8px 0; }
.slider input { flex: 1; min-width: 0; max-width: 640px; accent-color: var(--accent);
  padding: 4px 0; } .slider output { min-width: 8.5em; font-variant-numeric: tabular-nums; }
.phone { display: none; }
@media (max-width: 700px) { .desk { display: none; } .phone { display: block; } }
code { font: .87rem/1.5 ui-monospace, monospace; } [hidden] { display: none !important; }
.scroll table { overflow-wrap: break-word; } .scroll code { max-width: 60ch; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr;
  gap: 2px 14px; margin: 0 0 12px; } dt { color: var(--quiet); } dd { margin: 0; min-width: 0; }
"""

SCRIPT = """
for (const chart of document.querySelectorAll("svg[data-words]")) {
  const words = JSON.parse(chart.dataset.words), mark = chart.querySelector(".at");
  const told = chart.parentElement.querySelector(".told");
  let place = words.length - 1;
  const show = index => {
    place = Math.max(0, Math.min(words.length - 1, index));
    mark.setAttribute("transform", `translate(${words[place][0]} 0)`);
    mark.setAttribute("visibility", "visible");
    told.textContent = words[place][1];
  };
  const near = event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    let best = 0;
    words.forEach(([at], index) => {
      if (Math.abs(at - x) < Math.abs(words[best][0] - x)) best = index; });
    show(best);
  };
  chart.addEventListener("pointermove", near);
  chart.addEventListener("pointerdown", near);
  chart.addEventListener("focus", () => show(place));
  chart.addEventListener("keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9}[event.key];
    if (move) { show(place + move); event.preventDefault(); }
  });
}
for (const box of document.querySelectorAll("[data-slider]")) {
  const input = box.querySelector("input"), output = box.querySelector("output");
  const names = JSON.parse(input.dataset.names), own = location.pathname + box.dataset.slider;
  const show = () => {
    for (const one of box.querySelectorAll("[data-at]"))
      one.hidden = one.dataset.at !== input.value;
    output.textContent = names[input.value];
    input.setAttribute("aria-valuetext", names[input.value]);
  };
  input.addEventListener("input", () => {
    show();
    // a page that loads itself anew stays where it was
    try { sessionStorage.setItem(own, names[input.value]); } catch { }
  });
  try {
    const before = names.indexOf(sessionStorage.getItem(own));
    if (before >= 0) input.value = before;
  } catch { }
  show();
}
"""
"""Charts tell what is pointed at, by arrow keys too; sliders show what is of one check."""
