"use strict";
// Everything of the trace is put into the page as text; nothing of it is ever parsed as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function shape(name, attributes, title = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (title) {
    const tip = document.createElementNS(SVG, "title");
    tip.textContent = title;
    made.append(tip);
  }
  return made;
}

const threads = data.threads;
const children = threads.map(() => []);
threads.forEach((thread, index) => { if (thread.parent >= 0) children[thread.parent].push(index); });
const roots = threads.map((_, index) => index).filter((index) => threads[index].parent < 0);
const wordsOf = (thread) => (thread.pieces || []).map((piece) => piece.words.map((word) => data.words[word]).join("")).join("\n");
const depthsOf = (thread) => (thread.pieces || []).flatMap((piece) => piece.depths || []);
const deepest = threads.reduce((above, thread) => depthsOf(thread).reduce((most, depth) => Math.max(most, depth), above), 1);

// ---- head ----

byId("title").textContent = data.title;
document.title = `${data.title}: Braid trace`;
byId("policy").textContent = data.policy;
const notices = [data.lost && `Not all of this trace could be read: ${data.lost}`, data.summarised].filter(Boolean);
byId("notice").textContent = notices.join(" ");
byId("notice").hidden = !notices.length;
for (const [name, value] of data.figures) {
  const pair = element("div");
  pair.append(element("dt", {}, name), element("dd", {}, value));
  byId("figures").append(pair);
}

// ---- timeline ----

const ROW = 8;
const bars = [];

function drawTimeline() {
  const end = Math.max(data.seconds, 1e-6), height = threads.length * ROW;
  const x = (time) => (1000 * time) / end;
  const svg = shape("svg", { viewBox: `0 0 1000 ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.style.setProperty("height", `${height}px`);
  svg.setAttribute("aria-label", `${threads.length} threads over ${end.toFixed(3)} seconds`);
  threads.forEach((thread, index) => {
    const y = index * ROW + 1;
    if (thread.parent >= 0) {
      const above = thread.parent * ROW + ROW / 2, own = y + ROW / 2 - 1;
      svg.append(shape("line", { x1: x(thread.first), x2: x(thread.first), y1: above, y2: own, class: "arrow" }));
    }
    const place = { x: x(thread.first), y, width: Math.max(1, x(thread.last - thread.first)), height: ROW - 2 };
    const title = `${thread.path}: ${thread.first.toFixed(4)} to ${thread.last.toFixed(4)} s, ${thread.outcome}`;
    const kind = thread.tool ? "tool" : thread.is_critical && thread.parent >= 0 ? "critical" : "run";
    const bar = shape("rect", { ...place, class: kind, "data-thread": index }, title);
    bar.addEventListener("click", () => choose(index, true));
    bars.push(bar);
    svg.append(bar);
    for (const [from, to] of thread.waits || []) {
      svg.append(shape("rect", { x: x(from), y, width: Math.max(0.5, x(to - from)), height: ROW - 2, class: "wait" }));
    }
  });
  byId("timeline").append(svg);
  const most = data.ticks.reduce((above, [, inFlight]) => Math.max(above, inFlight), 1);
  const points = data.ticks.map(([time, inFlight]) => `${x(time)},${40 - (38 * inFlight) / most}`).join(" ");
  const flight = shape("svg", { viewBox: "0 0 1000 40", preserveAspectRatio: "none", role: "img", "aria-label": `tokens in flight, at most ${most}` });
  flight.append(shape("polyline", { points: `0,40 ${points} 1000,40`, class: "flight" }, `tokens in flight, at most ${most}`));
  byId("flight").append(flight);
}

// ---- tree ----

const items = [];
let chosen = -1;

function buildTree() {
  const stack = [];
  threads.forEach((thread, index) => {
    const item = element("li", { role: "treeitem", tabindex: "-1", "aria-selected": "false", id: `item-${index}` });
    const row = element("div", { class: thread.is_critical && thread.parent >= 0 ? "row on-path" : "row" });
    const fold = element("span", { class: "fold", "aria-hidden": "true" });
    const label = element("span", { class: "label" });
    label.append(element("span", { class: "name" }, thread.path));
    label.append(` ${thread.tool || thread.prompt || thread.text || thread.outcome}`);
    row.append(fold, label);
    item.append(row);
    if (children[index].length) {
      item.setAttribute("aria-expanded", "false");
      const list = element("ul", { role: "group" });
      list.hidden = true;
      item.append(list);
    }
    fold.addEventListener("click", (event) => { event.stopPropagation(); toggle(index); });
    row.addEventListener("click", () => choose(index, true));
    items.push(item);
    stack[index] = item;
    (thread.parent >= 0 ? stack[thread.parent].lastElementChild : byId("tree")).append(item);
    mark(index);
  });
}

const isOpen = (index) => items[index].getAttribute("aria-expanded") === "true";

function mark(index) {
  const fold = items[index].firstElementChild.firstElementChild;
  fold.textContent = children[index].length ? (isOpen(index) ? "▾" : "▸") : "";
}

function toggle(index, open = !isOpen(index)) {
  if (!children[index].length) return;
  items[index].setAttribute("aria-expanded", String(open));
  items[index].lastElementChild.hidden = !open;
  mark(index);
}

function reveal(index) {
  for (let above = threads[index].parent; above >= 0; above = threads[above].parent) toggle(above, true);
}

function visible() {
  const found = [];
  const walk = (index) => { found.push(index); if (isOpen(index)) children[index].forEach(walk); };
  roots.forEach(walk);
  return found;
}

byId("tree").addEventListener("keydown", (event) => {
  const order = visible(), at = order.indexOf(chosen);
  let next = null;
  if (event.key === "ArrowDown") next = order[at + 1];
  else if (event.key === "ArrowUp") next = order[at - 1];
  else if (event.key === "Home") next = order[0];
  else if (event.key === "End") next = order[order.length - 1];
  else if (event.key === "ArrowRight") {
    if (children[chosen].length && !isOpen(chosen)) toggle(chosen, true);
    else next = children[chosen][0];
  } else if (event.key === "ArrowLeft") {
    if (isOpen(chosen)) toggle(chosen, false);
    else if (threads[chosen].parent >= 0) next = threads[chosen].parent;
  } else if (event.key === "Enter") byId("thread").focus();
  else return;
  event.preventDefault();
  if (next !== null && next !== undefined) { choose(next, true); items[next].focus(); }
});

// ---- one thread ----

function link(index, text) {
  const made = element("a", { href: `#thread-${threads[index].path}` }, text);
  return made;
}

function choose(index, setHash) {
  if (chosen >= 0) {
    items[chosen].setAttribute("aria-selected", "false");
    items[chosen].setAttribute("tabindex", "-1");
    bars[chosen].classList.remove("chosen");
  }
  chosen = index;
  const thread = threads[index];
  reveal(index);
  items[index].setAttribute("aria-selected", "true");
  items[index].setAttribute("tabindex", "0");
  const tree = byId("tree"), place = items[index].firstElementChild.getBoundingClientRect(), frame = tree.getBoundingClientRect();
  if (place.top < frame.top || place.bottom > frame.bottom) tree.scrollTop += place.top - frame.top - frame.height / 3;
  bars[index].classList.add("chosen");
  if (setHash) history.replaceState(null, "", `#thread-${thread.path}`);
  byId("name").textContent = `Thread ${thread.path}`;
  const counts = thread.tool ? `tool ${thread.tool}`
    : `received ${thread.received}, sampled ${thread.generated}, iterations ${thread.iterations}`;
  byId("facts").textContent = `${thread.outcome}${thread.error ? `: ${thread.error}` : ""}; ${counts}; ${thread.first.toFixed(4)} to ${thread.last.toFixed(4)} s`
    + (thread.forked ? "; forked" : "");
  const links = byId("links");
  links.replaceChildren();
  if (thread.parent >= 0) links.append("spawned by ", link(thread.parent, threads[thread.parent].path), " ");
  children[index].forEach((child, at) => links.append(at ? ", " : "children: ", link(child, threads[child].path)));
  showText(thread);
  showDepths(thread);
}

function showText(thread) {
  const text = byId("text"), colour = document.querySelector("input[name=colour]:checked").value;
  text.replaceChildren();
  if (thread.is_left_out) text.textContent = "Its tokens were left out, to keep the page small.";
  if (thread.tool) text.append(element("div", { class: "piece received", "data-kind": "result" }, thread.text));
  let position = thread.start;
  for (const piece of thread.pieces || []) {
    const kind = piece.sampled ? "sampled" : "received";
    const block = element("div", { class: `piece ${kind}`, "data-kind": kind });
    piece.words.forEach((word, at) => {
      const depth = (piece.depths || [])[at] || 0, logprob = (piece.logprobs || [])[at];
      const token = element("span", { class: "token" });
      token.textContent = data.words[word];
      token.title = `position ${position}, depth ${depth}` + (piece.sampled ? `, probability ${Math.exp(logprob).toFixed(3)}` : "");
      const share = colour === "depth" ? depth / deepest : colour === "probability" && piece.sampled ? 1 - Math.exp(logprob) : 0;
      if (share > 0) token.style.setProperty("background", `color-mix(in srgb, var(--accent) ${Math.round(60 * share)}%, transparent)`);
      block.append(token, document.createElement("wbr"));
      position += 1;
    });
    text.append(block);
  }
}

function showDepths(thread) {
  const depths = depthsOf(thread);
  const svg = shape("svg", { viewBox: `0 0 ${Math.max(1, depths.length)} 40`, preserveAspectRatio: "none", role: "img" });
  svg.style.setProperty("height", "5rem");
  svg.setAttribute("aria-label", `depths of ${depths.length} tokens, at most ${deepest}`);
  depths.forEach((depth, at) => {
    const height = (40 * depth) / deepest;
    svg.append(shape("rect", { x: at, y: 40 - height, width: 0.9, height, class: "bar" }, `position ${thread.start + at}: ${depth}`));
  });
  byId("depths").replaceChildren(svg);
}

document.querySelectorAll("input[name=colour]").forEach((input) => input.addEventListener("change", () => showText(threads[chosen])));

// ---- search and links ----

byId("search").addEventListener("input", () => {
  const wanted = byId("search").value.trim().toLowerCase();
  let found = 0, first = -1;
  threads.forEach((thread, index) => {
    const hit = wanted && [thread.path, thread.tool, thread.prompt, thread.text, thread.error, wordsOf(thread)].some((text) => (text || "").toLowerCase().includes(wanted));
    items[index].classList.toggle("hit", Boolean(hit));
    if (hit) { found += 1; reveal(index); if (first < 0) first = index; }
  });
  byId("found").textContent = wanted ? `${found} of ${threads.length} threads` : "";
  if (first >= 0) choose(first, true);
});

function follow() {
  const path = decodeURIComponent(location.hash).replace("#thread-", "");
  const index = threads.findIndex((thread) => thread.path === path);
  if (index >= 0) choose(index, false);
  return index >= 0;
}

window.addEventListener("hashchange", follow);
drawTimeline();
buildTree();
if (threads.length) {
  toggle(roots[0], true);
  if (!follow()) choose(roots[0], false);
} else byId("name").textContent = "No threads";
