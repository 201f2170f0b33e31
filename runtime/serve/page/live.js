// Shows trees as their events come. Texts are set as text, never as markup.
"use strict";

const MOST_TREES = 24;
const main = document.getElementById("trees");
const state = document.getElementById("state");
let rows = new Map();

function row(path, text, below) {
  const item = document.createElement("li");
  item.className = "running";
  item.id = "thread-" + path.join(".");
  for (const [name, content] of [["path", path.join(".")], ["text", text], ["outcome", ""]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = content;
    item.append(part);
  }
  const list = document.createElement("ul");
  item.append(list);
  below.append(item);
  rows.set(path.join("."), item);
  return item;
}

function childrenOf(path) {
  const item = rows.get(path.join("."));
  return item ? item.querySelector(":scope > ul") : null;
}

function begin(event) {
  const list = document.createElement("ul");
  main.prepend(list);
  row(event.thread, event.text, list);
  while (main.children.length > MOST_TREES) {
    for (const item of main.lastChild.querySelectorAll("li")) rows.delete(item.id.slice("thread-".length));
    main.lastChild.remove();
  }
}

function end(item, kind, text) {
  item.className = kind;
  item.querySelector(":scope > .outcome").textContent = text;
}

const actions = {
  begin() { rows = new Map(); main.replaceChildren(); },
  started(event) { begin(event); },
  spawned(event) {
    const below = childrenOf(event.thread);
    if (below) row(event.child, event.text, below);
  },
  refused(event) {
    const below = childrenOf(event.thread);
    if (!below) return;
    const item = row([...event.thread, "refused " + below.children.length], event.text, below);
    end(item, "refused", event.reason);
  },
  joined() {},
  ended(event) {
    const item = rows.get(event.thread.join("."));
    if (item) end(item, event.outcome, event.text || event.error || event.outcome);
  },
};

const source = new EventSource("events");
source.onopen = () => { state.textContent = "watching"; };
source.onerror = () => { state.textContent = "connecting"; };
source.onmessage = (message) => {
  for (const event of JSON.parse(message.data)) actions[event.type](event);
  state.textContent = main.querySelectorAll(".running").length + " threads running";
};
