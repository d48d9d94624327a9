// Keys, mouse, views: what the page does.

import { Grid } from "./grid.js";
import { plural, showPanel, verdictOf } from "./panel.js";
import { CODES, Server } from "./server.js";

const $ = (id) => document.getElementById(id);
const KEYS = { n: "unwanted", g: "good", u: "unsure" };
const CONTROLS = "button, a, summary"; // Enter and Space press them
const ROW = 24; // random samples, and samples to judge, shown at once

const VIEWS = [
  { name: "all", title: "All", hint: "Mark a few unwanted (N) and a few good ones (G), then look at Likely and Unsure. Press ? for all keys." },
  { name: "like", title: "Like your picture", pictures: true, unmarked: true, hint: "The samples most like your picture. Enter brings the next ones.",
    none: "Looking for samples like your picture." },
  { name: "ranked", title: "Ranked by the oracle", oracle: true, unmarked: true,
    hint: "The likeliest by the oracle; dashed: what it would mark unwanted. Correct it, then accept: nothing is marked before.",
    none: "The oracle is looking at samples." },
  { name: "likely", title: "Likely unwanted", unmarked: true, hint: "What your marks point to. Enter brings the next ones.",
    none: "Nothing: the probe needs three marks of each kind, or finds no more that looks unwanted." },
  { name: "unsure", title: "Unsure", unmarked: true, hint: "What the probe can tell least: marks here teach it most.",
    none: "Nothing: the probe needs three marks of each kind, or has nothing left to ask." },
  { name: "random", title: "Random", hint: "An unbiased share needs every one marked, in order. These are shown nowhere else." },
  { name: "judge", title: "Judge the result", judging: true,
    hint: "Samples of the original and of the result, shuffled. Mark what is unwanted, and the rest as good. They are for the verdict alone: nothing is learned from them.",
    none: "All are judged." },
  { name: "survived", title: "Survived", rounds: true, pair: true, unmarked: true,
    hint: "Unwanted in the original (left); first those that are likeliest to be so still (right, the same latents now). Mark what is; Enter brings the next ones.",
    none: "Nothing yet: samples of the result are being made, or all are marked." },
  { name: "damaged", title: "Changed most", rounds: true, pair: true,
    hint: "Good in the original (left); these changed most (right). Mark what was damaged as unwanted.",
    none: "Nothing was marked good in an earlier round." },
  { name: "were_unwanted", title: "Were unwanted", rounds: true, pair: true,
    hint: "A random sample of what you had marked unwanted: the original (left), the same latents now (right).",
    none: "Nothing was marked unwanted in an earlier round." },
  { name: "were_good", title: "Were good", rounds: true, pair: true,
    hint: "A random sample of what you had marked good: the original (left), the same latents now (right).",
    none: "Nothing was marked good in an earlier round." },
  { name: "contradictory", title: "Contradictory", optional: true,
    hint: "Marks that the others contradict. Look again: they may be slips.", none: "No mark is contradicted." },
  { name: "duplicates", title: "Near-duplicates", optional: true,
    hint: "Marked samples that another marked one is nearly the same as.", none: "None." },
  { name: "marked", title: "Marked", hint: "Unwanted first, then good, then unsure.", none: "Nothing is marked yet." },
];

const server = new Server();
const grid = new Grid($("grid"), server);
let view = VIEWS[0];
let shown = []; // the indices of a view other than all: they stay until the next page
let awaited = null; // the view whose next suggestions are to be shown
let brush = "unwanted";

// --- views

function listOf({ name, unmarked }) {
  const { state } = server;
  if (name === "random") {
    const from = Math.min(state.verdict.marked, state.random - ROW);
    return Array.from({ length: ROW }, (_, k) => from + k);
  }
  if (name === "judge") {
    const { judged, of, revealed } = state.judging ?? { judged: 0, of: 0, revealed: true };
    return revealed ? [] : Array.from({ length: Math.min(ROW, of - judged) }, (_, k) => -1 - judged - k);
  }
  if (name === "marked") {
    const found = { n: [], g: [], u: [] };
    server.codes.forEach((code, index) => found[String.fromCharCode(code)]?.push(index));
    return [...found.n, ...found.g, ...found.u];
  }
  // Suggestions may be older than the last marks: what was marked since is asked for no more.
  return (state.views[name] ?? []).filter((index) => !unmarked || server.code(index) === ".");
}

function pictures(index) {
  const { round } = server.state;
  if (index < 0) return [`/blind/${round}/${-1 - index}`];
  const now = `/thumb/${round}/${index}`;
  return view.pair ? [`/thumb/1/${index}`, now] : [now];
}

function choose(next) {
  if (view !== next) awaited = null;
  view = next;
  const all = view.name === "all";
  shown = all ? [] : listOf(view);
  const { state } = server;
  const length = all ? state.size - state.random : shown.length;
  grid.proposed = new Set(view.oracle ? state.called : []); // as they were when these were shown
  $("rest").textContent = view.oracle ? "Accept" : "Rest good";
  $("hint").textContent = view.hint;
  $("empty").hidden = length > 0;
  $("empty").textContent = (view.judging && state.judging?.revealed ? verdictOf(state.judging) : view.none) ?? "";
  $("grid").hidden = length === 0;
  grid.show(length, all ? (position) => state.random + position : (position) => shown[position], pictures, view.pair);
  if (view.name === "random") grid.go(Math.max(shown.findIndex((index) => server.code(index) === "."), 0));
  $("stage").setAttribute("aria-labelledby", `tab-${view.name}`);
  showTabs();
  $(`tab-${view.name}`).scrollIntoView({ block: "nearest", inline: "nearest" });
}

function showTabs() {
  for (const tab of VIEWS) {
    const button = $(`tab-${tab.name}`);
    const list = server.state.views[tab.name];
    const absent = (tab.rounds && server.state.round < 2) || (tab.optional && !list?.length)
      || (tab.judging && !server.state.judging) || (tab.pictures && !server.state.pictures)
      || (tab.oracle && !server.state.oracle);
    button.hidden = Boolean(absent) && tab !== view;
    button.textContent = list?.length && tab.optional ? `${tab.title} ${list.length}` : tab.title;
    button.setAttribute("aria-selected", tab === view);
    button.tabIndex = tab === view ? 0 : -1;
  }
}

function makeTabs() {
  for (const tab of VIEWS) {
    const button = document.createElement("button");
    button.id = `tab-${tab.name}`;
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", "stage");
    button.addEventListener("click", () => choose(tab));
    $("tabs").append(button);
  }
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const there = VIEWS.filter((tab) => !$(`tab-${tab.name}`).hidden);
    const next = there[(there.indexOf(view) + step + there.length) % there.length];
    choose(next);
    $(`tab-${next.name}`).focus();
    event.stopPropagation();
    event.preventDefault();
  });
}

function nextPage() {
  if (view.name === "all") {
    if (!grid.nextPage()) say("This is the last page.");
    return;
  }
  if (grid.nextPage()) return;
  if (view.name === "marked") say("This is the last page.");
  else awaited = view;
  showAwaited();
}

// Suggestions follow the last marks: they are shown once the probe has been fitted on those.
function showAwaited() {
  const learns = view.name !== "random" && view.name !== "judge";
  if (awaited !== view || (learns && !server.state.fitted) || server.pending.size) return;
  awaited = null;
  choose(view);
}

// Mark the rest shown, as good what no oracle proposes as unwanted, or all of it as unwanted; and go on.
function markRest(label) {
  const rest = (view.name === "all" ? grid.inView() : shown).filter((index) => server.code(index) === ".");
  const unwanted = rest.filter((index) => label === "unwanted" || grid.proposed.has(index));
  if (unwanted.length) mark(unwanted, "unwanted");
  if (unwanted.length < rest.length) mark(rest.filter((index) => !unwanted.includes(index)), "good");
  nextPage();
}

// --- marks

function mark(indices, label) {
  if (!indices.length) return;
  server.mark(indices, label, view.name);
  const what = label === "none" ? "not marked" : label;
  say(indices.length === 1 ? `Sample ${indices[0]} ${what}` : `${plural(indices.length, "sample")} ${what}`);
}

function toggle(indices) {
  mark(indices, indices.every((index) => server.code(index) === CODES[brush]) ? "none" : brush);
}

function setBrush(label) {
  brush = label;
  for (const button of document.querySelectorAll("#brush button"))
    button.setAttribute("aria-pressed", button.dataset.label === label);
}

function setZoom(zoom) {
  grid.zoom = zoom;
  for (const button of document.querySelectorAll("#zoom button"))
    button.setAttribute("aria-pressed", Number(button.dataset.zoom) === zoom);
  try {
    localStorage.setItem("zoom", zoom);
  } catch {} // storage may be off
}

// --- keys

function key(event) {
  if ($("help").open || event.altKey || !server.state) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (pressed === "z") act(event.shiftKey ? "redo" : "undo", event);
    else if (pressed === "y") act("redo", event);
    else if (pressed === "Enter") {
      event.preventDefault();
      markRest("unwanted");
    }
    return;
  }
  const presses = pressed === " " || (pressed === "Enter" && !event.shiftKey);
  if (presses && event.target.closest?.(CONTROLS)) return;
  if (pressed.startsWith("Arrow") || pressed === "Home" || pressed === "End") grid.move(pressed, event.shiftKey);
  else if (KEYS[pressed]) markAndMove(KEYS[pressed]);
  else if (pressed === " ") toggle(grid.chosen());
  else if (pressed === "Backspace" || pressed === "Delete") mark(grid.chosen(), "none");
  else if (pressed === "z" || pressed === "y") act(pressed === "z" ? "undo" : "redo");
  else if (pressed === "Enter") event.shiftKey ? markRest("good") : nextPage();
  else if (pressed === "?") $("help").showModal();
  else if ("123".includes(pressed)) setZoom(Number(pressed) - 1);
  else return;
  event.preventDefault();
}

function markAndMove(label) {
  const chosen = grid.chosen();
  mark(chosen, label);
  grid.go(chosen.length === 1 ? grid.cursor + 1 : grid.cursor); // a range is chosen no longer
}

function act(name, event) {
  event?.preventDefault();
  server.act(name);
}

// --- words

let calm = 0;
function say(text) {
  clearTimeout(calm);
  calm = setTimeout(() => ($("status").textContent = text), 150);
}

let quiet = 0;
function trouble({ text, lasting }) {
  clearTimeout(quiet);
  $("alert").textContent = text;
  $("alert").hidden = false;
  if (!lasting) quiet = setTimeout(() => ($("alert").hidden = true), 6000);
  else $("alert").dataset.lasting = "yes";
}

function showState() {
  const { state } = server;
  if ($("alert").dataset.lasting) { // it answers again
    delete $("alert").dataset.lasting;
    $("alert").hidden = true;
  }
  if (state.error) trouble({ text: `Samples cannot be made: ${state.error}`, lasting: true });
  $("undo").disabled = !state.undo;
  $("redo").disabled = !state.redo;
  showTabs();
  showPanel(state);
  showAwaited();
  if (view.judging && state.judging?.revealed && shown.length) choose(view);
  // A view that was empty fills as soon as there is something.
  if (view.name !== "all" && !shown.length && listOf(view).length) choose(view);
}

// --- together

makeTabs();
setBrush(brush);
setZoom(storedZoom());
document.addEventListener("keydown", key);
// A click leaves the focus where it was: else Enter and Space would press again what was clicked.
document.addEventListener("mousedown", (event) => {
  if (event.target.closest?.(CONTROLS)) event.preventDefault();
});
for (const button of document.querySelectorAll("#brush button"))
  button.addEventListener("click", () => setBrush(button.dataset.label));
for (const button of document.querySelectorAll("#zoom button"))
  button.addEventListener("click", () => setZoom(Number(button.dataset.zoom)));
for (const name of ["undo", "redo", "run", "anew", "stop", "reveal"]) $(name).addEventListener("click", () => act(name));
$("round-button").addEventListener("click", () => act("round"));
$("judge").addEventListener("click", () => choose(VIEWS.find((v) => v.name === "judge")));
$("next").addEventListener("click", nextPage);
$("rest").addEventListener("click", () => markRest("good"));
$("rest-unwanted").addEventListener("click", () => markRest("unwanted"));
$("help-button").addEventListener("click", () => $("help").showModal());
grid.addEventListener("pick", ({ detail }) => {
  if (!detail.range) return toggle(grid.chosen());
  mark(grid.chosen(), brush);
  return grid.go(grid.cursor);
});
server.addEventListener("round", () => {
  const { round, pictures: own, oracle } = server.state;
  choose(VIEWS.find(({ name }) => name === (round > 1 ? "survived" : own ? "like" : oracle ? "ranked" : "all")));
});
server.addEventListener("marks", () => {
  grid.refresh();
  if (server.state) showAwaited();
});
server.addEventListener("state", showState);
server.addEventListener("trouble", ({ detail }) => trouble(detail));
server.start();
$("grid").focus();

function storedZoom() {
  try {
    const zoom = Number(localStorage.getItem("zoom") ?? 1);
    return [0, 1, 2].includes(zoom) ? zoom : 1;
  } catch {
    return 1;
  }
}
