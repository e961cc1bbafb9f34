"use strict";
// TOLD[figure][tree] = {parent: [node], told: [figures by node]}
const large = document.getElementById("large"), list = document.getElementById("figures");
let chosen = null;

function at(figure, tree, node) { return document.getElementById(`n${figure}-${tree}-${node}`); }

function names(element) { return element.id.slice(1).split("-").map(Number); }

function choose(element) {
  if (!element || element === chosen) return;
  if (chosen) { chosen.classList.remove("chosen"); chosen.tabIndex = -1; }
  chosen = element;
  document.getElementById("told").classList.remove("empty");
  chosen.classList.add("chosen");
  chosen.tabIndex = 0;
  const [figure, tree, node] = names(element), drawn = element.querySelector("image");
  large.hidden = !drawn;
  if (drawn) {
    large.src = drawn.getAttribute("href");
    large.className = drawn.getAttribute("class") || "";
    large.alt = element.getAttribute("aria-label");
  }
  list.replaceChildren(...Object.entries(TOLD[figure][tree].told[node]).map(([name, value]) => {
    const row = document.createElement("div"), term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    row.append(term, told);
    return row;
  }));
}

function beside(figure, tree, node, key) {
  // where an arrow key leads from a node, or null
  const {parent} = TOLD[figure][tree];
  if (key === "ArrowLeft") return node > 0 ? at(figure, tree, parent[node]) : null;
  if (key === "ArrowRight") return at(figure, tree, parent.indexOf(node));
  const level = one => { let depth = 0; for (; one > 0; one = parent[one]) depth += 1; return depth; };
  const step = key === "ArrowDown" ? 1 : -1, next = at(figure, tree, node + step);
  if (next && level(node + step) === level(node)) return next;
  // the same level of the next tree, which has the same shape; then the next figure
  const same = TOLD[figure][tree + step];
  if (same) {
    const depth = level(node), nodes = same.parent.map((_, one) => one).filter(one => level(one) === depth);
    return at(figure, tree + step, step > 0 ? nodes[0] : nodes[nodes.length - 1]);
  }
  return step > 0 ? at(figure + 1, 0, 0) : at(figure - 1, 0, 0);
}

for (const element of document.querySelectorAll(".node")) {
  element.addEventListener("mouseenter", () => choose(element));
  element.addEventListener("focus", () => choose(element));
  element.addEventListener("click", () => element.focus({preventScroll: true}));
}
document.addEventListener("keydown", event => {
  if (!event.key.startsWith("Arrow") || !document.activeElement.classList.contains("node")) return;
  event.preventDefault();
  const next = beside(...names(document.activeElement), event.key);
  if (next) { next.focus(); next.scrollIntoView({block: "nearest", inline: "nearest"}); }
});
