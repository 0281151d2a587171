// The live page. A snapshot and then patches come by server-sent events; each section is drawn again, at most once a frame,
// when something that it shows has changed. No library: what is drawn is little, and the table draws only what is seen.
"use strict";

const $ = (id) => document.getElementById(id);
const TOKEN = document.querySelector("meta[name=fencepost-token]").content;
const KINDS = {
  election: "elections", repeat: "repeats", refused: "refusals", fence: "fences", lost: "lost acknowledgements",
  process: "processes", isr: "in-sync sets", log: "logs", story: "the story",
};
const MAX_EVENTS = 300, ROW = 32, STRIP_S = 60, FRESH_MS = 1500, REPEAT_MS = 6000, MAX_POINTS = 120;

const state = {
  nodes: {}, partitions: new Map(), events: [], points: [], story: {steps: []}, load: {on: false}, clusterId: "",
  local: true, hasCluster: false, hasFaults: false, faults: [],
};
const hidden = new Set();          // kinds of events that are not shown
const fresh = new Map();           // "partition|broker|producer|first" -> until when the chip is shown as new
const repeats = new Map();         // likewise: as a recognised repeat
let picked = "", pickedByHand = false, names = [], sortedNames = null;

// ---- What comes ----

const dirty = new Set();
let drawing = false;
function draw(...parts) {
  for (const part of parts) dirty.add(part);
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const parts = [...dirty];
    dirty.clear();
    for (const part of parts) drawings[part]();
  });
}

function connect() {
  const source = new EventSource("/events");
  source.addEventListener("snapshot", (event) => {
    $("link").textContent = "Live";
    const said = JSON.parse(event.data);
    state.partitions = new Map(Object.entries(said.partitions));
    delete said.partitions;
    Object.assign(state, said);
    sortedNames = null;
    draw(...Object.keys(drawings));
  });
  source.addEventListener("patch", (event) => patch(JSON.parse(event.data)));
  source.onerror = () => { $("link").textContent = "The page’s server does not answer; trying again…"; };
  source.onopen = () => { $("link").textContent = "Live"; };
}

function patch(said) {
  if (said.partitions) {
    for (const [name, partition] of Object.entries(said.partitions)) {
      if (name === picked) noteFresh(name, state.partitions.get(name), partition);
      if (!state.partitions.has(name)) sortedNames = null;
      state.partitions.set(name, partition);
    }
    draw("partitions");
    if (said.partitions[picked] || !picked) draw("producers");
    if (sortedNames === null) draw("pick");
  }
  if (said.gone) {
    for (const name of said.gone) state.partitions.delete(name);
    sortedNames = null;
    draw("partitions", "pick", "producers");
  }
  if (said.nodes) { Object.assign(state.nodes, said.nodes); draw("nodes", "producers", "strip"); }
  if (said.events) takeEvents(said.events);
  if (said.point) {
    state.points.push(said.point);
    if (state.points.length > MAX_POINTS) state.points.shift();
    draw("charts", "strip");
  }
  for (const name of ["clusterId", "local", "hasCluster", "hasFaults", "faults"]) {
    if (name in said) { state[name] = said[name]; draw("header", "nodes"); }
  }
  if (said.load) { state.load = said.load; draw("load"); }
  if (said.story) {
    const before = state.story.partition;
    state.story = said.story;
    if (said.story.partition && said.story.partition !== before) { picked = said.story.partition; draw("pick", "producers"); }
    draw("story");
  }
}

function takeEvents(events) {
  state.events.push(...events);
  state.events.splice(0, Math.max(0, state.events.length - MAX_EVENTS));
  for (const event of events) {
    if (event.kind !== "repeat" || !event.producer) continue;
    const key = `${event.partition}|${event.node}|${event.producer}|${event.first}`;
    repeats.set(key, performance.now() + REPEAT_MS);
    setTimeout(() => { repeats.delete(key); draw("producers"); }, REPEAT_MS + 50);
    draw("producers");
  }
  draw("strip");
  addLines(events);
}

function noteFresh(name, before, now) {
  for (const [producer, view] of Object.entries(now.producers)) {
    for (const [broker, batches] of Object.entries(view.batches)) {
      const known = before && before.producers[producer] && before.producers[producer].batches[broker] || [];
      const last = known.length ? known[known.length - 1][2] : -1;
      for (const [first, , offset] of batches) {
        if (offset <= last) continue;
        const key = `${name}|${broker}|${producer}|${first}`;
        fresh.set(key, performance.now() + FRESH_MS);
        setTimeout(() => { fresh.delete(key); draw("producers"); }, FRESH_MS + 50);
      }
    }
  }
}

// ---- What is drawn ----

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Replace what is in a place, and keep the focus on the control that had it.
function fill(place, children) {
  const active = document.activeElement;
  const kept = active && place.contains(active) ? active.dataset.focus : null;
  place.replaceChildren(...children);
  if (kept) {
    const again = [...place.querySelectorAll("[data-focus]")].find((each) => each.dataset.focus === kept);
    if (again) again.focus();
  }
}

const collator = new Intl.Collator("en", {numeric: true});
function allNames() {
  if (sortedNames === null) sortedNames = [...state.partitions.keys()].sort(collator.compare);
  return sortedNames;
}
const isBroker = (node) => /^\d+$/.test(node);
const rank = (node) => node.startsWith("controller") ? 0 : isBroker(node) ? 1 : 2;  // then etcd
const inOrder = (nodes) => nodes.sort((a, b) => rank(a) - rank(b) || collator.compare(a, b));
const title = (node) => isBroker(node) ? `Broker ${node}` : node[0].toUpperCase() + node.slice(1);
const listed = (brokers) => brokers.length ? brokers.join(", ") : "none";

// The card of a process. It is made once and changed in place: a button that is replaced under the pointer takes no click.
const cards = new Map();
function makeCard(name) {
  const card = {state: element("span", {class: "state"}), told: element("span"), where: element("p")};
  card.buttons = [0, 1, 2, 3].map(() => element("button", {type: "button", "data-target": name}));
  card.root = element("div", {class: "node", "data-node": name, role: "group", "aria-label": title(name)},
    element("h3", {}, title(name)), element("p", {}, card.state, card.told), card.where,
    element("div", {class: "bar"}, ...card.buttons));
  return card;
}

function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function setAction(button, name, action, label, enabled) {
  button.disabled = !enabled;
  if (button.dataset.action === action) return;
  button.dataset.action = action;
  button.textContent = label;
  button.setAttribute("aria-label", `${label} ${title(name).toLowerCase()}`);
}

function countLed() {
  const led = {};
  for (const {leader} of state.partitions.values()) led[leader] = (led[leader] || 0) + 1;
  return led;
}

const drawings = {
  header() {
    $("cluster").textContent = state.clusterId ? `Cluster ${state.clusterId}` : "No cluster";
    $("intro").hidden = state.hasCluster;
    $("lose").disabled = !state.hasFaults;
    $("load").disabled = !state.hasCluster;
    $("heal").disabled = !state.faults.length;
    $("faults").replaceChildren(...state.faults.map((fault) => element("li", {}, fault)));
    $("lose").title = state.hasFaults ? "" : "This cluster was started without faults: fencepost cluster up --faults";
    draw("story");
  },

  story() {
    const {steps, running} = state.story;
    $("story-run").disabled = running || !state.hasCluster || !state.local;
    $("story-run").textContent = running ? "The story is being told…" : "Run the story";
    $("story-next").hidden = !running;
    $("story-next").disabled = steps.some((step) => step.state === "running");
    const list = $("steps");
    while (list.children.length > steps.length) list.lastChild.remove();
    steps.forEach((step, at) => {
      let item = list.children[at];
      if (!item) { item = element("li", {}, element("b"), element("p")); list.append(item); }
      if (item.dataset.state !== step.state) {
        item.dataset.state = step.state;
        if (step.state === "running") item.setAttribute("aria-current", "step"); else item.removeAttribute("aria-current");
      }
      if (item.firstChild.textContent !== step.title) item.firstChild.textContent = step.title;
      if (item.lastChild.textContent !== step.text) item.lastChild.textContent = step.text;
    });
  },

  nodes() {
    const order = inOrder(Object.keys(state.nodes));
    for (const name of [...cards.keys()]) {
      if (!(name in state.nodes)) { cards.get(name).root.remove(); cards.delete(name); }
    }
    const led = countLed();
    order.forEach((name, at) => {
      const node = state.nodes[name], down = node.state === "down", paused = node.state === "paused";
      if (!cards.has(name)) cards.set(name, makeCard(name));
      const card = cards.get(name), place = $("nodes");
      if (place.children[at] !== card.root) place.insertBefore(card.root, place.children[at] || null);
      card.root.dataset.state = node.state;
      setText(card.state, node.state);
      const told = down ? "" : ` · ${node.memory_mb.toFixed(0)} MB · ${node.cpu_percent.toFixed(0)} % CPU`;
      setText(card.told, told + (isBroker(name) ? ` · leads ${led[name] || 0}` : node.role ? ` · ${node.role}` : ""));
      setText(card.where, node.address + (down ? "" : ` · process ${node.pid}`));
      setAction(card.buttons[0], name, "kill", "Kill", !down);
      setAction(card.buttons[1], name, paused ? "resume" : "pause", paused ? "Resume" : "Pause", !down);
      setAction(card.buttons[2], name, down ? "start" : "restart", down ? "Start" : "Restart", !paused);
      setAction(card.buttons[3], name, "cut", "Cut", !down && state.hasFaults && !name.startsWith("etcd"));
    });
  },

  load() {
    const load = state.load;
    $("load").setAttribute("aria-pressed", String(load.on));
    $("load").textContent = load.on ? "Stop sending records" : "Send records";
    $("load-told").textContent = load.error ? `Sending has ended: ${load.error}` : load.sent
      ? `${load.acknowledged} of ${load.sent} records to “${load.topic}” acknowledged${load.failed ? `, ${load.failed} failed` : ""}` : "";
  },

  pick() {
    const all = allNames();
    const awaited = state.story.running && picked === state.story.partition;  // the brokers have not shown it yet
    if (!awaited && !state.partitions.has(picked)) { picked = all.find((name) => Object.keys(state.partitions.get(name).producers).length) || all[0] || ""; }
    const shown = all.length > 300 ? [...new Set([picked, ...all.slice(0, 300)])] : all;
    $("pick").replaceChildren(...shown.map((name) => element("option", {value: name, selected: name === picked}, name)));
    $("pick").value = picked;
  },

  producers() {
    if (!pickedByHand && !state.story.running) pickBusiest();
    const partition = state.partitions.get(picked), place = $("producers");
    if (!partition) { place.replaceChildren(element("p", {class: "hint"}, "No partition yet: run the story, or send records.")); return; }
    const producers = Object.entries(partition.producers).sort((a, b) => newest(b[1]) - newest(a[1]));
    const parts = [element("p", {}, `${picked}: `, partition.leader < 0 ? "no leader" : `broker ${partition.leader} leads under epoch ${partition.epoch}`,
      `; in sync: ${listed(partition.isr)}`)];
    if (!producers.length) parts.push(element("p", {class: "hint"}, "No producer has written to it yet."));
    for (const [producer, view] of producers) {
      const epochs = Object.values(view.epoch);
      const heading = element("h3", {}, `Producer ${producer}, epoch ${Math.max(...epochs)}`, view.fence ? ` (epochs below ${view.fence} are fenced)` : "");
      const rows = partition.replicas.map((id) => replicaRow(partition, producer, view, String(id)));
      parts.push(heading, element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `Batches of producer ${producer}`, "data-focus": `p-${producer}`},
        element("table", {"data-producer": producer}, element("thead", {}, element("tr", {}, ...["Replica", "Role", "Epoch", "Last batches: sequences @ offset"].map((text) => element("th", {scope: "col"}, text)))),
          element("tbody", {}, ...rows))));
    }
    fill(place, parts);
  },

  strip() {
    const svg = $("strip"), width = svg.clientWidth || 600, height = svg.clientHeight || 120, left = 78;
    const lanes = inOrder(Object.keys(state.nodes));
    const shown = lanes.slice(0, 8), step = (height - 16) / Math.max(1, shown.length), now = Date.now();
    const parts = [];
    shown.forEach((name, at) => {
      const y = at * step + step / 2 + 4;
      parts.push(shape("text", {x: 0, y: y + 4}, title(name)), shape("line", {x1: left, x2: width, y1: y, y2: y}));
    });
    parts.push(shape("text", {x: left, y: height - 1}, `${STRIP_S} s ago`), shape("text", {x: width - 24, y: height - 1}, "now"));
    for (const event of state.events) {
      const age = (now - event.time_ms) / 1000;
      const lane = shown.indexOf(event.node);
      if (age > STRIP_S || hidden.has(event.kind) || lane < 0) continue;
      const x = left + (width - left - 6) * (1 - Math.max(0, age) / STRIP_S);
      const dot = shape("circle", {cx: x, cy: lane * step + step / 2 + 4, r: 5, class: `dot kind-${event.kind}`});
      dot.append(shape("title", {}, event.text));
      parts.push(dot);
    }
    svg.replaceChildren(...parts);
  },

  log() { $("log").replaceChildren(); addLines(state.events); },

  charts() {
    const points = state.points, last = points[points.length - 1] || {};
    chart($("batches"), [points.map((point) => point.batches)], "line-a", "Batches appended a second");
    chart($("latency"), [points.map((point) => point.p50), points.map((point) => point.p99)], "line-a", "Latency of Produce in ms, p50 and p99");
    $("batches-now").textContent = last.batches === undefined ? "–" : last.batches.toFixed(0);
    $("latency-now").textContent = last.p50 === undefined || last.p50 < 0 ? "–" : `≤ ${last.p50} and ≤ ${last.p99}`;
  },

  partitions() {
    const wanted = $("find").value.trim().toLowerCase();
    const all = allNames();
    names = wanted ? all.filter((name) => name.toLowerCase().includes(wanted)) : all;
    $("count").textContent = `(${names.length}${wanted ? ` of ${all.length}` : ""})`;
    $("table").setAttribute("aria-rowcount", names.length + 1);
    $("rows").style.height = `${names.length * ROW}px`;
    drawRows();
    draw("nodes");
  },
};

function drawRows() {
  const table = $("table"), from = Math.max(0, Math.floor(table.scrollTop / ROW) - 4);
  const to = Math.min(names.length, from + Math.ceil(table.clientHeight / ROW) + 8);
  const rows = [];
  for (let at = from; at < to; at++) {
    const name = names[at], partition = state.partitions.get(name);
    if (!partition) continue;
    const of = partition.of[partition.leader] || Object.values(partition.of)[0] || [0, 0];
    const short = partition.isr.length < partition.replicas.length;
    const failed = Object.values(partition.of).some((replica) => replica[4]);
    rows.push(element("div", {role: "row", "aria-rowindex": at + 2},
      element("span", {role: "cell", title: name}, name),
      element("span", {role: "cell", class: partition.leader < 0 ? "bad-cell" : null}, partition.leader < 0 ? "none" : partition.leader),
      element("span", {role: "cell"}, partition.epoch),
      element("span", {role: "cell", class: failed ? "bad-cell" : short ? "warn-cell" : null}, listed(partition.isr)),
      element("span", {role: "cell"}, of[1]),
      element("span", {role: "cell"}, of[0])));
    rows[rows.length - 1].style.top = `${at * ROW}px`;
  }
  $("rows").replaceChildren(...rows);
}

const newest = (view) => Math.max(-1, ...Object.values(view.batches).map((batches) => batches.length ? batches[batches.length - 1][2] : -1));

function pickBusiest() {
  if (picked && state.partitions.has(picked) && Object.keys(state.partitions.get(picked).producers).length) return;
  const busy = allNames().find((name) => Object.keys(state.partitions.get(name).producers).length);
  if (busy && busy !== picked) { picked = busy; draw("pick"); }
}

function replicaRow(partition, producer, view, broker) {
  const node = state.nodes[broker], gone = Boolean(node) && node.state === "down";
  const leads = String(partition.leader) === broker;
  const role = gone ? "down (as it was)" : leads ? "leader" : partition.isr.includes(Number(broker)) ? "follower, in sync" : "follower, behind";
  const now = performance.now();
  const chips = (view.batches[broker] || []).map(([first, last, offset]) => {
    const key = `${picked}|${broker}|${producer}|${first}`;
    const repeat = (repeats.get(key) || 0) > now, isFresh = (fresh.get(key) || 0) > now;
    return element("span", {class: `chip${repeat ? " repeat" : isFresh ? " fresh" : ""}`}, `${first}–${last} @ ${offset}${repeat ? " repeat recognised" : ""}`);
  });
  return element("tr", {"data-broker": broker, "data-gone": gone ? "true" : null},
    element("th", {scope: "row"}, `Broker ${broker}`), element("td", {}, role), element("td", {}, view.epoch[broker] ?? "–"),
    element("td", {}, ...(chips.length ? chips : ["nothing yet"])));
}

function clock(ms) {
  const at = new Date(ms), two = (n) => String(n).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())},${String(at.getMilliseconds()).padStart(3, "0")}`;
}

function addLines(events) {
  const log = $("log"), lines = [];
  for (const event of events) {
    if (hidden.has(event.kind)) continue;
    lines.unshift(element("li", {"data-kind": event.kind, "data-number": event.number}, element("time", {}, clock(event.time_ms)),
      element("span", {class: `kind kind-${event.kind}`}, event.kind), element("span", {}, event.text)));
  }
  log.prepend(...lines);
  while (log.children.length > MAX_EVENTS) log.lastChild.remove();
}

function chart(svg, series, _, label) {
  const width = svg.clientWidth || 300, height = svg.clientHeight || 100;
  const most = Math.max(1, ...series.flat().filter((value) => value >= 0));
  const parts = [shape("text", {x: 4, y: 12}, most.toFixed(most < 10 ? 1 : 0)), shape("text", {x: 4, y: height - 4}, "0")];
  series.forEach((values, number) => {
    const at = values.map((value, index) => [width * (index + MAX_POINTS - values.length) / (MAX_POINTS - 1), value])
      .filter(([, value]) => value >= 0).map(([x, value]) => `${x.toFixed(1)},${(height - 4 - (height - 18) * value / most).toFixed(1)}`);
    if (at.length) parts.push(shape("polyline", {points: at.join(" "), class: number ? "line-b" : "line-a"}));
  });
  svg.replaceChildren(...parts);
  const now = series.map((values) => values.length ? values[values.length - 1] : 0).map((value) => value < 0 ? "none" : value.toFixed(1));
  svg.setAttribute("aria-label", `${label}: now ${now.join(" and ")}, at most ${most.toFixed(1)} in the last minute`);
}

// ---- What is done ----

function say(text, bad = false) {
  const said = $("said");
  said.textContent = text;
  said.classList.toggle("bad", bad);
}

async function post(path, body, doing) {
  if (doing) say(doing);
  try {
    const answer = await fetch(path, {
      method: "POST", headers: {"Content-Type": "application/json", "X-Fencepost-Token": TOKEN}, body: JSON.stringify(body),
    });
    const said = await answer.json();
    say(said.error || said.done, !answer.ok);
  } catch (error) {
    say(`The page’s server does not answer: ${error.message}`, true);
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) post("/api/do", {action: button.dataset.action, target: button.dataset.target});
});
$("start").addEventListener("click", async () => {
  $("start").disabled = true;
  await post("/api/cluster", {}, "Starting a controller and three brokers…");
  $("start").disabled = false;
});
$("load").addEventListener("click", () => post("/api/load", {on: !state.load.on}));
$("story-run").addEventListener("click", () => { pickedByHand = false; post("/api/story", {pace_s: $("stepwise").checked ? null : 3}); });
$("story-next").addEventListener("click", () => post("/api/story/next", {}));
$("pick").addEventListener("change", () => { picked = $("pick").value; pickedByHand = true; draw("producers"); });
$("find").addEventListener("input", () => { $("table").scrollTop = 0; draw("partitions"); });
$("table").addEventListener("scroll", () => requestAnimationFrame(drawRows), {passive: true});
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--back").trim() === "#10161d";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
window.addEventListener("resize", () => draw("strip", "charts", "partitions"));
for (const [kind, label] of Object.entries(KINDS)) {
  const box = element("input", {type: "checkbox", checked: true});
  box.addEventListener("change", () => { if (box.checked) hidden.delete(kind); else hidden.add(kind); draw("log", "strip"); });
  $("kinds").append(element("label", {}, box, ` ${label}`));
}
connect();
