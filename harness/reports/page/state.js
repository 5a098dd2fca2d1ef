"use strict";
// The data of the page and its state. The state is kept in the address, so a link shows what its sender saw.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ORDER = Object.keys(DATA.levels);
const find = id => document.getElementById(id);
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const plain = text => String(text).replace(/[&<>"']/g, sign => ENTITIES[sign]);
const breakable = text => plain(text).replace(/([_,[+])/g, "$1<wbr>");
const typeset = text => plain(text).replace(/ %/g, "\u00a0%").replace(/± /g, "±\u00a0").replace(/n = /g, "n\u00a0=\u00a0");
const signed = (value, digits) => {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) ? "−" : "+") + text;
};

// Turn rows into objects; the data have one list per column.
DATA.blocks.forEach((block, number) => {
  const columns = Object.entries(block.rows);
  block.number = number;
  block.rows = block.rows.arm.map((_, place) => {
    const row = { place };
    for (const [name, values] of columns) row[name] = values[place];
    row.cells = block.cells.map(metric => {
      const cell = {};
      for (const name in metric) cell[name] = metric[name][place];
      return cell.mean === undefined || cell.mean === null ? null : cell;
    });
    row.floor = row.level === "floor";
    row.indent = !row.floor && row.level !== "baseline";
    row.full = row.indent ? row.loss + row.name : row.name;
    row.words = [row.full, row.arm, row.title, row.level, block.dataset, block.backbone].join(" ").toLowerCase();
    return row;
  });
  let baseline = null;
  for (const row of block.rows) {
    if (!row.indent) baseline = row;
    row.baseline = row.indent ? baseline : null;
  }
});

const FACETS = {
  dataset: (block, row) => block.dataset,
  backbone: (block, row) => block.backbone,
  protocol: (block, row) => block.protocol,
  loss: (block, row) => row.loss,
  level: (block, row) => row.level,
};
const METRICS = [...new Set(DATA.blocks.flatMap(block => block.metrics))];
const state = { query: "", sort: "", order: "", fair: false, clean: false, metrics: new Set(), theme: "" };
for (const name in FACETS) state[name] = new Set();

function shownMetrics(block) {
  const selected = block.metrics.map((name, place) => place).filter(place => state.metrics.has(block.metrics[place]));
  return selected.length ? selected : block.shown;
}

function fits(block, row) {
  if (state.fair && (!block.fair || row.findings.some(note => block.findings[note][1] === "E"))) return false;
  if (state.clean && (row.findings.length || block.marks.length)) return false;
  for (const name in FACETS) if (state[name].size && !state[name].has(FACETS[name](block, row))) return false;
  return state.words.every(word => row.words.includes(word));
}

// Return the rows of a block that pass the filters, in the selected order; rows without a value are last.
function listed(block) {
  const rows = block.rows.filter(row => fits(block, row));
  const key = sortKey(block);
  if (!key) return rows;
  const way = state.order === "ascending" ? 1 : -1;
  const keyed = rows.map(row => [key(row), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return way * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
  return keyed.map(pair => pair[1]);
}

function sortKey(block) {
  if (!state.sort) return null;
  const known = value => (value === undefined ? null : value);
  if (state.sort === "method") return row => row.arm;
  if (state.sort in { time: 1, passes: 1, n: 1, peak: 1 }) return row => known(row[state.sort]);
  const [name, what] = state.sort.split("|");
  const place = block.metrics.indexOf(name);
  const read = { "": cell => -cell.place, d: cell => known(cell.difference), r: cell => (cell.rank ? cell.rank[0] : null) };
  return row => (place >= 0 && row.cells[place] ? read[what || ""](row.cells[place]) : null);
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name in FACETS) state[name] = new Set((given.get(name) || "").split("|").filter(Boolean));
  state.metrics = new Set((given.get("metrics") || "").split("|").filter(name => METRICS.includes(name)));
  state.query = given.get("q") || "";
  state.sort = given.get("sort") || "";
  state.order = given.get("order") || "";
  state.fair = given.has("fair");
  state.clean = given.has("clean");
  state.theme = given.get("theme") || "";
}

function writeAddress() {
  const given = new URLSearchParams();
  if (state.query) given.set("q", state.query);
  for (const name of [...Object.keys(FACETS), "metrics"]) if (state[name].size) given.set(name, [...state[name]].join("|"));
  if (state.sort) given.set("sort", state.sort), given.set("order", state.order);
  for (const name of ["fair", "clean"]) if (state[name]) given.set(name, "1");
  if (state.theme) given.set("theme", state.theme);
  const hash = "#" + given;
  if (hash === "#" && find(location.hash.slice(1))) return; // the address links to a rule
  if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
}
